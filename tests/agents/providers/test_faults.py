import json

import pytest

from triops.agents.errors import ContextOverflow
from triops.agents.providers.faults import Faults, redact, retry_after

KEY = "canary-9f2d77aa"


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [
        (400, "format", False),
        (401, "auth", False),
        (402, "billing", False),
        (403, "auth", False),
        (404, "model_not_found", False),
        (408, "timeout", True),
        (429, "rate_limit", True),
        (500, "server_error", True),
        (503, "server_error", True),
        (504, "timeout", True),
        (522, "timeout", True),
        (524, "timeout", True),
        (529, "overloaded", True),
        (301, "unclassified", False),
        (418, "unclassified", False),
    ],
)
def test_a_status_has_its_class(status: int, kind: str, retryable: bool):
    error = Faults("mock/mock-1").answer(status, {}, b'{"error": {"message": "words"}}')
    assert (error.kind, error.retryable, error.status, error.detail) == (kind, retryable, status, "words")
    assert f"HTTP {status}" in str(error) and str(error).startswith("mock/mock-1 request failed (")


def test_a_message_is_for_people():
    error = Faults("mock/mock-1").answer(500, {}, b"")
    assert str(error) == (
        "mock/mock-1 request failed (provider internal error, HTTP 500);"
        " the fault is the provider's: try again later, or another model"
    )


def test_a_server_at_home_is_heard_in_its_own_words_and_without_secrets():
    words = b'{"error": "m needs more memory (9.1 GiB) than is there, key-of-mine."}'
    error = Faults("lab/m", ["key-of-mine"], local=True).answer(500, {}, words)
    assert str(error) == (
        "lab/m request failed (provider internal error, HTTP 500); it says: m needs more memory (9.1 GiB) than is"
        " there, [redacted]; that server's log says more; is there memory enough for this model?"
    )
    assert len(str(Faults("lab/m", local=True).answer(400, {}, b"x" * 9999))) < 500


def test_a_refused_key_is_answered_with_where_to_set_it():
    hint = "set MOCK_API_KEY or models.providers.mock.apiKey"
    for status in (401, 403):
        assert str(Faults("mock/mock-1", (), hint).answer(status, {}, b"")).endswith(f"; {hint}")
    assert hint not in str(Faults("mock/mock-1", (), hint).answer(404, {}, b""))
    assert "check the key or login" in str(Faults("mock/mock-1").answer(401, {}, b""))


@pytest.mark.parametrize(
    "words",
    [
        "This model's maximum context length is 8192 tokens, however you requested 9000",
        "prompt is too long: 210000 tokens > 200000 maximum",
        "the request exceeds the available context size. try increasing the context size",
        "input length and `max_tokens` exceed context limit: context_window",
        "Trying to keep the first 5000 tokens when context overflows: tokens to keep from the initial prompt",
    ],
)
def test_an_overflow_is_known_by_its_words(words: str):
    error = Faults("it").answer(400, {}, json.dumps({"error": {"message": words}}).encode())
    assert isinstance(error, ContextOverflow) and error.kind == "context_overflow" and not error.retryable


def test_an_overflow_is_known_by_its_code_and_by_413():
    assert isinstance(Faults("it").answer(400, {}, b'{"error": {"code": "context_length_exceeded"}}'), ContextOverflow)
    assert isinstance(Faults("it").answer(413, {}, b""), ContextOverflow)


