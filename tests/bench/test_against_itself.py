"""The gauge on two copies of one program: it must not tell them apart."""

from contextlib import AsyncExitStack

import msgspec
import pytest

from triops.bench.driver import open_driver
from triops.bench.scenario import Scenario, run_scenario
from triops.bench.subjects import open_gateway, open_model
from triops.bench.turns import Result, results


async def a_against_a(model: str, turns: int) -> Result:
    """One run as `triops bench chat` makes it, with a second gateway of ours in the floor's place."""
    async with AsyncExitStack() as stack:
        ours = await stack.enter_async_context(open_gateway(model))
        same = msgspec.structs.replace(await stack.enter_async_context(open_gateway(model)), name="floor")
        subjects = [(side, await stack.enter_async_context(open_driver(side.url, side.token))) for side in (ours, same)]
        blocks = await run_scenario(Scenario("fresh sessions", fresh=True), subjects, model, turns)
    return results(blocks)[0]


@pytest.mark.slow
async def test_a_run_against_itself_has_a_ratio_and_how_sure_it_is():
    async with open_model() as model:
        result = await a_against_a(model, turns=20)
    assert result.failed == 0
    assert result.ratio is not None
    assert result.ratio_interval is not None
    assert result.ratio_interval.low < result.ratio < result.ratio_interval.high


@pytest.mark.soak
async def test_of_a_hundred_runs_against_itself_at_most_five_differ():
    async with open_model() as model:
        found = [await a_against_a(model, turns=100) for _ in range(100)]
    intervals = [result.ratio_interval for result in found]
    differ = [interval for interval in intervals if interval is None or interval.excludes(1)]
    print(f"{len(differ)} of {len(found)} differ: {differ}")
    assert len(differ) <= 5, differ
