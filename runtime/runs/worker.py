"""The worker of the lanes: gives each run its turn, puts its end on disk, and only then has it told.

One task works one busy lane off. Knows nothing of models and prompts (`turn.py`), nothing of clients, and not how a run
is accepted.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import msgspec
import trio

from triops.agents.errors import ProviderError
from triops.agents.kept import Kept
from triops.agents.messages import AssistantMessage, Message, SystemMessage
from triops.runtime.boundaries import contain
from triops.runtime.bus import Bus
from triops.runtime.clock import Clock, InThread
from triops.runtime.errors import RuntimeFault
from triops.runtime.events import SessionChanged, SessionMessage
from triops.runtime.history import Past
from triops.runtime.logs import Log
from triops.runtime.runs.lanes import Lane, Lanes
from triops.runtime.runs.registry import Registry, Run
from triops.runtime.runs.state import RunState, Terminal
from triops.runtime.sessions import Session, agent_of
from triops.runtime.store import runs as stored_runs
from triops.runtime.store import sessions as stored_sessions
from triops.runtime.store.aside import Aside
from triops.runtime.store.db import Db, Transaction
from triops.runtime.store.sessions import Placed
from triops.runtime.store.sqlite import Store

RETRY = 1.0  # seconds between tries to store what the disk refused


class Draft(msgspec.Struct, frozen=True):
    """How a turn ended, and the messages that go to disk with its end."""

    terminal: Terminal
    messages: Sequence[Message] = ()


class Desk(Protocol):
    """What a turn may ask for while it runs."""

    def steer(self) -> list[Run]:
        """Messages that arrived and are now this run's; sync. They must be saved with the next `save`."""
        ...

    async def save(self, messages: Sequence[Message], saved: Callable[[], None]) -> None:
        """A step is on disk when this returns.

        `saved` (sync) is called when it is, whether or not anybody still waits: a save that is cancelled may come
        through all the same. It has or it has not, before the turn is asked how it ended.

        Raises:
            Unavailable: the store refuses; nothing was written.
        """
        ...

    async def compact(self, summary: SystemMessage, kept_seq: int) -> None:
        """When this returns, later turns of the session are shown `summary` in place of what stands before `kept_seq`.

        Raises:
            Unavailable: the store refuses; nothing was written.
        """
        ...


class Turn(Protocol):
    """The turn of one run: what happens between its start and its end."""

    async def reply(self, desk: Desk) -> Draft:
        """Answer. An exception that it raises is given back to it as `failed`."""
        ...

    def failed(self, error: Exception) -> Draft:
        """What is left of the turn, which raised `error`."""
        ...

    def stopped(self) -> Draft:
        """What is left of the turn, which was cancelled, by the run's deadline or otherwise."""
        ...


