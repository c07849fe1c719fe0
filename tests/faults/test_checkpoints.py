"""Cut off at every single step: whatever is stopped, cancelled or killed where, each accepted run has its one end and
nothing is left. By default at every few steps of each scenario, in `dev.py soak` at all of them."""

import gc
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from triops.agents.errors import ProviderError
from triops.agents.messages import UserMessage
from triops.agents.model import RetryNotice, TextDelta, ToolCallDelta
from triops.agents.providers.scripted import Step
from triops.runtime.errors import Unavailable
from triops.runtime.events import RunDelta, RunEnded, RunStarted, RuntimeEvent
from triops.runtime.runs.state import RunState, Terminal
from triops.testing import (
    ProviderEntry,
    ScriptedProvider,
    TestRuntime,
    Trigger,
    copy_state,
    cut_everywhere,
    open_test_runtime,
)

CALLS: Step = [
    TextDelta("Let me look. "),
    ToolCallDelta("call_1", "sessions_list", "{}"),
    ToolCallDelta("call_2", "sessions_history", '{"sessionKey":"main"}'),
    ToolCallDelta("call_3", "sessions_list", '{"limit":0}'),
]
JOB = {
    "name": "once",
    "schedule": {"kind": "at", "at": "2027-01-15T08:01:00Z"},
    "sessionTarget": "isolated",
    "wakeMode": "now",
    "payload": {"kind": "agentTurn", "message": "TOKENS:2"},
}


class Scenario(msgspec.Struct, frozen=True):
    """Who says what. Without a script the model obeys."""

    play: Callable[[TestRuntime], Awaitable[object]]
    script: Sequence[Step] | None = None
    config: dict[str, Any] = {}
    faulty: bool = False
    """The disk refuses on purpose."""

    @asynccontextmanager
    async def open(self, path: Path, *, after: bool = False) -> AsyncGenerator[TestRuntime]:
        model = ScriptedProvider(None if after or self.script is None else self.script)
        entries = tuple(
            ProviderEntry(provider=provider, why="the test") for provider in (model, ScriptedProvider(id="spare"))
        )
        defaults = {"model": {"primary": "scripted/echo", "fallbacks": ["spare/echo"]}, **self.config}
        async with open_test_runtime(path, config={"agents": {"defaults": defaults}}, providers=entries) as host:
            await trio.testing.wait_all_tasks_blocked()  # the start is over
            host.store.lag = 3
            yield host


def told(kind: type[RunStarted | RunDelta], run_id: str) -> Callable[[RuntimeEvent], bool]:
    """Whether an event is of that kind, or the run's end."""
    return lambda event: isinstance(event, kind | RunEnded) and event.run.run_id == run_id


def says(first: str, **others: str) -> Callable[[TestRuntime], Awaitable[None]]:
    """The first words, and when they are being answered others, by their queue mode; all to their ends."""

    async def play(host: TestRuntime) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(host.ask, first, run_id="r1"))
            if others:
                await host.events.wait_for(told(RunStarted, "r1"))
            for mode, words in others.items():
                nursery.start_soon(partial(host.ask, words, run_id=mode, queue_mode=mode.rstrip("_")))

    return play


async def send(host: TestRuntime) -> None:
    await host.ask("SAY:here I am", session="other", run_id="r1")
    await host.ask('CALL:sessions_send {"sessionKey":"agent:main:other","message":"TOKENS:2"}', run_id="r2")


async def crowd(host: TestRuntime) -> None:
    """Three sessions, one slot."""
    async with trio.open_nursery() as nursery:
        for name in ("a", "b", "c"):
            nursery.start_soon(partial(host.ask, "TOKENS:2 ITL:100", session=name, run_id=name))


async def scheduled(host: TestRuntime) -> None:
    await host.runtime.cron.add(JOB)
    await host.events.wait_for(lambda event: isinstance(event, RunEnded) and event.run.source == "cron")


async def stop(host: TestRuntime) -> None:
    """One can finish while the runtime drains, one cannot."""
    async with trio.open_nursery() as nursery:
        for run_id, words in (("r1", "TOKENS:3 ITL:100"), ("r2", "TOKENS:100 ITL:1000")):
            nursery.start_soon(partial(host.ask, words, session=run_id, run_id=run_id))
            await host.events.wait_for(told(RunDelta, run_id))
        await host.runtime.runs.drain(5)


async def late(host: TestRuntime) -> None:
    """The disk refuses a step, then the end."""
    host.store.refuse(2, 4)
    for run_id in ("r1", "r2"):
        try:
            await host.ask(f"CALL:sessions_list {{}}\n{run_id}", run_id=run_id)
        except Unavailable:
            pass  # refused, and not accepted
    await trio.sleep(5)  # what was refused is written late


SPAWN = 'CALL:sessions_spawn {"task":"TOKENS:2 ITL:90000"}\nCALL:sessions_spawn {"task":"CALL:sessions_list {}"}'
REFUSED = [ProviderError("overloaded", "busy")]
RETRIED: Step = [RetryNotice(1, 2, "HTTP 429", 0.5), 0.5, TextDelta("Hel"), TextDelta("lo")]
SLOW = "TOKENS:3 ITL:100"
SCENARIOS: dict[str, Scenario] = {
    "a plain reply": Scenario(says("hello"), [[TextDelta("Hel"), TextDelta("lo")]]),
    "a batch of tools": Scenario(says("look"), [CALLS, [TextDelta("Two sessions.")]]),
    "steering": Scenario(
        says("look", steer="and this", followup="and then that"),
        [CALLS, [TextDelta("Seen both.")], [TextDelta("And that.")]],
    ),
    "a follow-up": Scenario(says(SLOW, followup="TOKENS:2", followup_="TOKENS:1")),
    "collecting": Scenario(says(SLOW, collect="TOKENS:2", collect_="TOKENS:1")),
    "an interruption": Scenario(says(SLOW, followup="TOKENS:1", interrupt="TOKENS:2")),
    "sub-agents": Scenario(says(SPAWN)),
    "a word to another session": Scenario(send),
    "a job of the scheduler": Scenario(scheduled),
    "another model": Scenario(says("TOKENS:2"), [REFUSED]),
    "another try": Scenario(says("hello"), [RETRIED]),
    "a crowd": Scenario(crowd, config={"maxConcurrent": 1}),
    "a stop": Scenario(stop),
    "a disk that refuses": Scenario(late, faulty=True),
}


