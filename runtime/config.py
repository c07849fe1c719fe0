"""The configuration as typed, frozen data: OpenClaw's key names (in camel case), and only the keys that do something.

Knows neither files nor the environment; `Config()` is a working configuration. Times are seconds, written in the file
as `"30m"` where the type is `Duration`.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NewType

import msgspec

from triops.agents.model import Compat, Prices
from triops.runtime.paths import Paths
from triops.runtime.secrets import Secret

Duration = NewType("Duration", float)
"""Seconds; in the file a text with units: `500ms`, `30s`, `30m`, `24h`, `1h30m`, `7d`."""
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Count = Annotated[int, msgspec.Meta(ge=1)]
LogLevel = Literal["trace", "debug", "info", "warn", "error", "fatal", "silent"]
Seconds = Annotated[float, msgspec.Meta(ge=0)]


class AuthConfig(msgspec.Struct, frozen=True, rename="camel"):
    """Who may connect."""

    mode: Literal["token", "password", "none"] = "token"
    """`none` is for a loopback bind only. Unset, it is `password` when only a password is set."""
    token: Secret | None = None
    """The shared token; unset, a random one is made and kept in the state folder."""
    password: Secret | None = None
    """The shared password, at least 12 characters."""


class ControlUiConfig(msgspec.Struct, frozen=True, rename="camel"):
    """The web client."""

    allowed_origins: tuple[str, ...] = ()
    """Origins beyond the gateway's own from which a browser may connect: `scheme://host[:port]`."""


class TailscaleConfig(msgspec.Struct, frozen=True, rename="camel"):
    """Read only to refuse what would open the gateway to a network by itself."""

    mode: Literal["off"] = "off"
    """Serving through Tailscale is not supported."""


class EndpointConfig(msgspec.Struct, frozen=True, rename="camel"):
    """One API over HTTP."""

    enabled: bool = True
    """Whether it is there."""


class EndpointsConfig(msgspec.Struct, frozen=True, rename="camel"):
    """The APIs that OpenAI's clients speak."""

    chat_completions: EndpointConfig = EndpointConfig()
    """`POST /v1/chat/completions`."""
    responses: EndpointConfig = EndpointConfig()
    """`POST /v1/responses`."""


class HttpConfig(msgspec.Struct, frozen=True, rename="camel"):
    """Plain HTTP on the gateway's port."""

    endpoints: EndpointsConfig = EndpointsConfig()
    """The APIs that OpenAI's clients speak."""


class PairingConfig(msgspec.Struct, frozen=True, rename="camel"):
    """How devices are let in."""

    auto_approve_local: bool = True
    """Programs of this machine with the gateway's secret need nobody's approval."""


class NodesConfig(msgspec.Struct, frozen=True, rename="camel"):
    """Devices; OpenClaw keeps these settings with those of its nodes."""

    pairing: PairingConfig = PairingConfig()
    """How they are let in."""


class GatewayConfig(msgspec.Struct, frozen=True, rename="camel"):
    """Where the gateway listens."""

    port: Port = 18789
    """TCP port; 0 takes a free one."""
    bind: Literal["loopback", "lan", "custom"] = "loopback"
    """Which interfaces: this machine only, all, or `customBindHost`."""
    custom_bind_host: str | None = None
    """The address to listen on with `bind: "custom"`."""
    auth: AuthConfig = AuthConfig()
    """Who may connect."""
    control_ui: ControlUiConfig = ControlUiConfig()
    """The web client."""
    http: HttpConfig = HttpConfig()
    """Plain HTTP on the same port."""
    nodes: NodesConfig = NodesConfig()
    """Devices of other machines."""
    tailscale: TailscaleConfig = TailscaleConfig()
    """Must be off."""

    @property
    def host(self) -> str:
        """The address to listen on."""
        return {"loopback": "127.0.0.1", "lan": "0.0.0.0"}.get(self.bind) or self.custom_bind_host or "127.0.0.1"


