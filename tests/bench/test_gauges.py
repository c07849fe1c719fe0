import pytest
import trio

from triops.bench.bare import open_bare
from triops.bench.gauges import measure
from triops.bench.load import one_turn
from triops.bench.scenario import Scenario, measure_turns
from triops.bench.subjects import Targets
from triops.bench.turns import results


@pytest.mark.slow
def test_every_gauge_shows_something():
    found = trio.run(measure, (1, 3), 4, 50)
    assert list(found.fan_out_ms) == [1, 3] and found.idle_clients == 4
    assert min(found.commits_per_second.values()) > 0
    assert found.chunk_us > 0
    assert found.longest and found.longest[0].ms >= found.longest[-1].ms > 0


async def test_the_model_alone_has_turns_and_says_what_failed(model_url: str) -> None:
    async with open_bare(model_url) as driver:
        turn = await one_turn(driver, "s", "TOKENS:3 RUN:")
        assert turn.state == "final" and turn.sent < turn.acked <= turn.first_delta <= turn.final
    async with open_bare("http://127.0.0.1:1") as driver:
        turn = await one_turn(driver, "s", "TOKENS:3 RUN:")
        assert turn.state == "error" and "could not connect" in turn.error


def test_both_stand_beside_the_gateway(model_url: str) -> None:
    targets = Targets(model=model_url, floor=False, inside=True, bare=True)
    found = results(trio.run(measure_turns, targets, [Scenario("one session")], 4))
    assert [result.subject for result in found] == ["triops", "in process", "model alone"]
    assert all(result.failed == 0 and result.metrics["overhead"].count == 4 for result in found)
    assert found[1].invalid == "", "there the gateway's work is the generator's"
