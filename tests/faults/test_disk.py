"""The disk is full or fails at any single call: what it refuses is refused retryably, reads go on, and when it works
again everything goes on without a restart; each run that was accepted has its one end, told as it is stored."""

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import pytest
import trio
import trio.testing
from tests.faults.test_checkpoints import CALLS
from tests.kit.disk import Disk, open_disk
from tests.kit.host import open_test_gateway
from tests.kit.transcripts import check_pairs
from tests.kit.wire import Refused

from triops.agents.messages import UserMessage
from triops.agents.model import TextDelta
from triops.agents.providers.scripted import Step
from triops.runtime.errors import Unavailable
from triops.runtime.events import RunStarted
from triops.runtime.paths import Paths
from triops.runtime.runs.state import TERMINAL
from triops.runtime.store import runs as stored_runs
from triops.runtime.store import sessions as stored_sessions
from triops.runtime.store.db import Db
from triops.runtime.testing import TestRuntime, open_inline_store, open_test_runtime

JOB = {
    "name": "job",
    "schedule": {"kind": "every", "everyMs": 6_000},
    "payload": {"kind": "systemEvent", "text": "SAY:tick"},
    "sessionTarget": "current",
}
OUTAGE = 2.5  # seconds on the mock clock: longer than anybody waits before the next try


class Client:
    """Somebody who is told to try again, and does."""

    def __init__(self, host: TestRuntime) -> None:
        self.host = host
        self.refused = 0
        self.accepted: list[str] = []

    async def insist(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        while True:
            try:
                return await ask()
            except Unavailable:
                self.refused += 1
                await trio.sleep(0.5)

    async def send(self, text: str, run_id: str, **asked: Any) -> None:
        await self.insist(partial(self.host.send, text, run_id=run_id, **asked))
        self.accepted.append(run_id)

    async def ended(self, *run_ids: str) -> None:
        for run_id in run_ids:
            await self.host.events.terminal(run_id)


async def plain(client: Client) -> None:
    await client.send("SAY:hello", "r1")
    await client.ended("r1")


async def tools(client: Client) -> None:
    await client.send("look", "r1")
    await client.ended("r1")


async def queue(client: Client) -> None:
    await client.send("look", "r1")
    await client.host.events.wait_for(lambda event: isinstance(event, RunStarted))
    await client.send("and this", "r2")
    await client.send("and then that", "r3", queue_mode="followup")
    await client.send("with this", "r4", queue_mode="collect")
    await client.ended("r1", "r2", "r3", "r4")


async def stops(client: Client) -> None:
    """An interrupt, an abort of one that waits, and a reset."""
    runs = client.host.runtime.runs
    await client.send("wait", "r1")
    await client.send("instead", "r2", queue_mode="interrupt")
    await client.send("never mind", "r3", queue_mode="followup")
    run = runs.open_run("r3")
    assert run is None or runs.abort(run, "rpc") or run.answered or run.terminal is not None
    await client.ended("r1", "r2", "r3")
    store = client.host.runtime.store
    await client.insist(partial(store.write, lambda db: stored_sessions.reset(db, "agent:main:main", 1)))
    await client.send("afresh", "r4")
    await client.ended("r4")


async def cron(client: Client) -> None:
    """A job that fires by itself; its receipt is there, and says how its run ended."""
    host = client.host
    job = await client.insist(partial(host.runtime.cron.add, JOB, caller="agent:main:main"))
    await trio.sleep(13)
    await client.insist(partial(host.runtime.cron.remove, job["id"]))
    await trio.testing.wait_all_tasks_blocked()

    def receipts(db: Db) -> list[tuple[Any, ...]]:
        return db.execute("SELECT run_id, finished_at FROM cron_receipts").fetchall()

    rows = await client.insist(partial(host.store.read, receipts))
    assert rows
    assert all(finished for _, finished in rows)


HELLO: Step = [TextDelta("Hel"), TextDelta("lo")]
Scenario = tuple[Callable[[Client], Awaitable[None]], list[Step] | None]
SCENARIOS: dict[str, Scenario] = {
    "a plain reply": (plain, None),
    "a batch of tools": (tools, [CALLS, HELLO]),
    "a queue": (queue, [CALLS, HELLO, HELLO, HELLO, HELLO]),
    "stops and a reset": (stops, [[0.1, *HELLO], HELLO, HELLO, HELLO]),
    "a job": (cron, None),
}


Way = Callable[[int, int, str], apsw.Error | None]
"""What a disk whose `place`th call is to fail says to call number `at`."""


def works(at: int, call: str) -> None:
    return None


def broken(call: str) -> apsw.Error:
    error = apsw.IOError(f"the test's disk fails to {call}")
    error.extendedresult = {  # pyright: ignore[reportAttributeAccessIssue] - the stubs leave it out
        "read": apsw.SQLITE_IOERR_READ,
        "write": apsw.SQLITE_IOERR_WRITE,
        "sync": apsw.SQLITE_IOERR_FSYNC,
        "truncate": apsw.SQLITE_IOERR_TRUNCATE,
    }[call]
    return error


def fails_once(place: int, at: int, call: str) -> apsw.Error | None:
    return broken(call) if at == place else None


def fails_for_a_while(place: int, at: int, call: str) -> apsw.Error | None:
    return broken(call) if at >= place else None


def is_full_for_a_while(place: int, at: int, call: str) -> apsw.Error | None:
    return apsw.FullError("the test's disk is full") if at >= place and call in ("write", "truncate") else None


WAYS: tuple[Way, ...] = (fails_once, is_full_for_a_while, fails_for_a_while)


async def play(folder: Path, disk: Disk, scenario: Scenario, place: int | None, way: Way) -> int:
    """Play it on a disk that fails from its nth call on, for a while; gives back how many calls there were."""
    act, script = scenario
    async with open_test_runtime(folder, script=script) as host, trio.open_nursery() as nursery:
        # Outside of a transaction: as in life, each commit waits for the disk.
        await host.store.read(lambda db: db.execute("PRAGMA synchronous=FULL").fetchall())
        await trio.testing.wait_all_tasks_blocked()
        client, before = Client(host), disk.calls
        if place is not None:
            nursery.start_soon(fail, host, disk, way, before + place)
        with trio.fail_after(600):
            await act(client)
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        calls = disk.calls - before
        disk.fault = works
        await trio.sleep(5)  # what was told before it could be stored is stored by now
        await check(host, client)
    host.events.check()
    with open_inline_store(Paths(folder, folder).database) as store:
        assert store.db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert stored_runs.recover(store.db, 0, max_age_ms=1, told={}) == ([], []), (
            "the next start would find something to end"
        )
    return calls


async def fail(host: TestRuntime, disk: Disk, way: Way, place: int) -> None:
    """Fail from the `place`th call on, until some time after it; a disk that is full can still be read."""
    hit = trio.Event()

    def look(at: int, call: str) -> apsw.Error | None:
        if at >= place:
            hit.set()
        return way(place, at, call)

    disk.fault = look
    await hit.wait()
    if way is is_full_for_a_while:
        await host.transcript()
    await trio.sleep(OUTAGE)
    disk.fault = works


async def check(host: TestRuntime, client: Client) -> None:
    statistics = host.runtime.runs.statistics()
    assert (statistics.runs.queued, statistics.runs.running, statistics.lanes.lanes) == (0, 0, 0)
    rows = await host.store.read(lambda db: db.execute("SELECT id FROM runs").fetchall())
    assert set(client.accepted) <= {run_id for (run_id,) in rows}
    host.events.check(run_id for (run_id,) in rows)
    for (run_id,) in rows:
        stored = await host.store.read(lambda db, run_id=run_id: stored_runs.find(db, run_id))
        assert stored is not None and stored.state in TERMINAL
        told = host.events.terminals()[run_id]
        assert stored.terminal is not None
        assert (stored.terminal.state, stored.terminal.stop_reason) == (told.state, told.stop_reason)
    messages = await host.transcript()
    check_pairs(messages)
    said = [message.content for message in messages if isinstance(message, UserMessage)]
    assert len(said) == len(set(said)), "nothing stands there twice"


def at_every_call(folder: Path, scenario: Scenario, *, every_way: bool) -> None:
    def run(place: int | None, way: Way) -> int:
        with open_disk() as disk:
            clock = trio.testing.MockClock(autojump_threshold=0)
            return trio.run(play, folder / f"{place}-{way.__name__}", disk, scenario, place, way, clock=clock)

    calls = run(None, fails_once)
    assert calls > 10
    for place in range(1, calls + 1):
        for way in WAYS if every_way else [WAYS[place % len(WAYS)]]:
            run(place, way)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SCENARIOS))