class ModelChoice(msgspec.Struct, frozen=True, rename="camel"):
    """Which models, in order; a plain text means only a primary one."""

    shorthand: ClassVar = "primary"

    primary: str | None = None
    """`provider/model`, an alias, or the bare id of a configured model; unset, the best that is found."""
    fallbacks: tuple[str, ...] = ()
    """Asked in turn when the primary one fails before it has said anything."""


class ModelSettings(msgspec.Struct, frozen=True, rename="camel"):
    """What is set for one `provider/model`."""

    alias: str | None = None
    """A short name for it."""


class HeartbeatConfig(msgspec.Struct, frozen=True, rename="camel"):
    """A regular turn of the agent's own."""

    every: Duration = Duration(0)
    """Time between two; 0 (the default) is off: it costs tokens."""
    prompt: str | None = None
    """The message of the turn, in place of the built-in one."""
    model: str | None = None
    """The model of the turn, in place of the agent's."""
    session: str = "main"
    """The session it runs in."""


class AgentDefaults(msgspec.Struct, frozen=True, rename="camel"):
    """What holds for every agent that does not say otherwise."""

    workspace: str | None = None
    """The agent's folder; unset, `workspace` in the state folder. A relative path starts at the file's folder."""
    model: ModelChoice = ModelChoice()
    """Which model answers."""
    models: dict[str, ModelSettings] = {}
    """Settings by `provider/model`."""
    system_prompt: str | None = None
    """Said to the model after the built-in part of the system prompt."""
    timeout_seconds: Seconds = 172_800
    """Limit of a whole run; 0 is none."""
    max_concurrent: Count = msgspec.field(default_factory=lambda: max(8, 4 * (os.cpu_count() or 1)))
    """Runs at once, over all sessions; by default four a processor, at least 8."""
    user_timezone: str | None = None
    """IANA name of the user's zone; unset, the machine's."""
    heartbeat: HeartbeatConfig = HeartbeatConfig()
    """A regular turn of the agent's own."""


class Identity(msgspec.Struct, frozen=True, rename="camel"):
    """How an agent appears."""

    name: str | None = None
    """Shown beside its messages."""
    emoji: str | None = None
    """Its sign."""
    avatar: str | None = None
    """URL or path of a picture."""


class AgentEntry(msgspec.Struct, frozen=True, rename="camel"):
    """One agent."""

    name: str | None = None
    """For people; unset, its id."""
    workspace: str | None = None
    """Its folder; unset, a folder of its id within the default one."""
    model: ModelChoice = ModelChoice()
    """Which model answers; unset, the default one."""
    identity: Identity = Identity()
    """How it appears."""


class AgentsConfig(msgspec.Struct, frozen=True, rename="camel"):
    """The agents."""

    defaults: AgentDefaults = AgentDefaults()
    """What holds for all."""
    entries: dict[str, AgentEntry] = {}
    """By id; none means one agent, `main`."""


class ModelConfig(msgspec.Struct, frozen=True, rename="camel"):
    """One model of a provider."""

    id: Annotated[str, msgspec.Meta(min_length=1)]
    """As the provider knows it; slashes are fine."""
    name: str = ""
    """For people."""
    api: str | None = None
    """Its wire format, where it is not the provider's."""
    reasoning: bool = False
    """Whether it thinks before it answers."""
    input: tuple[str, ...] = ("text",)
    """What it takes: `text`, `image`."""
    cost: Prices = Prices()
    """USD per million tokens."""
    context_window: int = 128_000
    """Tokens, prompt and reply together."""
    max_tokens: int | None = None
    """Tokens of one reply, 8,192 unless set. A request asks for half of the context window at most."""
    compat: Compat = Compat()
    """Where it differs from its wire format's reference."""
    params: dict[str, Any] = {}
    """Sent with each request as they are."""


class TlsConfig(msgspec.Struct, frozen=True, rename="camel"):
    """Certificates of one server."""

    ca: str | None = None
    """The authority to believe: a file of PEM, or the PEM itself."""
    insecure_skip_verify: bool = False
    """Whether every certificate is believed: only for a server of your own on a network that you trust."""


class RequestConfig(msgspec.Struct, frozen=True, rename="camel"):
    """How a provider is reached."""

    tls: TlsConfig = TlsConfig()
    """Its certificates."""