def test_too_many_tokens_a_minute_is_no_overflow():
    assert Faults("it").answer(429, {}, b'{"error": {"message": "too many tokens per minute"}}').kind == "rate_limit"


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (429, b'{"error": {"code": "insufficient_quota"}}', "billing"),
        (400, b'{"error": {"message": "Your credit balance is too low"}}', "billing"),
        (400, b'{"error": {"code": "model_not_found"}}', "model_not_found"),
        (400, b'{"message": "model qwen9 does not exist"}', "model_not_found"),
    ],
)
def test_words_refine_a_status(status: int, body: bytes, kind: str):
    error = Faults("it").answer(status, {}, body)
    assert error.kind == kind and not error.retryable


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b'{"error": "plain"}', "plain"),
        (b'{"detail": "fast"}', "fast"),
        (b'[{"error": {"message": "in a list"}}]', "in a list"),
        (b"just   words\n", "just words"),
        (b"<html><body>Bad gateway", "an HTML page"),
        (b'{"odd": 1}', '{"odd": 1}'),
        (b"[" * 5000, ("[" * 300)),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"", ""),
    ],
)
def test_the_providers_words_are_found_whatever_the_shape(body: bytes, detail: str):
    assert Faults("it").answer(500, {}, body).detail == detail


def test_no_key_is_repeated_even_where_the_words_are_cut():
    body = json.dumps({"error": {"message": "x" * 295 + KEY + " and sk-abcdefghijkl and Bearer abcdef123456"}}).encode()
    error = Faults("it", [KEY]).answer(401, {}, body)
    assert KEY[:5] not in error.detail and len(error.detail) <= 300
    assert redact("key sk-proj-12345678 of Bearer eyJhbGciOi.x.y") == "key [redacted] of [redacted]"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT"}, None),
        ({"retry-after": "soon", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        ({"retry-after": "nan"}, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(headers: dict[str, str], seconds: float | None):
    assert retry_after(headers) == seconds
    assert Faults("it").answer(429, headers, b"").retry_after == seconds


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"type": "overloaded_error", "message": "Overloaded"}, "overloaded"),
        ({"type": "rate_limit_error"}, "rate_limit"),
        ({"code": "rate_limit_exceeded"}, "rate_limit"),
        ({"code": 429}, "rate_limit"),
        ({"code": "503"}, "server_error"),
        ({"type": "authentication_error"}, "auth"),
        ({"code": "invalid_api_key", "type": "invalid_request_error"}, "auth"),
        ({"type": "invalid_request_error", "message": "odd"}, "format"),
        ({"type": "invalid_request_error", "message": "prompt is too long"}, "context_overflow"),
        ({"code": "context_length_exceeded"}, "context_overflow"),
        ({"code": "insufficient_quota"}, "billing"),
        ({"type": "api_error"}, "server_error"),
        ("the model crashed", "server_error"),
        (None, "server_error"),
    ],
)
def test_an_error_within_a_stream_has_its_class(error: object, kind: str):
    fault = Faults("mock/m").event(error)
    assert fault.kind == kind and fault.status is None and "in its stream" in str(fault)


@pytest.mark.parametrize(
    ("words", "window"),
    [
        ("This model's maximum context length is 8192 tokens, however you requested 9000", 8192),
        ("prompt is too long: 210000 tokens > 200000 maximum", 200_000),
        ("the request exceeds the available context size (4096 tokens), try increasing it", 4096),
        ('exceed_context_size_error", "n_prompt_tokens": 9000, "n_ctx": 2048', 2048),
        ("the request exceeds the available context size. try increasing the context size", None),
    ],
)
def test_an_overflow_tells_what_the_model_takes_and_what_to_do(words: str, window: int | None):
    error = Faults("mock/mock-1").answer(400, {}, words.encode())
    assert isinstance(error, ContextOverflow) and error.window == window
    assert "begin a new session" in str(error) and (f"set contextWindow to {window}" in str(error)) == bool(window)


@pytest.mark.parametrize(
    "words",
    [
        "registry.ollama.ai/library/gemma:2b does not support tools",
        "tools param requires --jinja flag",
        '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
    ],
)
def test_a_model_without_tools_is_told_how_to_be_asked_without(words: str):
    error = Faults("mock/mock-1").answer(400, {}, json.dumps({"error": {"message": words}}).encode())
    assert error.kind == "format" and "set compat.supportsTools of this model to false" in str(error)