def open_channels() -> int:
    """Ends of memory channels that nobody closed. Those without a buffer are Trio's own, inside `as_safe_channel`: one
    that is cancelled while it opens leaves an end to the garbage collector."""
    found = [end.statistics() for end in gc.get_objects() if type(end) is trio.MemorySendChannel]
    return sum(ends.open_send_channels + ends.open_receive_channels for ends in found if ends.max_buffer_size)


async def check(host: TestRuntime, *, faulty: bool = False) -> None:
    await host.check_quiet()
    for (key,) in await host.store.read(lambda db: db.execute("SELECT key FROM sessions").fetchall()):
        said = [m.content for m in await host.transcript(key) if isinstance(m, UserMessage)]
        assert len(said) == len(set(said)), "nothing stands there twice"
    assert faulty or host.faults() == []


async def stop_runs(path: Path, scenario: Scenario, trigger: Trigger, *, most: int | None = None) -> None:
    """Stop every run before a step, or only the oldest."""
    async with scenario.open(path / str(trigger.place)) as host:
        before = open_channels()
        stopped: set[str] = set()

        def pull() -> None:
            for run in host.runtime.runs.open_runs()[:most]:
                if host.runtime.runs.abort(run, "rpc"):
                    stopped.add(run.id)

        with trio.fail_after(600), trigger.armed(pull):
            await scenario.play(host)
            await trio.testing.wait_all_tasks_blocked()
        await check(host, faulty=scenario.faulty)
        assert open_channels() <= before
        for run_id in stopped:
            end = host.events.terminals()[run_id]
            assert end.state in (RunState.ABORTED, RunState.MERGED) or end.error_kind == "not_stored", end
        ends = [event.run for event in host.events.events if isinstance(event, RunEnded)]
        parents = [place for place, run in enumerate(ends) if not run.spawned_by]
        children = [place for place, run in enumerate(ends) if run.spawned_by]
        assert max(children, default=-1) < max(parents), "a child outlived its parent"


async def stop_oldest(path: Path, scenario: Scenario, trigger: Trigger) -> None:
    await stop_runs(path, scenario, trigger, most=1)


async def cancel_host(path: Path, scenario: Scenario, trigger: Trigger) -> None:
    """Cancel the host before a step, on its way out too; then look at what the next start finds."""
    folder = path / str(trigger.place)
    before = open_channels()
    hosts: list[TestRuntime] = []
    with trio.fail_after(10_000):
        with ExitStack() as armed, trio.CancelScope() as scope:
            async with scenario.open(folder) as host:
                hosts.append(host)
                armed.enter_context(trigger.armed(scope.cancel))
                await scenario.play(host)
        assert open_channels() == before
        (host,) = hosts
        host.events.check()
        ended = host.events.terminals()
        async with scenario.open(folder, after=True) as after:
            await trio.sleep(3600)  # what waits is answered, what was missed is made up for
            await check(after)
            rows = await after.store.read(lambda db: db.execute("SELECT id FROM runs").fetchall())
            again = after.events.terminals()
            assert not set(ended) & set(again), "ended in both lives"
            assert {run_id for (run_id,) in rows} == {*ended, *again}
        assert scenario.faulty or host.faults() == []


async def kill_host(path: Path, scenario: Scenario, trigger: Trigger) -> None:
    """Kill the process before a step; what was told until then is what the next start finds."""
    folder, killed = path / str(trigger.place), path / f"{trigger.place} killed"
    told: dict[str, Terminal] = {}
    open_then: set[str] = set()
    with trio.fail_after(10_000):
        async with scenario.open(folder) as host:

            def pull() -> None:
                copy_state(folder, killed)
                told.update(host.events.terminals())
                open_then.update(run.id for run in host.runtime.runs.open_runs())

            with trigger.armed(pull):
                await scenario.play(host)
        if not killed.exists():
            return
        async with scenario.open(killed, after=True) as after:
            await trio.sleep(3600)
            await check(after)
            for run_id in open_then:
                assert await after.runtime.runs.wait(run_id), "what was accepted is there, and over"
            for run_id, end in told.items():
                again = await after.runtime.runs.wait(run_id)
                assert again == end or end.error_kind == "not_stored", (end, again)


@pytest.mark.slow
@pytest.mark.parametrize("stride", [8, pytest.param(1, marks=pytest.mark.soak)])
@pytest.mark.parametrize("way", [stop_runs, stop_oldest, cancel_host, kill_host])
@pytest.mark.parametrize("name", list(SCENARIOS))
def test_what_is_cut_off_at_any_step_ends_once_and_leaves_nothing(
    tmp_path: Path, name: str, way: Callable[[Path, Scenario, Trigger], Awaitable[None]], stride: int
) -> None:
    first = 1 + list(SCENARIOS).index(name) % stride
    gc.freeze()  # what is there already need not be looked through each time
    try:
        assert cut_everywhere(partial(way, tmp_path, SCENARIOS[name]), stride=stride, first=first) > 10
    finally:
        gc.unfreeze()
