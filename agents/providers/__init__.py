"""Providers of models by the wire format they speak; each is imported when it is first opened."""

from importlib import import_module
from typing import Any, cast

from triops.agents.model import Provider

_PROVIDERS = {
    "openai-completions": ("openai_completions", "OpenAICompletionsProvider"),
    "ollama": ("openai_completions", "OllamaProvider"),
    "openai-responses": ("openai_responses", "OpenAIResponsesProvider"),
    "anthropic-messages": ("anthropic_messages", "AnthropicMessagesProvider"),
    "codex": ("codex", "CodexProvider"),
    "scripted": ("scripted", "ScriptedProvider"),
}
APIS = tuple(sorted(_PROVIDERS))
_UNUSED = {
    "codex": {"api_key", "bearer", "discover", "key_hint"},
    "scripted": {"api_key", "bearer", "discover", "key_hint", "base_url", "headers", "http", "idle"},
}


def open_provider(api: str, **settings: Any) -> Provider:
    """The provider that speaks `api`. Does no IO.

    `settings` are its constructor's: `id`, `base_url`, `http`, `api_key`, `headers`, `idle`, `bearer`, `discover`,
    `key_hint`, `now`; of these, one that this provider has no use for is left out.

    Raises:
        ValueError: no provider speaks `api`; the message lists those that exist.
    """
    if api not in _PROVIDERS:
        raise ValueError(f"unknown api {api!r}; known: {', '.join(APIS)}")
    module, name = _PROVIDERS[api]
    used = {key: value for key, value in settings.items() if key not in _UNUSED.get(api, ())}
    return cast("Provider", getattr(import_module(f"triops.agents.providers.{module}"), name)(**used))
