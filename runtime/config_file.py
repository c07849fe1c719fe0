"""Reads the configuration file and the environment, and judges the whole. Knows nothing of who uses it.

Loads neither the loop nor, without a file, the JSON5 parser: both would cost a start that does not need them.
"""

import hashlib
import ipaddress
import re
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import urlsplit

import msgspec
from msgspec.structs import replace

from triops.agents.model import possible
from triops.agents.providers import APIS, plugins
from triops.runtime.config import AuthConfig, Config, GatewayConfig, ModelConfig, ProviderConfig, SecretsConfig, join
from triops.runtime.config_reader import ConfigError, ConfigReader, Fault, Notice
from triops.runtime.endpoints import KEYED, endpoint_of, local_servers, written_model
from triops.runtime.paths import Paths
from triops.runtime.secrets import Secret

MAX_FILE = 2 << 20
"""Bytes."""
SHORTEST_PASSWORD = 12
"""Characters."""
SHORTEST_TOKEN = 16
"""Characters; a shorter one is warned of, and refused where the gateway can be reached from outside."""

_AGENT_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s*@?#]+")


class LoadedConfig(msgspec.Struct, frozen=True):
    """A configuration and where it comes from."""

    config: Config
    warnings: tuple[Notice, ...] = ()
    """What to tell the user; `info` for what is only good to know."""
    raw: str | None = None
    """The file's text, secrets and all: for `redacted_raw`."""
    parsed: dict[str, Any] = {}
    """The file as it was written, before variables are filled in, secrets and all: for `redacted`."""
    hash: str | None = None
    """SHA-256 of the file, in hex: what a writer must name to prove that it saw this state."""
    exists: bool = False
    secrets: tuple[Secret, ...] = ()
    """Every secret of the configuration, for the log's redactor."""
    environ: Mapping[str, str] = {}
    """The environment, over the file's `env.vars`: where to look for a provider's key."""

    def __repr__(self) -> str:
        return f"LoadedConfig(hash={self.hash}, warnings={len(self.warnings)})"


def load_config(paths: Paths, environ: Mapping[str, str]) -> LoadedConfig:
    """The configuration that holds: the file's if there is one, else the default; the environment over both.

    Raises:
        ConfigError: the file cannot be read, or the process must not start with what it says; lists every fault.
    """
    text = _read_text(paths)
    parsed = {} if text is None else _parse(paths, text)
    environ = _variables(parsed) | dict(environ)
    reader = ConfigReader(environ)
    if text is None and environ.get("TRIOPS_CONFIG_PATH"):
        reader.warn("TRIOPS_CONFIG_PATH", f"there is no file {paths.config}; the defaults hold")
    sources = reader.struct(SecretsConfig, parsed.get("secrets", {}), "secrets") or SecretsConfig()
    reader.sources = sources.providers
    rest = {key: value for key, value in parsed.items() if key != "secrets"}
    config = replace(reader.struct(Config, rest) or Config(), secrets=sources)
    config = replace(config, gateway=_gateway(config.gateway, parsed, environ, reader))
    _check_hooks(config, reader)
    _check_agents(config, reader)
    _check_providers(config, reader)
    if (url := config.diagnostics.otel.endpoint) is not None:
        _check_url(url, "diagnostics.otel.endpoint", reader)
    if reader.faults:
        raise ConfigError(str(paths.config), tuple(reader.faults), reader.notices)
    return LoadedConfig(
        config=config,
        warnings=reader.notices,
        raw=text,
        parsed=parsed,
        hash=None if text is None else hashlib.sha256(text.encode()).hexdigest(),
        exists=text is not None,
        secrets=tuple(reader.secrets),
        environ=environ,
    )


def parse_json5(text: str) -> object:
    """The value that a JSON5 text says.

    Raises:
        ValueError: it is none; the message names the place and never quotes the text, which may hold secrets.
    """
    import pyjson5  # only who has a file needs it

    try:
        return pyjson5.decode(text)
    except pyjson5.Json5DecoderException as error:
        problem = str(error.args[0])
    if (place := re.search(r" (?:starting )?near (\d+)", problem)) is not None:
        before = text[: int(place[1]) - 1]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        problem = f"line {line}, column {column}: {problem.replace(place[0], '')}"
    problem = re.sub(r"U\+([0-9a-fA-F]+)", lambda match: repr(chr(int(match[1], 16))), problem)
    # The parser's own exception holds what it had read so far, secrets too: it is not chained.
    raise ValueError(re.sub(r"b'(\w+)'", r"\1", problem))


