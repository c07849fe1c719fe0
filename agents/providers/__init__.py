"""Providers of models by the wire format they speak; each is imported when it is first opened."""

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from triops.agents.model import Provider

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

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


@cache
def plugins() -> "dict[str, EntryPoint]":
    """Providers of other packages by the name of their entry point in the group `triops.providers`, none imported.

    The name is an `api` as those here are. What it stands for is called with the settings of `open_provider`, all by
    keyword, and gives back a `Provider`; it should take `**more`, for later versions may have more settings. A plugin
    that the configuration does not mention is a provider of that name.
    """
    from importlib.metadata import entry_points  # 10 ms

    return {point.name: point for point in entry_points(group="triops.providers") if point.name not in _PROVIDERS}


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
