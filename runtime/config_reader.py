"""Turns a parsed file into the typed configuration, and gathers everything that is to be said about it on the way.

Unknown keys never stop a start; a wrong value does, after the rest was looked at too. Knows no file.
"""

import os
import re
from collections.abc import Mapping
from functools import cache
from math import isfinite
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin

import msgspec

from triops.agents.model import Compat
from triops.runtime import config as c
from triops.runtime.config import join
from triops.runtime.secrets import REDACTED, KeyCommand, Secret, read_secret


class Notice(msgspec.Struct, frozen=True):
    """Something about the file that the user should know, and that stops nothing."""

    level: Literal["info", "warning"]
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class Fault(msgspec.Struct, frozen=True):
    """A value with which the process does not start."""

    path: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}; {self.remedy}"


class ConfigError(Exception):
    """The configuration cannot be used; the message lists every fault and warning. The process exits 78."""

    def __init__(self, where: str, faults: tuple[Fault, ...], notices: tuple[Notice, ...] = ()) -> None:
        warnings = (f"  warning: {notice}" for notice in notices if notice.level == "warning")
        super().__init__("\n".join((f"{where} cannot be used:", *(f"  {fault}" for fault in faults), *warnings)))
        self.faults = faults


UNUSED: dict[type, str] = {
    c.Config: "$schema meta auth bindings session commands memory channels skills plugins mcp browser ui"
    " discovery update talk acp wizard worktreeRoot audit telemetry tts approvals",
    c.SecretsConfig: "defaults resolution",
    c.SecretSource: "trustedDirs allowInsecurePath allowSymlinkCommand noOutputTimeoutMs maxOutputBytes jsonOnly",
    c.GatewayConfig: "mode roles trustedProxies allowRealIpFallback publicOrigin remote reload tls terminal"
    " push cliAgents",
    c.AuthConfig: "allowTailscale identityScopes rateLimit trustedProxy",
    c.ControlUiConfig: "enabled basePath root embedSandbox allowExternalEmbedUrls environment communityInvite"
    " dangerouslyAllowHostHeaderOriginFallback allowInsecureAuth dangerouslyDisableDeviceAuth",
    c.TailscaleConfig: "resetOnExit",
    c.NodesConfig: "browser commands allowCommands denyCommands",
    c.PairingConfig: "autoApproveCidrs sshVerify",
    c.AgentsConfig: "ownership",
    c.AgentDefaults: "cwd repoRoot utilityModel imageModel pdfModel mediaModels modelSelectionScope params"
    " thinkingDefault fastModeDefault verboseDefault reasoningDefault elevatedDefault toolProgressDetail mediaMaxMb"
    " contextInjection bootstrapMaxChars bootstrapTotalMaxChars skipBootstrap skipOptionalBootstrapFiles startupContext"
    " contextLimits skills imageMaxDimensionPx imageQuality systemAgent compaction contextPruning blockStreamingDefault"
    " blockStreamingBreak blockStreamingChunk blockStreamingCoalesce humanDelay typingMode typingIntervalSeconds"
    " subagents",
    c.ModelSettings: "params agentRuntime codeMode",
    c.HeartbeatConfig: "agentId activeHours target directPolicy to accountId timeoutSeconds lightContext"
    " isolatedSession",
    c.AgentEntry: "agentDir cwd utilityModel models params thinkingDefault reasoningDefault fastModeDefault"
    " verboseDefault skills groupChat heartbeat subagents tts runtime contextInjection bootstrapMaxChars"
    " bootstrapTotalMaxChars contextLimits skillsLimits default",
    c.Identity: "theme",
    c.ProviderConfig: "authHeader maxTokens injectNumCtxForOpenAICompat localService agentRuntime params",
    c.RequestConfig: "headers auth proxy allowPrivateNetwork",
    c.TlsConfig: "cert key passphrase serverName",
    c.ModelConfig: "contextTokens headers",
    Compat: "supportsPromptCacheKey supportsReasoningEffort supportedReasoningEfforts reasoningEffortMap"
    " supportsInstructions supportsStrictMode thinkingFormat codeMode",
    c.MessagesConfig: "responsePrefix ackReaction ackReactionScope inbound groupChat visibleReplies responseUsage tts",
    c.QueueConfig: "drop byChannel debounceMs debounceMsByChannel",
    c.EndpointConfig: "maxBodyBytes images files",
    c.HttpConfig: "securityHeaders",
    c.HooksConfig: "internal gmail maxBodyBytes presets transformsDir mappings",
    c.CronConfig: "triggers webhookToken webhookSsrfPolicy sessionRetention failureAlert",
    c.LoggingConfig: "file consoleLevel consoleStyle redactSensitive",
    c.DiagnosticsConfig: "enabled flags cacheTrace stuckSessionWarnMs",
    c.OtelConfig: "protocol headers traces metrics logs sampleRate flushIntervalMs captureContent tracesEndpoint"
    " metricsEndpoint logsEndpoint",
    c.ToolsConfig: "exec web loopDetection updatePlan codeMode sessions agentToAgent sessions_spawn media",
    c.EnvConfig: "shellEnv",
}
"""Keys of OpenClaw that change nothing here: one line tells of them all."""

