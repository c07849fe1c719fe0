"""The agent-run supervisor: accepts runs, gives each its turn in its session's lane, and ends it once.

One inbox; what it accepted is on disk before anybody is told. A run is a child call of its lane's worker, the worker
a task of the supervisor's nursery. Knows nothing of models and prompts (`turn.py`), and nothing of clients.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Protocol

import msgspec
import trio

from triops.agents.messages import Message, SystemMessage
from triops.runtime.boundaries import contain
from triops.runtime.bus import Bus
from triops.runtime.clock import Clock
from triops.runtime.errors import Busy, NotFound, RuntimeFault, Unavailable
from triops.runtime.events import RunEnded, RunInfo, SessionChanged, SessionMessage
from triops.runtime.logs import Log
from triops.runtime.runs.lanes import Lane, Lanes, LaneStatistics
from triops.runtime.runs.registry import Registry, RegistryStatistics, Run
from triops.runtime.runs.state import Accepted, RunState, Submission, Terminal
from triops.runtime.sessions import Session, agent_of
from triops.runtime.store import runs as stored_runs
from triops.runtime.store import sessions as stored_sessions
from triops.runtime.store.db import Db
from triops.runtime.store.runs import Acceptance, Stored
from triops.runtime.store.sessions import Placed
from triops.runtime.store.sqlite import Outcome, Store

INBOX_CAPACITY = 256  # submissions of a burst; past it the caller hears `Busy` and nothing was written
COMMIT_GRACE = 10.0  # seconds that the last write of a run may take when everything around it is cancelled
RETRY_UNSTORED = 5.0  # seconds between tries to store the end of a run that the disk refused

Acknowledge = Callable[[Accepted], None]


class Draft(msgspec.Struct, frozen=True):
    """How a turn ended, and the messages that go to disk with its end."""

    terminal: Terminal
    messages: Sequence[Message] = ()


class Turn(Protocol):
    """One turn of a run: what happens between its start and its end."""

    async def reply(self, run: Run, desk: "Desk") -> Draft:
        """Answer. Any exception that it raises is given back to it as `failed`."""
        ...

    def failed(self, run: Run, error: Exception) -> Draft:
        """What is left of a turn that raised `error`."""
        ...

    def stopped(self, run: Run) -> Draft:
        """What is left of a turn that was cancelled, by its deadline or otherwise."""
        ...


class Desk(Protocol):
    """What a turn may ask of the supervisor while it runs."""

    def steer(self) -> list[Run]:
        """Messages that arrived and are now this run's; sync. They must be saved with the next `save`."""
        ...

    async def save(self, messages: Sequence[Message]) -> None:
        """A step is on disk when this returns."""
        ...


class SupervisorStatistics(msgspec.Struct, frozen=True):
    inbox: int
    inbox_capacity: int
    runs: RegistryStatistics
    lanes: LaneStatistics


class _Request(msgspec.Struct, eq=False):
    submission: Submission
    acknowledge: Acknowledge | None
    ready: trio.Event = msgspec.field(default_factory=trio.Event)
    accepted: Accepted | None = None
    error: Exception | None = None

    def settle(self, accepted: Accepted | None, error: Exception | None = None) -> None:
        self.accepted = accepted
        self.error = error
        self.ready.set()
        if accepted is not None and self.acknowledge is not None:
            self.acknowledge(accepted)


