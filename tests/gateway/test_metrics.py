"""What Prometheus scrapes, read by Prometheus' own parser."""

from pathlib import Path
from typing import Any

import pytest
import trio.testing
from prometheus_client.parser import text_string_to_metric_families
from tests.kit.host import TestHost, open_test_gateway

from triops.runtime.phases import BUCKETS, PHASES


async def scrape(host: TestHost) -> dict[str, Any]:
    """Families by name; their samples by suffix and labels."""
    answer = await host.http("GET", "/metrics")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return {
        family.name: {
            (sample.name.removeprefix(family.name), *sample.labels.values()): sample.value for sample in family.samples
        }
        for family in text_string_to_metric_families(answer.body)
    }


async def test_each_turn_is_counted_in_each_phase_and_by_how_it_ended(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_test_gateway(tmp_path, virtual=True) as host, host.client() as client:
        before = await scrape(host)
        assert before["triops_turn_phase_seconds"]["_count", "stream"] == 0
        for key, words in (("a", "TOKENS:3 ITL:40"), ("b", "FAIL:401"), ("c", "HANG")):
            await client.say(words, key=key)
            if key == "c":
                now = await scrape(host)
                assert now["triops_runs"] == {("", "queued"): 0, ("", "running"): 1}
                await client.request("chat.abort", {"sessionKey": "main", "runId": "c"})
            await client.terminal(key)
        after = await scrape(host)
    assert after.keys() == {"triops_turn_phase_seconds", "triops_turn_seconds", "triops_runs"}
    turns, phases = after["triops_turn_seconds"], after["triops_turn_phase_seconds"]
    assert {state: turns["_count", state] for state in ("final", "error", "aborted")} == dict.fromkeys(
        ("final", "error", "aborted"), 1
    )
    assert {phases["_count", phase] for phase in PHASES} == {3}
    assert phases["_sum", "stream"] == pytest.approx(0.08)
    assert turns["_sum", "final"] == pytest.approx(0.08)
    buckets = [phases["_bucket", "stream", str(bound)] for bound in (*BUCKETS, "+Inf")]
    assert buckets == [2.0 if bound < 0.08 else 3.0 for bound in (*BUCKETS, 1e9)]


async def test_a_query_that_would_change_nothing_is_refused(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        assert (await host.http("GET", "/metrics?name=x")).status == 400
