"""What servers and what lies before them do to an answer, in each wire format: it arrives whole or as a typed error."""

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from triops.agents.errors import ProviderError
from triops.agents.messages import Text, Thinking, ToolCall
from triops.agents.model import Done, TextDelta
from triops.agents.providers.anthropic_messages import MESSAGES, AnthropicMessagesProvider
from triops.agents.providers.http import HttpClient, Response
from triops.agents.providers.openai_completions import COMPLETIONS, OpenAICompletionsProvider
from triops.agents.providers.openai_responses import RESPONSES, OpenAIResponsesProvider
from triops.agents.providers.wire import Dialect, HttpProvider

WORDS = ["Hé", "llo, ", "wörld 🦐"]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\n%s\r\n"


class Format(msgspec.Struct):
    """One wire format: who speaks it, and an answer in it, event by event."""

    provider: type[HttpProvider]
    dialect: Dialect
    events: list[Any]
    say: Callable[[str], Any]
    """The event that says some words."""
    end: list[Any]

    def stream(self, end: bytes = b"\n", between: bytes = b"") -> bytes:
        datas = [event if isinstance(event, bytes) else json.dumps(event).encode() for event in self.events]
        return between.join(b"data: " + data + end * 2 for data in datas)

    def saying(self, *words: str) -> "Format":
        return msgspec.structs.replace(self, events=[*map(self.say, words), *self.end])


def delta(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"delta": fields}]}


def block_delta(word: str) -> dict[str, Any]:
    return {"type": "content_block_delta", "delta": {"type": "text_delta", "text": word}}


COMPLETED = {"type": "response.completed", "response": {"usage": {"input_tokens": 7, "output_tokens": 3}}}
FORMATS = {
    "completions": Format(
        OpenAICompletionsProvider,
        COMPLETIONS,
        [
            *(delta(content=word) for word in WORDS),
            {"choices": [{"delta": {}, "finish_reason": "stop"}]},
            {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}},  # after the stop
            b"[DONE]",
        ],
        lambda words: delta(content=words),
        [b"[DONE]"],
    ),
    "messages": Format(
        AnthropicMessagesProvider,
        MESSAGES,
        [
            {"type": "message_start", "message": {"id": "m", "usage": {"input_tokens": 7}}},
            {"type": "ping"},
            *map(block_delta, WORDS),
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}},
            {"type": "message_stop"},
        ],
        block_delta,
        [{"type": "message_stop"}],
    ),
    "responses": Format(
        OpenAIResponsesProvider,
        RESPONSES,
        [
            *({"type": "response.output_text.delta", "delta": word} for word in WORDS),
            {"type": "response.of_the_future"},
            COMPLETED,
        ],
        lambda words: {"type": "response.output_text.delta", "delta": words},
        [COMPLETED],
    ),
}


@pytest.fixture(params=FORMATS)
def spoken(request: pytest.FixtureRequest) -> Format:
    return FORMATS[request.param]


@pytest.fixture
def provider(server: Any, http: Any, spoken: Format) -> HttpProvider:
    return spoken.provider(id="mock", base_url=f"{server.url}/v1", http=http, idle=30)


def head(kind: bytes = b"text/event-stream", more: bytes = b"") -> bytes:
    return HEAD % (kind, more)


def check(events: list[Any]) -> None:
    *deltas, done = events
    assert isinstance(done, Done) and done.message.text == "".join(WORDS)
    assert "".join(event.text for event in deltas if isinstance(event, TextDelta)) == "".join(WORDS)
    assert done.message.usage is not None and (done.message.usage.input, done.message.usage.output) == (7, 3)


async def whole_or_cut(provider: HttpProvider, request: Any) -> None:
    events, failure = list[Any](), None
    try:
        async with provider.stream(request) as batches:
            async for batch in batches:
                events += batch
    except ProviderError as error:
        failure = error
    if failure is None:
        check([event for event in events if isinstance(event, TextDelta | Done)])
    else:
        assert failure.kind == "connection" and failure.retryable


@pytest.mark.parametrize("name", FORMATS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(data=st.data(), end=st.sampled_from([b"\n", b"\r\n", b"\r"]), comment=st.booleans())
def test_an_answer_may_be_cut_anywhere_with_any_ends_of_lines(
    parse: Any, name: str, data: st.DataObject, end: bytes, comment: bool
):
    stream = FORMATS[name].stream(end, b": keep-alive" + end * 2 if comment else b"")
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=9).map(sorted))
    check(parse(FORMATS[name].dialect, stream, cuts))


@pytest.mark.parametrize("kind", [b"text/plain", b"application/octet-stream", b"text/event-stream; charset=x"])
async def test_a_stream_under_a_wrong_type_is_read(server, provider, spoken, ask, collect, kind):
    server.answers = [[head(kind), spoken.stream(), "drop"]]
    check(await collect(provider, ask()))


async def test_a_long_line_is_read_and_one_without_an_end_is_not_kept(server, provider, spoken, ask, collect):
    long = json.dumps({"type": "response.of_the_future", "choices": [], "more": "x" * 1_000_000}).encode()
    server.answers = [[head(), b"data: " + long + b"\n\n" + spoken.stream(), "drop"]]
    check(await collect(provider, ask()))
    server.answers = [[head(), *[b"data: " + b"x" * 65_536] * 20, None]]
    with pytest.raises(ProviderError, match="an event of more than") as caught:
        await collect(provider, ask())
    assert caught.value.kind == "format"


async def test_a_last_line_without_its_end_is_no_answer_cut_short(server, provider, spoken, ask, patient_clock):
    """The last event is lost with its empty line, as the standard says; what named its end before is whole."""
    server.answers = [[head(), spoken.stream().rstrip(b"\n"), "drop"]]
    await whole_or_cut(provider, ask())


