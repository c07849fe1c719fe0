"""Tests of what runs on Triops: a runtime on a virtual clock, a recorder of its events, a disk that fails when told to.

Public as `triops.testing`. Nothing here opens a socket, starts a thread or waits for real time.

    async def test_my_tool(tmp_path: Path, autojump_clock: MockClock) -> None:
        async with open_test_runtime(tmp_path, script=[[TextDelta("Hello")]]) as host:
            terminal = await host.ask("hi")
            assert terminal.text == "Hello"
            host.events.check()
"""

import json
import shutil
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import trio

from triops.agents.messages import Message, UserMessage
from triops.agents.providers.scripted import ScriptedProvider, Step
from triops.agents.tool import AnyTool
from triops.agents.transcript import pair
from triops.runtime.bus import Bus
from triops.runtime.clock import Clock, trio_clock
from triops.runtime.compose import Runtime, open_runtime
from triops.runtime.config_file import load_config
from triops.runtime.errors import Unavailable
from triops.runtime.events import RunEnded, RunEvent, RuntimeEvent
from triops.runtime.logs import Log, LogFile, Record
from triops.runtime.models import ProviderEntry
from triops.runtime.paths import Paths, prepare_state
from triops.runtime.runs.state import TERMINAL, Accepted, Submission, Terminal
from triops.runtime.sessions import canonical_key
from triops.runtime.store import runs as stored_runs
from triops.runtime.store import sessions as stored_sessions
from triops.runtime.store.db import Db, Transaction
from triops.runtime.store.migrations import migrate
from triops.runtime.store.sqlite import Job, Outcome, Store, StoreStatistics, Waiter, commit_group, connect, run_job

T = TypeVar("T")

EPOCH = 1_800_000_000_000
"""When a test runtime's wall clock starts, in milliseconds since the epoch."""
ECHO = {"agents": {"defaults": {"model": {"primary": "scripted/echo"}}}}
"""The configuration of a test runtime that is given none."""


# -- the store ---------------------------------------------------------------------------------------------------------


class InlineStore:
    """A store without threads, ahead of which a mock clock would jump: each transaction runs where it is submitted."""

    def __init__(self, db: Db) -> None:
        self.db = db
        """The database itself, to look at."""
        self._commits = 0

    def submit(self, work: Transaction[T], done: Callable[[Outcome[T]], None]) -> None:
        """As `Store.submit`; `done` is called on a later step, as the real one does."""
        job = Job(work, done)
        commit_group(self.db, [job])
        self._commits += 1
        trio.lowlevel.current_trio_token().run_sync_soon(done, job.outcome)

    async def write(self, work: Transaction[T], *, then: Callable[[T], None] | None = None) -> T:
        """As `Store.write`."""
        waiter: Waiter[T] = Waiter(then)
        self.submit(work, waiter.settle)
        return await waiter.wait()

    async def read(self, work: Transaction[T]) -> T:
        """As `Store.read`."""
        await trio.lowlevel.checkpoint()
        job = Job(work, lambda _: None)
        run_job(self.db, job)
        return job.outcome.unwrap()

    def statistics(self) -> StoreStatistics:
        return StoreStatistics(commits=self._commits, transactions=self._commits, waiting=0)


@contextmanager
def open_inline_store(path: Path) -> Generator[InlineStore]:
    """Open (or make) the database at `path`; closing and opening it again is a restart."""
    db = connect(path)
    try:
        db.execute("PRAGMA synchronous=OFF")  # a test that kills kills the process, not the machine
        migrate(db)
        yield InlineStore(db)
    finally:
        db.close()


class FaultyStore:
    """A store whose disk refuses or takes its time when it is told to. Reads go on, order is kept, nothing is lost that
    was not refused."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.refusal: Exception | None = None
        """While set, every write fails with it and writes nothing."""
        self.writes = 0
        """Transactions submitted so far."""
        self.lag = 0
        """Rounds of Trio's scheduler between a commit and its being told."""
        self._refused: set[int] = set()
        self._held: list[tuple[Transaction[Any], Callable[[Outcome[Any]], None]]] | None = None

    def refuse(self, *places: int) -> None:
        """Refuse the writes at these places, counted from now: 1 is the next."""
        self._refused |= {self.writes + place for place in places}

    def heal(self) -> None:
        """Refuse nothing more."""
        self.refusal = None
        self._refused.clear()

    @contextmanager
    def held(self) -> Generator[None]:
        """A disk that hangs: what is submitted inside the block is written when it ends."""
        self._held = []
        try:
            yield
        finally:
            held, self._held = self._held, None
            for work, done in held:
                self._store.submit(work, partial(_tell, done, self.lag))

    def submit(self, work: Transaction[T], done: Callable[[Outcome[T]], None]) -> None:
        """As `Store.submit`."""
        self.writes += 1
        refusal = self.refusal
        if self.writes in self._refused:
            refusal = refusal or Unavailable("the test's disk refuses")
        given = work if refusal is None else _refusing(refusal)
        if self._held is not None:
            self._held.append((given, done))
        else:
            self._store.submit(given, partial(_tell, done, self.lag))

    async def write(self, work: Transaction[T], *, then: Callable[[T], None] | None = None) -> T:
        """As `Store.write`."""
        waiter: Waiter[T] = Waiter(then)
        self.submit(work, waiter.settle)
        return await waiter.wait()

    async def read(self, work: Transaction[T]) -> T:
        """As `Store.read`."""
        return await self._store.read(work)

    def statistics(self) -> StoreStatistics:
        return self._store.statistics()


