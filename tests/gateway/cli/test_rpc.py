import json
from typing import Any

import pytest

from triops.runtime.paths import Paths, prepare_state


def test_a_call_finds_the_gateway_and_its_token(run: Any, gateway: Any):
    gateway.answers["health"] = {"ok": True}
    ran = run("gateway", "call", "health")
    assert (ran.code, json.loads(ran.out), ran.err) == (0, {"ok": True}, "")
    assert gateway.calls == [("health", {}, "", "Bearer the-token")]


def test_params_and_waiting_go_into_the_request(run: Any, gateway: Any):
    gateway.answers["agent"] = {}
    run("gateway", "call", "agent", "--params", '{"message": "hü"}', "--wait")
    assert gateway.calls == [("agent", {"message": "hü"}, "wait=final", "Bearer the-token")]


def test_url_and_token_override_what_is_found(run: Any, fake: Any):
    fake.answers["health"] = {}
    assert run("gateway", "call", "health", "--url", fake.url, "--token", "other").code == 0
    assert fake.calls[0].authorization == "Bearer other"


def test_the_local_token_is_not_sent_elsewhere(run: Any, gateway: Any, elsewhere: Any):
    elsewhere.answers["health"] = {}
    run("gateway", "call", "health", "--url", elsewhere.url)
    assert elsewhere.calls[0].authorization is None


def test_the_file_that_the_running_gateway_names_goes_before_what_this_shell_says(
    run: Any, gateway: Any, paths: Paths, monkeypatch: pytest.MonkeyPatch
):
    paths.config.write_text("{gateway: {auth: {token: 'configured-and-long'}}}")
    monkeypatch.setenv("OPENCLAW_GATEWAY_TOKEN", "of-another-program")
    gateway.answers["health"] = {}
    run("gateway", "call", "health")
    assert gateway.calls[0].authorization == f"Bearer {paths.token.read_text().strip()}"
    assert run("gateway", "token", "show").out.strip() == paths.token.read_text().strip()
    assert str(paths.token) in run("connect-info").out


def test_a_configured_token_is_taken_if_the_gateway_names_no_file(run: Any, gateway: Any, paths: Paths):
    paths.config.write_text("{gateway: {auth: {token: 'configured-and-long'}}}")
    gateway.answers["health"] = {}
    paths.discovery.write_text(json.dumps(json.loads(paths.discovery.read_text()) | {"tokenFile": None}))
    run("gateway", "call", "health")
    assert gateway.calls[0].authorization == "Bearer configured-and-long"


def test_without_a_gateway_the_next_step_is_named(run: Any, paths: Paths):
    ran = run("cron", "list")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == (
        f"triops: no gateway runs on {paths.state}\nStart one: triops gateway start (its log: triops logs)\n"
    )
    ran = run("cron", "list", "--json")
    assert json.loads(ran.err)["error"]["code"] == "NOT_RUNNING"


def test_what_a_killed_gateway_left_is_no_gateway(run: Any, paths: Paths):
    prepare_state(paths)
    paths.discovery.write_text('{"url":"http://127.0.0.1:1","pid":1,"version":"0","tokenFile":"x"}')
    assert "no gateway runs" in run("cron", "list").err


def test_a_gateway_that_does_not_answer_is_named(run: Any):
    ran = run("gateway", "call", "health", "--url", "http://127.0.0.1:9", "--json")
    assert ran.code == 1
    error = json.loads(ran.err)["error"]
    assert (error["code"], error["url"]) == ("UNREACHABLE", "http://127.0.0.1:9")
    assert "triops gateway start" in error["hint"]


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"code": "INVALID_REQUEST", "message": "no", "details": {"code": "CRON_JOB_NOT_FOUND"}}},
        {"code": "INVALID_REQUEST", "message": "no", "details": {"code": "CRON_JOB_NOT_FOUND"}},
    ],
)
def test_a_refusal_is_told_with_its_code_and_details(run: Any, gateway: Any, body: dict[str, Any]):
    gateway.answers["cron.remove"] = (404, body)
    ran = run("cron", "rm", "x", "--json")
    assert ran.code == 1
    assert json.loads(ran.err)["error"] == {
        "code": "INVALID_REQUEST",
        "status": 404,
        "message": "no",
        "details": {"code": "CRON_JOB_NOT_FOUND"},
    }
    assert run("cron", "rm", "x").err == "triops: no\n"


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, {"error": {"message": "Unauthorized", "type": "unauthorized"}}, "--token"),
        (503, {"error": {"code": "UNAVAILABLE", "message": "busy", "retryable": True, "retryAfterMs": 2500}}, "in 2 s"),
        (404, "Not Found", "triops: Not Found"),
        (404, {"error": {"code": "INVALID_REQUEST", "message": "session not found: x"}}, "session not found: x"),
        (500, {"error": "broken"}, "triops: broken"),
        (500, "", "HTTP 500"),
    ],
)
def test_whatever_answers_is_told(run: Any, gateway: Any, status: int, body: Any, said: str):
    gateway.answers["health"] = (status, body)
    ran = run("gateway", "call", "health")
    assert (ran.code, ran.out) == (1, "")
    assert said in ran.err


def test_what_a_peer_says_does_not_steer_the_terminal(run: Any, gateway: Any):
    gateway.answers["health"] = (400, {"error": {"code": "X", "message": "\x1b[2Jgone"}})
    assert "\x1b" not in run("gateway", "call", "health").err


def test_a_broken_configuration_exits_78(run: Any, gateway: Any, paths: Paths):
    paths.config.write_text("{gateway: {port: 'many'}}")
    ran = run("gateway", "token", "show")
    assert ran.code == 78
    assert "gateway.port" in ran.err