class Supervisor:
    """See the module; made by `open_supervisor`."""

    def __init__(
        self,
        *,
        store: Store,
        bus: Bus,
        clock: Clock,
        log: Log,
        lanes: Lanes,
        turn: Turn,
        budget: float,
        nursery: trio.Nursery,
    ) -> None:
        self._store = store
        self._bus = bus
        self._clock = clock
        self._log = log
        self._lanes = lanes
        self._turn = turn
        self._budget = budget
        self._nursery = nursery
        self._registry = Registry(bus, clock, log)
        self._send, self._receive = trio.open_memory_channel[_Request](INBOX_CAPACITY)
        self._closed = False
        self._unstored: dict[str, Terminal] = {}
        """Ends that were told and that the disk has not taken yet."""

    # -- asked by others -------------------------------------------------------------------------------------------

    async def submit(self, submission: Submission, *, acknowledge: Acknowledge | None = None) -> Accepted:
        """Have a run accepted. On return (and when `acknowledge`, sync, is called) it is on disk.

        `acknowledge` runs before any event of the run is published. Cancelled: the run may be accepted all the same;
        the same submission again tells.

        Raises:
            Busy: the inbox or the session's lane is full; nothing was written.
            Conflict: the id stands for other input.
            NotFound: the session must exist and does not.
            Unavailable: the store refuses, or the runtime is stopping.
        """
        request = _Request(submission, acknowledge)
        if self._closed:
            raise Unavailable("the runtime is stopping; send it again after the restart")
        try:
            self._send.send_nowait(request)
        except trio.WouldBlock:
            raise Busy(f"{INBOX_CAPACITY} messages are waiting to be accepted; try again", retry_after=0.25) from None
        await request.ready.wait()
        if request.error is not None:
            raise request.error
        assert request.accepted is not None
        return request.accepted

    async def wait(self, run_id: str) -> Terminal:
        """How a run ends; returns at once when it has, before a restart or after.

        Raises:
            NotFound: nobody submitted it.
        """
        for _ in range(2):  # a run may end between the look at memory and the look at the disk
            run = self._registry.get(run_id)
            if run is not None:
                await run.ended.wait()
                assert run.terminal is not None
                return run.terminal
            stored = await self.find(run_id)
            if stored is not None and stored.terminal is not None:
                return stored.terminal
        raise NotFound(f"unknown run: {run_id}")

    def open_run(self, run_id: str) -> Run | None:
        """The run, while it is accepted and not over."""
        return self._registry.get(run_id)

    def open_runs(self, session_key: str | None = None) -> list[Run]:
        """Runs that are accepted and not over, oldest first."""
        return self._registry.all() if session_key is None else self._registry.of_session(session_key)

    async def find(self, run_id: str) -> Stored | None:
        """The run as it lies on disk."""
        stored = await self._store.read(lambda db: stored_runs.find(db, run_id))
        told = self._unstored.get(run_id)
        return stored if told is None or stored is None else msgspec.structs.replace(stored, terminal=told)

    def abort(self, run: Run, reason: str) -> bool:
        """Stop a run, waiting or running; sync. False when it was stopped before or is over.

        Its terminal follows by itself: at once for one that waits, when its tools' children are gone for one that runs.
        """
        if not run.stop(reason):
            return False
        lane = self._lanes.get(run.session.key)
        if lane is not None and run in lane.queue:
            lane.queue.remove(run)
            self._nursery.start_soon(self._drop, run, name=f"drop {run.id}")
        return True

    async def append(self, session_key: str, message: SystemMessage) -> None:
        """Put a visible system message into a session, without a run.

        Raises:
            Unavailable: the store refuses.
        """
        now = self._clock()
        session, placed = await self._store.write(lambda db: stored_sessions.append(db, session_key, message, now))
        self._announce(session.key, [placed])
        self.changed(session.key, reason="message")

    def changed(
        self, session_key: str, *, reason: str | None = None, phase: str | None = None, run_id: str | None = None
    ) -> None:
        """Tell listeners that a session's row is other than it was."""
        self._bus.publish(
            SessionChanged(
                session_key=session_key,
                agent_id=agent_of(session_key),
                ts=self._clock(),
                reason=reason,
                phase=phase,
                run_id=run_id,
            )
        )

    def statistics(self) -> SupervisorStatistics:
        inbox = self._send.statistics()
        return SupervisorStatistics(
            inbox=inbox.current_buffer_used,
            inbox_capacity=int(inbox.max_buffer_size),
            runs=self._registry.statistics(),
            lanes=self._lanes.statistics(),
        )

    # -- its own life ----------------------------------------------------------------------------------------------

    async def recover(self, *, max_age_ms: int) -> None:
        """After a start: end what was cut off, tell it, and queue what waits."""
        now = self._clock()
        ended, waiting = await self._store.write(lambda db: stored_runs.recover(db, now, max_age_ms=max_age_ms))
        for stored in ended:
            assert stored.terminal is not None
            self._log.warning("a run did not survive the restart", run=stored.submission.run_id)
            self._bus.publish(RunEnded(_info(stored), 1, now, stored.terminal))
        for stored in waiting:
            run = Run(stored.submission, stored.session, stored.accepted_at)
            self._registry.add(run)
            lane = self._lanes.reserve(run.session.key) or self._lanes.get(run.session.key)
            assert lane is not None
            lane.queue.append(run)
            self._ring(lane)

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take submissions from the inbox, until cancelled."""
        with self._receive:
            task_status.started()
            async for request in self._receive:
                self._reserve(request)

    async def drain(self, grace: float) -> None:
        """Accept nothing more, and let what runs finish for at most `grace` seconds; then stop it."""
        self._closed = True
        with trio.move_on_after(grace):
            for run in self.open_runs():
                if run.state is RunState.RUNNING:
                    await run.ended.wait()
        for run in self.open_runs():
            if run.state is RunState.RUNNING:
                run.stop("restart")
        with trio.move_on_after(COMMIT_GRACE):
            for run in self.open_runs():
                if run.state is RunState.RUNNING:
                    await run.ended.wait()

    # -- accepting -------------------------------------------------------------------------------------------------

    def _reserve(self, request: _Request) -> None:
        submission = request.submission
        if self._closed:
            request.settle(None, Unavailable("the runtime is stopping; send it again after the restart"))
            return
        lane = self._lanes.reserve(submission.session_key)
        if lane is None:
            words = f"session {submission.session_key} has its fill of waiting messages; try again when it has answered"
            request.settle(None, Busy(words, retry_after=1.0))
            return
        start = lane.idle and self._borrow(submission)
        lane.starting = lane.starting or start
        lane.places += 1
        now = self._clock()
        self._store.submit(
            lambda db: stored_runs.accept(db, submission, now, start=start),
            partial(self._stored, request, lane, start),
        )

    def _borrow(self, submission: Submission) -> bool:
        try:
            self._lanes.limiter(submission.source).acquire_on_behalf_of_nowait(submission.run_id)
        except (trio.WouldBlock, RuntimeError):  # RuntimeError: the same id is running already
            return False
        return True

    def _stored(self, request: _Request, lane: Lane, start: bool, outcome: Outcome[Acceptance]) -> None:
        """The commit is done: acknowledge, register, ring; one sync step, whether or not the caller is still there."""
        submission = request.submission
        lane.places -= 1
        if start:
            lane.starting = False
        acceptance = outcome.value
        if acceptance is None or not acceptance.fresh:
            if start:
                self._lanes.limiter(submission.source).release_on_behalf_of(submission.run_id)
            self._ring(lane)
            if acceptance is None:
                request.settle(None, outcome.error)
            else:
                self._settle(request, _accepted(submission, acceptance, replay=True))
            return
        run = Run(submission, acceptance.session, acceptance.accepted_at)
        interrupt = submission.queue_mode == "interrupt" and lane.active is not None
        if acceptance.placed is not None:
            run.begin(acceptance.placed.seq, acceptance.history)
        self._settle(request, _accepted(submission, acceptance, interrupted=interrupt))
        self._registry.add(run)
        if interrupt:
            assert lane.active is not None
            lane.active.stop("interrupt")
            lane.queue.appendleft(run)
        elif start:
            lane.active = run
            assert acceptance.placed is not None
            self._announce(run.session.key, [acceptance.placed])
            self._nursery.start_soon(self._work, lane, name=f"lane {lane.key}")
        else:
            lane.queue.append(run)
        self._ring(lane)

    def _settle(self, request: _Request, accepted: Accepted) -> None:
        with contain(self._log, "an acknowledgement could not be given"):
            request.settle(accepted)

    def _ring(self, lane: Lane) -> None:
        """See to it that somebody works on the lane, if there is work."""
        if lane.queue and lane.active is None and not lane.starting and not self._closed:
            lane.active = lane.queue.popleft()
            self._nursery.start_soon(self._work, lane, name=f"lane {lane.key}")
        else:
            self._lanes.forget(lane)

    # -- running ---------------------------------------------------------------------------------------------------

    async def _work(self, lane: Lane) -> None:
        """Work a lane off. "Active" is where the program counter stands."""
        while (run := lane.active) is not None:
            try:
                if run.history is None:
                    await self._claim(lane, run)
                if run.history is not None:
                    await self._execute(lane, run)
            finally:
                lane.active = None
            if lane.queue and not self._closed:
                lane.active = lane.queue.popleft()
        self._ring(lane)

    async def _claim(self, lane: Lane, run: Run) -> None:
        """Wait for a slot, and give the run its place on disk. One that is stopped meanwhile is over."""
        limiter = self._lanes.limiter(run.submission.source)
        with run.scope:
            await limiter.acquire_on_behalf_of(run.id)
        if run.stop_reason is not None:
            if not run.scope.cancelled_caught:
                limiter.release_on_behalf_of(run.id)
            await self._drop(run)
            return
        companions = lane.take_collected(run)
        now = self._clock()

        def begin(db: Db) -> tuple[Placed, Sequence[str], list[Placed]]:
            placed, history = stored_runs.claim(db, run.submission, run.session.sid, now)
            words = [other.submission.message for other in companions]
            more = stored_runs.save(db, run.session.sid, run.id, words, [other.id for other in companions], now)
            return placed, history, more

        while True:
            try:
                placed, history, more = await self._store.write(begin)
                break
            except RuntimeFault as error:
                # It was accepted, so it waits until the disk takes it; nothing of it was told yet.
                self._log.error("a queued run could not be started, trying again", run=run.id, error=error)
                await trio.sleep(RETRY_UNSTORED)
        run.begin(placed.seq, history)
        for other in companions:
            self._registry.merge(other, run)
            run.companions.append(other.submission.message)
        self._announce(run.session.key, [placed, *more])

    async def _execute(self, lane: Lane, run: Run) -> None:
        desk = _Desk(self, lane, run)
        limiter = self._lanes.limiter(run.submission.source)
        try:
            with self._registry.running(run):
                self.changed(run.session.key, phase="start", run_id=run.id)
                draft: Draft | None = None
                run.scope.deadline = trio.current_time() + (run.submission.deadline or self._budget)
                try:
                    with run.scope:
                        draft = await self._turn.reply(run, desk)
                except Exception as error:  # noqa: BLE001 - the run boundary: every way out has its terminal
                    draft = self._turn.failed(run, error)
                finally:
                    desk.give_back()
                    with trio.move_on_after(COMMIT_GRACE, shield=True):
                        run.terminal = await self._commit(run, draft or self._turn.stopped(run))
        finally:
            limiter.release_on_behalf_of(run.id)
        self.changed(run.session.key, phase="error" if run.state is RunState.ERROR else "end", run_id=run.id)

    async def _commit(self, run: Run, draft: Draft) -> Terminal:
        """The end of a run on disk, before anybody sees it."""
        end = partial(
            stored_runs.finish,
            sid=run.session.sid,
            run_id=run.id,
            terminal=draft.terminal,
            messages=draft.messages,
            now=self._clock(),
        )
        try:
            placed = await self._store.write(end)
        except RuntimeFault as error:
            return self._not_stored(run, error)
        self._announce(run.session.key, placed)
        return draft.terminal

    def _not_stored(self, run: Run, error: Exception) -> Terminal:
        """The disk refused the end of a run: that is its end, and it goes to disk as soon as it can."""
        self._log.error("the end of a run could not be stored", run=run.id, error=error)
        terminal = Terminal(
            state=RunState.ABORTED if run.state is RunState.QUEUED else RunState.ERROR,
            stop_reason="not_stored",
            text=run.text,
            error_message=str(error),
            error_kind="not_stored",
            started_at=run.started_at,
            ended_at=self._clock(),
        )
        self._unstored[run.id] = terminal
        self._nursery.start_soon(self._store_later, run, terminal, name=f"store {run.id}")
        return terminal

    async def _store_later(self, run: Run, terminal: Terminal) -> None:
        """What was told must not be contradicted by the next start: write it when the disk takes it again."""
        while True:
            await trio.sleep(RETRY_UNSTORED)
            try:
                now = self._clock()
                await self._store.write(
                    lambda db, now=now: stored_runs.finish(db, run.session.sid, run.id, terminal, (), now)
                )
            except RuntimeFault:
                continue
            del self._unstored[run.id]
            return

    async def _drop(self, run: Run) -> None:
        """End a run that never ran; its message still gets its place."""
        terminal = run.aborted(self._clock())
        with trio.move_on_after(COMMIT_GRACE, shield=True):
            try:
                placed = await self._store.write(
                    lambda db: stored_runs.drop(db, run.submission, run.session.sid, terminal, terminal.ended_at)
                )
                self._announce(run.session.key, [placed])
            except RuntimeFault as error:
                terminal = self._not_stored(run, error)
        self._registry.drop(run, terminal)

    async def save(self, run: Run, taken: list[Run], messages: Sequence[Message]) -> None:
        """A step of a run on disk, with what it took in. See `Desk.save`."""
        now = self._clock()
        merged = [other.id for other in taken]
        placed = await self._store.write(
            lambda db: stored_runs.save(db, run.session.sid, run.id, messages, merged, now)
        )
        for other in taken:
            self._registry.merge(other, run)
        self._announce(run.session.key, placed)

    def _announce(self, session_key: str, placed: Sequence[Placed]) -> None:
        for entry in placed:
            self._bus.publish(
                SessionMessage(
                    session_key=session_key,
                    agent_id=agent_of(session_key),
                    message_id=entry.id,
                    seq=entry.seq,
                    message=entry.message,
                    run_id=entry.run_id,
                )
            )


class _Desk:
    """The supervisor, as one run sees it."""

    __slots__ = ("_lane", "_run", "_supervisor", "_taken")

    def __init__(self, supervisor: Supervisor, lane: Lane, run: Run) -> None:
        self._supervisor = supervisor
        self._lane = lane
        self._run = run
        self._taken: list[Run] = []

    def steer(self) -> list[Run]:
        taken = self._lane.take_steering()
        self._taken.extend(taken)
        return taken

    async def save(self, messages: Sequence[Message]) -> None:
        await self._supervisor.save(self._run, self._taken, messages)
        self._taken = []

    def give_back(self) -> None:
        """What was taken and not saved waits again, where it was."""
        self._lane.queue.extendleft(reversed(self._taken))
        self._taken = []


def _accepted(
    submission: Submission, acceptance: Acceptance, *, replay: bool = False, interrupted: bool = False
) -> Accepted:
    return Accepted(
        run_id=submission.run_id,
        session_key=acceptance.session.key,
        session_id=acceptance.session.session_id,
        agent_id=acceptance.session.agent_id,
        accepted_at=acceptance.accepted_at,
        message_seq=acceptance.placed.seq if acceptance.placed else None,
        replay=replay,
        terminal=acceptance.terminal,
        interrupted=interrupted,
    )


def _info(stored: Stored) -> RunInfo:
    session: Session = stored.session
    submission = stored.submission
    return RunInfo(
        run_id=submission.run_id,
        session_key=session.key,
        spelled_key=submission.spelled_key or session.key,
        session_id=session.session_id,
        agent_id=session.agent_id,
        source=submission.source,
        origin=submission.origin,
        tool_events=submission.tool_events,
        spawned_by=session.spawned_by,
    )


@asynccontextmanager
async def open_supervisor(
    *,
    store: Store,
    bus: Bus,
    clock: Clock,
    log: Log,
    lanes: Lanes,
    turn: Turn,
    budget: float,
    max_age_ms: int,
    grace: float,
) -> AsyncGenerator[Supervisor]:
    """Recover what a restart left, then accept and run until the block ends.

    Leaving the block stops the intake, lets runs finish for `grace` seconds, then ends them (`aborted`, `restart`);
    what is queued stays queued on disk for the next start.
    """
    async with trio.open_nursery() as nursery:
        supervisor = Supervisor(
            store=store, bus=bus, clock=clock, log=log, lanes=lanes, turn=turn, budget=budget, nursery=nursery
        )
        await nursery.start(supervisor.serve, name="agent-run supervisor")
        await supervisor.recover(max_age_ms=max_age_ms)
        try:
            yield supervisor
        finally:
            with trio.move_on_after(grace + COMMIT_GRACE, shield=True):
                await supervisor.drain(grace)
            nursery.cancel_scope.cancel(reason="the runtime stops")