def _tell(done: Callable[[Outcome[T]], None], lag: int, outcome: Outcome[T]) -> None:
    if lag:
        trio.lowlevel.current_trio_token().run_sync_soon(_tell, done, lag - 1, outcome)
    else:
        done(outcome)


def _refusing(error: Exception) -> Transaction[Any]:
    def work(db: Db) -> Any:
        raise error

    return work


# -- the events --------------------------------------------------------------------------------------------------------


class EventRecorder:
    """Hears what the bus tells: `with bus.subscribe(recorder.hear):`."""

    def __init__(self) -> None:
        self.events: list[RuntimeEvent] = []
        """All that was told, oldest first."""
        self._news = trio.Event()

    def hear(self, event: RuntimeEvent) -> None:
        """The listener."""
        self.events.append(event)
        self._news.set()
        self._news = trio.Event()

    def of(self, run_id: str) -> list[RunEvent]:
        """The events of one run."""
        return [event for event in self.events if isinstance(event, RunEvent) and event.run.run_id == run_id]

    def terminals(self) -> dict[str, Terminal]:
        """How each run ended that has; see `check` for those that ended twice."""
        return {event.run.run_id: event.terminal for event in self.events if isinstance(event, RunEnded)}

    async def wait_for(self, matches: Callable[[RuntimeEvent], bool]) -> RuntimeEvent:
        """The first event that matches, told already or to come."""
        seen = 0
        while True:
            for event in self.events[seen:]:
                if matches(event):
                    return event
            seen = len(self.events)
            await self._news.wait()

    async def terminal(self, run_id: str) -> Terminal:
        """How a run ended, as soon as it has."""
        event = await self.wait_for(lambda event: isinstance(event, RunEnded) and event.run.run_id == run_id)
        assert isinstance(event, RunEnded)
        return event.terminal

    def check(self, accepted: Iterable[str] = ()) -> None:
        """Assert what every run promises: its events are counted from 1 without a gap, one of them ends it, and it is
        the last; and that each of `accepted` has ended."""
        runs: dict[str, list[RunEvent]] = {}
        for event in self.events:
            if isinstance(event, RunEvent):
                runs.setdefault(event.run.run_id, []).append(event)
        for run_id, events in runs.items():
            assert [event.seq for event in events] == list(range(1, len(events) + 1)), f"{run_id}: {events}"
            ends = [place for place, event in enumerate(events, 1) if isinstance(event, RunEnded)]
            assert ends in ([], [len(events)]), f"{run_id} ended at {ends} of {len(events)} events"
        assert set(accepted) <= set(self.terminals()), f"without an end: {set(accepted) - set(self.terminals())}"


# -- the runtime -------------------------------------------------------------------------------------------------------


