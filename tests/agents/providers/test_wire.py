import json
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from triops.agents.errors import ContextOverflow, ProviderError
from triops.agents.messages import AssistantMessage
from triops.agents.model import Done, ModelInfo, ModelRef, RetryNotice, TextDelta
from triops.agents.providers.anthropic_messages import AnthropicMessagesProvider
from triops.agents.providers.http import HttpClient, Response
from triops.agents.providers.openai_completions import OllamaProvider, OpenAICompletionsProvider
from triops.agents.providers.openai_responses import OpenAIResponsesProvider

KEY = "canary-9f2d77aa"
OTHER = ModelInfo(ref=ModelRef("mock", "other"))
OPEN = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(part: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(part), part)


def whole(*parts: bytes, kind: str = "text/event-stream") -> bytes:
    return OPEN.replace(b"text/event-stream", kind.encode()) + b"".join(map(chunk, parts)) + b"0\r\n\r\n"


def failure(status: int, value: Any = None, headers: str = "") -> bytes:
    body = json.dumps(value or {"error": {"message": f"your key {KEY} is no good"}}).encode()
    return f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n{headers}\r\n".encode() + body


@pytest.fixture
def provider(server, http) -> OpenAICompletionsProvider:
    return OpenAICompletionsProvider(id="mock", base_url=f"{server.url}/v1/", http=http, api_key=KEY, idle=30)


async def test_a_reply_is_streamed_and_the_connection_kept(server, provider, hello, ask, collect):
    server.answers = [[whole(*hello)]]
    for _ in range(2):
        first, second, done = await collect(provider, ask())
        assert (first, second, done.message.text) == (TextDelta("Hel"), TextDelta("lo"), "Hello")
    assert server.connections == 1 and server.asked[0].target == b"/v1/chat/completions"
    assert server.bodies[0]["model"] == "mock-1" and server.bodies[0]["stream"] is True
    assert server.header("authorization") == f"Bearer {KEY}" and server.header("content-type") == "application/json"


async def test_a_burst_is_one_batch_and_what_waits_is_another(server, provider, hello, ask, patient_clock):
    server.answers = [[OPEN, 1.0, chunk(hello[0]), 1.0, b"".join(map(chunk, hello[1:])), b"0\r\n\r\n"]]
    with trio.fail_after(60):
        async with provider.stream(ask()) as batches:
            sizes = [len(batch) async for batch in batches]
    assert sizes == [1, 2]


async def test_a_body_that_ends_late_does_not_delay_the_reply_and_is_kept(
    server, provider, hello, ask, collect, patient_clock
):
    server.answers = [[OPEN + b"".join(map(chunk, hello)), 0.05, b"0\r\n\r\n"]]
    for _ in range(2):
        assert isinstance((await collect(provider, ask()))[-1], Done)
    assert server.connections == 1


async def test_a_body_that_never_ends_costs_only_its_connection(server, provider, hello, ask, collect, patient_clock):
    server.answers = [[OPEN + b"".join(map(chunk, hello)), None]]
    start = trio.current_time()
    for _ in range(2):
        assert (await collect(provider, ask()))[-1].message.text == "Hello"
    assert server.connections == 2 and trio.current_time() - start < 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "format"), (401, "auth"), (402, "billing"), (404, "model_not_found"), (301, "unclassified")],
)
async def test_a_refusal_is_raised_at_once(server, provider, ask, collect, status, kind):
    server.answers = [[failure(status)]]
    with pytest.raises(ProviderError) as caught:
        await collect(provider, ask())
    assert caught.value.kind == kind and str(caught.value).startswith("mock/mock-1 request failed (")
    assert caught.value.detail == "your key [redacted] is no good" and len(server.asked) == 1


async def test_an_overflow_is_told_apart(server, provider, ask, collect):
    server.answers = [[failure(400, {"error": {"code": "context_length_exceeded", "message": "too long"}})]]
    with pytest.raises(ContextOverflow):
        await collect(provider, ask())


async def test_what_may_pass_is_tried_again_twice_and_said(server, provider, ask, collect, patient_clock):
    server.answers = [[failure(500)]]
    events: list[Any] = []
    start = trio.current_time()
    with pytest.raises(ProviderError) as caught:
        async with provider.stream(ask()) as batches:
            async for batch in batches:
                events += batch
    assert caught.value.kind == "server_error" and len(server.asked) == 3
    reason, kind = str(caught.value), caught.value.kind
    assert reason.startswith("mock/mock-1 request failed (provider internal error, HTTP 500); it says: ")
    assert events == [RetryNotice(1, 2, reason, 0.5, kind), RetryNotice(2, 2, reason, 2.0, kind)]
    assert 2.5 <= trio.current_time() - start < 3


