"""Which providers there are: configured ones, those whose key is in the environment, local servers, the embedded one.

In this order they are preferred when nobody chose a model. Nothing is asked here; the warm-up does that.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import trio

from triops.agents.errors import ErrorKind, ProviderError
from triops.agents.model import ModelInfo, ModelRequest, Provider
from triops.agents.providers import APIS, open_provider, plugins
from triops.agents.providers.http import HttpClient
from triops.runtime.config import (
    ENDPOINTS,
    KEYED,
    LOCAL,
    Config,
    ProviderConfig,
    configured_models,
    endpoint_of,
    join,
    key_hint,
    key_variable,
    local_servers,
)
from triops.runtime.logs import Redactor
from triops.runtime.models import ProviderEntry
from triops.runtime.plugins import LateProvider, open_plugin
from triops.runtime.secrets import KeyCommand, Secret


class Unserved:
    """A `Provider` that cannot be asked as it is configured: whoever wants something of it is told why."""

    def __init__(self, id: str, kind: ErrorKind, why: str) -> None:
        self.id = id
        self._kind: ErrorKind = kind
        self._why = why

    def stream(self, request: ModelRequest) -> NoReturn:
        raise ProviderError(self._kind, f"{request.model.ref} cannot be asked: {self._why}")

    async def discover(self) -> NoReturn:
        raise ProviderError(self._kind, self._why)

    async def resolve_dynamic(self, model_id: str) -> None:
        """None: it has no models but the configured ones."""

    async def warm(self, model: ModelInfo, system: str) -> NoReturn:
        raise ProviderError(self._kind, self._why)


def provider_entries(
    config: Config, environ: Mapping[str, str], *, http: HttpClient, embedded: Provider | None, redactor: Redactor
) -> list[ProviderEntry]:
    """Every provider, the preferred first. `http` and `embedded` stay their owner's."""
    models = list(configured_models(config).values())
    entries = [
        _configured(id, provider, environ, [info for info in models if info.ref.provider == id], http, redactor)
        for id, provider in config.models.providers.items()
    ]
    taken = set(config.models.providers)
    if config.models.mode == "replace":
        return entries
    for id in KEYED:
        if environ.get(key_variable(id)) and id not in taken:
            found = _configured(id, ProviderConfig(), environ, [], http, redactor)
            entries.append(msgspec.structs.replace(found, why=f"{key_variable(id)} is set"))
    if "codex" not in taken and (login := _login_file(environ)).is_file():
        provider = open_provider("codex", login_file=login, http=http)
        entries.append(ProviderEntry(provider=provider, why="the Codex CLI is logged in"))
    named = {provider.api for provider in config.models.providers.values()}
    for name in sorted(plugins().keys() - taken - named):
        found = _configured(name, ProviderConfig(), environ, [], http, redactor)
        entries.append(msgspec.structs.replace(found, why=f"its plugin {plugins()[name].value} is installed"))
    for id in local_servers(config):
        api, url = ENDPOINTS[id]
        provider = open_provider(api, id=id, base_url=url, http=http, discover=True)
        entries.append(ProviderEntry(provider=provider, why=f"{LOCAL[id]} answers on this machine"))
    if embedded is not None:
        entries.append(ProviderEntry(provider=embedded, why="it is on this machine, for when nothing better is found"))
    return entries


def _configured(
    id: str,
    provider: ProviderConfig,
    environ: Mapping[str, str],
    models: list[ModelInfo],
    http: HttpClient,
    redactor: Redactor,
) -> ProviderEntry:
    main, url = endpoint_of(id, provider)
    command = provider.api_key if isinstance(provider.api_key, KeyCommand) else None
    key = provider.api_key.reveal() if provider.api_key else environ.get(key_variable(id))
    hint = key_hint(id)
    if key or command:
        redactor.add([Secret(key or "")])
        where = f"{join('models.providers', id)}.apiKey" if provider.api_key else key_variable(id)
        hint = f"it refused the key of {where}: check that one"
    settings: dict[str, Any] = {
        "id": id,
        "base_url": url,
        "api_key": key or None,
        "headers": {name: value.reveal() for name, value in provider.headers.items()},
        "idle": provider.timeout_seconds or None,
        "http": http,
        "bearer": provider.auth == "token",
        "discover": not models,
        "key_hint": hint,
    }
    given = {name: value for name, value in settings.items() if value is not None}

    def opened(api: str, said: str = "") -> Provider:
        settings = {**given, "api_key": said} if said else given
        if api in plugins():
            return open_plugin(api, settings)
        if api not in APIS:
            return Unserved(id, "unclassified", f"its api {api!r} is not supported; known: {', '.join(APIS)}")
        if id in KEYED and not (key or said or provider.base_url or provider.headers):
            return Unserved(id, "auth", f"{id} needs a key: {key_hint(id)}")
        login = {"login_file": _login_file(environ)} if api == "codex" else {}
        return open_provider(api, **settings, **login)

    def served(api: str) -> Provider:
        async def open(command: KeyCommand) -> Provider:
            return opened(api, await _key_said_by(command, redactor))

        return opened(api) if command is None else LateProvider(id, partial(open, command))

    others = {api: served(api) for api in {info.api for info in models} - {main}}
    source = "config" if provider.api_key else "env" if key else None
    return ProviderEntry(provider=served(main), why="configured", models=tuple(models), key=source, others=others)


async def _key_said_by(command: KeyCommand, redactor: Redactor) -> str:
    program = command.argv[0]
    try:
        with trio.fail_after(command.seconds):
            done = await trio.run_process(
                command.argv,
                stdin=command.request,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env=command.environ,
            )
    except trio.TooSlowError:
        raise ProviderError("auth", f"{program} said no key within {command.seconds:g} s", retryable=True) from None
    except OSError as error:
        raise ProviderError("auth", f"{program}, which should say the key, cannot be run: {error.strerror}") from None
    key = "" if done.returncode else command.key_in(done.stdout)
    if not key:
        words = done.stderr.decode("utf-8", "replace").strip()[:200]
        raise ProviderError("auth", f"{program} said no key (exit code {done.returncode}){words and f': {words}'}")
    redactor.add([Secret(key)])
    return key


def _login_file(environ: Mapping[str, str]) -> Path:
    home = environ.get("CODEX_HOME")
    return (Path(home) if home else Path.home() / ".codex") / "auth.json"
