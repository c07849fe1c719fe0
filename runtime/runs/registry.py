"""The registry: the one writer of run state, and the block that guarantees each run its one terminal event.

It holds the runs that are accepted and not over. What is over lies in the store; memory forgets it.
"""

from collections.abc import Generator
from contextlib import contextmanager

import msgspec
import trio

from triops.agents.messages import AssistantMessage, SystemMessage, Text, UserMessage
from triops.runtime.bus import Bus
from triops.runtime.clock import Clock
from triops.runtime.events import RunEnded, RunInfo, RunStarted
from triops.runtime.history import Past
from triops.runtime.logs import Log
from triops.runtime.phases import Phases, TurnTimes
from triops.runtime.runs.state import RunChange, RunState, Submission, Terminal, merged_terminal, next_state
from triops.runtime.sessions import Session, agent_of

_CHANGE: dict[RunState, RunChange] = {
    RunState.FINAL: RunChange.FINISH,
    RunState.ERROR: RunChange.FAIL,
    RunState.ABORTED: RunChange.ABORT,
    RunState.MERGED: RunChange.MERGE,
}


def info_of(submission: Submission, session: Session) -> RunInfo:
    """What every event of a run carries."""
    return RunInfo(
        run_id=submission.run_id,
        session_key=session.key,
        spelled_key=submission.spelled_key or session.key,
        session_id=session.session_id,
        agent_id=agent_of(session.key),
        source=submission.source,
        origin=submission.origin,
        tool_events=submission.tool_events,
        spawned_by=session.spawned_by,
        delivery=submission.delivery,
    )


class Run:
    """One accepted run, in memory. Belongs to the Trio thread; only the registry changes its state."""

    __slots__ = (
        "accepted_at",
        "answered",
        "companions",
        "ended",
        "info",
        "merged",
        "message_seq",
        "parts",
        "past",
        "phases",
        "scope",
        "seq",
        "session",
        "started_at",
        "state",
        "stop_reason",
        "submission",
        "taken",
        "terminal",
    )

    def __init__(self, submission: Submission, session: Session, accepted_at: int) -> None:
        self.submission = submission
        self.session = session
        self.accepted_at = accepted_at
        self.phases = Phases()
        self.state = RunState.QUEUED
        self.info = info_of(submission, session)
        self.seq = 0
        """Events of this run so far."""
        self.message_seq: int | None = None
        self.past: Past | None = None
        """What came before, once the run has its place."""
        self.scope = trio.CancelScope()
        self.stop_reason: str | None = None
        """Why it was told to stop, if it was."""
        self.started_at: int | None = None
        self.parts: list[str] = []
        """The text of the reply so far."""
        self.merged: list[Run] = []
        """Runs that this one took in."""
        self.companions: list[UserMessage | SystemMessage] = []
        """Messages that share this run's turn from its start."""
        self.taken = False
        """Another run takes it in, which is being stored; until that is known nobody can say that it was stopped."""
        self.answered = False
        """The turn is over and its end goes to disk: nothing stops it any more."""
        self.terminal: Terminal | None = None
        self.ended = trio.Event()

    @property
    def id(self) -> str:
        return self.submission.run_id

    @property
    def begun(self) -> bool:
        """It has its place on disk: it runs, or does so within this step."""
        return self.past is not None

    @property
    def text(self) -> str:
        """The reply so far."""
        return "".join(self.parts)

    def begin(self, session: Session, message_seq: int, past: Past) -> None:
        """The run has its place on disk, and what came before it is known."""
        self.session = session
        self.message_seq = message_seq
        self.past = past
        # A scope is entered once, and the wait for a slot may have used the one before.
        self.scope = trio.CancelScope()
        if self.stop_reason is not None:
            self.scope.cancel(reason=self.stop_reason)

    def next_seq(self) -> int:
        self.seq += 1
        return self.seq

    def stop(self, reason: str) -> bool:
        """Tell the run to stop; returns at once, and False if it was told before, is over or (nearly) part of another.

        A running one ends `aborted` when its tools' children are gone.
        """
        over = self.answered or self.terminal is not None or self.state is RunState.MERGED or self.taken
        if over or self.stop_reason is not None:
            return False
        self.stop_reason = reason
        self.scope.cancel(reason=reason)
        return True

    def aborted(self, now: int) -> Terminal:
        """How this run ends when it is stopped now, or cut off: with what of its reply arrived."""
        reason = self.stop_reason or "restart"
        message = AssistantMessage((Text(self.text),), now, stop_reason="aborted") if self.text else None
        return Terminal(
            state=RunState.ABORTED,
            stop_reason=reason,
            text=self.text,
            message=message,
            started_at=self.started_at,
            ended_at=now,
        )