async def test_a_second_attempt_may_succeed(server, provider, hello, ask, collect, patient_clock):
    overloaded = b'data: {"error": {"type": "overloaded_error"}}\n\n'
    server.answers = [[whole(overloaded)], ["drop"], ["drop"], [whole(*hello)]]
    first, second, *_, done = await collect(provider, ask())
    assert [type(first), type(second)] == [RetryNotice, RetryNotice] and done.message.text == "Hello"


async def test_it_is_said_when_a_request_has_left_before_anything_comes(server, provider, hello, ask, patient_clock):
    server.answers = [[failure(503, headers="retry-after: 3\r\n")], [5.0, whole(*hello)]]
    sent: list[float] = []
    start = trio.current_time()
    with trio.fail_after(60):
        async with provider.stream(ask(sent=lambda: sent.append(trio.current_time() - start))) as batches:
            async for _ in batches:
                pass
    assert sent == pytest.approx([0, 3], abs=0.5)
    assert trio.current_time() - start >= 8


async def test_a_kept_connection_that_turns_out_dead_is_no_attempt(server, provider, hello, ask, collect):
    server.answers = [[whole(*hello)], ["drop"], [whole(*hello)]]
    await collect(provider, ask())
    events = await collect(provider, ask())
    assert not any(isinstance(event, RetryNotice) for event in events) and len(server.asked) == 3


@pytest.mark.parametrize(("header", "waits"), [("3", [3.0, 3.0]), ("8", [8.0, 8.0]), ("9", []), ("60", [])])
async def test_retry_after_is_honoured_if_short(server, provider, ask, patient_clock, header, waits):
    server.answers = [[failure(429, headers=f"Retry-After: {header}\r\n")]]
    events: list[Any] = []
    with pytest.raises(ProviderError) as caught:
        async with provider.stream(ask()) as batches:
            async for batch in batches:
                events += batch
    assert [event.delay for event in events] == waits and caught.value.retry_after == float(header)


async def test_no_attempt_starts_past_the_budget(server, provider, ask, collect, patient_clock):
    server.answers = [[15.0, failure(429, headers="retry-after: 6\r\n")]]
    with pytest.raises(ProviderError):
        await collect(provider, ask())
    assert len(server.asked) == 1


async def test_nothing_is_tried_again_once_words_were_streamed(server, provider, hello, ask, patient_clock):
    server.answers = [[whole(hello[0], b'data: {"error": {"code": 500}}\n\n')]]
    events: list[Any] = []
    with pytest.raises(ProviderError) as caught:
        async with provider.stream(ask()) as batches:
            async for batch in batches:
                events += batch
    assert events == [TextDelta("Hel")] and caught.value.kind == "server_error" and len(server.asked) == 1