class TestRuntime:
    """An open runtime, and what a test wants of it."""

    __test__ = False

    def __init__(
        self,
        runtime: Runtime,
        model: ScriptedProvider,
        store: FaultyStore,
        events: EventRecorder,
        log: list[Record],
        past: frozenset[str],
    ) -> None:
        self.runtime = runtime
        self.model = model
        """What answers, unless the test brought its own providers."""
        self.store = store
        self.events = events
        self.log = log
        """What was logged so far."""
        self._past = past

    async def send(self, text: str, *, session: str = "main", run_id: str | None = None, **asked: Any) -> Accepted:
        """Say something; `asked` are further fields of the `Submission`. See `Supervisor.submit`."""
        submission = Submission(
            run_id=run_id or str(uuid4()),
            session_key=canonical_key(session),
            message=UserMessage(text, self.runtime.clock()),
            **asked,
        )
        return await self.runtime.runs.submit(submission)

    async def ask(self, text: str, *, session: str = "main", run_id: str | None = None, **asked: Any) -> Terminal:
        """Say something, and wait for the end of its run."""
        accepted = await self.send(text, session=session, run_id=run_id, **asked)
        return await self.runtime.runs.wait(accepted.run_id)

    async def transcript(self, session: str = "main") -> list[Message]:
        """A session's messages on disk, oldest first, those before a reset too."""
        key = canonical_key(session)
        page = await self.store.read(lambda db: stored_sessions.transcript(db, key, limit=10_000, whole=True))
        return [placed.message for placed in page.messages]

    async def check_quiet(self) -> None:
        """Assert what must be true once all is over: no run is left in memory, each that was not over before the start
        was told to have ended, once and as it did on disk, and in every transcript each call has its result."""
        statistics = self.runtime.runs.statistics()
        assert (statistics.runs.queued, statistics.runs.running, statistics.inbox) == (0, 0, 0), statistics
        assert (statistics.lanes.lanes, statistics.lanes.queued) == (0, 0), statistics
        assert all(used.startswith("0/") for used in statistics.lanes.limits.values()), statistics
        rows = await self.store.read(lambda db: db.execute("SELECT id FROM runs").fetchall())
        self.events.check({run_id for (run_id,) in rows}.difference(self._past))
        for run_id, told in self.events.terminals().items():
            stored = await self.store.read(lambda db, run_id=run_id: stored_runs.find(db, run_id))
            assert stored is not None and stored.state in TERMINAL and stored.terminal == told, (stored, told)
        for (key,) in await self.store.read(lambda db: db.execute("SELECT key FROM sessions").fetchall()):
            messages = await self.transcript(key)
            assert list(pair(messages)) == messages, f"a call without its result, or one without its call, in {key}"

    def faults(self) -> list[Record]:
        """What went wrong by our own fault, as the boundaries logged it."""
        return [record for record in self.log if record.level == "error"]


async def here(work: Callable[[], T]) -> T:
    await trio.lowlevel.checkpoint()
    return work()


@asynccontextmanager
async def open_test_runtime(
    path: Path,
    *,
    script: Iterable[Step] | None = None,
    config: Mapping[str, Any] | None = None,
    providers: tuple[ProviderEntry, ...] | None = None,
    tools: tuple[AnyTool, ...] = (),
    clock: Clock | None = None,
    drain: float = 0.0,
) -> AsyncGenerator[TestRuntime]:
    """A runtime whose state lies in the folder `path`; opened there again, it is the same one after a restart.

    Made for a mock clock (pytest-trio's `autojump_clock`): nothing in it works in a thread but the file tools. A
    scripted provider answers: it plays `script`, or obeys the messages without one (see `ScriptedProvider`).
    `providers` takes its place; `tools` come on top of the built-in ones. `config` is the configuration file. The wall
    clock follows Trio's unless `clock` says otherwise. Leaving the block lets runs finish for `drain` seconds.
    """
    paths = Paths(path, path / "triops.json")
    prepare_state(paths)
    paths.config.write_text(json.dumps(ECHO if config is None else config), encoding="utf-8")
    wall = clock or trio_clock(EPOCH)
    records: list[Record] = []
    model = ScriptedProvider(script, now=wall)
    async with AsyncExitStack() as stack:
        file = stack.enter_context(LogFile(paths.logs))
        log = Log(records.append, file, clock=wall, level="debug")
        bus, events = Bus(log.bind("bus")), EventRecorder()
        stack.enter_context(bus.subscribe(events.hear))
        inline = stack.enter_context(open_inline_store(paths.database))
        over = inline.db.execute("SELECT id FROM runs WHERE state NOT IN ('queued', 'running')").fetchall()
        store = FaultyStore(inline)
        runtime = await stack.enter_async_context(
            open_runtime(
                load_config(paths, {}),
                paths,
                log=log,
                log_file=file,
                clock=wall,
                bus=bus,
                store=store,
                providers=(ProviderEntry(provider=model, why="the test"),) if providers is None else providers,
                tools=tools,
                in_thread=here,
                drain=drain,
            )
        )
        yield TestRuntime(runtime, model, store, events, records, frozenset(run_id for (run_id,) in over))


def copy_state(source: Path, target: Path) -> None:
    """Copy the database of the state folder `source` to the folder `target`: what a kill at this moment would leave."""
    target.mkdir(parents=True, exist_ok=True)
    database = Paths(source, source / "triops.json").database
    for file in source.glob(f"{database.name}*"):
        shutil.copy(file, target / file.name)
