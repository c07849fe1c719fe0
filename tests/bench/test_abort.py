import trio

from triops.bench.abort import measure
from triops.bench.subjects import Subject, Targets


async def test_every_turn_is_aborted_and_its_terminal_timed(gateway: Subject, model_url: str):
    targets = Targets(gateway.url, gateway.token, model_url, floor=False)
    with trio.fail_after(20):
        report, records = await measure(targets, 2)
    (found,) = report.results
    assert (found.scenario, found.failed, [record.turn.state for record in records]) == ("abort", 0, ["aborted"] * 2)
    assert {name: summary.count for name, summary in found.metrics.items()} == {"ack": 2, "terminal": 2}
    assert found.metrics["terminal"].min > 0


async def test_a_turn_that_ends_before_it_can_be_aborted_has_failed(gateway: Subject, model_url: str):
    targets = Targets(gateway.url, gateway.token, model_url, floor=False)
    with trio.fail_after(20):
        report, _ = await measure(targets, 1, "FAIL:400 ")
    assert (report.results[0].failed, report.results[0].metrics) == (1, {})
