from datetime import datetime
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from tests.bench.test_turns import MS

from triops.bench import cron
from triops.bench.driver import Driver, Frame
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


WALL = 1_800_000_000_000 * MS
"""What the wall clock says when ours says 0."""


class Punctual(Driver):
    """A gateway whose jobs start 20 ms after their time and finish 300 ms after it, the second with an error."""

    def __init__(self) -> None:
        super().__init__(trio.testing.memory_stream_pair()[0])
        self.jobs = 0

    async def ask(self, method: str, params: Any) -> msgspec.Raw:
        due = round(datetime.fromisoformat(params["schedule"]["at"]).timestamp() * 1000) * MS - WALL
        job = f"job {self.jobs}"
        self.jobs += 1
        status = "ok" if self.jobs == 1 else "error"
        trio.lowlevel.spawn_system_task(self._fire, job, due, status)
        return msgspec.Raw(msgspec.json.encode({"id": job}))

    async def _fire(self, job: str, due: int, status: str) -> None:
        for action, late in (("started", 20), ("finished", 300)):
            told = {"jobId": job, "action": action, "status": status, "error": "no model"}
            self.listener(Frame("event", event="cron", payload=msgspec.Raw(msgspec.json.encode(told))), due + late * MS)


async def test_lateness_is_counted_from_a_job_s_time_and_a_job_that_failed_is_no_good_one(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(cron, "now", lambda: 0)
    monkeypatch.setattr(cron, "time", SimpleNamespace(time_ns=lambda: WALL))
    driver = Punctual()
    with trio.fail_after(20):
        first, second = await cron.let_fire("triops", driver, 2, 0.0)
    assert first.metrics == pytest.approx({"started": 20, "finished": 300})
    assert (first.good, second.good, second.turn.error) == (True, False, "no model")
