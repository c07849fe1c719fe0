"""The handshake on the wire: what `connect` asks and what `hello-ok` answers (protocol §3.2, §3.4). Decides nothing."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from triops.gateway.frames import StateVersion, Str1, Uint

PROTOCOL = 4
MIN_NODE_PROTOCOL = 3
MIN_PROBE_PROTOCOL = 3

ClientId = Literal[
    "webchat-ui",
    "openclaw-control-ui",
    "openclaw-browser-copilot",
    "openclaw-tui",
    "webchat",
    "cli",
    "gateway-client",
    "openclaw-macos",
    "openclaw-linux",
    "openclaw-ios",
    "openclaw-watchos",
    "openclaw-android",
    "node-host",
    "openclaw-worker",
    "test",
    "fingerprint",
    "openclaw-probe",
]
ClientMode = Literal["webchat", "cli", "ui", "backend", "node", "worker", "probe", "test"]
AuthMethod = Literal["none", "token", "password", "device-token"]
"""How a connection proved itself, as `hello-ok` says it."""

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
"""What people read in lists."""
PositiveInt = Annotated[int, msgspec.Meta(ge=1)]


class ClientInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="camel"):
    """The program that connects, by its own account."""

    id: ClientId
    version: Name
    platform: Name
    mode: ClientMode
    display_name: Name | None = None
    build_id: Annotated[str, msgspec.Meta(min_length=1, max_length=96)] | None = None
    device_family: Name | None = None
    model_identifier: Name | None = None
    time_zone: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] | None = None
    instance_id: Name | None = None


class DeviceProof(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="camel"):
    """A device's signature under this connection's nonce."""

    id: Str1
    public_key: Str1
    signature: Str1
    signed_at: Uint
    nonce: Str1


class Credentials(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="camel"):
    """Secrets that the client offers. Prints which there are, never what they are."""

    token: str | None = None
    bootstrap_token: str | None = None
    device_token: str | None = None
    password: str | None = None
    approval_runtime_token: str | None = None
    agent_runtime_identity_token: str | None = None

    def __repr__(self) -> str:
        return f"Credentials({', '.join(name for name in self.__struct_fields__ if getattr(self, name) is not None)})"


class ConnectParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="camel"):
    """`params` of `connect`."""

    min_protocol: PositiveInt
    max_protocol: PositiveInt
    client: ClientInfo
    caps: tuple[Str1, ...] = ()
    commands: tuple[Str1, ...] | None = None
    permissions: dict[str, bool] | None = None
    path_env: str | None = None
    computer_use: Any = None
    worker_runs: Any = None
    role: Str1 = "operator"
    scopes: tuple[Str1, ...] = ()
    model_catalog: Any = None
    device: DeviceProof | None = None
    auth: Credentials = Credentials()
    locale: str | None = None
    user_agent: str | None = None


class Server(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Who answers; `conn_id` names this connection in logs and presence."""

    version: str
    conn_id: str


class Features(msgspec.Struct, frozen=True):
    """What a client may rely on here."""

    methods: tuple[str, ...]
    events: tuple[str, ...]
    capabilities: tuple[str, ...] = ()


class PresenceEntry(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One who is, or was, connected."""

    ts: int
    host: str | None = None
    client_id: str | None = None
    ip: str | None = None
    version: str | None = None
    platform: str | None = None
    device_family: str | None = None
    model_identifier: str | None = None
    time_zone: str | None = None
    mode: str | None = None
    reason: str | None = None
    text: str | None = None
    online_since: int | None = None
    device_id: str | None = None
    roles: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    instance_id: str | None = None


class SessionDefaults(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Where a client's first message goes."""

    default_agent_id: str
    main_key: str
    main_session_key: str
    scope: str
    model_configured: bool
    ownership: Literal["sole"] = "sole"
    selection_required: bool = False


class Snapshot(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The state of things as a client arrives."""

    presence: Sequence[PresenceEntry]
    health: Any
    state_version: StateVersion
    uptime_ms: int
    session_defaults: SessionDefaults | None = None
    config_path: str | None = None
    """For connections with `operator.admin` only, as the next two."""
    state_dir: str | None = None
    auth_mode: Literal["none", "token", "password"] | None = None


class HelloAuth(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What the connection may, and the device token to keep for next time."""

    method: AuthMethod
    role: str
    scopes: tuple[str, ...]
    device_token: str | None = None
    issued_at_ms: int | None = None

    def __repr__(self) -> str:
        return f"HelloAuth(method={self.method!r}, role={self.role!r}, scopes={self.scopes!r})"


class AttachmentPolicy(msgspec.Struct, frozen=True, rename="camel"):
    """Decoded bytes."""

    max_bytes: int
    max_image_bytes: int


class Policy(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Limits that the client should know."""

    max_payload: int
    max_buffered_bytes: int
    tick_interval_ms: int
    attachments: AttachmentPolicy


class HelloOk(msgspec.Struct, frozen=True, kw_only=True, rename="camel", tag_field="type", tag="hello-ok"):
    """`payload` of the response to `connect`."""

    protocol: int = PROTOCOL
    server: Server
    features: Features
    snapshot: Snapshot
    auth: HelloAuth
    policy: Policy
