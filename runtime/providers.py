"""Which providers there are: configured ones, those whose key is in the environment, local servers, the embedded one.

In this order they are preferred when nobody chose a model. Nothing is asked here; the warm-up does that.
"""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import msgspec
import trio

from triops.agents.errors import ErrorKind, ProviderError
from triops.agents.model import ModelInfo, ModelRequest, Provider
from triops.agents.providers import APIS, open_provider, plugins
from triops.agents.providers.http import HttpClient
from triops.agents.providers.routes import Trust
from triops.runtime.config import Config, ProviderConfig, join
from triops.runtime.config_file import LoadedConfig
from triops.runtime.endpoints import (
    ENDPOINTS,
    KEYED,
    LOCAL,
    configured_models,
    endpoint_of,
    key_hint,
    key_variable,
    local_servers,
)
from triops.runtime.logs import Redactor
from triops.runtime.models import ModelCatalog, ProviderEntry
from triops.runtime.paths import Paths
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


@asynccontextmanager
async def open_catalogs(
    paths: Paths, *, redactor: Redactor, providers: tuple[ProviderEntry, ...] | None = None
) -> AsyncGenerator[Callable[[LoadedConfig], ModelCatalog]]:
    """What makes the catalogue of a configuration, whose models are served until the block ends.

    A provider of which a configuration says the same as the one before stays what it was, with its connections, unless
    the way to all of them is another one. `providers` replace all.
    """
    async with AsyncExitStack() as stack:
        embedded = await _embedded(stack, paths) if providers is None else None
        client = stack.enter_context(ExitStack())
        http: HttpClient | None = None
        reached: tuple[Any, ...] = ()
        were: Mapping[str, ProviderConfig] = {}
        entries: dict[str, ProviderEntry] = {}

        def catalog_of(loaded: LoadedConfig) -> ModelCatalog:
            nonlocal http, reached, were, entries
            config = loaded.config
            if providers is not None:
                return _catalog(config, providers)
            way = config.models.patience_seconds, loaded.environ, _trusts(config, paths.config.parent)
            if http is None or way != reached:
                client.close()
                http = client.enter_context(closing(HttpClient(patience=way[0], environ=way[1], trust=way[2])))
                reached, entries = way, {}
            found = provider_entries(config, loaded.environ, http=http, embedded=embedded, redactor=redactor)
            are, old = config.models.providers, entries
            found = [
                old.get(e.provider.id, e) if were.get(e.provider.id) == are.get(e.provider.id) else e for e in found
            ]
            were, entries = are, {entry.provider.id: entry for entry in found}
            return _catalog(config, tuple(found))

        yield catalog_of


async def _embedded(stack: AsyncExitStack, paths: Paths) -> Provider:
    from triops.agents.providers.local import open_local_provider

    return await stack.enter_async_context(open_local_provider([paths.models], socket_folder=paths.state / "engine"))


def _trusts(config: Config, folder: Path) -> dict[str, Trust]:
    """What to believe of providers' servers, by the `host:port` of their addresses; `folder` is the configuration's."""
    found: dict[str, Trust] = {}
    for id, provider in config.models.providers.items():
        ca, anything = provider.request.tls.ca or "", provider.request.tls.insecure_skip_verify
        if ca and not ca.startswith("-----BEGIN"):
            ca = str(folder / Path(ca).expanduser())
        if ca or anything:
            found[urlsplit(endpoint_of(id, provider)[1] or "").netloc.rpartition("@")[2].lower()] = Trust(ca, anything)
    return found


def _catalog(config: Config, providers: tuple[ProviderEntry, ...]) -> ModelCatalog:
    defaults = config.agents.defaults
    aliases = {setting.alias: ref for ref, setting in defaults.models.items() if setting.alias}
    choices = (defaults.model, *(entry.model for entry in config.agents.entries.values()))
    named = [name for choice in choices for name in (choice.primary, *choice.fallbacks) if name]
    named += [*aliases.values(), *filter(None, [defaults.heartbeat.model])]
    return ModelCatalog(providers, aliases=aliases, default=defaults.model.primary, named=tuple(dict.fromkeys(named)))


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