@pytest.mark.parametrize("before", [[], [OPEN], [OPEN, chunk(b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n')]])
async def test_a_hang_ends_at_the_idle_limit(server, provider, ask, collect, patient_clock, before):
    server.answers = [[*before, None]]
    start = trio.current_time()
    with pytest.raises(ProviderError) as caught:
        await collect(provider, ask())
    assert caught.value.kind == "timeout" and len(server.asked) == 1  # 30 s are past the budget of retries
    assert 30 <= trio.current_time() - start < 32


async def test_a_drop_at_any_byte_is_an_error_and_never_a_short_reply(
    server, provider, hello, ask, collect, patient_clock
):
    answer = whole(*hello)
    last = answer.index(b"[DONE]")
    for offset in [*range(0, last, 37), last]:
        server.answers, server.asked = [[answer[:offset], "drop"]], []
        with pytest.raises(ProviderError) as caught:
            await collect(provider, ask())
        assert caught.value.kind == "connection" and caught.value.retryable
    server.answers = [[answer]]
    assert (await collect(provider, ask()))[-1].message.text == "Hello"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (whole(b"data: {nonsense\n\n"), "format"),
        (whole(b"data: " + b"x" * (1 << 20) + b"\n\n"), "format"),
        (whole(b"data: \x00\xff\n\n"), "format"),
        (whole(b'{"choices": []}', kind="application/json"), "format"),
        (whole(b"<html>", kind="text/html; charset=utf-8"), "format"),
        (whole(b'{"error": {"code": 401, "message": "no"}}', kind="application/json"), "auth"),
        (b"\x00" * 100 + b"\r\n\r\n", "format"),
    ],
)
async def test_garbage_is_typed(server, provider, ask, collect, answer, kind):
    server.answers = [[answer]]
    with pytest.raises(ProviderError) as caught:
        await collect(provider, ask())
    assert caught.value.kind == kind


async def test_a_cancelled_stream_closes_its_connection_only(server, provider, hello, ask, collect):
    server.answers = [[OPEN, chunk(hello[0]), None], [whole(*hello)]]
    with trio.CancelScope() as scope:
        async with provider.stream(ask()) as batches:
            async for _ in batches:
                scope.cancel()
    assert scope.cancelled_caught
    assert (await collect(provider, ask()))[-1].message.text == "Hello"
    assert server.connections == 2


async def test_leaving_a_stream_early_leaves_the_provider_usable(server, provider, hello, ask, collect):
    server.answers = [[OPEN, chunk(hello[0]), None], [whole(*hello)]]
    async with provider.stream(ask()) as batches:
        async for _ in batches:
            break
    assert isinstance((await collect(provider, ask()))[-1], Done)


async def test_a_key_is_asked_for_each_time_and_never_shown(server, http, ask, collect, caplog):
    caplog.set_level(logging.DEBUG)
    keys = iter([KEY, "canary-b-3c1\n"])
    provider = OpenAICompletionsProvider(
        id="mock", base_url=server.url, http=http, api_key=lambda: next(keys), headers={"X-Org": "canary-org"}
    )
    for header in (KEY, "canary-b-3c1"):
        server.answers = [[failure(403, {"error": f"{header} canary-org"})]]
        with pytest.raises(ProviderError) as caught:
            await collect(provider, ask())
        assert server.header("authorization") == f"Bearer {header}" and server.header("x-org") == "canary-org"
        shown = f"{caught.value!r} {caught.value.detail} {provider!r} {vars(provider)!r}"
        assert "canary" not in shown
    assert "canary" not in caplog.text


async def test_without_a_key_no_login_is_sent(server, http, hello, ask, collect):
    server.answers = [[whole(*hello)]]
    await collect(OpenAICompletionsProvider(id="mock", base_url=server.url, http=http), ask())
    assert server.header("authorization") is None and server.asked[-1].target == b"/chat/completions"


@pytest.mark.parametrize("base", ["", "/v1", "/v1/"])
async def test_anthropic_messages_over_the_wire(server, http, ask, collect, base):
    said = [
        {"type": "message_start", "message": {"id": "m", "usage": {"input_tokens": 3}}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}},
        {"type": "message_stop"},
    ]
    server.answers = [[whole(*[b"data: " + json.dumps(event).encode() + b"\n\n" for event in said])]]
    provider = AnthropicMessagesProvider(id="mock", base_url=server.url + base, http=http, api_key=KEY)
    assert (await collect(provider, ask()))[-1].message.text == "Hi"
    assert server.asked[-1].target == b"/v1/messages" and server.header("x-api-key") == KEY
    assert server.header("anthropic-version") == "2023-06-01" and server.header("authorization") is None


async def test_anthropic_messages_with_a_bearer_and_a_529(server, http, ask, collect, patient_clock):
    server.answers = [[failure(529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})]]
    provider = AnthropicMessagesProvider(id="mock", base_url=server.url, http=http, api_key=KEY, bearer=True)
    with pytest.raises(ProviderError) as caught:
        await collect(provider, ask())
    assert (caught.value.kind, caught.value.detail) == ("overloaded", "Overloaded") and len(server.asked) == 3
    assert server.header("authorization") == f"Bearer {KEY}" and server.header("x-api-key") is None


@pytest.mark.parametrize("base", ["", "/v1", "/v1/"])
async def test_ollama_is_asked_in_openais_format_wherever_its_base_url_ends(server, http, ask, collect, hello, base):
    server.answers = [[whole(*hello)]]
    provider = OllamaProvider(id="ollama", base_url=server.url + base, http=http)
    await collect(provider, ask())
    assert server.asked[-1].target == b"/v1/chat/completions"
    await provider.warm(ask().model, "")
    assert server.asked[-1].target == b"/v1/models"


async def test_responses_over_the_wire(server, http, ask, collect):
    said = [
        {"type": "response.output_text.delta", "delta": "Hi"},
        {"type": "response.completed", "response": {"id": "r"}},
    ]
    server.answers = [[whole(*[b"data: " + json.dumps(event).encode() + b"\n\n" for event in said])]]
    provider = OpenAIResponsesProvider(id="mock", base_url=f"{server.url}/v1", http=http)
    message: AssistantMessage = (await collect(provider, ask()))[-1].message
    assert message.text == "Hi" and server.asked[-1].target == b"/v1/responses"


