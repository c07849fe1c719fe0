"""Fan-out: what the bus tells goes to the connections that may hear it, encoded once for all of them.

Text is paced: the first delta of a run goes out at once, then at most one `agent` and `chat` pair every `PACE`
seconds, merged in between, and what waits is sent before a tool starts and before the terminal. (Deltas carry the
whole text so far; unpaced, a 15 kB answer would be 29 MB.)
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, assert_never

import msgspec
import trio

from triops.gateway import wire
from triops.gateway.frames import EncodedEvent, encode_event
from triops.gateway.outbox import Delta, Outbox
from triops.gateway.schema.events import AgentEvent, ChatEvent
from triops.gateway.schema.sessions import SessionRow
from triops.gateway.scopes import READ
from triops.runtime.bus import Bus
from triops.runtime.events import (
    CronEvent,
    HeartbeatEvent,
    ModelsChanged,
    RunCompaction,
    RunDelta,
    RunEnded,
    RunInfo,
    RunModel,
    RunStarted,
    RunStatus,
    RunThinking,
    RuntimeEvent,
    RunTool,
    RunUsage,
    SessionChanged,
    SessionMessage,
)
from triops.runtime.runs.state import RunState, Terminal
from triops.runtime.sessions import Session

PACE = 0.030  # seconds between two pairs of deltas of one run

RowOf = Callable[[Session], SessionRow]
"""A session as clients see it."""


class Audience(Protocol):
    """A connection, as the fan-out sees it."""

    id: str
    outbox: Outbox
    scopes: frozenset[str]
    reads: bool
    """It has the scope `operator.read`."""
    all_sessions: bool
    """It asked for `sessions.subscribe`."""
    session_keys: set[str]
    """It asked for `sessions.messages.subscribe` of these."""
    scoped: bool
    """Cap `session-scoped-events`: run events only of `session_keys`."""
    tool_events: bool
    turn_phases: bool
    """Cap `turn-phases`: the end of a run says where its time went."""


class _Stream:
    """The text of one run on its way out."""

    __slots__ = ("due", "index", "last", "pending", "replace", "run", "seq", "text", "ts")

    def __init__(self, run: RunInfo) -> None:
        self.run = run
        self.index = 1
        self.text = ""
        self.pending: list[str] = []
        self.replace = False
        self.seq = 0
        self.ts = 0
        self.due = -1.0
        """Not before this may the next pair go out (Trio's clock)."""


class Fanout:
    """Every connection that is past its hello, and the streams of text under way."""

    def __init__(self, bus: Bus, row_of: RowOf) -> None:
        self._bus = bus
        self._row_of = row_of
        self._audience: dict[str, Audience] = {}
        self._streams: dict[str, _Stream] = {}
        self._late: dict[str, None] = {}
        """Runs with text that waits for its pace."""
        self._wake = trio.Event()

    def join(self, connection: Audience) -> None:
        self._audience[connection.id] = connection

    def leave(self, connection: Audience) -> None:
        self._audience.pop(connection.id, None)

    def connections(self) -> list[Audience]:
        return list(self._audience.values())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen to the bus and send late text when its time has come, until cancelled."""
        with self._bus.subscribe(self.hear):
            task_status.started()
            while True:
                while not self._late:  # what woke us may be sent by now
                    self._wake = trio.Event()
                    await self._wake.wait()
                await trio.sleep_until(min(self._streams[run_id].due for run_id in self._late))
                now = trio.current_time()
                for run_id in [run_id for run_id in self._late if self._streams[run_id].due <= now]:
                    self._flush(self._streams[run_id])

    def broadcast(self, name: str, payload: Any, *, state_version: Any = None, scope: str | None = None) -> None:
        """An event of the gateway's own for everybody, or for those with `scope`."""
        event = encode_event(name, payload, state_version=state_version)
        self._send(event, (c for c in self._audience.values() if scope is None or scope in c.scopes))

    # -- what the runtime tells ------------------------------------------------------------------------------------

    def hear(self, event: RuntimeEvent) -> None:
        """Send one runtime event to whom it concerns; sync."""
        match event:
            case RunDelta():
                self._text(event)
            case RunStatus(run, seq, ts, phase, retry):
                chat, agent = wire.status(run, seq, ts, phase, retry)
                self._run_event(run, "chat", chat)
                self._run_event(run, "agent", agent)
            case RunStarted(run, seq, ts):
                self._lifecycle(run, seq, ts, {"phase": "start", "startedAt": ts})
            case RunModel(run, seq, ts, provider, model):
                self._lifecycle(run, seq, ts, {"phase": "model", "provider": provider, "model": model})
            case RunThinking(run, seq, ts, delta):
                thought = wire.agent_event(run, seq, ts, "thinking", {"text": delta, "delta": delta})
                self._run_event(run, "agent", thought)
            case RunUsage(run, seq, ts, output_tokens):
                usage = wire.agent_event(run, seq, ts, "usage", {"outputTokens": output_tokens})
                self._run_event(run, "agent", usage, urgent=False)  # a tool's start or the end follows
            case RunTool():
                self._tool(event)
            case RunCompaction(run):
                self._run_event(run, "agent", wire.compaction(event))
            case RunEnded():
                self._ended(event)
            case SessionMessage():
                self._message(event)
            case SessionChanged():
                self._changed(event)
            case CronEvent(payload=payload):
                self.broadcast("cron", payload, scope=READ)
            case HeartbeatEvent(payload=payload):
                self.broadcast("heartbeat", payload)
            case ModelsChanged():
                self.broadcast("chat.metadata.changed", {}, scope=READ)
            case _:
                assert_never(event)

    def _lifecycle(self, run: RunInfo, seq: int, ts: int, data: dict[str, Any]) -> None:
        self._run_event(run, "agent", wire.agent_event(run, seq, ts, "lifecycle", data, with_session=True))

    def _text(self, event: RunDelta) -> None:
        stream = self._streams.get(event.run.run_id)
        if stream is None:
            stream = self._streams[event.run.run_id] = _Stream(event.run)
        if event.index != stream.index:
            self._flush(stream)
            stream.replace = bool(stream.text)
            stream.index = event.index
            stream.text = ""
        stream.pending.append(event.delta)
        stream.seq = event.seq
        stream.ts = event.ts
        if trio.current_time() >= stream.due:
            self._flush(stream)
        elif event.run.run_id not in self._late:
            self._late[event.run.run_id] = None
            self._wake.set()

    def _catch_up(self, run: RunInfo, *, urgent: bool = True) -> None:
        """Send what waits of a run's text: what the run tells next must not overtake it."""
        stream = self._streams.get(run.run_id)
        if stream is not None:
            self._flush(stream, urgent=urgent)

    def _flush(self, stream: _Stream, *, urgent: bool = True) -> None:
        """Send what waits of a run's text; not urgent: with what the run tells next."""
        run = stream.run
        self._late.pop(run.run_id, None)
        if not stream.pending:
            return
        new = "".join(stream.pending)
        stream.pending = []
        stream.text += new
        stream.due = trio.current_time() + PACE
        agent, chat = wire.delta(run, stream.seq, stream.ts, stream.index, new, stream.text, replace=stream.replace)
        stream.replace = False
        for name, payload in (("agent", agent), ("chat", chat)):
            for connection, delta in _addressed(run, name, payload, self._listeners(run)):
                connection.outbox.put_delta(delta, urgent=urgent)

    def _run_event(self, run: RunInfo, name: str, payload: AgentEvent | ChatEvent, *, urgent: bool = True) -> None:
        self._catch_up(run, urgent=urgent)
        self._tell(run, name, payload, self._listeners(run), urgent=urgent)

    def _tell(
        self, run: RunInfo, name: str, payload: AgentEvent | ChatEvent, to: Iterable[Audience], *, urgent: bool = True
    ) -> None:
        for connection, event in _addressed(run, name, payload, to):
            connection.outbox.put_event(event.encoded, run_id=run.run_id, urgent=urgent)

    def _ended(self, event: RunEnded) -> None:
        run, terminal = event.run, event.terminal
        if terminal.state is not RunState.MERGED and run.source != "command":
            end = wire.lifecycle_end(run, event.seq, terminal)
            self._catch_up(run)
            asking = [c for c in self._listeners(run) if c.turn_phases]
            self._tell(run, "agent", end, (c for c in self._listeners(run) if not c.turn_phases))
            if asking:
                self._tell(run, "agent", wire.with_phases(end, event.phases), asking)
        self._run_event(run, "chat", wire.chat_terminal(run, event.seq, terminal))
        self._streams.pop(run.run_id, None)

    def repeat(self, connection_id: str, run: RunInfo, terminal: Terminal) -> None:
        """Tell one connection, which may have missed it, how a run ended; nobody else hears."""
        connection = self._audience.get(connection_id)
        if connection is not None and connection.reads:
            chat = msgspec.structs.replace(wire.chat_terminal(run, 1, terminal), session_key=run.spelled_key)
            connection.outbox.put_event(encode_event("chat", chat))

    def _tool(self, event: RunTool) -> None:
        run = event.run
        self._catch_up(run)
        if run.source == "heartbeat":
            return
        payload, listeners = wire.tool(event), list(self._listeners(run))
        callers = [c for c in listeners if c.id == run.origin and c.tool_events]
        others = [c for c in listeners if c not in callers and (c.all_sessions or run.session_key in c.session_keys)]
        self._tell(run, "agent", payload, callers)
        self._tell(run, "session.tool", payload, others)

    def _message(self, event: SessionMessage) -> None:
        subscribers = self._subscribers(event.session_key)
        if not subscribers:
            return
        payload = wire.given(
            sessionKey=event.session_key,
            agentId=event.agent_id,
            message=wire.shown_message(event.message, event.message_id, event.seq, event.run_id),
            messageId=event.message_id,
            messageSeq=event.seq,
            runId=event.run_id,
        )
        self._send(encode_event("session.message", payload), subscribers)

    def _changed(self, event: SessionChanged) -> None:
        subscribers = self._subscribers(event.session.key)
        if subscribers:
            payload = wire.session_changed(event, self._row_of(event.session))
            self._send(encode_event("sessions.changed", payload), subscribers)

    # -- who hears -------------------------------------------------------------------------------------------------

    def _listeners(self, run: RunInfo) -> Iterator[Audience]:
        return (c for c in self._audience.values() if c.reads and (not c.scoped or run.session_key in c.session_keys))

    def _subscribers(self, session_key: str) -> list[Audience]:
        return [c for c in self._audience.values() if c.reads and (c.all_sessions or session_key in c.session_keys)]

    def _send(self, event: EncodedEvent, audience: Iterable[Audience]) -> None:
        for connection in audience:
            connection.outbox.put_event(event)


def _addressed(
    run: RunInfo, name: str, payload: AgentEvent | ChatEvent, audience: Iterable[Audience]
) -> Iterator[tuple[Audience, Delta]]:
    """What each gets: one frame for all, but the run's client sees the session's key as it spelled it."""
    shared: Delta | None = None
    for connection in audience:
        if connection.id == run.origin and run.spelled_key != run.session_key:
            yield connection, _delta(name, msgspec.structs.replace(payload, session_key=run.spelled_key))
        else:
            shared = shared or _delta(name, payload)
            yield connection, shared


def _delta(name: str, payload: AgentEvent | ChatEvent) -> Delta:
    return Delta(name, payload, encode_event(name, payload))