class Worker:
    """See the module. Its tasks live in the supervisor's nursery, which outlives the cancellation around it: that a run
    is stopped reaches its turn alone, and what follows the turn needs no shield."""

    def __init__(
        self,
        *,
        store: Store,
        bus: Bus,
        clock: Clock,
        log: Log,
        registry: Registry,
        lanes: Lanes,
        pasts: Kept[Past],
        turn: Callable[[Run], Turn],
        budget: float,
        aside: Aside,
        in_thread: InThread,
    ) -> None:
        self._store = store
        self._bus = bus
        self._clock = clock
        self._log = log
        self._registry = registry
        self._lanes = lanes
        self._pasts = pasts
        self._turn = turn
        self._budget = budget
        self._aside = aside
        self._in_thread = in_thread
        self._told: dict[str, Terminal] = {}

    def told(self, run_id: str) -> Terminal | None:
        """How a run ended whose end was told while the disk has not taken it yet."""
        return self._told.get(run_id)

    async def work(self, lane: Lane) -> None:
        """Work a lane off. "Active" is where the program counter stands."""
        while (run := lane.active) is not None:
            try:
                await self._serve(lane, run)
            finally:
                lane.free_slot()
            self._lanes.advance(lane)

    async def drop(self, run: Run) -> None:
        """End a run that never ran; its message still gets its place.

        Nothing is told before it is on disk, however long that takes: the next start would run what waits there.
        """
        terminal = run.aborted(self._clock())
        try:
            placed = await self._insist(partial(_drop, run, terminal))
        except Exception as error:  # noqa: BLE001 - the run boundary: a fault of ours ends a run, not all of them
            self._log.error("a run could not be dropped by our own fault", run=run.id, error=error)
            placed = []
        announce(self._bus, run.session.key, placed)
        self._registry.drop(run, terminal)

    # -- one run -------------------------------------------------------------------------------------------------------

    async def _serve(self, lane: Lane, run: Run) -> None:
        try:
            begun = run.begun or await self._claim(lane, run)
        except Exception as error:  # noqa: BLE001 - the run boundary: a fault of ours ends a run, not all of them
            self._log.error("a run could not be started by our own fault", run=run.id, error=error)
            run.stop("internal error")
            begun = False
        if begun:
            await self._execute(lane, run)
            return
        lane.free_slot()
        if run.stop_reason is not None:
            await self.drop(run)
        else:
            lane.queue.appendleft(run)  # the lanes are closed: it waits on disk for the next start

    async def _claim(self, lane: Lane, run: Run) -> bool:
        """Wait for a slot, and give the run its place on disk. False: it was stopped, or nothing begins any more."""
        with run.scope:
            await lane.take_slot(self._lanes.slots_for(run.submission))
        while run.stop_reason is None and not self._lanes.closed:
            companions = lane.take_collected(run)
            try:
                known = self._pasts.get(lane.key)
                begin = partial(_begin, run, companions, known, self._clock())
                session, placed, past = await self._store.write(begin)
            except Exception as error:
                lane.give_back(companions)
                if not isinstance(error, RuntimeFault):
                    raise
                # It was accepted, so it waits until the disk takes it; nothing of it was told yet.
                self._log.error("a queued run could not be started, trying again", run=run.id, error=error)
                await trio.sleep(RETRY)
                continue
            self._pasts.keep(lane.key, past, past.size)
            run.begin(session, placed[0].seq, past)
            for other in companions:
                self._registry.merge(other, run)
                run.companions.append(other.submission.message)
            announce(self._bus, run.session.key, placed)
            return True
        return False

    async def _execute(self, lane: Lane, run: Run) -> None:
        draft: Draft | None = None
        stored = False
        with self._registry.running(run):
            self._changed(run, "start")
            draft = await self._reply(lane, run)
            run.phases.enter("commit")
            try:
                run.session, placed = await self._store.write(partial(_finish, run, draft, self._clock()))
            except RuntimeFault as error:
                self._log.error("the end of a run could not be stored", run=run.id, error=error)
                terminal = self._not_stored(run, error)
                await self._set_aside(run, terminal)
                run.terminal = terminal
            else:
                stored = True
                run.phases.enter("emit")
                announce(self._bus, run.session.key, placed)
                run.terminal = draft.terminal
        assert run.terminal is not None
        self._changed(run, "error" if run.state is RunState.ERROR else "end")
        if not stored:
            lane.free_slot()
            late = partial(_finish, run, _late(run.terminal, draft), self._clock())
            await self._store_late(run, lambda db: late(db)[1])

    async def _reply(self, lane: Lane, run: Run) -> Draft:
        """The turn, however it ends; after it nothing of it is under way any more."""
        turn = self._turn(run)
        desk = _Desk(self._store, self._bus, self._registry, self._clock, lane, run)
        draft: Draft | None = None
        failure: Exception | None = None
        run.scope.deadline = trio.current_time() + (run.submission.deadline or self._budget)
        if self._lanes.stopping:
            run.stop("restart")
        try:
            with run.scope:
                draft = await turn.reply(desk)
        except Exception as error:  # noqa: BLE001 - the run boundary: every way out has its terminal
            failure = error
        run.answered = True
        await desk.clear()
        if run.stop_reason is not None and failure is not None:
            tell = self._log.info if isinstance(failure, ProviderError | RuntimeFault) else self._log.error
            tell("a turn that was stopped failed on its way out", run=run.id, error=failure)
        if run.stop_reason is not None:  # who stopped it was told that it worked
            return turn.stopped()
        if failure is not None:
            return turn.failed(failure)
        return draft or turn.stopped()

    # -- its end -------------------------------------------------------------------------------------------------------

    def _not_stored(self, run: Run, error: Exception) -> Terminal:
        return Terminal(
            state=RunState.ERROR,
            stop_reason="not_stored",
            text=run.text,
            error_message=str(error),
            error_kind="not_stored",
            started_at=run.started_at,
            ended_at=self._clock(),
        )

    async def _set_aside(self, run: Run, terminal: Terminal) -> None:
        """Keep what is about to be told where the next start finds it."""
        try:
            await self._in_thread(partial(self._aside.put, run.id, terminal))
        except OSError as error:
            self._log.error("not even a note of a run's end could be written", run=run.id, error=error)

    async def _store_late(self, run: Run, end: Transaction[list[Placed]]) -> None:
        """What was told must not be contradicted by the next start: write it when the disk takes it again.

        A lane waits with it: what comes next in its session comes next on disk, too.
        """
        ended = [run, *run.merged]
        for other in ended:
            assert other.terminal is not None
            self._told[other.id] = other.terminal
        with contain(self._log, "the end of a run cannot be stored"):
            placed = await self._insist(end)
            for other in ended:
                del self._told[other.id]
            await self._in_thread(partial(self._aside.remove, run.id))
            announce(self._bus, run.session.key, placed)

    async def _insist(self, end: Transaction[list[Placed]]) -> list[Placed]:
        while True:
            try:
                return await self._store.write(end)
            except RuntimeFault:
                await trio.sleep(RETRY)

    def _changed(self, run: Run, phase: str) -> None:
        self._bus.publish(SessionChanged(session=run.session, ts=self._clock(), phase=phase, run_id=run.id))