def _read_text(paths: Paths) -> str | None:
    try:
        with paths.config.open("rb") as file:
            data = file.read(MAX_FILE + 1)
        text = data.decode()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(paths, f"cannot be read: {error.strerror}", "correct its owner or mode") from None
    except UnicodeDecodeError:
        raise _unusable(paths, "is not UTF-8", "save it as UTF-8") from None
    if len(data) > MAX_FILE:
        raise _unusable(paths, f"is over {MAX_FILE} bytes", "make it smaller")
    return text


def _parse(paths: Paths, text: str) -> dict[str, Any]:
    try:
        parsed = parse_json5(text)
    except ValueError as error:
        raise _unusable(paths, f"is not JSON5: {error}", "correct that place") from None
    if not isinstance(parsed, dict):
        raise _unusable(paths, "does not hold an object", "begin it with { and end it with }")
    return cast("dict[str, Any]", parsed)


def _unusable(paths: Paths, problem: str, remedy: str) -> ConfigError:
    return ConfigError(str(paths.config), (Fault("the file", problem, remedy),))


def _variables(parsed: dict[str, Any]) -> dict[str, str]:
    """`env.vars` as far as they are texts; the reader tells what is wrong with the rest."""
    section: Any = parsed.get("env")
    variables: Any = cast("dict[str, Any]", section).get("vars") if isinstance(section, dict) else None
    items = cast("dict[str, Any]", variables).items() if isinstance(variables, dict) else ()
    return {key: value for key, value in items if isinstance(value, str)}


def _gateway(
    config: GatewayConfig, parsed: dict[str, Any], environ: Mapping[str, str], reader: ConfigReader
) -> GatewayConfig:
    port = config.port
    if (setting := _setting("PORT", environ)) is not None:
        name, text = setting
        if text.isascii() and text.isdigit() and int(text) <= 65535:
            port = int(text)
        else:
            reader.fault(name, f"{text!r} is not a port", "set it to a number from 0 to 65535, or unset it")
    loopback = config.bind == "loopback" or (config.bind == "custom" and _is_loopback(config.custom_bind_host, reader))
    if not loopback:
        reader.warn("gateway.bind", "other machines can reach this gateway; they need its token or password")
    auth = _auth(config.auth, "mode" in _at(parsed, "gateway", "auth"), environ, reader)
    if auth.mode == "none" and not loopback:
        reader.fault("gateway.auth.mode", f"without auth, bind {config.bind!r} would let everybody in", "use a token")
    if auth.mode == "token" and auth.token is not None and len(auth.token.reveal()) < SHORTEST_TOKEN:
        problem = f"a token under {SHORTEST_TOKEN} characters can be guessed"
        if loopback:
            reader.warn("gateway.auth.token", f"{problem}; leave it out and a random one is made")
        else:
            reader.fault("gateway.auth.token", problem, "leave it out and a random one is made")
    origins: list[str] = []
    for index, origin in enumerate(config.control_ui.allowed_origins):
        origin = origin.lower().rstrip("/")
        if _ORIGIN.fullmatch(origin):
            origins.append(origin)
        else:
            reader.warn(
                f"gateway.controlUi.allowedOrigins[{index}]", f"{origin!r} is no scheme://host[:port]; not used"
            )
    return replace(config, port=port, auth=auth, control_ui=replace(config.control_ui, allowed_origins=tuple(origins)))


def _check_hooks(config: Config, reader: ConfigReader) -> None:
    hooks, auth = config.hooks, config.gateway.auth
    if hooks.enabled and hooks.token is None:
        reader.warn("hooks.token", "is missing, so that there are no hooks")
    elif hooks.enabled and hooks.token is not None:
        if len(hooks.token.reveal()) < SHORTEST_TOKEN:
            reader.fault("hooks.token", "can be guessed", f"use {SHORTEST_TOKEN} characters or more")
        if hooks.token in (auth.token, auth.password):
            reader.fault("hooks.token", "is the gateway's own secret", "use another one")
        if not hooks.path.strip("/"):
            reader.fault("hooks.path", "is the root", "write a path such as /hooks")


def _auth(config: AuthConfig, explicit: bool, environ: Mapping[str, str], reader: ConfigReader) -> AuthConfig:
    given: dict[str, Secret] = {}
    for name in ("token", "password"):
        if (setting := _setting(name.upper(), environ)) is not None:
            given[name] = Secret(setting[1])
    reader.secrets += given.values()
    config = replace(config, **given)
    if not explicit and config.password is not None:
        if config.token is not None:
            reader.fault("gateway.auth", "both a token and a password are set", 'write mode: "token" or "password"')
        config = replace(config, mode="password")
    if config.mode == "password":
        if config.password is None:
            reader.fault("gateway.auth.password", "is missing", 'write it, or use mode: "token"')
        elif len(config.password.reveal()) < SHORTEST_PASSWORD:
            reader.fault("gateway.auth.password", "can be guessed", f"use {SHORTEST_PASSWORD} characters or more")
    return config


