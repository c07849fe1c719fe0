"""Payloads of the events that the gateway sends; names are the wire's (OpenClaw protocol 4)."""

from typing import Any

import msgspec

from triops.agents.messages import Text


class ShownMessage(msgspec.Struct, frozen=True):
    """An assistant message as clients show it: always the whole text."""

    content: tuple[Text, ...]
    timestamp: int
    role: str = "assistant"


class AgentEvent(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """`agent`: one step of a run; `seq` counts the run's events from 1."""

    run_id: str
    stream: str
    data: dict[str, Any]
    session_key: str
    session_id: str | None = None
    agent_id: str
    seq: int
    ts: int
    is_heartbeat: bool = msgspec.field(default_factory=lambda: False)
    spawned_by: str | None = None

    def after(self, earlier: Any) -> "AgentEvent":
        """This delta with what `earlier` had to say that was new; nothing of it if that was another message."""
        if earlier.data["itemId"] != self.data["itemId"]:
            return self
        return msgspec.structs.replace(self, data={**self.data, "delta": earlier.data["delta"] + self.data["delta"]})


class ChatEvent(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """`chat`: what a chat client shows; exactly one of a run is `final`, `aborted` or `error`."""

    run_id: str
    session_key: str
    agent_id: str | None = None
    spawned_by: str | None = None
    seq: int
    state: str
    phase: str | None = None
    retry: dict[str, Any] | None = None
    delta_text: str | None = None
    replace: bool = False
    stop_reason: str | None = None
    message: ShownMessage | None = None
    error_message: str | None = None
    error_kind: str | None = None
    error_detail: dict[str, Any] | None = None

    def after(self, earlier: Any) -> "ChatEvent":
        """This delta with what `earlier` had to say that was new; nothing of it if this one replaces it."""
        if self.replace:
            return self
        return msgspec.structs.replace(self, delta_text=earlier.delta_text + self.delta_text, replace=earlier.replace)
