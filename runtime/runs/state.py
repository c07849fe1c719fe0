"""The states of a run and the one table of their changes.

A run is *queued* when it is on disk and waits for its session's lane, *running* while its lane's worker is inside its
block, and then ended, once, by one of four terminals. A message that another run took in (steered or collected) is
*merged*: it has a terminal too, sent with the terminal of the run that took it. Nothing leaves a terminal state;
there is no way back from running to queued, and a queued run can be aborted without ever having run.

                 ┌──────────── abort ────────────┐
    queued ──────┼── start ──▶ running ── abort ─┴─▶ aborted
                 │                ├────── finish ──▶ final
                 └── merge ─▶ merged  └── fail ────▶ error

Who may change it: the registry, nobody else.
"""

from enum import StrEnum
from typing import Any, Literal

import msgspec

from triops.agents.messages import AssistantMessage, SystemMessage, UserMessage
from triops.agents.model import Wishes

Source = Literal["chat", "agent", "command", "cron", "heartbeat", "wake", "spawn", "tool"]
QueueMode = Literal["steer", "followup", "collect", "interrupt"]


class RunState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    FINAL = "final"
    ERROR = "error"
    ABORTED = "aborted"
    MERGED = "merged"


class RunChange(StrEnum):
    START = "start"
    FINISH = "finish"
    FAIL = "fail"
    ABORT = "abort"
    MERGE = "merge"


TRANSITIONS: dict[tuple[RunState, RunChange], RunState] = {
    (RunState.QUEUED, RunChange.START): RunState.RUNNING,
    (RunState.QUEUED, RunChange.ABORT): RunState.ABORTED,
    (RunState.QUEUED, RunChange.MERGE): RunState.MERGED,
    (RunState.RUNNING, RunChange.FINISH): RunState.FINAL,
    (RunState.RUNNING, RunChange.FAIL): RunState.ERROR,
    (RunState.RUNNING, RunChange.ABORT): RunState.ABORTED,
}

TERMINAL = frozenset({RunState.FINAL, RunState.ERROR, RunState.ABORTED, RunState.MERGED})


def next_state(state: RunState, change: RunChange) -> RunState:
    """Look the change up.

    Raises:
        AssertionError: the table has no such change; a fault of ours, never of a client.
    """
    following = TRANSITIONS.get((state, change))
    if following is None:
        raise AssertionError(f"a run that is {state} cannot {change}")
    return following


class Delivery(msgspec.Struct, frozen=True):
    """A run's end goes to session `to` as a system event of `name`."""

    to: str
    name: str
    mode: Literal["now", "next-heartbeat"]


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """A request for a run, before it is accepted."""

    run_id: str
    """The idempotency key: the same key is the same run."""
    session_key: str
    """Canonical."""
    spelled_key: str = ""
    """How the client wrote the key, if otherwise: it sees its own spelling in the events of its runs."""
    message: UserMessage | SystemMessage
    source: Source = "chat"
    queue_mode: QueueMode = "steer"
    model: str | None = None
    """`provider/model` or alias for this run alone; strict."""
    extra_system: str = ""
    wishes: Wishes = Wishes()
    deadline: float | None = None
    """Seconds that the run may take; None: the configured budget."""
    origin: str = ""
    """The connection that asked, for tool events and spelling; empty for callers inside the process."""
    tool_events: bool = False
    spawned_by: str | None = None
    spawn_depth: int = 0
    label: str | None = None
    delivery: Delivery | None = None
    must_exist: bool = False
    """Refuse (`NotFound`) instead of making the session."""


class Terminal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a run ended; kept with its row, so that whoever asks again gets the same."""

    state: RunState
    stop_reason: str | None = None
    text: str = ""
    """What the client is shown: the reply, or what of it arrived."""
    message: AssistantMessage | None = None
    error_message: str | None = None
    error_kind: str | None = None
    error_detail: dict[str, Any] | None = None
    started_at: int | None = None
    ended_at: int = 0
    merged_into: str | None = None
    tools: tuple[str, ...] = ()
    """Names of the tools that succeeded, each once."""
    provider: str = ""
    model: str = ""


def merged_terminal(taker: Terminal, taker_id: str) -> Terminal:
    """How a run ends that `taker` took in: a final without a message of its own."""
    return Terminal(
        state=RunState.MERGED,
        stop_reason=taker.stop_reason,
        started_at=taker.started_at,
        ended_at=taker.ended_at,
        merged_into=taker_id,
    )


encode_terminal = msgspec.json.Encoder().encode
decode_terminal = msgspec.json.Decoder(Terminal).decode


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller learns: its run is on disk. `replay` is set when the key was known already."""

    run_id: str
    session_key: str
    session_id: str
    agent_id: str
    accepted_at: int
    message_seq: int | None = None
    """1-based place in the transcript, once the message stands there."""
    replay: bool = False
    terminal: Terminal | None = None
    """With `replay`: how the run ended, if it has."""
    interrupted: bool = False
    """Another run was stopped for this one."""


encode_input = msgspec.json.Encoder().encode
decode_input = msgspec.json.Decoder(UserMessage | SystemMessage).decode