NOT_APPLIED: dict[type, str] = {
    c.GatewayConfig: "tools",
    c.AgentDefaults: "sandbox modelPolicy",
    c.AgentEntry: "sandbox tools modelPolicy",
    c.ToolsConfig: "profile alsoAllow byProvider toolsBySender subagents sandbox elevated fs",
}
"""Limits of OpenClaw that do not hold here: silence would be a trap, so each is warned of."""

NOT_SUPPORTED = {
    "gateway.auth.allowTailscale": (
        "Tailscale identity is not supported",
        "remove it or write false; clients show the gateway's token or password",
    ),
    "gateway.trustedProxies": (
        "proxies that vouch for their clients are not supported",
        "remove it or write []; clients reach the gateway directly or through a tunnel, with its token or password",
    ),
}
"""Ways in of OpenClaw that are not there; its own defaults, false and [], ask for none and stop nothing."""

SAID = {
    "$include": "other files are not read; put their content here",
    "agents.list": "is not read any more; write agents.entries.<id>",
}
"""Keys with an answer of their own."""

STAND_INS: dict[tuple[str, object], str] = {
    ("gateway.bind", "auto"): "loopback",
}
"""Values of OpenClaw that are read as the nearest one there is."""

VITAL = "gateway.auth."
"""A secret here that has no value stops the start; elsewhere it is as if it had not been set."""

S = TypeVar("S", bound=msgspec.Struct)
_VARIABLE = re.compile(r"(\$?)\$\{([A-Z_][A-Z0-9_]*)\}")
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[smhd]))+")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_PLACE = re.compile(r" - at `(?:key in )?\$(.*)`$")
_fields = cache(msgspec.structs.fields)


