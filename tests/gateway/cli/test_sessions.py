import json
from typing import Any


def test_list(run: Any, gateway: Any):
    row = {"key": "agent:main:main", "modelProvider": "p", "model": "m", "hasActiveRun": True, "updatedAt": 1}
    gateway.answers["sessions.list"] = {"sessions": [row, {"key": "agent:main:x", "label": "tea", "status": "done"}]}
    lines = run("sessions", "list").out.splitlines()
    assert lines[1].split()[:4] == ["agent:main:main", "-", "p/m", "running"]
    assert lines[2].split() == ["agent:main:x", "tea", "-", "done", "-"]


def test_send_waits_for_the_reply_and_prints_it(run: Any, gateway: Any):
    gateway.answers["chat.send"] = {"runId": "r", "state": "final", "text": "Yes."}
    assert run("sessions", "send", "main", "are", "you", "there?") == (0, "Yes.\n", "")
    method, params, query, _ = gateway.calls[0]
    assert (method, params["sessionKey"], params["message"], query) == (
        "chat.send",
        "main",
        "are you there?",
        "wait=final",
    )


def test_a_failed_run_fails_the_command(run: Any, gateway: Any):
    gateway.answers["chat.send"] = {"runId": "r", "state": "error", "text": "", "error": "no credit"}
    ran = run("sessions", "send", "main", "hi", "--json")
    assert (ran.code, ran.out) == (1, "")
    assert json.loads(ran.err)["error"] == {
        "code": "RUN_FAILED",
        "message": "no credit",
        **gateway.answers["chat.send"],
        "error": "no credit",
    }


def test_send_without_waiting(run: Any, gateway: Any):
    gateway.answers["chat.send"] = {"runId": "r", "status": "started"}
    assert run("sessions", "send", "main", "hi", "--no-wait").out == "Accepted as run r.\n"
    assert gateway.calls[0].query == ""
