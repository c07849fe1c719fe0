import pytest
import trio

from triops.bench.errors import BenchFailed
from triops.bench.first_turn import WARM_TURNS, measure
from triops.bench.subjects import Targets
from triops.bench.turns import results


@pytest.mark.slow  # starts processes
async def test_the_first_turn_stands_beside_the_second_and_warm_ones(model_url: str):
    with trio.fail_after(20):
        blocks = await measure(Targets(model=model_url, floor=False), 1, warm_after=0)
    counts = {found.scenario: found.metrics["overhead"].count for found in results(blocks)}
    once = dict.fromkeys(["cold", "second after cold", "warmed", "second after warmed"], 1)
    assert counts == once | {"warm": 2 * WARM_TURNS}


async def test_a_gateway_that_runs_already_has_no_first_turn():
    with pytest.raises(BenchFailed, match="--start"):
        await measure(Targets(url="ws://127.0.0.1:1"), 1)