def test_a_disk_that_fails_at_any_call_costs_no_run(tmp_path: Path, name: str) -> None:
    at_every_call(tmp_path, SCENARIOS[name], every_way=False)


@pytest.mark.soak
@pytest.mark.parametrize("name", list(SCENARIOS))
def test_a_disk_that_fails_at_any_call_in_any_way_costs_no_run(tmp_path: Path, name: str) -> None:
    at_every_call(tmp_path, SCENARIOS[name], every_way=True)


async def test_a_client_is_refused_while_the_disk_is_full_and_served_when_it_is_not(tmp_path: Path) -> None:
    with open_disk() as disk:
        async with open_test_gateway(tmp_path, faulty=True) as host, host.client() as client:
            await client.say("SAY:before", key="before")
            await client.ended("before")
            disk.fault = partial(is_full_for_a_while, 0)
            with pytest.raises(Refused) as refusal:
                await client.say("SAY:meanwhile", key="meanwhile")
            assert (refusal.value.error["code"], refusal.value.error["retryable"]) == ("UNAVAILABLE", True)
            assert "full" in refusal.value.error["message"]
            history = await client.request("chat.history", {"sessionKey": "main"})
            assert len(history["messages"]) == 2
            disk.fault = works
            await client.say("SAY:meanwhile", key="meanwhile")
            assert (await client.ended("meanwhile"))["state"] == "final"


async def test_a_client_that_connects_while_the_disk_fails_is_told_to_try_again(tmp_path: Path) -> None:
    with open_disk() as disk:
        async with open_test_gateway(tmp_path, faulty=True) as host:
            # Small enough a cache that the next read is the disk's, and it has failed.
            await host.runtime.store.read(lambda db: db.execute("PRAGMA cache_size=0; PRAGMA shrink_memory").fetchall())
            disk.fault = partial(fails_for_a_while, 0)
            with pytest.raises(Refused, match="fails to read") as refusal:
                async with host.client():
                    pass
            assert (refusal.value.error["code"], refusal.value.error["retryable"]) == ("UNAVAILABLE", True)
            disk.fault = works
            async with host.client() as client:
                assert client.hello["type"] == "hello-ok"
