import pytest
import trio

from triops.bench import cron
from triops.bench.errors import BenchFailed
from triops.bench.subjects import Subject, Targets
from triops.bench.turns import results


@pytest.mark.slow  # waits until the jobs are due
async def test_jobs_start_and_finish_after_their_time(gateway: Subject, model_url: str):
    targets = Targets(gateway.url, gateway.token, model_url, floor=False)
    with trio.fail_after(20):
        blocks = await cron.measure(targets, 2, ahead=0.4)
    (found,) = results(blocks)
    assert (found.failed, {name: summary.count for name, summary in found.metrics.items()}) == (
        0,
        {"started": 2, "finished": 2},
    )
    assert found.metrics["finished"].min > 0


async def test_more_jobs_than_a_gateway_takes_in_a_minute_are_refused():
    with pytest.raises(BenchFailed, match="at most 25"):
        await cron.measure(Targets(), 26)
