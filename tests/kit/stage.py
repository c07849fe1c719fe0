"""A supervisor over an inline store on a mock clock, whose turns do what the test says."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import trio
import trio.testing

from triops.agents.messages import AssistantMessage, Message, Text, UserMessage
from triops.runtime.bus import Bus
from triops.runtime.clock import trio_clock
from triops.runtime.events import RunStarted, SessionMessage
from triops.runtime.logs import Log, Record
from triops.runtime.runs.lanes import Lanes
from triops.runtime.runs.registry import Run
from triops.runtime.runs.state import Accepted, RunState, Submission, Terminal
from triops.runtime.runs.supervisor import Supervisor, open_supervisor
from triops.runtime.runs.worker import Desk, Draft
from triops.runtime.sessions import canonical_key
from triops.runtime.store import runs as stored_runs
from triops.runtime.store import sessions as stored_sessions
from triops.runtime.store.aside import open_aside
from triops.runtime.store.db import Db
from triops.runtime.store.runs import Stored
from triops.runtime.testing import EPOCH, EventRecorder, FaultyStore, copy_state, here, open_inline_store

Act = Callable[[Run, Desk], Awaitable[str]]


def words(message: Message) -> str:
    content = message.content
    return content if isinstance(content, str) else "".join(b.text for b in content if isinstance(b, Text))


class Played:
    """A turn: what the stage's `act` gives back is the reply."""

    def __init__(self, stage: "Stage", run: Run) -> None:
        self.stage = stage
        self.run = run

    async def reply(self, desk: Desk) -> Draft:
        self.stage.began.append(self.run.id)
        return self.draft(RunState.FINAL, "stop", await self.stage.act(self.run, desk))

    def failed(self, error: Exception) -> Draft:
        return self.draft(RunState.ERROR, "error", "", error_message=str(error), error_kind="unknown")

    def stopped(self) -> Draft:
        if self.run.stop_reason is None:
            return self.draft(RunState.ERROR, "timeout", "", error_kind="timeout")
        return self.draft(RunState.ABORTED, self.run.stop_reason, self.run.text)

    def draft(self, state: RunState, reason: str, text: str, **more: Any) -> Draft:
        now = self.stage.clock()
        messages = [AssistantMessage((Text(text),), now)] if text else []
        return Draft(Terminal(state=state, stop_reason=reason, text=text, ended_at=now, **more), messages)


class Stage:
    """What stays when a supervisor's process ends: the disk, what was heard, the time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = trio_clock(EPOCH)
        self.events = EventRecorder()
        self.log: list[Record] = []
        self.began: list[str] = []
        """Runs whose turn began, in order."""
        self.act: Act = self.echo
        self._gates: dict[str, trio.Event] = {}

    # -- ways to act ---------------------------------------------------------------------------------------------------

    async def echo(self, run: Run, desk: Desk) -> str:
        return f"re: {words(run.submission.message)}"

    async def hold(self, run: Run, desk: Desk) -> str:
        """Wait for `release`."""
        await self._gate(run.id).wait()
        return await self.echo(run, desk)

    def _gate(self, run_id: str) -> trio.Event:
        return self._gates.setdefault(run_id, trio.Event())

    def release(self, run_id: str) -> None:
        self._gate(run_id).set()

    # -- a life --------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def life(
        self, *, cap: int = 20, main: int = 8, grace: float = 0, budget: float = 3600, max_age: float = 600
    ) -> AsyncGenerator["Life"]:
        self.path.mkdir(exist_ok=True)
        bus = Bus(Log())
        log = Log(self.log.append, level="debug")
        database = self.path / "triops.sqlite"
        with (
            open_inline_store(database) as inline,
            closing(open_aside(database)) as aside,
            bus.subscribe(self.events.hear),
        ):
            store = FaultyStore(inline)
            async with open_supervisor(
                store=store,
                bus=bus,
                clock=self.clock,
                log=log,
                lanes=Lanes(cap=cap, main=main),
                turn=lambda run: Played(self, run),
                budget=budget,
                max_age_ms=round(max_age * 1000),
                grace=grace,
                aside=aside,
                in_thread=here,
            ) as runs:
                yield Life(self, runs, store, inline.db, bus)

    def kill(self) -> None:
        """The next life begins with what is on disk now; what this one still does is lost."""
        killed = self.path.with_name(f"{self.path.name}x")
        copy_state(self.path, killed)
        self.path = killed

    def terminals(self) -> dict[str, str]:
        return {run_id: str(terminal.state) for run_id, terminal in self.events.terminals().items()}

    def faults(self) -> list[Record]:
        """What was logged and is our own fault."""
        return [record for record in self.log if "own fault" in record.message or "cannot be stored" in record.message]


class Life:
    def __init__(self, stage: Stage, runs: Supervisor, store: FaultyStore, db: Db, bus: Bus) -> None:
        self.stage = stage
        self.runs = runs
        self.store = store
        self.db = db
        self.bus = bus

    async def send(self, run_id: str, session: str = "main", *, text: str | None = None, **asked: Any) -> Accepted:
        """Submit a run whose words are its id, unless told otherwise."""
        return await self.runs.submit(self.submission(run_id, session, text=text, **asked))

    def submission(self, run_id: str, session: str = "main", *, text: str | None = None, **asked: Any) -> Submission:
        asked.setdefault("queue_mode", "followup")
        message = UserMessage(text or run_id, self.stage.clock())
        return Submission(run_id=run_id, session_key=canonical_key(session), message=message, **asked)

    def abort(self, run_id: str, reason: str = "rpc") -> bool:
        run = self.runs.open_run(run_id)
        return run is not None and self.runs.abort(run, reason)

    async def stored(self, run_id: str) -> Stored:
        stored = await self.store.read(lambda db: stored_runs.find(db, run_id))
        assert stored is not None, run_id
        return stored

    async def messages(self, session: str = "main") -> list[str]:
        """The words of a transcript, in order."""
        key = canonical_key(session)
        page = await self.store.read(lambda db: stored_sessions.transcript(db, key, limit=1000))
        return [words(placed.message) for placed in page.messages]

    def announced(self) -> list[str]:
        """The words of the messages that listeners were told of, in order."""
        return [words(event.message) for event in self.stage.events.events if isinstance(event, SessionMessage)]

    def started(self) -> list[str]:
        return [event.run.run_id for event in self.stage.events.events if isinstance(event, RunStarted)]

    def check_empty(self) -> None:
        """Nothing is left of any run."""
        statistics = self.runs.statistics()
        assert (statistics.runs.queued, statistics.runs.running) == (0, 0)
        assert (statistics.lanes.lanes, statistics.lanes.queued) == (0, 0)
        assert all(used.startswith("0/") for used in statistics.lanes.limits.values()), statistics.lanes.limits
        assert statistics.inbox == 0


async def settled() -> None:
    """Everything that can happen without the clock has happened."""
    await trio.testing.wait_all_tasks_blocked()
