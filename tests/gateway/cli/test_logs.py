import json
from typing import Any

import pytest

from triops.gateway.cli import logs
from triops.runtime.paths import Paths, prepare_state

RECORD = {
    "time": "2026-11-22T17:00:00.000+00:00",
    "level": "warn",
    "subsystem": "gateway",
    "message": "refused a \x1b[1mconnection",
    "reason": "origin",
    "count": 2,
    "trace": ["x"],
}


def test_lines_are_short_for_people_and_as_they_are_for_programs(run: Any, gateway: Any):
    line = json.dumps(RECORD)
    gateway.answers["logs.tail"] = {"cursor": 9, "lines": [line, "no record"]}
    assert run("logs", "--limit", "2").out == (
        "17:00:00 warn  gateway: refused a \\x1b[1mconnection  reason=origin  count=2\nno record\n"
    )
    assert gateway.calls[0].params == {"limit": 2}
    assert run("logs", "--json").out.splitlines() == [line, "no record"]


def test_following_goes_on_from_the_cursor(run: Any, gateway: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logs, "FOLLOW_SECONDS", 0)
    gateway.answers["logs.tail"] = [
        {"cursor": 5, "lines": ["one"]},
        {"cursor": 9, "lines": ["two"]},
        (503, {"error": {"code": "UNAVAILABLE", "message": "gone"}}),
    ]
    ran = run("logs", "--follow")
    assert (ran.code, ran.out) == (1, "one\ntwo\n")
    assert [call.params for call in gateway.calls] == [{"limit": 100}, {"cursor": 5}, {"cursor": 9}]


def test_without_a_gateway_the_file_is_read(run: Any, paths: Paths):
    assert "there is no log" in run("logs").err
    prepare_state(paths)
    (paths.logs / "triops-2026-11-22.log").write_text("one\ntwo\n")
    assert run("logs", "--limit", "1") == (0, "two\n", "")
