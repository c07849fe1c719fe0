from typing import Any

import pytest

from triops.runtime.config_file import parse_json5
from triops.runtime.redaction import redacted, redacted_raw
from triops.runtime.secrets import REDACTED

CANARY = "canary-1f7a9c2b44"

SECRET: list[dict[str, Any]] = [
    {"gateway": {"auth": {"token": CANARY, "password": CANARY}}},
    {"models": {"providers": {"p": {"apiKey": CANARY}}}},
    {"models": {"providers": {"p": {"headers": {"X-Anything": CANARY}}}}},
    {"models": {"providers": {"p": {"apiKey": {"source": "file", "id": f"/{CANARY}"}}}}},
    {"channels": {"slack": {"botToken": CANARY, "accounts": {"x": {"signingSecret": CANARY}}}}},
    {"channels": {"x": {"tokens": [CANARY, {"y": CANARY}]}}},
    {"env": {"vars": {"ANY_NAME": CANARY}}},
    {"mcp": {"servers": {"s": {"env": {"ANY_NAME": CANARY}, "url": f"https://me:{CANARY}@host/"}}}},
    {"mcp": {"servers": {"s": {"url": f"https://host/?x=1&token={CANARY}"}}}},
    {"mcp": {"servers": {"s": {"args": ["--auth", f"sk-{CANARY}"]}}}},
    {"hooks": {"x": f"Authorization: Bearer {CANARY}"}},
    {"unknown": {"private_key": CANARY, "API-KEY": CANARY, "credentials": {"x": CANARY}}},
    {"cert": f"-----BEGIN PRIVATE KEY-----\n{CANARY}"},
]


@pytest.mark.parametrize("parsed", SECRET)
def test_a_secret_is_hidden_wherever_it_stands(parsed: dict[str, Any]):
    shown = repr(redacted(parsed))
    assert CANARY not in shown and REDACTED in shown
    assert CANARY in repr(parsed)


@pytest.mark.parametrize("parsed", SECRET)
def test_a_secret_is_hidden_in_the_text_too(parsed: dict[str, Any]):
    raw = repr(parsed)  # Python's way to write such values is JSON5 too
    assert CANARY not in redacted_raw(raw, parsed)
    assert parse_json5(redacted_raw(raw, parsed)) == redacted(parsed)


def test_what_is_no_secret_stays():
    parsed = {
        "gateway": {"port": 1, "auth": {"mode": "token"}},
        "models": {"providers": {"p": {"baseUrl": "http://h:1/v1", "models": [{"id": "key/token", "maxTokens": 5}]}}},
        "session": {"mainKey": "main"},
        "agents": {"defaults": {"compaction": {"keepRecentTokens": 20000}}},
        "flags": {"token": None, "secret": True},
    }
    assert redacted(parsed) == parsed


def test_a_secret_that_is_a_number_is_hidden():
    assert redacted({"password": 123456, "pinToken": 1.5}) == {"password": REDACTED, "pinToken": REDACTED}


def test_the_text_keeps_its_comments_and_its_look():
    raw = """{
  // my gateway
  gateway: { auth: { token: 'canary-1f7a9c2b44', }, port: 1 }, /* apiKey: "canary-1f7a9c2b44" */
  models: { providers: { lmstudio: { apiKey: "lmstudio", baseUrl: "http://127.0.0.1:1/v1" } } },
  // api_key = 'an old one, canary-not-parsed'
}"""
    parsed = parse_json5(raw)
    assert isinstance(parsed, dict)
    assert redacted_raw(raw, parsed) == """{
  // my gateway
  gateway: { auth: { token: "__OPENCLAW_REDACTED__", }, port: 1 }, /* apiKey: "__OPENCLAW_REDACTED__" */
  models: { providers: { lmstudio: { apiKey: "__OPENCLAW_REDACTED__", baseUrl: "http://127.0.0.1:1/v1" } } },
  // api_key = "__OPENCLAW_REDACTED__"
}"""  # fmt: skip


@pytest.mark.parametrize(
    "raw",
    [
        r'{token: "canary\x2d1f7a9c2b44"}',
        '{token: "canary-\\\n1f7a9c2b44"}',
        '{"env": {"vars": {"a": "canary-1f7a9c2b44"}}} // canary-1f7a9c2b44',
        r'{"t\u006fken": "canary-1f7a9c2b44"}',
        '{env: {vars: {x: "y"}}, "y": "canary is fine"}',
    ],
)
def test_a_text_that_cannot_be_cleaned_is_written_anew(raw: str):
    parsed = parse_json5(raw)
    assert isinstance(parsed, dict)
    shown = redacted_raw(raw, parsed)
    assert "1f7a9c2b44" not in shown
    assert parse_json5(shown) == redacted(parsed)


def test_writing_what_is_shown_shows_the_same():
    parsed = SECRET[0]
    assert redacted(redacted(parsed)) == redacted(parsed)