async def test_models_are_listed_if_asked_for(server, http):
    entries = [
        {"id": "a/b", "max_model_len": 4096},
        {"id": "nomic-embed"},
        {"odd": 1},
        "odd",
        {"id": "c", "display_name": "C"},
    ]
    listing = json.dumps({"data": entries}).encode()
    server.answers = [[b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(listing), listing)]]
    provider = OpenAICompletionsProvider(id="mock", base_url=f"{server.url}/v1", http=http, discover=True)
    first, second = await provider.discover()
    assert (str(first.ref), first.context_window, first.max_tokens) == ("mock/a/b", 4096, 4096)
    assert (str(second.ref), second.name, second.api) == ("mock/c", "C", "openai-completions")
    assert server.asked[-1].target == b"/v1/models"
    silent = OpenAICompletionsProvider(id="mock", base_url=server.url, http=http)
    assert await silent.discover() == () and await silent.resolve_dynamic("x") is None and len(server.asked) == 1


@pytest.mark.parametrize("listing", [b"[]", b"{}", b'{"data": {}}', b"3"])
async def test_a_list_of_another_shape_names_no_models(server, http, listing):
    server.answers = [[b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(listing), listing)]]
    assert await OpenAICompletionsProvider(id="m", base_url=server.url, http=http, discover=True).discover() == []


async def test_warming_opens_the_connection_that_the_first_reply_uses(server, provider, hello, ask, collect):
    server.answers = [[failure(404)], [whole(*hello)]]
    await provider.warm(ask().model, "")
    await collect(provider, ask())
    assert server.connections == 1 and server.asked[0].method == b"GET"


async def test_warming_shows_a_refused_key(server, provider, ask):
    server.answers = [[failure(401)]]
    with pytest.raises(ProviderError) as caught:
        await provider.warm(ask().model, "")
    assert caught.value.kind == "auth" and KEY not in caught.value.detail


async def test_a_long_silence_is_told_of_before_it_is_given_up(server, provider, hello, ask, patient_clock):
    server.answers = [[OPEN, 25.0, b"".join(map(chunk, hello)), b"0\r\n\r\n"]]
    told: list[tuple[float, str]] = []
    start = trio.current_time()
    with trio.fail_after(60):
        async with provider.stream(ask(late=lambda words: told.append((trio.current_time(), words)))) as batches:
            async for _ in batches:
                pass
    ((when, words),) = told
    assert 20 <= when - start < 22 and words.endswith(" has been silent for 20 s; it is given up after 30 s")


async def test_signs_of_life_without_an_answer_are_not_borne_for_ever(server, provider, ask, collect, patient_clock):
    server.answers = [[OPEN, *[20.0, chunk(b": still here\n\n")] * 40]]
    start = trio.current_time()
    with pytest.raises(ProviderError, match="signs of life for 600 s") as caught, trio.fail_after(900):
        async with provider.stream(ask()) as batches:
            async for _ in batches:
                pass
    assert caught.value.kind == "timeout" and 600 <= trio.current_time() - start < 625


async def test_a_refused_key_cools_while_another_model_answers_and_no_other_key_does(
    server, http, hello, ask, collect, patient_clock
):
    keys = ["first-key"]
    provider = OpenAICompletionsProvider(id="mock", base_url=server.url, http=http, api_key=lambda: keys[-1])
    server.answers = [[failure(401)], [failure(401)], [whole(*hello)]]
    for has_other, asked in ((True, 1), (True, 1), (False, 2)):
        with pytest.raises(ProviderError) as caught:
            await collect(provider, ask(has_other=has_other))
        assert caught.value.kind == "auth" and len(server.asked) == asked
    with pytest.raises(ProviderError, match=r"mock/other was not asked, .* again in 60 s: mock/mock-1 request failed"):
        await collect(provider, ask(has_other=True, model=OTHER))
    keys.append("second-key")
    assert (await collect(provider, ask(has_other=True)))[-1].message.text == "Hello"


