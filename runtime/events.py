"""What happens in the runtime, as told to whoever listens on the bus. Wire shapes are the gateway's business.

`seq` counts the events of one run from 1. All are frozen: one object is shared by all listeners.
"""

from typing import Any, Literal

import msgspec

from triops.agents.messages import Message, ToolCall, ToolResultMessage
from triops.runtime.phases import Phases
from triops.runtime.runs.state import Delivery, Terminal
from triops.runtime.sessions import Session


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What every event of a run carries."""

    run_id: str
    session_key: str
    spelled_key: str
    session_id: str
    agent_id: str
    source: str
    origin: str
    tool_events: bool
    spawned_by: str | None = None
    delivery: Delivery | None = None


class RunStatus(msgspec.Struct, frozen=True):
    """The run is at `phase` (`starting_model`, …) and has nothing to show yet; `retry` when a call is made again."""

    run: RunInfo
    seq: int
    ts: int
    phase: str
    retry: dict[str, Any] | None = None


class RunStarted(msgspec.Struct, frozen=True):
    run: RunInfo
    seq: int
    ts: int


class RunModel(msgspec.Struct, frozen=True):
    run: RunInfo
    seq: int
    ts: int
    provider: str
    model: str
    demo: bool = False


class RunDelta(msgspec.Struct, frozen=True):
    """`delta` was appended to assistant message number `index` of the run."""

    run: RunInfo
    seq: int
    ts: int
    index: int
    delta: str


class RunThinking(msgspec.Struct, frozen=True):
    run: RunInfo
    seq: int
    ts: int
    delta: str


class RunTool(msgspec.Struct, frozen=True):
    run: RunInfo
    seq: int
    ts: int
    phase: Literal["start", "update", "result"]
    call: ToolCall
    result: ToolResultMessage | None = None
    partial: str = ""


class RunCompaction(msgspec.Struct, frozen=True):
    """The older part of the conversation is being summarised, or was; `retry`: for a call that is made again then."""

    run: RunInfo
    seq: int
    ts: int
    phase: Literal["start", "end"]
    completed: bool = False
    retry: bool = False


class RunUsage(msgspec.Struct, frozen=True):
    run: RunInfo
    seq: int
    ts: int
    output_tokens: int


class RunEnded(msgspec.Struct, frozen=True):
    """The one terminal event of a run; nothing of the run follows."""

    run: RunInfo
    seq: int
    ts: int
    terminal: Terminal
    phases: Phases | None = None
    """Where its time went, if it had a turn of its own in this process."""


class SessionMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message stands in a transcript, on disk."""

    session_key: str
    agent_id: str
    message_id: str
    seq: int
    message: Message
    run_id: str | None = None


class SessionChanged(msgspec.Struct, frozen=True, kw_only=True):
    """A session is new or other than it was; `reason` or `phase` says why."""

    session: Session
    """As the disk has it now."""
    ts: int
    reason: str | None = None
    phase: str | None = None
    run_id: str | None = None


class CronEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A job changed or ran; `payload` is the protocol's `cron` event, made once."""

    payload: dict[str, Any]


class HeartbeatEvent(msgspec.Struct, frozen=True, kw_only=True):
    payload: dict[str, Any]


class ModelsChanged(msgspec.Struct, frozen=True):
    """A warm-up changed what the catalogue knows."""

    ts: int


RunEvent = RunStatus | RunStarted | RunModel | RunDelta | RunThinking | RunTool | RunCompaction | RunUsage | RunEnded
RuntimeEvent = RunEvent | SessionMessage | SessionChanged | CronEvent | HeartbeatEvent | ModelsChanged
