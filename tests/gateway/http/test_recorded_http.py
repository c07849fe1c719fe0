"""What OpenClaw 2026.9.6 was recorded to answer over plain HTTP: status, kind of body, and its keys. The facts are
copied from the recordings `http_surface` and `http_hooks`; where we differ on purpose, it says so."""

from pathlib import Path
from typing import Any

import pytest
from tests.kit.host import ECHO, TOKEN, open_test_gateway

HOOK = "the-hooks-own-secret-of-this-test"
HI = {"model": "openclaw", "messages": [{"role": "user", "content": "TOKENS:4"}]}
MODEL = {"object": "model", "created": 0, "owned_by": "openclaw", "permission": []}
UNAUTHORIZED = (401, "unauthorized", "Unauthorized")

REFUSED: list[tuple[str, str, str | None, Any, tuple[int, str, str | None]]] = [
    ("GET", "/v1/models", None, None, UNAUTHORIZED),
    ("GET", "/v1/models/openclaw", None, None, UNAUTHORIZED),
    ("GET", "/v1/models/none", None, None, UNAUTHORIZED),
    ("GET", "/v1/models", "wrong", None, UNAUTHORIZED),
    ("POST", "/v1/chat/completions", None, HI, UNAUTHORIZED),
    ("POST", "/tools/invoke", None, {"tool": "sessions_list", "args": {}}, UNAUTHORIZED),
    ("GET", "/v1/models/none", TOKEN, None, (400, "invalid_request_error", "Invalid model id.")),
    (
        "POST",
        "/v1/chat/completions",
        TOKEN,
        HI | {"model": "gpt-4"},
        (400, "invalid_request_error", "Invalid `model`. Use `openclaw` or `openclaw/<agentId>`."),
    ),
    (
        "POST",
        "/v1/chat/completions",
        TOKEN,
        HI | {"messages": []},
        (400, "invalid_request_error", "Missing user message in `messages`."),
    ),
    ("POST", "/v1/chat/completions", TOKEN, b"{bad", (400, "invalid_request_error", None)),
    (
        "POST",
        "/v1/chat/completions",
        TOKEN,
        HI | {"messages": [{"role": "user", "content": "FAIL:400"}]},
        (502, "api_error", None),
    ),
    ("POST", "/tools/invoke", TOKEN, {"tool": "no_such"}, (404, "not_found", "Tool not available: no_such")),
    ("POST", "/tools/invoke", TOKEN, {"tool": "exec"}, (404, "not_found", "Tool not available: exec")),
]


@pytest.mark.parametrize(("method", "path", "token", "body", "recorded"), REFUSED)
async def test_a_refusal_has_the_recorded_status_type_and_words(
    tmp_path: Path, method: str, path: str, token: str | None, body: Any, recorded: tuple[int, str, str | None]
) -> None:
    async with open_test_gateway(tmp_path) as host:
        answer = await host.http(method, path, body, token=token)
        status, kind, words = recorded
        assert (answer.status, answer.body["error"]["type"]) == (status, kind)
        assert words is None or answer.body["error"]["message"] == words
        assert answer.headers["content-type"] == "application/json; charset=utf-8"
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [("GET", "/v1/chat/completions", "POST"), ("OPTIONS", "/v1/models", "GET, HEAD"), ("GET", "/tools/invoke", "POST")],
)
async def test_a_wrong_method_is_405_but_only_for_who_is_let_in(
    tmp_path: Path, method: str, path: str, allow: str
) -> None:
    async with open_test_gateway(tmp_path) as host:
        answer = await host.http(method, path)
        assert (answer.status, answer.headers["allow"]) == (405, allow)
        assert (await host.http(method, path, token=None)).status == 401  # recorded: 405 for anybody


