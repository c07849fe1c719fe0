"""A scheduler over an inline store and runs that end when they are told to, all on one mock clock."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from triops.agents.messages import SystemMessage
from triops.runtime.bus import Bus
from triops.runtime.clock import Clock, trio_clock
from triops.runtime.config import CronConfig
from triops.runtime.cron.scheduler import CronScheduler, open_scheduler
from triops.runtime.errors import NotFound, RuntimeFault
from triops.runtime.events import CronEvent, HeartbeatEvent, RuntimeEvent
from triops.runtime.logs import Log, Record
from triops.runtime.runs.state import Accepted, RunState, Submission, Terminal
from triops.runtime.store import cron as stored
from triops.runtime.store.db import Db
from triops.runtime.testing import FaultyStore, InlineStore, open_inline_store

EPOCH = 1_795_344_245_622


class FakeRuns:
    """The supervisor as the scheduler sees it; survives the scheduler, as runs on disk do."""

    def __init__(self) -> None:
        self.submissions: list[Submission] = []
        self.appended: list[tuple[str, SystemMessage]] = []
        self.seconds = 0.0
        """How long a run takes."""
        self.terminal = Terminal(state=RunState.FINAL, text="done", provider="mock", model="mock-1")
        self.refusal: RuntimeFault | None = None
        self.before_submit: Callable[[], None] = lambda: None
        self.most_at_once = 0
        self._open = 0
        self._ends: dict[str, float] = {}
        self._terminals: dict[str, Terminal] = {}

    async def submit(self, submission: Submission) -> Accepted:
        self.before_submit()
        await trio.lowlevel.checkpoint()
        if self.refusal is not None:
            raise self.refusal
        assert submission.run_id not in self._ends, "a slot ran twice"
        self.submissions.append(submission)
        self._ends[submission.run_id] = trio.current_time() + self.seconds
        self._terminals[submission.run_id] = self.terminal
        self._open += 1
        self.most_at_once = max(self.most_at_once, self._open)
        return Accepted(
            run_id=submission.run_id,
            session_key=submission.session_key,
            session_id="session-id",
            agent_id="main",
            accepted_at=0,
        )

    async def wait(self, run_id: str) -> Terminal:
        await trio.lowlevel.checkpoint()
        if run_id not in self._ends:
            raise NotFound(f"unknown run: {run_id}")
        await trio.sleep_until(self._ends[run_id])
        self._open -= 1
        return self._terminals[run_id]

    async def append(self, session_key: str, message: SystemMessage) -> None:
        await trio.lowlevel.checkpoint()
        if self.refusal is not None:
            raise self.refusal
        self.appended.append((session_key, message))

    def restart(self) -> None:
        """The process was killed: what had not ended is aborted."""
        now = trio.current_time()
        for run_id, end in self._ends.items():
            if end > now:
                self._ends[run_id] = now
                self._terminals[run_id] = Terminal(state=RunState.ABORTED, stop_reason="restart")


class World:
    """What stays when the scheduler's process is killed: the disk, the runs, the time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs = FakeRuns()
        self.ahead_ms = 0
        """How far the wall clock was moved."""
        self.events: list[dict[str, Any]] = []
        self.beats: list[dict[str, Any]] = []
        self.log: list[Record] = []
        self._time: Clock = trio_clock(EPOCH)

    def clock(self) -> int:
        return self._time() + self.ahead_ms

    @property
    def actions(self) -> list[str]:
        return [event["action"] for event in self.events]

    def _hear(self, event: RuntimeEvent) -> None:
        if isinstance(event, CronEvent):
            self.events.append(event.payload)
        elif isinstance(event, HeartbeatEvent):
            self.beats.append(event.payload)

    @asynccontextmanager
    async def store(self) -> AsyncGenerator[tuple[InlineStore, Bus]]:
        bus = Bus(Log())
        with open_inline_store(self.path) as store, bus.subscribe(self._hear):
            yield store, bus

    @asynccontextmanager
    async def life(self, config: CronConfig = CronConfig()) -> AsyncGenerator["Life"]:
        """A life of the process; leaving it is a kill."""
        async with self.store() as (inline, bus):
            store = FaultyStore(inline)
            with open_scheduler(
                store, bus, self.runs, config=config, clock=self.clock, log=Log(self.log.append), path=self.path
            ) as cron:
                async with trio.open_nursery() as nursery:
                    await nursery.start(cron.run)
                    yield Life(cron, store, inline.db)
                    nursery.cancel_scope.cancel()


class Life:
    def __init__(self, cron: CronScheduler, store: FaultyStore, db: Db) -> None:
        self.cron = cron
        self.store = store
        self.db = db

    async def entries(self, **query: Any) -> list[dict[str, Any]]:
        """Receipts, oldest first."""
        page = await self.cron.runs(stored.RunsQuery(sort_dir="asc", limit=200, **query))
        return page["entries"]

    def slots(self) -> list[tuple[int | None, str | None]]:
        """Every row: its slot and its status, None while it is open."""
        rows = self.db.execute("SELECT slot_ms, status FROM cron_receipts ORDER BY slot_ms").fetchall()
        return [(slot, status) for slot, status in rows]


@pytest.fixture
async def world(tmp_path: Path) -> World:
    """Needs the test to ask for `autojump_clock`, too: a fixture cannot do that for it."""
    return World(tmp_path / "state.sqlite")