class ConfigReader:
    """Reads values by their types; what it found is in `notices`, `faults` and `secrets`."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._ignored: list[str] = []
        self._notices: list[Notice] = []
        self.faults: list[Fault] = []
        self.secrets: list[Secret] = []
        self.sources: Mapping[str, c.SecretSource] = {}
        """What references to secrets may name; to be set before there is one."""

    @property
    def notices(self) -> tuple[Notice, ...]:
        """What stops nothing; the keys of OpenClaw that are not used are one notice."""
        if not self._ignored:
            return tuple(self._notices)
        some = f"{len(self._ignored)} settings of OpenClaw are not used here: {', '.join(self._ignored)}"
        return (*self._notices, Notice("info", "", some))

    def warn(self, path: str, message: str) -> None:
        """Tell of something that stops nothing."""
        self._notices.append(Notice("warning", path, message))

    def fault(self, path: str, problem: str, remedy: str) -> None:
        """Tell of something that stops the start."""
        self.faults.append(Fault(path, problem, remedy))

    def struct(self, kind: type[S], value: object, path: str = "") -> S | None:
        """`value` as a `kind`, faulty members left at their defaults; None if it cannot be one."""
        shorthand: str | None = getattr(kind, "shorthand", None)
        if shorthand is not None and isinstance(value, str):
            value = {shorthand: value}
        if not isinstance(value, dict):
            return self._wrong(path, "an object", value)
        fields = {field.encode_name: field for field in _fields(kind)}
        members: dict[str, Any] = {}
        for key, item in cast("dict[str, object]", value).items():
            if (field := fields.get(key)) is None:
                self._unknown(kind, key, item, path)
            elif (member := self._read(field.type, item, join(path, key))) is not None:
                members[field.name] = member
        missing = [key for key, field in fields.items() if field.required and field.name not in members]
        for key in missing:
            if key not in value:
                self.fault(join(path, key), "is missing", "write it")
        return None if missing else kind(**members)

    def _read(self, kind: Any, value: object, path: str) -> Any:
        """The value, or None for "as if it were not there"; a fault has been told of then."""
        origin, args = get_origin(kind), get_args(kind)
        if origin in (Union, UnionType):  # `X | None` is the one or the other, as X has it
            return None if value is None else self._read(args[0], value, path)
        if kind is Secret:
            return self._secret(value, path)
        if kind is c.Duration:
            return self._duration(self._expand(value, path), path)
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return self.struct(kind, value, path)
        if origin is dict and args[1] is not Any:
            if not isinstance(value, dict):
                return self._wrong(path, "an object", value)
            items = cast("dict[str, object]", value).items()
            return {
                key: read for key, item in items if (read := self._read(args[1], item, join(path, key))) is not None
            }
        if origin is tuple:
            if not isinstance(value, list):
                return self._wrong(path, "a list", value)
            items = enumerate(cast("list[object]", value))
            return tuple(read for i, item in items if (read := self._read(args[0], item, f"{path}[{i}]")) is not None)
        return self._leaf(kind, self._expand(value, path), path)

    def _leaf(self, kind: Any, value: object, path: str) -> Any:
        if isinstance(value, str) and (stand_in := STAND_INS.get((path, value))):
            self.warn(path, f"{value!r} is not supported and is read as {stand_in!r}")
            value = stand_in
        if get_origin(kind) is Literal and value not in get_args(kind):
            choices = ", ".join(repr(choice) for choice in get_args(kind))
            return self.fault(path, f"{value!r} is not supported", f"write one of {choices}")
        if isinstance(value, float) and not isfinite(value):
            return self.fault(path, f"{value} is no number", "write a finite one")
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # 1.9e5 is a whole number too
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            place, words = _PLACE.search(str(error)), _PLACE.sub("", str(error))
            base = get_args(kind)[0] if get_origin(kind) is Annotated else kind
            self.fault(
                path + (place[1] if place else ""), words[:1].lower() + words[1:], _REMEDIES.get(base, "correct it")
            )

    def _wrong(self, path: str, wanted: str, value: object) -> None:
        self.fault(path or "the file", f"expected {wanted}, found {_KINDS.get(type(value), 'null')}", f"write {wanted}")

    def _duration(self, value: object, path: str) -> float | None:
        if isinstance(value, str) and _DURATION.fullmatch(value):
            return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+)(ms|[smhd])", value))
        return self.fault(path, f"{value!r} is not a length of time", 'write a number and its unit, such as "30m"')

    def _secret(self, value: object, path: str) -> Secret | None:
        if isinstance(value, dict):
            try:
                text = self._referred(cast("dict[str, object]", value), path)
            except LookupError as error:
                return self._no_secret(path, str(error.args[0]))
            if isinstance(text, KeyCommand):
                return text
        elif isinstance(value, str):
            text, missing = self._substitute(value)
            if missing:
                return self._no_secret(path, f"the environment has no {missing[0]!r}")
        else:
            return self._wrong(path, "a text or {source, provider, id}", value)
        if text == REDACTED:
            return self._no_secret(path, "this is the mark that stands for a secret, not a secret")
        if not text:
            return None
        self.secrets.append(secret := Secret(text))
        return secret

    def _referred(self, ref: dict[str, object], path: str) -> "str | KeyCommand":
        """What a reference stands for. Raises `LookupError` with the reason, where there is nothing."""
        source, name, id = ref.get("source"), str(ref.get("provider", "default")), str(ref.get("id"))
        if source == "env":
            if text := self._environ.get(id):
                return text
            raise LookupError(f"the environment has no {id!r}")
        held = self.sources.get(name)
        if held is None or held.source != source:
            raise LookupError(f"{join('secrets.providers', name)} is no source of kind {source!r}")
        if source == "file":
            return read_secret(held.path or "", None if held.mode == "singleValue" else id)
        if not (path.startswith("models.providers") and path.endswith("apiKey")):
            raise LookupError("a command says the keys of providers only")
        if not os.path.isabs(held.command or ""):
            raise LookupError(f"{join('secrets.providers', name)}.command is no absolute path")
        names = ("HOME", "PATH", "SYSTEMROOT", "USERPROFILE", *held.pass_env)
        environ = {name: self._environ[name] for name in names if name in self._environ}
        return KeyCommand((held.command or "", *held.args), environ, held.timeout_ms / 1000, name, id)

    def _no_secret(self, path: str, why: str) -> None:
        if path.startswith(VITAL):
            self.fault(path, why, "write the value here or set the variable")
        else:
            self.warn(path, f"{why}; it stays unset")

    def _expand(self, value: object, path: str) -> object:
        """`value` with `${NAME}` filled in, in all its texts."""
        if isinstance(value, str):
            value, missing = self._substitute(value)
            for name in missing:
                self.warn(path, f"the environment has no {name!r}; ${{{name}}} stays as it is")
            return value
        if isinstance(value, dict):
            return {key: self._expand(item, join(path, key)) for key, item in cast("dict[str, object]", value).items()}
        if isinstance(value, list):
            return [self._expand(item, f"{path}[{i}]") for i, item in enumerate(cast("list[object]", value))]
        return value

    def _substitute(self, text: str) -> tuple[str, list[str]]:
        missing: list[str] = []

        def fill(match: re.Match[str]) -> str:
            escaped, name = match[1], match[2]
            if escaped:
                return f"${{{name}}}"
            if name not in self._environ:
                missing.append(name)
            return self._environ.get(name, match[0])

        return _VARIABLE.sub(fill, text), missing

    def _unknown(self, kind: type[msgspec.Struct], key: str, value: object, path: str) -> None:
        unused, not_applied = UNUSED.get(kind, "").split(), NOT_APPLIED.get(kind, "").split()
        place = join(path, key)
        if value and (refusal := NOT_SUPPORTED.get(place)):
            self.fault(place, *refusal)
        elif answer := SAID.get(key) or SAID.get(place):
            self.warn(place, answer)
        elif key in not_applied:
            self.warn(place, "does not limit anything here; only tools.allow and tools.deny do")
        elif key in unused:
            self._ignored.append(place)
        else:
            import difflib  # costs milliseconds, and most files have no unknown key

            known = [field.encode_name for field in _fields(kind)] + unused + not_applied
            nearest = difflib.get_close_matches(key, known, 1, 0.7)
            self.warn(place, "unknown key, not used" + (f"; did you mean {nearest[0]!r}?" if nearest else ""))


_REMEDIES: dict[Any, str] = {
    str: "write a text in quotes",
    int: "write a whole number within its bounds",
    float: "write a number within its bounds",
    bool: "write true or false",
}
_KINDS: dict[type, str] = {
    str: "a text",
    int: "a number",
    float: "a number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
}
