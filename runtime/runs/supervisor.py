"""The agent-run supervisor: accepts runs, and is asked about them.

One inbox; what it accepted is on disk before anybody is told. A run is a child call of its lane's worker, the worker
a task of the supervisor's nursery. Knows neither how a run is worked off (`worker.py`) nor clients.
"""

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial

import msgspec
import trio

from triops.agents.kept import Kept
from triops.agents.messages import AssistantMessage, SystemMessage, Text
from triops.runtime.boundaries import contain
from triops.runtime.bus import Bus
from triops.runtime.clock import Clock, InThread
from triops.runtime.errors import Busy, NotFound, Unavailable
from triops.runtime.events import RunEnded, SessionChanged
from triops.runtime.history import KEPT, Past
from triops.runtime.logs import Log
from triops.runtime.runs.lanes import Lane, Lanes, LaneStatistics
from triops.runtime.runs.registry import Registry, RegistryStatistics, Run, info_of
from triops.runtime.runs.state import Accepted, RunState, Submission, Terminal
from triops.runtime.runs.worker import Turn, Worker, announce, settled
from triops.runtime.sessions import Session
from triops.runtime.store import runs as stored_runs
from triops.runtime.store import sessions as stored_sessions
from triops.runtime.store.aside import Aside
from triops.runtime.store.runs import Acceptance, Stored
from triops.runtime.store.sessions import Placed
from triops.runtime.store.sqlite import Outcome, Store

INBOX_CAPACITY = 256  # submissions of a burst; past it the caller hears `Busy` and nothing was written
STORED_WITHIN = 5.0  # seconds that who stops runs waits for the disk
COMMIT_GRACE = 10.0  # seconds that stopped runs have to reach the disk with their ends, when the runtime stops

Acknowledge = Callable[[Accepted], None]


class SupervisorStatistics(msgspec.Struct, frozen=True):
    inbox: int
    inbox_capacity: int
    runs: RegistryStatistics
    lanes: LaneStatistics


