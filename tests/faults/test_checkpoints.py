"""Cancelled at every single step: whatever is cut off where, each accepted run has its one end and nothing is left."""

import gc
import math
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from triops.agents.messages import Message, UserMessage
from triops.agents.model import TextDelta, ToolCallDelta
from triops.agents.providers.scripted import Step
from triops.agents.transcript import pair
from triops.runtime.events import RunStarted
from triops.runtime.runs.state import TERMINAL, RunState
from triops.runtime.store import runs as stored_runs
from triops.runtime.testing import TestRuntime, open_test_runtime

CALLS: Step = [
    TextDelta("Let me look. "),
    ToolCallDelta("call_1", "sessions_list", "{}"),
    ToolCallDelta("call_2", "sessions_history", '{"sessionKey":"main"}'),
    ToolCallDelta("call_3", "sessions_list", '{"limit":0}'),
]


class Trigger(trio.abc.Instrument):
    """Calls something before the nth step that any task takes."""

    def __init__(self, place: float, pull: Callable[[], object]) -> None:
        self.steps = 0
        self._place = place
        self._pull = pull

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1
        if self.steps == self._place:
            self._pull()


async def plain(host: TestRuntime) -> None:
    await host.ask("hello", run_id="r1")


async def tools(host: TestRuntime) -> None:
    await host.ask("look", run_id="r1")


async def steer(host: TestRuntime) -> None:
    """One arrives while the tools run, and one is left for a turn of its own."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(host.ask, "look", run_id="r1"))
        await host.events.wait_for(lambda event: isinstance(event, RunStarted))
        nursery.start_soon(partial(host.ask, "and this", run_id="r2"))
        nursery.start_soon(partial(host.ask, "and then that", run_id="r3", queue_mode="followup"))


Scenario = tuple[Callable[[TestRuntime], Awaitable[None]], list[Step]]
SCENARIOS: dict[str, Scenario] = {
    "a plain reply": (plain, [[TextDelta("Hel"), TextDelta("lo")]]),
    "a batch of tools": (tools, [CALLS, [TextDelta("Two sessions.")]]),
    "steering": (steer, [CALLS, [TextDelta("Seen both.")], [TextDelta("And that.")]]),
}


def open_channels() -> int:
    """Ends of memory channels that nobody closed. Those without a buffer are Trio's own, inside `as_safe_channel`: one
    that is cancelled while it opens leaves an end to the garbage collector."""
    found = [end.statistics() for end in gc.get_objects() if type(end) is trio.MemorySendChannel]
    return sum(ends.open_send_channels + ends.open_receive_channels for ends in found if ends.max_buffer_size)


def check_transcript(messages: list[Message]) -> None:
    assert list(pair(messages)) == messages, "each call is followed by its result"
    said = [message.content for message in messages if isinstance(message, UserMessage)]
    assert len(said) == len(set(said)), "nothing stands there twice"


async def check_quiet(host: TestRuntime) -> None:
    """Nothing of any run is left, and each that was accepted ended once."""
    statistics = host.runtime.runs.statistics()
    assert (statistics.runs.queued, statistics.runs.running, statistics.lanes.lanes) == (0, 0, 0)
    assert all(used.startswith("0/") for used in statistics.lanes.limits.values())
    rows = await host.store.read(lambda db: db.execute("SELECT id FROM runs").fetchall())
    host.events.check(run_id for (run_id,) in rows)
    for (run_id,) in rows:
        stored = await host.store.read(lambda db, run_id=run_id: stored_runs.find(db, run_id))
        assert stored is not None
        assert stored.state in TERMINAL
        assert stored.terminal == host.events.terminals()[run_id]
    check_transcript(await host.transcript())
    assert host.faults() == []


async def abort_at(path: Path, scenario: Scenario, place: float) -> int:
    """Play it, and stop every run before the nth step; gives back the steps that were taken."""
    play, script = scenario
    async with open_test_runtime(path, script=script) as host:
        await trio.testing.wait_all_tasks_blocked()  # the start is over
        before = open_channels()
        stopped: set[str] = set()

        def pull() -> None:
            for run in host.runtime.runs.open_runs():
                if host.runtime.runs.abort(run, "rpc"):
                    stopped.add(run.id)

        trigger = Trigger(place, pull)
        trio.lowlevel.add_instrument(trigger)
        with trio.fail_after(60):
            await play(host)
            await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.remove_instrument(trigger)
        await check_quiet(host)
        for run_id in stopped:
            assert host.events.terminals()[run_id].state in (RunState.ABORTED, RunState.MERGED)
        assert open_channels() == before
    return trigger.steps


async def cancel_at(path: Path, scenario: Scenario, place: float) -> int:
    """Play it, and cancel the host before the nth step; then look at what the next start finds."""
    play, script = scenario
    before = open_channels()
    hosts: list[TestRuntime] = []
    scope = trio.CancelScope()
    trigger = Trigger(place, scope.cancel)
    with trio.fail_after(60):
        with scope:
            async with open_test_runtime(path, script=script) as host:
                hosts.append(host)
                await trio.testing.wait_all_tasks_blocked()
                trio.lowlevel.add_instrument(trigger)
                await play(host)
        trio.lowlevel.remove_instrument(trigger)
        assert open_channels() == before
        (host,) = hosts
        host.events.check()
        ended = host.events.terminals()
        async with open_test_runtime(path) as after:
            while runs := after.runtime.runs.open_runs():
                await runs[0].ended.wait()
            rows = await after.store.read(lambda db: db.execute("SELECT id FROM runs").fetchall())
            twice = set(ended) & set(after.events.terminals())
            assert not twice, f"{twice} ended in both lives"
            assert {run_id for (run_id,) in rows} == {*ended, *after.events.terminals()}
            check_transcript(await after.transcript())
            assert [*host.faults(), *after.faults()] == []
    return trigger.steps


@pytest.mark.slow
@pytest.mark.parametrize("way", [abort_at, cancel_at])
@pytest.mark.parametrize("name", list(SCENARIOS))
def test_a_run_that_is_cut_off_at_any_step_ends_once(
    tmp_path: Path, name: str, way: Callable[[Path, Scenario, float], Awaitable[int]]
) -> None:
    def run(place: float) -> int:
        clock = trio.testing.MockClock(autojump_threshold=0)
        return trio.run(way, tmp_path / str(place), SCENARIOS[name], place, clock=clock)

    gc.freeze()  # what is there already need not be looked through each time
    try:
        steps = run(math.inf)
        assert steps > 10
        for place in range(1, steps + 3):
            run(place)
    finally:
        gc.unfreeze()
