"""What is known of providers before anybody asks them: addresses, wire formats, keys, configured models.

Pure; knows neither files nor the network.
"""

import re
from typing import cast, get_args

from triops.agents.model import InputKind, ModelInfo, ModelRef, possible
from triops.agents.providers import plugins
from triops.runtime.config import Config, ModelConfig, ProviderConfig, join

ENDPOINTS: dict[str, tuple[str, str | None]] = {
    "openai": ("openai-completions", "https://api.openai.com/v1"),
    "anthropic": ("anthropic-messages", "https://api.anthropic.com"),
    "codex": ("codex", None),
    "scripted": ("scripted", None),
    "ollama": ("ollama", "http://127.0.0.1:11434"),
    "lmstudio": ("openai-completions", "http://127.0.0.1:1234/v1"),
    "llamacpp": ("openai-completions", "http://127.0.0.1:8080/v1"),
}
"""The wire format and the address of providers that are known by their id."""
KEYED = ("openai", "anthropic")
"""Those of them that answer nobody without a key."""
LOCAL = {"ollama": "Ollama", "lmstudio": "LM Studio", "llamacpp": "llama.cpp"}
"""Those of them that are servers on this machine."""


def endpoint_of(id: str, provider: ProviderConfig) -> tuple[str, str | None]:
    """The wire format of a provider, and where it is; None if nobody said."""
    api, url = ENDPOINTS.get(id, ("openai-completions", None))
    if id not in ENDPOINTS and provider.api is None and provider.base_url is None and id in plugins():
        api = id
    return provider.api or api, provider.base_url or url


def key_variable(id: str) -> str:
    """The environment's variable for a provider's key."""
    return re.sub(r"\W", "_", id, flags=re.ASCII).upper() + "_API_KEY"


def key_hint(id: str) -> str:
    """Where to set a provider's key, in words."""
    return f"set {key_variable(id)} or write {join('models.providers', id)}.apiKey"


def local_servers(config: "Config") -> list[str]:
    """The servers on this machine that are looked for: all if no model is chosen, else those that one is chosen of."""
    defaults, providers = config.agents.defaults, config.models.providers
    if config.models.mode == "replace":
        return []
    choices = (defaults.model, *(entry.model for entry in config.agents.entries.values()))
    named = {name for choice in choices for name in (choice.primary or "", *choice.fallbacks)}
    named |= {*defaults.models, defaults.heartbeat.model or ""}
    named -= {model.id for provider in providers.values() for model in provider.models}  # `ollama/m` of a proxy
    ids = {name.partition("/")[0] for name in named}
    return [id for id in LOCAL if id not in providers and (defaults.model.primary is None or id in ids)]


def configured_models(config: Config) -> dict[ModelRef, ModelInfo]:
    """The models that stand in the configuration, in its order, without what cannot be."""
    return {
        info.ref: info
        for id, provider in config.models.providers.items()
        for info in (possible(written_model(id, provider, model))[0] for model in provider.models)
    }


def written_model(provider_id: str, provider: ProviderConfig, model: ModelConfig) -> ModelInfo:
    """A model as it stands in the configuration, possible or not."""
    kinds = tuple(kind for kind in get_args(InputKind) if kind in model.input)
    return ModelInfo(
        ref=ModelRef(provider_id, model.id),
        name=model.name or model.id,
        api=model.api or endpoint_of(provider_id, provider)[0],
        context_window=model.context_window,
        max_tokens=8_192 if model.max_tokens is None else model.max_tokens,
        input=cast("tuple[InputKind, ...]", kinds) or ("text",),
        reasoning=model.reasoning,
        cost=model.cost,
        compat=model.compat,
        params=tuple(model.params.items()),
    )
