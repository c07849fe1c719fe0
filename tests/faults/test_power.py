"""The power fails at any moment: what was acknowledged is on disk, and the next start can go on from there."""

import random
import shutil
from functools import partial
from pathlib import Path

import pytest
import trio
from tests.kit.disk import Disk, open_disk
from tests.kit.transcripts import check_pairs

from triops.agents.messages import AssistantMessage, Message, Text, ToolCall, ToolResultMessage, UserMessage
from triops.runtime.runs.state import TERMINAL, RunState, Submission, Terminal
from triops.runtime.store import runs, sessions
from triops.runtime.store.db import Db
from triops.runtime.store.sqlite import Store, open_store
from triops.runtime.testing import open_inline_store

RUNS = 50
NAME = "triops.sqlite"
SESSIONS = ("agent:main:one", "agent:main:two", "agent:main:three")
CHECKPOINT = 40  # pages in the log at which SQLite moves them to the database: some dozen times in the trace


class Trace:
    """Some days in the life of a store, and how much of the disk's work was done when each write was acknowledged."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.acknowledged: list[tuple[int, str, int]] = []
        """Operations so far, the run, and its step: 0 accepted, 1 and 2 saved, 3 ended."""

    async def run(self, store: Store, number: int) -> None:
        """One run from its acceptance to its end: four writes."""
        run_id, session = f"run-{number}", SESSIONS[number % len(SESSIONS)]
        submission = Submission(
            run_id=run_id, session_key=session, message=UserMessage(f"{run_id} {'x' * 700}", number)
        )
        accepted = await store.write(lambda db: runs.accept(db, submission, number, start=True))
        self.acknowledge(run_id, 0)
        for step in (1, 2):
            messages = step_of(run_id, step)
            await store.write(partial(save, accepted.session.sid, run_id, messages))
            self.acknowledge(run_id, step)
        last = AssistantMessage((Text("done"),), number)
        terminal = Terminal(state=RunState.FINAL, text="done", message=last, ended_at=number)
        await store.write(lambda db: runs.finish(db, accepted.session.sid, run_id, terminal, [last], number))
        self.acknowledge(run_id, 3)

    def acknowledge(self, run_id: str, step: int) -> None:
        self.acknowledged.append((len(self.disk.operations), run_id, step))


def step_of(run_id: str, step: int) -> list[Message]:
    call = ToolCall(f"{run_id}-{step}", "read", {})
    return [AssistantMessage((call,), step), ToolResultMessage(call.id, "read", (Text("y" * 900),), step)]


def save(sid: int, run_id: str, messages: list[Message], db: Db) -> None:
    runs.save(db, sid, run_id, messages, [], 0)


async def record(folder: Path, disk: Disk) -> Trace:
    trace = Trace(disk)
    async with open_store(folder / NAME) as store:
        await store.write(lambda db: db.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT}").fetchall())
        for number in range(RUNS - 10):
            await trace.run(store, number)
        async with trio.open_nursery() as nursery:  # some at once, in one commit
            for number in range(RUNS - 10, RUNS):
                nursery.start_soon(trace.run, store, number)
    return trace


def check(trace: Trace, at: int, folder: Path) -> None:
    """Open what is left, as the next start does: every write that was acknowledged is there, and nothing is torn."""
    steps: dict[str, int] = {}
    for place, run_id, step in trace.acknowledged:
        if place <= at:
            steps[run_id] = step
    with open_inline_store(folder / NAME) as store:
        assert store.db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        said: dict[str, int] = {}
        for session in SESSIONS:
            page = sessions.transcript(store.db, session, limit=1000)
            check_pairs([placed.message for placed in page.messages])
            for placed in page.messages:
                said[placed.run_id or ""] = said.get(placed.run_id or "", 0) + 1
        for run_id, step in steps.items():
            stored = runs.find(store.db, run_id)
            assert stored is not None, f"{run_id} was acknowledged and is gone"
            assert said.get(run_id, 0) >= (1, 3, 5, 6)[step], f"{run_id} lost messages of step {step}"
            assert step < 3 or stored.state is RunState.FINAL, f"{run_id} had ended"
        runs.recover(store.db, 1000, max_age_ms=1000, told={})
        states = store.db.execute("SELECT state FROM runs").fetchall()
        assert {RunState(state) for (state,) in states} <= TERMINAL


@pytest.mark.slow
async def test_whatever_was_acknowledged_outlives_a_power_cut_at_any_sync(tmp_path: Path) -> None:
    await cut_at_every_sync(tmp_path, every_way=False)


@pytest.mark.soak
async def test_whatever_was_acknowledged_outlives_a_power_cut_at_any_sync_in_every_way(tmp_path: Path) -> None:
    await cut_at_every_sync(tmp_path, every_way=True)


async def cut_at_every_sync(folder: Path, *, every_way: bool) -> None:
    """Cut just before each sync takes effect, what is not synced lost or torn, and just after: in turn, or each."""
    with open_disk() as disk:
        trace = await record(folder, disk)
    assert len(trace.acknowledged) == 4 * RUNS
    syncs = [place for place, done in enumerate(disk.operations) if done.call == "sync"]
    checkpoints = [place for place in syncs if disk.operations[place].file == NAME]
    assert len(syncs) > 150 and len(checkpoints) > 5
    chance = random.Random(1)
    for number, place in enumerate(syncs):
        ways = [(place, None), (place, chance), (place + 1, chance)]
        for at, torn in ways if every_way else [ways[number % 3]]:
            disk.cut(at, folder / "cut", torn)
            check(trace, at, folder / "cut")
            shutil.rmtree(folder / "cut")


async def test_the_cut_takes_what_was_not_synced(tmp_path: Path) -> None:
    """The instrument itself: an acknowledgement ahead of its sync would be seen."""
    with open_disk() as disk:
        trace = await record(tmp_path, disk)
    last_two = [("write", f"{NAME}-wal"), ("sync", f"{NAME}-wal")]
    place = next(p for p, _, _ in trace.acknowledged if [o[:2] for o in disk.operations[p - 2 : p]] == last_two)
    disk.cut(place - 1, tmp_path / "cut", None)
    with pytest.raises(AssertionError, match=r"is gone|lost messages|had ended"):
        check(trace, place, tmp_path / "cut")