def _setting(name: str, environ: Mapping[str, str]) -> tuple[str, str] | None:
    for variable in (f"TRIOPS_GATEWAY_{name}", f"OPENCLAW_GATEWAY_{name}"):
        if text := environ.get(variable, "").strip():
            return variable, text
    return None


def _at(parsed: dict[str, Any], *keys: str) -> dict[str, Any]:
    for key in keys:
        inner: Any = parsed.get(key)
        parsed = cast("dict[str, Any]", inner) if isinstance(inner, dict) else {}
    return parsed


def _is_loopback(host: str | None, reader: ConfigReader) -> bool:
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        reader.fault("gateway.customBindHost", f"{host!r} is no address", "write the IP address to listen on")
        return False


def _check_agents(config: Config, reader: ConfigReader) -> None:
    for id in config.agents.entries:
        if not _AGENT_ID.fullmatch(id):
            path = join("agents.entries", id)
            reader.fault(path, "is no agent id", "use a-z, 0-9, - and _, at most 64, beginning with a letter or digit")
    if (zone := config.agents.defaults.user_timezone) is not None:
        import zoneinfo  # only who sets a zone needs it

        try:
            zoneinfo.ZoneInfo(zone)
        except (OSError, ValueError, zoneinfo.ZoneInfoNotFoundError):
            path = "agents.defaults.userTimezone"
            reader.fault(path, f"{zone!r} is no time zone", 'write an IANA name such as "Europe/Berlin"')


def _check_providers(config: Config, reader: ConfigReader) -> None:
    for id, provider in config.models.providers.items():
        path = join("models.providers", id)
        if not id or "/" in id:
            reader.fault(path, "is no provider id", "use a name without a slash")
        _check_endpoint(id, provider, path, reader)
        for index, model in enumerate(provider.models):
            _check_model(id, provider, model, f"{path}.models[{index}]", reader)
    for name in config.agents.defaults.models:
        if "/" not in name:
            reader.warn(join("agents.defaults.models", name), "is no provider/model; not used")
    _check_default(config, reader)


def _check_default(config: Config, reader: ConfigReader) -> None:
    defaults, providers = config.agents.defaults, config.models.providers
    name = defaults.model.primary or ""
    id, slash, _ = name.partition("/")
    if not slash or id in {*providers, *KEYED, *local_servers(config), "codex", "scripted", "local", *plugins()}:
        return
    aliases = {(setting.alias or "").lower() for setting in defaults.models.values()}
    if name.lower() not in aliases and all(name != model.id for entry in providers.values() for model in entry.models):
        reader.warn("agents.defaults.model", f"{name!r} has no provider; write {join('models.providers', id)}")


def _check_endpoint(id: str, provider: ProviderConfig, path: str, reader: ConfigReader) -> None:
    api, url = endpoint_of(id, provider)
    if provider.api is not None:
        _check_api(provider.api, f"{path}.api", reader)
    if url is None and api in APIS and api not in ("codex", "scripted"):
        reader.fault(f"{path}.baseUrl", "is missing", 'write one such as "http://127.0.0.1:1234/v1"')
    elif url is not None:
        _check_url(url, f"{path}.baseUrl", reader)


def _check_api(api: str, path: str, reader: ConfigReader) -> None:
    if api not in APIS and api not in plugins():
        known = ", ".join([*APIS, *plugins()])
        reader.warn(path, f"{api!r} is not supported, so what it serves cannot be asked; known: {known}")
    elif api == "ollama":
        reader.warn(path, "Ollama is asked in OpenAI's format: its OLLAMA_CONTEXT_LENGTH holds, not contextWindow")


def _check_url(text: str, path: str, reader: ConfigReader) -> None:
    try:
        parts = urlsplit(text)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 0) >= 0
    except ValueError:  # a port or an IPv6 address that is none
        is_url = False
    if not is_url:
        reader.fault(path, "is no http(s) URL", 'write one such as "http://127.0.0.1:1234"')


def _check_model(id: str, provider: ProviderConfig, model: ModelConfig, path: str, reader: ConfigReader) -> None:
    if model.api is not None:
        _check_api(model.api, f"{path}.api", reader)
    info, said = possible(written_model(id, provider, model))
    for words in said:
        reader.warn(path, f"{model.id}: {words}")
    most = max(1, info.context_window // 2)
    if model.max_tokens is not None and model.max_tokens > most:
        half = "" if model.max_tokens > info.context_window else "half of "
        excess = f"{model.max_tokens} of {model.id} is more than {half}its contextWindow {info.context_window}"
        reader.warn(f"{path}.maxTokens", f"{excess}; a request asks for at most {most}, half of the window")
