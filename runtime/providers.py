"""Which providers there are: configured ones, those whose key is in the environment, local servers, the embedded one.

In this order they are preferred when nobody chose a model. Nothing is asked here; the warm-up does that.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triops.agents.model import ModelInfo, Provider
from triops.agents.providers import open_provider
from triops.agents.providers.http import HttpClient
from triops.runtime.config import Config, ProviderConfig, configured_models
from triops.runtime.logs import Redactor
from triops.runtime.models import ProviderEntry
from triops.runtime.secrets import Secret

_KNOWN: dict[str, tuple[str, str, str]] = {
    "openai": ("openai-completions", "https://api.openai.com/v1", "OPENAI_API_KEY"),
    "anthropic": ("anthropic-messages", "https://api.anthropic.com", "ANTHROPIC_API_KEY"),
}
"""Providers that need no configuration but a key: wire format, endpoint, the variable of the key."""

_LOCAL: dict[str, tuple[str, str]] = {
    "ollama": ("Ollama", "http://127.0.0.1:11434/v1"),
    "lmstudio": ("LM Studio", "http://127.0.0.1:1234/v1"),
    "llamacpp": ("llama.cpp", "http://127.0.0.1:8080/v1"),
}
"""Servers on this machine that are looked for, at their usual ports."""


def provider_entries(
    config: Config, environ: Mapping[str, str], *, http: HttpClient, embedded: Provider | None, redactor: Redactor
) -> list[ProviderEntry]:
    """Every provider, the preferred first. `http` and `embedded` stay their owner's.

    Raises:
        ValueError: the configuration names a wire format that does not exist; it names the known ones.
    """
    models = list(configured_models(config).values())
    entries = [
        _configured(id, provider, environ, [info for info in models if info.ref.provider == id], http, redactor)
        for id, provider in config.models.providers.items()
    ]
    taken = set(config.models.providers)
    if config.models.mode == "replace":
        return entries
    for id, (api, url, variable) in _KNOWN.items():
        key = environ.get(variable)
        if key and id not in taken:
            redactor.add([Secret(key)])
            provider = open_provider(api, id=id, base_url=url, api_key=key, http=http, discover=True)
            entries.append(ProviderEntry(provider=provider, why=f"{variable} is set"))
    if "codex" not in taken:
        entries += _codex(environ, http)
    if config.agents.defaults.model.primary is None:  # who chose a model is not looked for on strange ports
        for id, (name, url) in _LOCAL.items():
            if id not in taken:
                provider = open_provider("openai-completions", id=id, base_url=url, http=http, discover=True)
                entries.append(ProviderEntry(provider=provider, why=f"{name} answers on this machine", local=True))
    if embedded is not None:
        entries.append(ProviderEntry(provider=embedded, why="nothing better was found", local=True))
    return entries


def _configured(
    id: str,
    provider: ProviderConfig,
    environ: Mapping[str, str],
    models: list[ModelInfo],
    http: HttpClient,
    redactor: Redactor,
) -> ProviderEntry:
    known = _KNOWN.get(id)
    api = provider.api or (known[0] if known else "codex" if id == "codex" else "openai-completions")
    key = provider.api_key.reveal() if provider.api_key else environ.get(known[2]) if known else None
    if key is not None:
        redactor.add([Secret(key)])
    settings: dict[str, Any] = {
        "id": id,
        "base_url": provider.base_url or (known[1] if known else None),
        "api_key": key,
        "headers": {name: value.reveal() for name, value in provider.headers.items()},
        "idle": provider.timeout_seconds or None,
        "http": http,
        "bearer": provider.auth == "token",
        "discover": not models,
    }
    if api == "codex":
        settings["login_file"] = _login_file(environ)
    if api == "scripted":
        settings = {"id": id}
    if settings.get("base_url", "") is None and api != "codex":
        raise ValueError(
            f"models.providers.{id}.baseUrl is missing: write where {id} is, such as http://127.0.0.1:1234/v1"
        )
    given = {name: value for name, value in settings.items() if value is not None}
    try:
        opened = open_provider(api, **given)
    except ValueError as error:
        raise ValueError(f"models.providers.{id}.api: {error}") from None
    return ProviderEntry(provider=opened, why="configured", models=tuple(models))


def _codex(environ: Mapping[str, str], http: HttpClient) -> list[ProviderEntry]:
    """The Codex CLI's account, if it is logged in on this machine."""
    login = _login_file(environ)
    if not login.is_file():
        return []
    provider = open_provider("codex", login_file=login, http=http)
    return [ProviderEntry(provider=provider, why="the Codex CLI is logged in")]


def _login_file(environ: Mapping[str, str]) -> Path:
    home = environ.get("CODEX_HOME")
    return (Path(home) if home else Path.home() / ".codex") / "auth.json"
