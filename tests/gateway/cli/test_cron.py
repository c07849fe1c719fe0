import json
from typing import Any

import pytest

JOB = {
    "id": "j1",
    "name": "tea",
    "enabled": True,
    "schedule": {"kind": "every", "everyMs": 180_000},
    "sessionTarget": "main",
    "state": {"nextRunAtMs": 1_795_344_090_925, "lastRunStatus": "ok"},
}


def test_add_sends_the_job_as_it_is_given(run: Any, gateway: Any):
    job = {"name": "test", "schedule": {"kind": "every", "everyMs": 180000}, "sessionTarget": "current"}
    gateway.answers["cron.add"] = JOB
    ran = run("cron", "add", "--job", json.dumps(job))
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("Added tea (j1), next at 20")
    assert gateway.calls[0].params == job
    gateway.answers["cron.add"] = {**JOB, "enabled": False}
    assert run("cron", "add", "--job", json.dumps(job)).out == "Added tea (j1), disabled.\n"


@pytest.mark.parametrize(
    ("options", "params"),
    [
        (["--every", "5m"], {"schedule": {"kind": "every", "everyMs": 300_000}}),
        (["--at", "2026-12-01T08:00:00Z"], {"schedule": {"kind": "at", "at": "2026-12-01T08:00:00Z"}}),
        (
            ["--cron", "0 8 * * *", "--tz", "Europe/Berlin"],
            {"schedule": {"kind": "cron", "expr": "0 8 * * *", "tz": "Europe/Berlin"}},
        ),
        (["--system-event", "Tea?"], {"payload": {"kind": "systemEvent", "text": "Tea?"}}),
        (["--message", "go"], {"payload": {"kind": "agentTurn", "message": "go"}}),
        (
            ["--name", "n", "--session", "isolated", "--wake", "now"],
            {"name": "n", "sessionTarget": "isolated", "wakeMode": "now"},
        ),
        (["--job", '{"name":"a","enabled":false}', "--name", "b"], {"name": "b", "enabled": False}),
    ],
)
def test_options_say_what_json_would(run: Any, gateway: Any, options: list[str], params: dict[str, Any]):
    gateway.answers["cron.add"] = {"job": JOB, "created": True}
    assert run("cron", "add", *options).code == 0
    assert gateway.calls[0].params == params


@pytest.mark.parametrize(
    "options",
    [["--every", "5 parsecs"], ["--every", "1m", "--at", "x"], ["--job", "{"], ["--job", "[]"]],
)
def test_options_that_say_nothing_are_usage_errors(run: Any, gateway: Any, options: list[str]):
    assert run("cron", "add", *options).code == 2
    assert gateway.calls == []


def test_list_is_a_table_for_people_and_the_payload_for_programs(run: Any, gateway: Any):
    once = {**JOB, "id": "a-longer-id", "enabled": False, "schedule": {"kind": "at", "at": "2026"}, "state": {}}
    gateway.answers["cron.list"] = {"jobs": [JOB, once]}
    lines = run("cron", "list", "--all").out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["ID", "j1", "a-longer-id"]
    assert lines[0].index("SCHEDULE") == lines[1].index("every 3m") == lines[2].index("at 2026")
    assert "disabled" in lines[2]
    assert gateway.calls[0].params == {"includeDisabled": True}
    assert json.loads(run("cron", "list", "--json").out) == gateway.answers["cron.list"]
    gateway.answers["cron.list"] = {"jobs": []}
    assert run("cron", "list").out == "No jobs.\n"


def test_run_says_whether_it_runs(run: Any, gateway: Any):
    gateway.answers["cron.run"] = {"ok": True, "enqueued": True, "runId": "manual:j1:1:1"}
    assert "manual:j1:1:1" in run("cron", "run", "j1").out
    gateway.answers["cron.run"] = {"ok": True, "ran": False, "reason": "already-running"}
    assert run("cron", "run", "j1").out == "Not run: already-running.\n"


def test_runs_and_rm(run: Any, gateway: Any):
    entry = {"ts": 1, "jobId": "j1", "jobName": "tea", "status": "error", "durationMs": 7, "error": "no\nmodel"}
    gateway.answers["cron.runs"] = {"entries": [entry]}
    out = run("cron", "runs", "j1", "--limit", "3").out
    assert out.splitlines()[1].endswith("tea  error   7   no model")
    assert gateway.calls[0].params == {"limit": 3, "id": "j1"}
    gateway.answers |= {"cron.runs": {"entries": []}, "cron.get": JOB}
    assert run("cron", "runs", "j1").out == "No runs.\n"
    gateway.answers["cron.get"] = (404, {"error": {"message": "there is no job nosuch"}})
    assert run("cron", "runs", "nosuch") == (1, "", "triops: there is no job nosuch\n")
    gateway.answers["cron.remove"] = {"ok": True, "removed": True}
    assert run("cron", "rm", "j1").out == "Removed j1.\n"