class ProviderConfig(msgspec.Struct, frozen=True, rename="camel"):
    """One endpoint that serves models."""

    api: str | None = None
    """The wire format; unset, as in `endpoints.py`, else `openai-completions`. The models of one that is not supported
    cannot be asked."""
    base_url: str | None = None
    """Where it is; unset, as in `endpoints.py`."""
    api_key: Secret | None = None
    """Its key; unset, that of `key_variable`. A local server takes anything or none."""
    auth: Literal["api-key", "token", "oauth", "aws-sdk"] | None = None
    """How the key is sent; unset, as the wire format has it."""
    headers: dict[str, Secret] = {}
    """Sent with each request."""
    timeout_seconds: Seconds | None = None
    """Limit of one silence of the provider."""
    request: RequestConfig = RequestConfig()
    """How it is reached."""
    models: tuple[ModelConfig, ...] = ()
    """What it serves, beyond what it says itself."""


class SpendLimit(msgspec.Struct, frozen=True, rename="camel"):
    """What ends a run when it is reached."""

    tokens: Count | None = None
    """Prompt and reply, cached ones too."""
    usd: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """By the `cost` of the models; one without it costs nothing."""


class SpendConfig(msgspec.Struct, frozen=True, rename="camel"):
    """What models may cost; looked at before each call, so that one call can go past it."""

    per_run: SpendLimit = SpendLimit()
    """One run."""
    per_day: SpendLimit = SpendLimit()
    """All runs since midnight, in the user's zone."""


class ModelsConfig(msgspec.Struct, frozen=True, rename="camel"):
    """The models."""

    mode: Literal["merge", "replace"] = "merge"
    """`replace`: only what stands here; nothing is discovered."""
    patience_seconds: Seconds = 20
    """So long a failed request is tried again before the next model, or the error, has its turn; a silence that lasts
    longer is told of. With 0 neither."""
    spend: SpendConfig = SpendConfig()
    """What they may cost."""
    providers: dict[str, ProviderConfig] = {}
    """By id, the part of a model reference before the first slash."""


class QueueConfig(msgspec.Struct, frozen=True, rename="camel"):
    """Messages that arrive while their session runs."""

    mode: Literal["steer", "followup", "collect", "interrupt"] = "steer"
    """Into the running turn; a turn of their own afterwards; one turn for all that wait; or in its place."""
    cap: Count = 20
    """Messages that wait in one session; further ones are refused."""
    max_age: Duration = Duration(600)
    """A message that waited longer when the process starts again is not answered any more."""


class MessagesConfig(msgspec.Struct, frozen=True, rename="camel"):
    """How messages are taken."""

    queue: QueueConfig = QueueConfig()
    """Messages that arrive while their session runs."""


class CronConfig(msgspec.Struct, frozen=True, rename="camel"):
    """Scheduled work."""

    enabled: bool = True
    """Whether jobs fire."""
    skip_missed_jobs: bool = False
    """Whether what fell due while the process was down is left out."""


class HooksConfig(msgspec.Struct, frozen=True, rename="camel"):
    """What other programs may start with a secret of their own."""

    enabled: bool = False
    """Whether they are there; they need `token`."""
    token: Secret | None = None
    """The secret, at least 12 characters."""
    path: str = "/hooks"
    """Where they are."""
    default_session_key: str | None = None
    """The session of a run that names none; unset, one of its own."""
    allow_request_session_key: bool = False
    """Whether a request may name its session."""
    allowed_session_key_prefixes: tuple[str, ...] = ()
    """How those must begin; none, any."""
    allowed_agent_ids: tuple[str, ...] | None = None
    """Agents that may be asked; unset, all."""


class LoggingConfig(msgspec.Struct, frozen=True, rename="camel"):
    """The log."""

    level: LogLevel = "info"
    """The least that is written; `silent` writes nothing."""


