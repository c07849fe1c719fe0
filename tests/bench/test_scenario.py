import pytest
import trio

from triops.bench.driver import Frame, now, open_driver
from triops.bench.load import new_session
from triops.bench.scenario import Scenario, run_block
from triops.bench.turns import Result, results


def slow(frame: Frame, stamp: int) -> None:
    """A generator that works 20 ms on each frame."""
    until = now() + 20_000_000
    while now() < until:
        pass


async def measured(floor_url: str, model_url: str, *, held: bool) -> Result:
    """Turns of a model that pauses for 40 ms between two tokens."""
    scenario = Scenario("paced", message="TOKENS:4 ITL:40 RUN:")
    with trio.fail_after(30):
        async with open_driver(floor_url, "") as driver:
            if held:
                driver.listener = slow
                scenario = Scenario("instant")
            block = await run_block("floor", driver, scenario, model_url, 3, [new_session()])
    return results([block])[0]


@pytest.mark.slow  # two short measurements
async def test_a_generator_that_works_all_the_time_is_marked_and_one_that_waits_is_not(floor_url: str, model_url: str):
    held, free = [await measured(floor_url, model_url, held=held) for held in (True, False)]
    assert "the generator was the bottleneck" in held.invalid
    assert free.invalid == ""
