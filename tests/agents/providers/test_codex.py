import base64
import json
from pathlib import Path

import pytest
import trio

from triops.agents.errors import ProviderError
from triops.agents.providers.codex import CodexProvider

TOKEN = "canary-9f2d77aa"
MODELS = {
    "models": [
        {
            "slug": "gpt-5.4",
            "display_name": "GPT-5.4",
            "context_window": 272_000,
            "input_modalities": ["text", "image"],
            "supported_reasoning_levels": [{"effort": "low"}],
            "visibility": "list",
        },
        {"slug": "plain"},
    ]
}
REPLY = [
    {"type": "response.output_text.delta", "delta": "Hi"},
    {"type": "response.completed", "response": {"id": "r", "usage": {"input_tokens": 3, "output_tokens": 1}}},
]


def document(value: object, status: int = 200) -> bytes:
    body = json.dumps(value).encode()
    return f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def streamed() -> bytes:
    body = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in REPLY)
    return b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


@pytest.fixture
def login_file(tmp_path: Path) -> Path:
    path = tmp_path / "auth.json"
    tokens = {"id_token": "i", "access_token": TOKEN, "refresh_token": "r", "account_id": "acc-1"}
    path.write_text(json.dumps({"OPENAI_API_KEY": None, "tokens": tokens, "last_refresh": "2026-01-01"}))
    return path


@pytest.fixture
def account(server, http, login_file) -> CodexProvider:
    return CodexProvider(http=http, base_url=f"{server.url}/codex", login_file=login_file)


async def test_a_model_of_the_account_is_made_up_when_asked_for(server, account):
    server.answers = [[document(MODELS)]]
    assert await account.discover() == ()
    model = await account.resolve_dynamic("gpt-5.4")
    assert model is not None and str(model.ref) == "codex/gpt-5.4" and model.context_window == 272_000
    assert (model.name, model.input, model.reasoning, model.api) == ("GPT-5.4", ("text", "image"), True, "codex")
    assert server.asked[-1].target == b"/codex/models?client_version=1.0.0"
    assert server.header("authorization") == f"Bearer {TOKEN}" and server.header("chatgpt-account-id") == "acc-1"
    plain = await account.resolve_dynamic("plain")
    assert plain is not None and not plain.reasoning and plain.input == ("text",)


async def test_a_model_that_the_account_has_not_is_not_made_up(server, account):
    server.answers = [[document(MODELS)]]
    assert await account.resolve_dynamic("gpt-9") is None


async def test_a_turn_runs_on_it(server, account, ask, collect):
    server.answers = [[document(MODELS)], [streamed()]]
    model = await account.resolve_dynamic("gpt-5.4")
    message = (await collect(account, ask(model=model, system="", max_tokens=9, temperature=0.1)))[-1].message
    assert (message.text, message.api, message.provider, message.model) == ("Hi", "codex", "codex", "gpt-5.4")
    body = server.bodies[-1]
    assert server.asked[-1].target == b"/codex/responses" and body["store"] is False and body["instructions"] == ""
    assert not {"max_output_tokens", "temperature"} & body.keys()
    assert server.connections == 1


async def test_a_refreshed_login_is_used(server, account, login_file):
    server.answers = [[document(MODELS)]]
    await account.warm(None, "")
    login_file.write_text(json.dumps({"tokens": {"access_token": "fresh"}}))
    await account.warm(None, "")
    assert server.header("authorization") == "Bearer fresh" and server.header("chatgpt-account-id") is None


@pytest.mark.parametrize("content", [None, "", "{}", '{"OPENAI_API_KEY": "sk-x", "tokens": null}', "\xff"])
async def test_without_a_login_the_next_step_is_named(account, login_file, ask, collect, content):
    if content is None:
        login_file.unlink()
    else:
        login_file.write_text(content, encoding="latin-1")
    for attempt in (account.resolve_dynamic("gpt-5.4"), collect(account, ask())):
        with pytest.raises(ProviderError, match="run: codex login") as caught:
            await attempt
        assert caught.value.kind == "auth" and not caught.value.retryable


@pytest.mark.parametrize(
    ("answer", "kind"), [(document({"detail": TOKEN}, 401), "auth"), (document({"data": []}), "format")]
)
async def test_an_account_that_refuses_is_typed_and_the_token_not_repeated(server, account, answer, kind):
    server.answers = [[answer]]
    with pytest.raises(ProviderError) as caught:
        await account.resolve_dynamic("gpt-5.4")
    assert caught.value.kind == kind and TOKEN not in f"{caught.value} {caught.value.detail} {account!r}"


NOW = 1_800_000_000_000


def token(expires_in: float) -> str:
    claims = base64.urlsafe_b64encode(json.dumps({"exp": NOW / 1000 + expires_in}).encode()).decode().rstrip("=")
    return f"h.{claims}.s"


def logged_in(login_file: Path, access: str, refresh: str = "r") -> None:
    whole = json.loads(login_file.read_text())
    whole["tokens"] |= {"access_token": access, "refresh_token": refresh}
    login_file.write_text(json.dumps(whole))


@pytest.fixture
def ending(server, http, login_file) -> CodexProvider:
    """A provider whose login ends in a minute."""
    logged_in(login_file, token(60))
    url = f"{server.url}/oauth"
    return CodexProvider(
        http=http, base_url=f"{server.url}/codex", login_file=login_file, token_url=url, now=lambda: NOW
    )


async def test_a_login_that_ends_is_renewed_once_and_written_where_the_cli_finds_it(server, ending, login_file):
    server.answers = [[document({"access_token": token(3600), "refresh_token": "r2"})], [document(MODELS)]]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ending.prepare_auth)
        nursery.start_soon(ending.prepare_auth)
    assert len(server.asked) == 1 and server.asked[0].target == b"/oauth"
    assert server.bodies[0]["refresh_token"] == "r" and server.bodies[0]["grant_type"] == "refresh_token"
    assert await ending.prepare_auth() == NOW + 3_600_000
    await ending.resolve_dynamic("gpt-5.4")
    assert server.header("authorization") == f"Bearer {token(3600)}"
    written = json.loads(login_file.read_text())
    assert written["tokens"] == {
        "id_token": "i",
        "access_token": token(3600),
        "refresh_token": "r2",
        "account_id": "acc-1",
    }
    assert written["OPENAI_API_KEY"] is None and written["last_refresh"].startswith("2027-01-15T08:00:00")
    assert list(login_file.parent.glob("*.triops")) == []


async def test_a_login_that_is_not_renewed_names_the_next_step_and_stays_as_it_is(server, ending, login_file):
    before = login_file.read_text()
    server.answers = [[document({"error": "refresh_token_reused"}, status=401)], [document([1])]]
    for words in (r"has ended and was not renewed \(HTTP 401\); run: codex login", "answered with something else"):
        with pytest.raises(ProviderError, match=words) as caught:
            await ending.prepare_auth()
        assert caught.value.kind == "auth" and not caught.value.retryable
    assert login_file.read_text() == before


async def test_a_login_that_does_not_say_when_it_ends_is_used_as_it_is(server, account, login_file):
    for access in (TOKEN, "a.b.c", f"a.{base64.urlsafe_b64encode(b'[]').decode()}.c", "a.\u00e9.c"):
        logged_in(login_file, access)
        assert await account.prepare_auth() is None
    logged_in(login_file, token(0), refresh="")
    assert await account.prepare_auth() == NOW
    assert server.asked == []