@pytest.mark.parametrize(
    ("answer", "kind", "detail"),
    [
        (head(b"text/html", b"Content-Length: 17\r\n") + b"<html>Sign in</h>", "format", "<html>Sign in</h>"),
        (b"HTTP/1.1 502 B\r\nContent-Length: 14\r\n\r\n<html>bad</h1>", "server_error", "an HTML page"),
        (
            head(b"application/json", b"Content-Length: 52\r\n")
            + b'{"error":{"code":429,"message":"slow down, please"}}',
            "rate_limit",
            "slow down, please",
        ),
        (
            head() + b'data: {"type":"error","error":{"type":"invalid_request_error","message":"no"}}\n\n',
            "format",
            "no",
        ),
        (head() + b"data: <html>\n\n", "format", "<html>"),
        (head() + b"\n<html>Sign in</html>", "format", "<html>Sign in</html>"),
        (head(b"text/plain") + b'{"error": {"code": 401, "message": "no such key"}}', "auth", "no such key"),
        (head(), "connection", ""),
    ],
)
async def test_what_is_no_answer_is_a_typed_error(
    server, provider, spoken, ask, collect, patient_clock, answer, kind, detail
):
    server.answers = [[answer, "drop"]]
    with pytest.raises(ProviderError) as caught:
        await collect(provider, ask())
    assert (caught.value.kind, caught.value.detail) == (kind, detail)


async def test_silence_after_words_keeps_them_and_ends_at_the_limit(server, provider, spoken, ask, patient_clock):
    server.answers = [[head(), spoken.stream()[: spoken.stream().index(b"rld")], None]]
    start, events = trio.current_time(), list[Any]()
    with pytest.raises(ProviderError) as caught:
        async with provider.stream(ask()) as batches:
            async for batch in batches:
                events += batch
    assert caught.value.kind == "timeout" and 30 <= trio.current_time() - start < 32
    assert "".join(event.text for event in events).startswith("Hé")


async def test_a_byte_a_second_is_slow_and_no_fault(server, provider, spoken, ask, collect, patient_clock):
    data = spoken.stream()
    slow = [item for at in range(40) for item in (1.0, data[at : at + 1])]
    server.answers = [[head(), *slow, data[40:], "drop"]]
    check(await collect(provider, ask()))


async def test_a_reset_at_any_offset_is_an_error_and_never_a_short_answer(server, provider, spoken, ask, patient_clock):
    answer = head() + spoken.stream()
    for at in range(0, len(answer), 13):
        server.answers = [[answer[:at], "reset"]]
        await whole_or_cut(provider, ask())


class Told(HttpClient):
    """Every answer is `data` and then a connection that breaks."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._data = data

    @asynccontextmanager
    async def stream(self, *request: object, **limits: object) -> AsyncGenerator[Response]:
        left = [self._data] if self._data else []

        async def read() -> bytes:
            if left:
                return left.pop()
            raise ProviderError("connection", "hung up", retryable=True)

        yield Response(200, [(b"Content-Type", b"text/event-stream")], read)


async def test_an_answer_that_breaks_off_at_any_byte_is_never_a_short_one(spoken, ask, autojump_clock):
    answer = spoken.stream()
    for at in range(len(answer) + 1):
        await whole_or_cut(spoken.provider(id="mock", base_url="http://mock", http=Told(answer[:at])), ask())


WRITTEN = ("<think>Wh", 'at?</think>\nI look.<tool_call>{"name": "read",', ' "arguments": {"path": "a"}}</tool_call> <')


def test_thoughts_and_calls_that_are_written_as_text_are_read(parse, spoken):
    events = parse(spoken.dialect, spoken.saying(*WRITTEN).stream(), tools={"read": {}})
    message = events[-1].message
    call = next(block for block in message.content if isinstance(block, ToolCall))
    assert message.content == (Thinking("What?"), Text("I look. <"), call) and message.stop_reason == "toolUse"
    assert (call.name, call.arguments) == ("read", {"path": "a"}) and call.id
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == message.text


@pytest.mark.parametrize(("host", "calls"), [("https://api.openai.com", 0), ("http://127.0.0.1:1234", 1)])
async def test_a_model_whose_server_reads_its_calls_may_quote_one(spoken, conversation, collect, host, calls):
    http = Told(spoken.saying(*WRITTEN).stream())
    done = (await collect(spoken.provider(id="mock", base_url=f"{host}/v1", http=http), conversation))[-1]
    assert len(done.message.tool_calls) == calls


@pytest.mark.parametrize(
    ("name", "begin"),
    [
        ("messages", {"type": "content_block_start", "content_block": {"type": "tool_use", "id": None, "name": "f"}}),
        ("messages", {"type": "content_block_start", "content_block": {"type": "tool_use", "name": "f"}}),
        ("responses", {"type": "response.output_item.done", "item": {"type": "function_call", "name": "f"}}),
        (
            "responses",
            {
                "type": "response.output_item.done",
                "item": {"type": "function_call", "call_id": None, "name": "f", "arguments": {}},
            },
        ),
    ],
)
def test_a_call_without_an_id_gets_one(parse, name, begin):
    spoken = FORMATS[name]
    more = {"input": {"n": 1}} if name == "messages" else {"arguments": {"n": 1}}  # as an object
    begin = {key: {**value, **more} if isinstance(value, dict) else value for key, value in begin.items()}
    stream = msgspec.structs.replace(spoken, events=[spoken.say("I look."), {**begin, "index": 1}, *spoken.end])
    (call,) = parse(spoken.dialect, stream.stream())[-1].message.tool_calls
    assert (call.name, call.arguments) == ("f", {"n": 1}) and call.id