class OtelConfig(msgspec.Struct, frozen=True, rename="camel"):
    """OpenTelemetry."""

    enabled: bool = False
    """Whether a span is sent for each turn; needs the extra `otel`."""
    endpoint: str | None = None
    """The collector's address for OTLP over HTTP; unset, that of the OTEL_… variables, else http://localhost:4318."""
    service_name: str = "triops"
    """As the collector shows it."""


class DiagnosticsConfig(msgspec.Struct, frozen=True, rename="camel"):
    """What is told to those who watch."""

    otel: OtelConfig = OtelConfig()
    """OpenTelemetry."""


class ToolsConfig(msgspec.Struct, frozen=True, rename="camel"):
    """What agents may call; names, `group:…`, `*`."""

    allow: tuple[str, ...] | None = None
    """Unset, all."""
    deny: tuple[str, ...] = ()
    """Wins over `allow`."""


class SecretSource(msgspec.Struct, frozen=True, rename="camel"):
    """Where secrets lie that `{source, provider, id}` refers to; variables need none."""

    source: Literal["env", "file", "exec"] = "env"
    """A file, or a command that says them."""
    path: str | None = None
    """The file."""
    mode: Literal["json", "singleValue"] = "json"
    """An object, in which `id` is a JSON pointer, or the secret alone."""
    command: str | None = None
    """The program, by its absolute path. It is run when a provider's key is first needed and after one was refused,
    gets `{"protocolVersion": 1, "provider": …, "ids": [id]}` and says `{"values": {id: …}}`, or the key alone."""
    args: tuple[str, ...] = ()
    """Its arguments."""
    pass_env: tuple[str, ...] = ()
    """The variables that it gets, beside HOME and PATH."""
    timeout_ms: Count = 10_000
    """How long it may take."""


class SecretsConfig(msgspec.Struct, frozen=True, rename="camel"):
    """Where secrets lie."""

    providers: dict[str, SecretSource] = {}
    """By the name that a reference has as `provider`; `default` unless it says."""


class EnvConfig(msgspec.Struct, frozen=True, rename="camel"):
    """Variables for this file and for providers' keys; the process's own are never changed."""

    vars: dict[str, Secret] = {}
    """Used where the process has no variable of that name."""


class Config(msgspec.Struct, frozen=True, rename="camel"):
    """Everything; with no file, this as it stands."""

    gateway: GatewayConfig = GatewayConfig()
    """Where the gateway listens and who may connect."""
    agents: AgentsConfig = AgentsConfig()
    """The agents."""
    models: ModelsConfig = ModelsConfig()
    """Providers and their models."""
    messages: MessagesConfig = MessagesConfig()
    """How messages are taken."""
    cron: CronConfig = CronConfig()
    """Scheduled work."""
    hooks: HooksConfig = HooksConfig()
    """What other programs may start."""
    logging: LoggingConfig = LoggingConfig()
    """The log."""
    diagnostics: DiagnosticsConfig = DiagnosticsConfig()
    """What is told to those who watch."""
    tools: ToolsConfig = ToolsConfig()
    """What agents may call."""
    secrets: SecretsConfig = SecretsConfig()
    """Where secrets lie that are not in this file."""
    env: EnvConfig = EnvConfig()
    """Variables for this file and for providers' keys."""


_PLAIN_KEY = re.compile(r"[A-Za-z0-9_$-]+")


def join(path: str, key: str) -> str:
    """The path of a member, as in `agents.defaults.models["qwen/x"].alias`."""
    if _PLAIN_KEY.fullmatch(key):
        return f"{path}.{key}" if path else key
    return f'{path}["{key}"]'


def workspace_of(config: Config, paths: Paths, agent_id: str) -> Path:
    """An agent's folder: its own, else the default one, in which each of several agents but `main` has its own."""
    defaults, entry = config.agents.defaults.workspace, config.agents.entries.get(agent_id, AgentEntry())
    base = paths.config.parent
    if entry.workspace is not None:
        return base / Path(entry.workspace).expanduser()
    if agent_id == "main" or len(config.agents.entries) < 2:
        return base / Path(defaults).expanduser() if defaults is not None else paths.workspace
    if defaults is not None:
        return base / Path(defaults).expanduser() / agent_id
    return paths.state / f"workspace-{agent_id}"
