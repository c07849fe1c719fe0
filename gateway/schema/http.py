"""Bodies and queries of the routes that no method of the protocol stands behind (protocol, HTTP §4–6)."""

from typing import Annotated, Any, Literal

import msgspec

from triops.gateway.schema.chat import Key, Str1
from triops.runtime.cron.job import WakeMode


class ToolInvoke(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Body of `POST /tools/invoke`; `tool` and `name` mean the same."""

    tool: str = ""
    name: str = ""
    action: str | None = None
    args: dict[str, Any] = {}
    session_key: Key = "main"
    agent_id: Str1 | None = None
    idempotency_key: Annotated[str, msgspec.Meta(min_length=1, max_length=256)] | None = None


class History(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """Query of `GET /sessions/{key}/history`."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=2**53 - 1)] = 200
    cursor: Annotated[int, msgspec.Meta(ge=1, le=2**53 - 1)] | None = None
    agent_id: Str1 | None = None


class HookWake(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Body of `POST /hooks/wake`."""

    text: str = ""
    mode: WakeMode = "now"
    agent_id: Str1 | None = None
    session_key: Key | None = None


class HookAgent(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Body of `POST /hooks/agent`."""

    message: str = ""
    name: str = "Hook"
    agent_id: Str1 | None = None
    session_key: Key | None = None
    session_mode: Literal["isolated", "persistent"] = "isolated"
    idempotency_key: Annotated[str, msgspec.Meta(min_length=1, max_length=256)] | None = None
    wait_for_completion: bool = False
    wake_mode: WakeMode = "now"
    deliver: bool = True
    channel: str | None = None
    to: str | None = None
    model: str | None = None
    thinking: str | None = None
    timeout_seconds: Annotated[float, msgspec.Meta(ge=0, le=2_592_000)] | None = None
