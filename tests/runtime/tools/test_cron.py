"""The cron tool, as an agent calls it: over a whole runtime on a mock clock."""

import json
from pathlib import Path
from typing import Any

import pytest
import trio.testing

from triops.agents.errors import ToolError
from triops.agents.messages import Text
from triops.agents.tool import ToolContext
from triops.runtime.testing import TestRuntime, open_test_runtime
from triops.runtime.tools.cron import CronArgs, cron_tool

Clock = trio.testing.MockClock
TEA = {
    "name": "tea",
    "schedule": {"kind": "every", "everyMs": 60_000},
    "payload": {"kind": "systemEvent", "text": "Tea time"},
    "sessionTarget": "current",
}


async def call(host: TestRuntime, action: Any, **args: Any) -> Any:
    context = ToolContext("r", "agent:main:kitchen", "c", lambda _: None)
    result = await cron_tool(lambda: host.runtime.cron).run(CronArgs(action, **args), context)
    (block,) = result.content
    assert isinstance(block, Text)
    return json.loads(block.text)


async def test_a_job_is_made_for_the_session_that_asks_fires_there_and_is_removed(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with open_test_runtime(tmp_path) as host:
        job = await call(host, "add", job=TEA)
        assert [found["id"] for found in (await call(host, "list"))["jobs"]] == [job["id"]]
        assert (await call(host, "get", job_id=job["id"]))["name"] == "tea"
        await trio.sleep(61)
        assert (await host.transcript("kitchen"))[0].content == "Tea time"
        assert (await call(host, "runs", job_id=job["id"]))["entries"][0]["status"] == "ok"
        assert (await call(host, "run", job_id=job["id"]))["ok"] is True
        assert (await call(host, "status"))["jobs"] == 1
        await call(host, "remove", job_id=job["id"])
        assert (await call(host, "list"))["jobs"] == []


@pytest.mark.parametrize(
    ("action", "args", "words"),
    [
        ("add", {}, "add needs job"),
        ("add", {"job": {"name": "x"}}, "schedule"),
        ("get", {}, "get needs jobId"),
        ("remove", {"job_id": "none"}, "none"),
    ],
)
async def test_what_is_wrong_is_told_to_the_model(
    tmp_path: Path, autojump_clock: Clock, action: str, args: dict[str, Any], words: str
) -> None:
    async with open_test_runtime(tmp_path) as host:
        with pytest.raises(ToolError, match=words):
            await call(host, action, **args)