class RegistryStatistics(msgspec.Struct, frozen=True):
    queued: int
    running: int
    ended: int
    """Since the start of the process."""


class Registry:
    """All runs that are accepted and not over, by id."""

    def __init__(self, bus: Bus, clock: Clock, log: Log) -> None:
        self._bus = bus
        self._clock = clock
        self._log = log
        self.times = TurnTimes()
        self._runs: dict[str, Run] = {}
        self._ended = 0

    def add(self, run: Run) -> None:
        """A run was accepted."""
        assert run.id not in self._runs, f"run {run.id} is registered twice"
        self._runs[run.id] = run

    def get(self, run_id: str) -> Run | None:
        return self._runs.get(run_id)

    def of_session(self, session_key: str) -> list[Run]:
        """The session's open runs, oldest first."""
        return [run for run in self._runs.values() if run.session.key == session_key]

    def all(self) -> list[Run]:
        return list(self._runs.values())

    @contextmanager
    def running(self, run: Run) -> Generator[None]:
        """The life of a run, from its start to its one terminal event.

        Entering and leaving have no checkpoint, so that the block is always entered and its end cannot be cancelled.
        Inside, `run.terminal` is set once the end is on disk; a block that is left without it ends the run as an
        error (our own fault) or, when it is cancelled, as the next start will: aborted. Swallows `Exception`, never
        `Cancelled`.
        """
        run.state = next_state(run.state, RunChange.START)
        run.phases.enter("plan")
        run.started_at = now = self._clock()
        self._bus.publish(RunStarted(run.info, run.next_seq(), now))
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the run boundary
            self._log.error("a run failed by our own fault", run=run.id, session=run.session.key, error=error)
            if run.terminal is None:
                run.terminal = Terminal(
                    state=RunState.ERROR,
                    error_message=f"internal error: {type(error).__name__}; the log says more (run {run.id})",
                    error_kind="unknown",
                    started_at=run.started_at,
                    ended_at=self._clock(),
                )
        finally:
            if run.terminal is None:
                run.terminal = run.aborted(self._clock())
            self._end(run, run.terminal)

    def merge(self, run: Run, taker: Run) -> None:
        """`run` is part of `taker` from now on; its terminal comes with the taker's."""
        run.state = next_state(run.state, RunChange.MERGE)
        taker.merged.append(run)

    def drop(self, run: Run, terminal: Terminal) -> None:
        """End a run that never ran."""
        self._end(run, terminal)

    def _end(self, run: Run, terminal: Terminal) -> None:
        assert self._runs.get(run.id) is run, f"run {run.id} ends twice"
        if run.state is not RunState.MERGED:
            run.state = next_state(run.state, _CHANGE[terminal.state])
        run.terminal = terminal
        del self._runs[run.id]
        self._ended += 1
        phases = None
        if terminal.state is not RunState.MERGED:
            phases = run.phases
            phases.end()
            self.times.add(phases, terminal.state)
        self._bus.publish(RunEnded(run.info, run.next_seq(), terminal.ended_at, terminal, phases))
        run.ended.set()
        for other in run.merged:
            self._end(other, merged_terminal(terminal, run.id))

    def statistics(self) -> RegistryStatistics:
        running = sum(run.state is RunState.RUNNING for run in self._runs.values())
        return RegistryStatistics(queued=len(self._runs) - running, running=running, ended=self._ended)