async def test_the_models_are_as_recorded(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        ids = ["openclaw", "openclaw/default", "openclaw/main"]
        listed = await host.http("GET", "/v1/models")
        assert listed.body == {"object": "list", "data": [{"id": id, **MODEL} for id in ids]}
        assert (await host.http("GET", "/v1/models/openclaw")).body == {"id": "openclaw", **MODEL}
        assert (await host.http("GET", "/v1/models/openclaw%2Fmain")).body["id"] == "openclaw/main"


async def test_a_chat_completion_is_as_recorded(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        body = (await host.http("POST", "/v1/chat/completions", HI)).body
        assert list(body) == ["id", "object", "created", "model", "choices", "usage"]
        message = {"role": "assistant", "content": "tok0 quick brown fox"}
        assert body["choices"] == [{"index": 0, "message": message, "finish_reason": "stop"}]
        assert list(body["usage"]) == ["prompt_tokens", "completion_tokens", "total_tokens"]
        streamed = await host.http(
            "POST", "/v1/chat/completions", HI | {"stream": True, "stream_options": {"include_usage": True}}
        )
        assert streamed.headers["content-type"] == "text/event-stream; charset=utf-8"
        lines = streamed.body.split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        assert '"choices":[{"index":0,"delta":{"role":"assistant"},"finish_reason":null}]' in lines[0]
        assert '"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]' in lines[-4]
        assert '"choices":[],"usage":{"prompt_tokens":' in lines[-3]


async def test_a_response_is_as_recorded(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        body = (await host.http("POST", "/v1/responses", {"model": "openclaw", "input": "TOKENS:4"})).body
        assert list(body) == ["id", "object", "created_at", "status", "model", "output", "usage"]
        (item,) = body["output"]
        assert {"type", "id", "role", "content", "phase", "status"} == item.keys()
        assert (item["phase"], item["status"], item["content"][0]["text"]) == (
            "final_answer",
            "completed",
            "tok0 quick brown fox",
        )
        assert body["usage"].keys() == {
            "input_tokens",
            "input_tokens_details",
            "output_tokens",
            "output_tokens_details",
            "total_tokens",
        }
        assert body["usage"]["input_tokens_details"] == {"cached_tokens": 0, "cache_write_tokens": 0}


async def test_a_tool_is_as_recorded(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        body = (await host.http("POST", "/tools/invoke", {"tool": "sessions_list", "args": {}})).body
        assert body["ok"] is True
        assert body["result"]["content"][0]["type"] == "text"


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status", "answer"),
    [
        ("POST", "wake", {}, {"text": "x"}, 401, "Unauthorized"),
        ("POST", "wake", {"Authorization": "Bearer peer-token"}, {"text": "x"}, 401, "Unauthorized"),
        (
            "POST",
            "wake",
            HOOK,
            {"text": "x", "mode": "now"},
            200,
            {"ok": True, "mode": "now", "eventOutcome": "queued"},
        ),
        ("POST", "wake", HOOK, {"mode": "now"}, 400, {"ok": False, "error": "text required"}),
        ("POST", "wake", HOOK, b"{bad", 400, None),
        ("POST", "agent", HOOK, {"message": "SAY:hooked", "name": "peer"}, 200, None),
        ("POST", "agent", HOOK, {}, 400, {"ok": False, "error": "message required"}),
        ("POST", "none", HOOK, {"a": 1}, 404, "Not Found"),
        ("GET", "wake", HOOK, None, 405, None),
        (
            "POST",
            f"wake?token={HOOK}",
            {},
            {"text": "x"},
            400,
            "Hook token must be provided via Authorization: Bearer <token> or X-OpenClaw-Token header"
            " (query parameters are not allowed).",
        ),
        (
            "POST",
            "wake",
            {"x-openclaw-token": HOOK},
            {"text": "x"},
            200,
            {"ok": True, "mode": "now", "eventOutcome": "queued"},
        ),
    ],
)
async def test_hooks_are_as_recorded(
    tmp_path: Path, method: str, path: str, headers: Any, body: Any, status: int, answer: Any
) -> None:
    config = ECHO | {"hooks": {"enabled": True, "token": HOOK}}
    async with open_test_gateway(tmp_path, config=config) as host:
        given = {"Authorization": f"Bearer {HOOK}"} if headers == HOOK else headers
        told = await host.http(method, f"/hooks/{path}", body, headers=given, token=None)
        assert told.status == status
        if answer is not None:
            assert told.body == answer
        elif path == "agent":
            assert (told.body.keys(), told.body["ok"]) == ({"ok", "runId"}, True)
        kind = "application/json" if status in (200, 405) or isinstance(told.body, dict) else "text/plain"
        assert told.headers["content-type"] == f"{kind}; charset=utf-8"


async def test_hooks_that_are_not_enabled_are_not_there(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        for name in ("wake", "agent"):
            assert (await host.http("POST", f"/hooks/{name}", {"text": "x", "message": "x"})).status == 404