class _Desk:
    """The worker, as one run's turn sees it."""

    __slots__ = ("_bus", "_clock", "_lane", "_registry", "_run", "_saving", "_store", "_taken")

    def __init__(self, store: Store, bus: Bus, registry: Registry, clock: Clock, lane: Lane, run: Run) -> None:
        self._store = store
        self._bus = bus
        self._registry = registry
        self._clock = clock
        self._lane = lane
        self._run = run
        self._taken: list[Run] = []
        self._saving = False
        """A save was begun and its end is not known."""

    def steer(self) -> list[Run]:
        if self._run.scope.cancel_called:  # a turn that is being stopped answers nobody any more
            return []
        taken = self._lane.take_steering()
        self._taken.extend(taken)
        return taken

    async def save(self, messages: Sequence[Message], saved: Callable[[], None]) -> None:
        run, taken = self._run, list(self._taken)

        def on_disk(placed: Sequence[Placed]) -> None:
            del self._taken[: len(taken)]
            for other in taken:
                self._registry.merge(other, run)
            announce(self._bus, run.session.key, placed)
            saved()

        self._saving = True
        run.phases.enter("commit")
        await self._store.write(partial(_save, run, messages, taken, self._clock()), then=on_disk)
        self._saving = False

    async def compact(self, summary: SystemMessage, kept_seq: int) -> None:
        run, now = self._run, self._clock()

        def on_disk(done: tuple[Session, Placed]) -> None:
            announce(self._bus, run.session.key, [done[1]])
            self._bus.publish(SessionChanged(session=done[0], ts=now, reason="compact", run_id=run.id))

        work = partial(
            stored_sessions.compact,
            sid=run.session.sid,
            summary=summary,
            kept_seq=kept_seq,
            now=now,
            run_id=run.id,
        )
        self._saving = True
        await self._store.write(work, then=on_disk)
        self._saving = False

    async def clear(self) -> None:
        """The turn is over: what was taken and not saved waits again, where it was."""
        if self._saving:
            await settled(self._store)
        self._lane.give_back(self._taken)


async def settled(store: Store) -> None:
    """Wait until all that was submitted to the store before this has been told."""
    told = trio.Event()
    store.submit(lambda _: None, lambda _: told.set())
    await told.wait()


def announce(bus: Bus, session_key: str, placed: Sequence[Placed]) -> None:
    """Tell listeners of messages that have their place in a transcript."""
    for entry in placed:
        bus.publish(
            SessionMessage(
                session_key=session_key,
                agent_id=agent_of(session_key),
                message_id=entry.id,
                seq=entry.seq,
                message=entry.message,
                run_id=entry.run_id,
            )
        )


def _late(terminal: Terminal, draft: Draft | None) -> Draft:
    """What goes to disk of a run whose end was told as `terminal`: its messages, unless they are what was at fault."""
    if draft is not None and terminal.error_kind == "not_stored":
        return Draft(terminal, draft.messages)
    note = AssistantMessage((), terminal.ended_at, stop_reason="error", error_message=terminal.error_message or "")
    return Draft(terminal, [note])


# -- transactions, for the store's thread: they read only what nobody changes ------------------------------------------


def _begin(
    run: Run, companions: Sequence[Run], known: Past | None, now: int, db: Db
) -> tuple[Session, list[Placed], Past]:
    session, placed, past = stored_runs.claim(db, run.submission, run.session.sid, now, known)
    said = [other.submission.message for other in companions]
    return session, [placed, *_save(run, said, companions, now, db)], past


def _save(run: Run, messages: Sequence[Message], merged: Sequence[Run], now: int, db: Db) -> list[Placed]:
    return stored_runs.save(db, run.session.sid, run.id, messages, [other.id for other in merged], now)


def _finish(run: Run, draft: Draft, now: int, db: Db) -> tuple[Session, list[Placed]]:
    return stored_runs.finish(db, run.session.sid, run.id, draft.terminal, draft.messages, now)


def _drop(run: Run, terminal: Terminal, db: Db) -> list[Placed]:
    return [stored_runs.drop(db, run.submission, run.session.sid, terminal, terminal.ended_at)]