class _Request(msgspec.Struct, eq=False):
    submission: Submission
    acknowledge: Acknowledge | None
    outcome: Outcome[Accepted] = msgspec.field(default_factory=Outcome[Accepted])
    ready: trio.Event = msgspec.field(default_factory=trio.Event)

    def refuse(self, error: Exception) -> None:
        self.outcome = Outcome(error=error)
        self.ready.set()

    def accept(self, accepted: Accepted) -> None:
        self.outcome = Outcome(value=accepted)
        self.ready.set()
        if self.acknowledge is not None:
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
        turn: Callable[[Run], Turn],
        budget: float,
        aside: Aside,
        in_thread: InThread,
    ) -> None:
        self._store = store
        self._aside = aside
        self._in_thread = in_thread
        self._bus = bus
        self._clock = clock
        self._log = log
        self._lanes = lanes
        self._pasts = Kept[Past](KEPT)
        self._registry = Registry(bus, clock, log)
        self._worker = Worker(
            store=store,
            bus=bus,
            clock=clock,
            log=log,
            registry=self._registry,
            lanes=lanes,
            pasts=self._pasts,
            turn=turn,
            budget=budget,
            aside=aside,
            in_thread=in_thread,
        )
        self._send, self._receive = trio.open_memory_channel[_Request](INBOX_CAPACITY)
        self.life = trio.CancelScope()
        """Around all that it does. Shielded by its opener, which ends it by `drain`: that gives it a deadline."""
        self._tasks: trio.Nursery | None = None
        """Where workers live; None before and after."""
        self._over = trio.Event()
        self.times = self._registry.times
        """Where the time of the turns went, since the start."""

    # -- asked by others -----------------------------------------------------------------------------------------------

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
        try:
            self._send.send_nowait(request)
        except trio.WouldBlock:
            raise Busy(f"{INBOX_CAPACITY} messages are waiting to be accepted; try again", retry_after=0.25) from None
        except trio.ClosedResourceError:
            raise _stopping() from None
        await request.ready.wait()
        return request.outcome.unwrap()

    async def wait(self, run_id: str) -> Terminal:
        """How a run ends; returns at once when it has, before a restart or after.

        Raises:
            NotFound: nobody submitted it.
        """
        for _ in range(2):
            run = self._registry.get(run_id)
            if run is not None:
                await run.ended.wait()
                assert run.terminal is not None
                return run.terminal
            stored = await self.find(run_id)
            if stored is None:
                break
            if stored.terminal is not None:
                return stored.terminal
            await settled(self._store)  # it was accepted or ended between the two looks: by now that is told
        raise NotFound(f"unknown run: {run_id}")

    def open_run(self, run_id: str) -> Run | None:
        """The run, while it is accepted and not over."""
        return self._registry.get(run_id)

    def open_runs(self, session_key: str | None = None) -> list[Run]:
        """Runs that are accepted and not over, oldest first."""
        return self._registry.all() if session_key is None else self._registry.of_session(session_key)

    async def find(self, run_id: str) -> Stored | None:
        """The run as it lies on disk, or as it was told to have ended if the disk does not know yet."""
        stored = await self._store.read(lambda db: stored_runs.find(db, run_id))
        told = self._worker.told(run_id)
        return stored if told is None or stored is None else msgspec.structs.replace(stored, terminal=told)

    def abort(self, run: Run, reason: str) -> bool:
        """Stop a run, waiting or running; sync. False when it was stopped before, is over or is part of another.

        Its terminal follows by itself: at once for one that waits, when its tools' children are gone for one that runs.
        """
        if self._tasks is None or not run.stop(reason):
            return False
        lane = self._lanes.get(run.session.key)
        if lane is not None and run in lane.queue:
            lane.queue.remove(run)
            self._tasks.start_soon(self._worker.drop, run, name=f"drop {run.id}")
        return True

    async def stop(self, runs: Iterable[Run], reason: str) -> list[Run]:
        """Stop those of `runs` that can be, waiting ones first; on return no restart can bring one of them back.

        Cancelled: they are stopped all the same.

        Raises:
            Unavailable: that the waiting ones are over is not on disk yet; ask again.
        """
        waiting_first = sorted(runs, key=lambda run: run.begun)
        stopped = [run for run in waiting_first if self.abort(run, reason)]
        with trio.move_on_after(STORED_WITHIN) as late:
            for run in stopped:
                if not run.begun:
                    await run.ended.wait()
        if late.cancelled_caught:
            raise Unavailable("what was stopped could not be stored yet; ask again")
        return stopped

    async def answer(self, submission: Submission, text: str, *, acknowledge: Acknowledge | None = None) -> Accepted:
        """Have a run accepted that is over already: `text` is its reply, and neither lane nor model has a part in it.

        Acknowledges and raises as `submit`; a key that is known is told how its run stands, whatever `text` says.
        """
        if self._lanes.closed:
            raise _stopping()
        request, now = _Request(submission, acknowledge), self._clock()
        message = AssistantMessage((Text(text),), now, provider="openclaw", model="gateway-injected")
        terminal = Terminal(state=RunState.FINAL, stop_reason="stop", text=text, message=message, ended_at=now)

        def on_disk(acceptance: Acceptance) -> None:
            self._acknowledge(request, acceptance)
            if acceptance.fresh:
                self._bus.publish(RunEnded(info_of(submission, acceptance.session), 1, now, terminal))

        await self._store.write(lambda db: stored_runs.answer(db, submission, terminal, now), then=on_disk)
        return request.outcome.unwrap()

    async def append(self, session_key: str, message: SystemMessage) -> None:
        """Put a visible system message into a session, without a run. Cancelled: it may stand there all the same.

        Raises:
            Unavailable: the store refuses.
        """
        now = self._clock()

        def on_disk(appended: tuple[Session, Placed]) -> None:
            session, placed = appended
            announce(self._bus, session_key, [placed])
            self.changed(session, phase="message")

        await self._store.write(lambda db: stored_sessions.append(db, session_key, message, now), then=on_disk)

    def changed(self, session: Session, **why: str) -> None:
        """Tell listeners that a session is other than it was; `why` is its `reason` or `phase`."""
        self._bus.publish(SessionChanged(session=session, ts=self._clock(), **why))

    def statistics(self) -> SupervisorStatistics:
        inbox = self._send.statistics()
        return SupervisorStatistics(
            inbox=inbox.current_buffer_used,
            inbox_capacity=int(inbox.max_buffer_size),
            runs=self._registry.statistics(),
            lanes=self._lanes.statistics(),
        )

    # -- its own life --------------------------------------------------------------------------------------------------

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take submissions from the inbox until `drain`, and live until the last worker is done.

        The cancellation around it does not reach it: a run that is cut off still has its end stored and told.
        """
        try:
            with self.life:
                async with trio.open_nursery() as self._tasks:
                    with self._receive:
                        task_status.started()
                        async for request in self._receive:
                            self._reserve(request)
                    await settled(self._store)  # what is being accepted starts its worker now or never
        finally:
            self._tasks = None
            self._over.set()

    async def recover(self, *, max_age_ms: int) -> None:
        """After a start: end what was cut off, tell it, and queue what waits."""
        now, told = self._clock(), dict(self._aside.ends)
        ended, waiting = await self._store.write(
            lambda db: stored_runs.recover(db, now, max_age_ms=max_age_ms, told=told)
        )
        await self._in_thread(partial(self._aside.remove, *told))
        for stored in ended:
            assert stored.terminal is not None
            if stored.submission.run_id in told or stored.terminal.merged_into in told:
                continue
            self._log.warning("a run did not survive the restart", run=stored.submission.run_id)
            self._bus.publish(RunEnded(info_of(stored.submission, stored.session), 1, now, stored.terminal))
        for stored in waiting:
            run = Run(stored.submission, stored.session, stored.accepted_at)
            self._registry.add(run)
            self._queue(self._lanes.open(run.session.key), run, interrupts=run.submission.queue_mode == "interrupt")
        for lane in self._lanes.all():
            self._ring(lane)

    async def drain(self, grace: float) -> None:
        """Accept nothing more, and let what runs finish for at most `grace` seconds; then stop it.

        What waits for its turn stays queued on disk for the next start.
        """
        self._lanes.closed = True
        self._send.close()
        self.life.deadline = trio.current_time() + grace + COMMIT_GRACE
        with trio.move_on_after(grace):
            await self._over.wait()
        self._lanes.stopping = True
        for run in self.open_runs():
            if run.begun:
                run.stop("restart")
        await self._over.wait()

    # -- accepting -----------------------------------------------------------------------------------------------------

    def _reserve(self, request: _Request) -> None:
        submission = request.submission
        if self._lanes.closed:
            request.refuse(_stopping())
            return
        lane = self._lanes.reserve(submission.session_key)
        if lane is None:
            words = f"session {submission.session_key} has its fill of waiting messages; try again when it has answered"
            request.refuse(Busy(words, retry_after=1.0))
            return
        start = lane.idle and lane.take_slot_nowait(self._lanes.slots_for(submission))
        lane.starting = lane.starting or start
        lane.places += 1
        now, known = self._clock(), self._pasts.get(lane.key)
        self._store.submit(
            lambda db: stored_runs.accept(db, submission, now, start=start, known=known),
            partial(self._stored, request, lane, start),
        )

    def _stored(self, request: _Request, lane: Lane, start: bool, outcome: Outcome[Acceptance]) -> None:
        """The commit is done: acknowledge, register, ring; one sync step, whether or not the caller is still there."""
        lane.places -= 1
        if start:
            lane.starting = False
        acceptance = outcome.value
        if acceptance is not None and acceptance.fresh:
            self._take_in(request, lane, start, acceptance)
        else:
            if start:
                lane.free_slot()
            if outcome.error is not None:
                request.refuse(outcome.error)
            elif acceptance is not None:
                self._acknowledge(request, acceptance)
        self._ring(lane)

    def _take_in(self, request: _Request, lane: Lane, start: bool, acceptance: Acceptance) -> None:
        run = Run(request.submission, acceptance.session, acceptance.accepted_at)
        interrupts = run.submission.queue_mode == "interrupt" and lane.active is not None
        interrupted = interrupts and lane.active is not None and lane.active.stop("interrupt")
        self._acknowledge(request, acceptance, interrupted=interrupted)
        self._registry.add(run)
        if start:
            assert acceptance.placed is not None and acceptance.past is not None
            self._pasts.keep(lane.key, acceptance.past, acceptance.past.size)
            run.begin(acceptance.session, acceptance.placed.seq, acceptance.past)
            announce(self._bus, run.session.key, [acceptance.placed])
            lane.active = run
            self._hire(lane)
        else:
            self._queue(lane, run, interrupts=interrupts)

    def _queue(self, lane: Lane, run: Run, *, interrupts: bool) -> None:
        if not interrupts:
            lane.queue.append(run)
            return
        for replaced in lane.put_first(run):
            self.abort(replaced, "interrupt")

    def _acknowledge(self, request: _Request, acceptance: Acceptance, *, interrupted: bool = False) -> None:
        submission, session = request.submission, acceptance.session
        accepted = Accepted(
            run_id=submission.run_id,
            session_key=session.key,
            session_id=session.session_id,
            agent_id=session.agent_id,
            accepted_at=acceptance.accepted_at,
            message_seq=acceptance.placed.seq if acceptance.placed else None,
            replay=not acceptance.fresh,
            terminal=acceptance.terminal or self._worker.told(submission.run_id),
            interrupted=interrupted,
        )
        with contain(self._log, "an acknowledgement could not be given"):
            request.accept(accepted)

    def _ring(self, lane: Lane) -> None:
        """See to it that somebody works on the lane, if there is work."""
        if lane.active is None and self._lanes.advance(lane) is not None:
            self._hire(lane)

    def _hire(self, lane: Lane) -> None:
        if self._tasks is not None:  # else it is on disk, and the next start's
            self._tasks.start_soon(self._worker.work, lane, name=f"lane {lane.key}")


def _stopping() -> Unavailable:
    return Unavailable("the runtime is stopping; send it again after the restart", details={"reason": "stopping"})


@asynccontextmanager
async def open_supervisor(
    *,
    store: Store,
    bus: Bus,
    clock: Clock,
    log: Log,
    lanes: Lanes,
    turn: Callable[[Run], Turn],
    budget: float,
    max_age_ms: int,
    grace: float,
    aside: Aside,
    in_thread: InThread,
) -> AsyncGenerator[Supervisor]:
    """Recover what a restart left, then accept and run until the block ends.

    `turn` makes the turn of a run. Leaving the block stops the intake, lets runs finish for `grace` seconds, then ends
    them (`aborted`, `restart`); what is queued stays queued on disk for the next start. `aside` stays its owner's.
    """
    supervisor = Supervisor(
        store=store,
        bus=bus,
        clock=clock,
        log=log,
        lanes=lanes,
        turn=turn,
        budget=budget,
        aside=aside,
        in_thread=in_thread,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.serve, name="agent-run supervisor")
        supervisor.life.shield = True  # not before: a start that is cancelled has to end it
        try:
            await supervisor.recover(max_age_ms=max_age_ms)
            yield supervisor
        finally:
            with trio.move_on_after(grace + COMMIT_GRACE + 1, shield=True):
                await supervisor.drain(grace)
