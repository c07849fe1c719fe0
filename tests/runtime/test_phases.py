"""Where the time of a turn went, on a clock that only passes where the test says so."""

from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from triops.agents.errors import ProviderError
from triops.agents.messages import AssistantMessage
from triops.agents.model import ModelInfo, ModelRef, ModelRequest, ProviderEvent, RetryNotice, TextDelta, ToolCallDelta
from triops.agents.providers.scripted import ScriptedProvider
from triops.runtime.events import RunDelta, RunEnded, RunInfo, RuntimeEvent, SessionMessage
from triops.runtime.models import ProviderEntry
from triops.runtime.phases import BUCKETS, Histogram
from triops.runtime.runs.state import RunState
from triops.runtime.testing import TestRuntime, open_test_runtime

ECHO = ModelInfo(ref=ModelRef("scripted", "echo"), api="scripted")


def ended(host: TestRuntime, run_id: str) -> RunEnded:
    event = host.events.of(run_id)[-1]
    assert isinstance(event, RunEnded)
    return event


def spent(host: TestRuntime, run_id: str) -> dict[str, float]:
    """The phases that took time."""
    phases = ended(host, run_id).phases
    assert phases is not None
    return {name: round(seconds, 6) for name, seconds in phases.spent().items() if seconds > 1e-6}


class Slow(ScriptedProvider):
    """Takes its time wherever a provider can."""

    async def resolve_dynamic(self, model_id: str) -> ModelInfo | None:
        await trio.sleep(0.003)
        return ModelInfo(ref=ModelRef(self.id, model_id), api="scripted")

    def stream(self, request: ModelRequest) -> Any:
        return self._timed(request)

    @trio.as_safe_channel
    async def _timed(self, request: ModelRequest) -> AsyncGenerator[Sequence[ProviderEvent], None]:
        await trio.sleep(0.005)
        request.sent()
        await trio.sleep(0.007)
        async with super().stream(request) as batches:
            async for batch in batches:
                yield batch  # noqa: ASYNC119, RUF100  as_safe_channel closes this generator where it runs


async def test_each_phase_is_found_as_long_as_it_was_and_together_they_are_the_whole(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    model = Slow(
        [
            [0.5, TextDelta("I was at it.")],
            [TextDelta("I ask. "), 0.011, ToolCallDelta("c", "sessions_spawn", '{"task": "hm?"}')],
            [0.013, TextDelta("hm")],  # the sub-agent's: its whole turn is the time of the tool
            [TextDelta("It says "), 0.017, TextDelta("hm")],
        ]
    )
    entries = (ProviderEntry(provider=model, why="the test", models=(ECHO,)),)
    async with open_test_runtime(tmp_path, providers=entries) as host, trio.open_nursery() as nursery:

        async def hang(seconds: float) -> None:
            with host.store.held():
                await trio.sleep(seconds)

        def hear(event: RuntimeEvent) -> None:
            match event:
                case RunDelta(RunInfo(run_id="r"), delta="It says "):
                    nursery.start_soon(hang, 0.017 + 0.023)  # past the stream, over the commit
                case SessionMessage(run_id="r", message=AssistantMessage(stop_reason="stop")):
                    autojump_clock.jump(0.019)  # somebody else is told first
                case _:
                    pass

        with host.runtime.bus.subscribe(hear):
            await host.send("first", run_id="first")
            await trio.sleep(0.1)
            start = trio.current_time()
            await host.send("second", run_id="r", queue_mode="followup", model="scripted/new")
            await host.runtime.runs.wait("r")
            whole = trio.current_time() - start
    assert spent(host, "first") == {"connect": 0.005, "first_token": 0.507}
    assert spent(host, "r") == {
        "queue": 0.412,
        "plan": 0.003,
        "connect": 2 * 0.005,
        "first_token": 2 * 0.007,
        "stream": 0.011 + 0.017,
        "tools": 0.005 + 0.007 + 0.013,
        "commit": 0.023,
        "emit": 0.019,
    }
    assert sum(spent(host, "r").values()) == pytest.approx(whole)
    times = host.runtime.runs.times
    assert {sum(histogram.counts) for histogram in times.phases.values()} == {3}
    assert times.turns[RunState.FINAL].sum == pytest.approx(0.512 + 0.025 + whole)


async def test_a_retry_is_time_to_connect(tmp_path: Path, autojump_clock: MockClock) -> None:
    script = [[2.0, RetryNotice(1, 2, "overloaded", 0.5), 0.5, TextDelta("Hi")]]
    async with open_test_runtime(tmp_path, script=script) as host:
        await host.ask("hi", run_id="r")
        assert spent(host, "r") == {"first_token": 2.0, "connect": 0.5}


async def test_the_next_model_is_planned_anew(tmp_path: Path, autojump_clock: MockClock) -> None:
    config = {"agents": {"defaults": {"model": {"primary": "scripted/echo", "fallbacks": ["scripted/echo"]}}}}
    script = [[1.0, ProviderError("auth", "no")], [2.0, TextDelta("Hi")]]
    async with open_test_runtime(tmp_path, script=script, config=config) as host:
        await host.ask("hi", run_id="r")
        assert spent(host, "r") == {"first_token": 3.0}
        phases = ended(host, "r").phases
        assert phases is not None
        once = ["plan", "connect", "first_token"]
        assert [phase for phase, _, _ in phases.spans()] == [
            "queue", *once, "commit", *once, "stream", "commit", "emit"
        ]  # fmt: skip


async def test_a_run_that_never_ran_was_in_the_queue_and_a_merged_one_has_no_time_of_its_own(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_test_runtime(tmp_path, script=[[9.0, TextDelta("Hi")], [TextDelta("Both")]]) as host:
        await host.send("first", run_id="first")
        await host.send("no", run_id="never", queue_mode="followup")
        await host.send("and", run_id="b", queue_mode="collect")
        await host.send("too", run_id="c", queue_mode="collect")
        await trio.sleep(4)
        never = host.runtime.runs.open_run("never")
        assert never is not None
        host.runtime.runs.abort(never, "chat.abort")
        await host.runtime.runs.wait("b")
        assert spent(host, "never") == {"queue": 4.0}
        assert spent(host, "b") == {"queue": 9.0}
        assert ended(host, "c").phases is None
        turns = host.runtime.runs.times.turns
        assert {state: sum(histogram.counts) for state, histogram in turns.items()} == {
            RunState.FINAL: 2,
            RunState.ERROR: 0,
            RunState.ABORTED: 1,
        }


def test_a_duration_is_counted_where_it_lies() -> None:
    histogram = Histogram()
    for seconds in (0.0, BUCKETS[0], BUCKETS[0] + 1e-9, BUCKETS[-1] + 1):
        histogram.add(seconds)
    assert histogram.counts == [2, 1, *[0] * (len(BUCKETS) - 2), 1]