@pytest.mark.parametrize(("asked_for", "waited"), [(90, 90), (86_400, 300)])
async def test_a_busy_model_is_asked_again_once_it_cooled_and_its_siblings_meanwhile(
    server, provider, hello, ask, collect, patient_clock, asked_for, waited
):
    server.answers = [[failure(429, headers=f"retry-after: {asked_for}\r\n")], [whole(*hello)], [whole(*hello)]]
    with pytest.raises(ProviderError, match=f"it asks to wait {asked_for} s"):
        await collect(provider, ask(has_other=True))
    await trio.sleep(waited - 10)
    with pytest.raises(ProviderError, match=rf"^mock/mock-1 was not asked, .* 10 s: .*too many.* wait {asked_for} s"):
        await collect(provider, ask(has_other=True))
    assert len(server.asked) == 1
    assert (await collect(provider, ask(has_other=True, model=OTHER)))[-1].message.text == "Hello"
    await trio.sleep(15)
    assert (await collect(provider, ask(has_other=True)))[-1].message.text == "Hello"


async def test_an_answer_ends_the_cooling(server, provider, hello, ask, collect, patient_clock):
    server.answers = [[failure(401)], [whole(*hello)]]
    with pytest.raises(ProviderError, match="not authorised"):
        await collect(provider, ask())
    for has_other in (False, True):  # who has no other model asks all the same
        assert (await collect(provider, ask(has_other=has_other)))[-1].message.text == "Hello"


async def test_a_busy_provider_is_tried_again_before_another_model_is(server, provider, ask, collect, patient_clock):
    server.answers = [[failure(429)]]
    with pytest.raises(ProviderError, match="too many requests"):
        await collect(provider, ask(has_other=True))
    assert len(server.asked) == 3
    with pytest.raises(ProviderError, match="too many requests"):
        await collect(provider, ask(has_other=True))
    assert len(server.asked) == 3, "while it cools the other one has its turn"


class Paced(HttpClient):
    """An answer whose chunks come `gap` seconds apart; a read gets all that came since the last one."""

    def __init__(self, words: int, gap: float) -> None:
        super().__init__()
        word = b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n'
        chunks = [word] * words + [b"data: [DONE]\n\n", b"", b""]
        self._chunks, self._gap, self._start, self._taken = chunks, gap, trio.current_time(), 0
        self.readers: list[trio.lowlevel.Task] = []

    @asynccontextmanager
    async def stream(self, *request: object, **limits: object) -> AsyncGenerator[Response]:
        yield Response(200, [(b"Content-Type", b"text/event-stream")], self._read)

    async def _read(self) -> bytes:
        self.readers.append(trio.lowlevel.current_task())
        await trio.sleep_until(self._start + (self._taken + 1) * self._gap - 1e-9)
        come = round((trio.current_time() - self._start) / self._gap)
        data, self._taken = b"".join(self._chunks[self._taken : come]), come
        return data


@pytest.mark.parametrize(("gap", "reads", "late"), [(0.001, 40, 0.01), (0.005, 203, 0.0)])
async def test_a_quick_stream_is_gathered_and_no_other_is_told_later(ask, collect, autojump_clock, gap, reads, late):
    http = Paced(200, gap)
    provider, start = OpenAICompletionsProvider(id="mock", base_url="http://mock", http=http), trio.current_time()
    assert (await collect(provider, ask()))[-1].message.text == "x" * 200
    assert len(http.readers) <= reads and trio.current_time() - start <= 202 * gap + late + 1e-6


async def test_a_server_that_never_stops_after_the_reply_holds_up_nobody(ask, collect):
    class Endless(HttpClient):
        reads, others_ran = 0, False

        @asynccontextmanager
        async def stream(self, *request: object, **limits: object) -> AsyncGenerator[Response]:
            yield Response(200, [(b"Content-Type", b"text/event-stream")], self._read)

        async def _read(self) -> bytes:
            self.reads += 1
            assert self.reads < 1_000_000, "nobody else had a turn"
            done = b'data: {"choices": [{"delta": {"content": "x"}}]}\n\ndata: [DONE]\n\n'
            return b"" if self.others_ran else done if self.reads == 1 else b": more\n\n"

    async def another() -> None:
        await trio.lowlevel.checkpoint()
        http.others_ran = True

    http = Endless()
    provider = OpenAICompletionsProvider(id="mock", base_url="http://mock", http=http)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(another)
        assert (await collect(provider, ask()))[-1].message.text == "x"
    assert http.reads > 1


async def test_an_answer_is_read_by_who_asks_for_it_and_no_further_than_that(ask, autojump_clock):
    http = Paced(20, 0.1)
    provider = OpenAICompletionsProvider(id="mock", base_url="http://mock", http=http)
    async with provider.stream(ask()) as batches:
        async for _ in batches:
            await trio.sleep(60)
            assert http.readers == [trio.lowlevel.current_task()]
            break
