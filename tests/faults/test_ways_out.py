"""Every way out of a run: however the provider, a tool, the disk or people end it, it ends once, as what it was, and
what had arrived is kept. The provider is a real HTTP server on loopback."""

import socket
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from tests.kit.raw_server import (
    HEAD,
    Answer,
    completions,
    event,
    messages,
    open_raw_server,
    refusal,
    said,
    stream,
)

from triops.agents.messages import AssistantMessage, UserMessage
from triops.agents.model import ModelInfo, ModelRef
from triops.agents.providers import open_provider
from triops.agents.providers.http import HttpClient
from triops.runtime.events import RunDelta, RunStarted, RunStatus
from triops.runtime.runs.state import RunState, Terminal
from triops.testing import ProviderEntry, TestRuntime, open_test_runtime

MODEL = {"agents": {"defaults": {"model": {"primary": "mock/m"}, "maxConcurrent": 4000}}}
FORMATS = {"openai-completions": completions, "anthropic-messages": messages}


@pytest.fixture
def patient_clock() -> trio.testing.MockClock:
    """Jumps only when sockets have been quiet for a moment too."""
    return trio.testing.MockClock(autojump_threshold=0.02)


@asynccontextmanager
async def open_host(
    path: Path, url: str, api: str = "openai-completions", *, drain: float | None = None
) -> AsyncGenerator[TestRuntime]:
    """A runtime whose one model is asked at `url`; at its end nothing is left and nothing failed by our own fault. With
    `drain` it is stopped while it works."""
    http = HttpClient()
    provider = open_provider(api, id="mock", base_url=url, http=http, api_key="key")
    info = ModelInfo(ref=ModelRef("mock", "m"), api=api)
    entry = ProviderEntry(provider=provider, why="the test", models=(info,))
    try:
        async with open_test_runtime(path, config=MODEL, providers=(entry,), drain=drain or 0.0) as host:
            yield host
            if drain is None:
                await trio.testing.wait_all_tasks_blocked()
                await host.check_quiet()
        assert host.faults() == []
    finally:
        http.close()


async def last_words(host: TestRuntime, session: str = "main") -> tuple[str, str]:
    """Text and stop reason of the last message of a session, which is an assistant's."""
    last = (await host.transcript(session))[-1]
    assert isinstance(last, AssistantMessage)
    return last.text, last.stop_reason


def head_of(events: Sequence[bytes]) -> list[bytes]:
    """The beginning of an answer."""
    return stream(events)[:-1]


class Way:
    """How the server answers, and how the run must end. `kind` is the `errorKind`; None is a final."""

    def __init__(self, kind: str | None, text: str, *answers: Answer, words: str = "") -> None:
        self.kind = kind
        self.text = text
        self.answers = answers
        self.words = words


Say = Callable[..., list[bytes]]


def ways(say: Say) -> dict[str, Way]:
    hello = stream(say("Hel", "lo"))
    part = head_of(say("Hel", stop=None))
    long = "x" * 1_000_000
    wait = b"Retry-After: 1\r\n"
    return {
        "answers": Way(None, "Hello", hello),
        "answers slowly": Way(None, "Hello", [item for piece in hello for item in (100.0, piece)]),
        "refuses with 400": Way("unknown", "", [refusal(400)], words="HTTP 400"),
        "refuses with 401": Way("unknown", "", [refusal(401)], words="check the key"),
        "refuses with 429": Way("rate_limit", "", [refusal(429)], words="HTTP 429"),
        "refuses with 429 for an hour": Way("rate_limit", "", [refusal(429, headers=b"Retry-After: 3600\r\n")]),
        "refuses with 500": Way("unknown", "", [refusal(500)], words="HTTP 500"),
        "refuses once with 429": Way(None, "Hello", [refusal(429, headers=wait)], hello),
        "refuses once with 500": Way(None, "Hello", [refusal(500)], hello),
        "says that it is too long": Way("context_length", "", [refusal(413)]),
        "redirects": Way("unknown", "", [refusal(301, headers=b"Location: /elsewhere\r\n")]),
        "hangs before the head": Way("timeout", "", [None], words="silent for"),
        "hangs in the head": Way("timeout", "", [HEAD, None]),
        "hangs before the first event": Way("timeout", "", [*stream([])[:1], None]),
        "hangs in the middle": Way("timeout", "Hel", [*part, None]),
        "hangs after the last word": Way("timeout", "Hello", [*head_of(say("Hel", "lo", stop=None)), None]),
        "hangs when all is said": Way(None, "Hello", [*hello[:-1], None]),
        "hangs up at once": Way("unknown", "", [], words="hung up"),
        "hangs up once": Way(None, "Hello", [], hello),
        "hangs up in the middle": Way("unknown", "Hel", part, words="hung up"),
        "speaks no HTTP": Way("unknown", "", [b"\x00\xffSSH-2.0-x\r\n\r\n"], words="does not speak HTTP"),
        "sends no JSON": Way("unknown", "Hel", stream([*say("Hel", stop=None), event(b"{nonsense")])),
        "sends bytes that are no text": Way("unknown", "Hel", stream([*say("Hel", stop=None), event(b'"\xff\xfe"')])),
        "sends JSON of another shape": Way("unknown", "Hel", stream([*say("Hel", stop=None), event([1, 2])])),
        "sends deep JSON": Way("unknown", "Hel", stream([*say("Hel", stop=None), event(b"[" * 100_000)])),
        "sends a page": Way("unknown", "", [b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>busy"]),
        "sends an error as 200": Way(
            "rate_limit",
            "",
            [b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"error": {"code": "rate_limit"}}'],
        ),
        "sends an error in its stream": Way(
            "unknown", "Hel", stream([*say("Hel", stop=None), event({"type": "error", "error": {"code": "x"}})])
        ),
        "sends comments between": Way(None, "Hello", stream([p for e in say("Hel", "lo") for p in (b": hi\n\n", e)])),
        "sends a line of a megabyte": Way(None, long + "!", stream(say(long, "!"))),
        "sends a longer line than may be": Way("unknown", "Hel", stream(say("Hel", long * 2))),
        "sends a line without an end": Way(
            "unknown", "Hel", [*part, *(b"%x\r\n%s\r\n" % (60_000, b"y" * 60_000),) * 40]
        ),
        "ends with no content": Way("unknown", "", stream(say()), words="no content"),
        "ends with nothing at all": Way("unknown", "", stream([])),
        "ends before the reply": Way("unknown", "Hel", stream(say("Hel", stop=None))),
        **{
            f"says of its usage {usage!r}": Way(None, "Hello", stream(say("Hel", "lo", usage=usage)))
            for usage in (
                dict.fromkeys(("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens"), lie)
                for lie in (-5, 10**30, 1e308, "many", None, [1], {"a": 1}, True)
            )
        },
        **{
            f"says that its usage is {usage!r}": Way(None, "Hello", stream(say("Hel", "lo", usage=usage)))
            for usage in (0, "many", [], [3], {}, {"prompt_tokens_details": "none"})
        },
    }


@pytest.mark.parametrize("api", FORMATS)
@pytest.mark.parametrize("name", ways(completions))
async def test_whatever_the_provider_does_its_run_ends_once_as_what_it_was(
    tmp_path: Path, patient_clock: trio.testing.MockClock, api: str, name: str
) -> None:
    way = ways(FORMATS[api])[name]
    answers = iter(way.answers)
    async with open_raw_server(lambda _: next(answers, way.answers[-1])) as server:
        async with open_host(tmp_path, server.url, api) as host:
            with trio.fail_after(2000):
                end = await host.ask("hi")
            check_end(end, way)
            text, stop = await last_words(host)
            assert text == way.text
            assert stop == ("stop" if way.kind is None else "error")
            again = [m for m in await host.transcript() if isinstance(m, UserMessage)]
            assert len(again) == 1


@pytest.mark.slow
@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.soak)])
@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("api", FORMATS)
async def test_a_stream_that_is_cut_at_any_byte_keeps_what_was_whole(
    tmp_path: Path, patient_clock: trio.testing.MockClock, api: str, chunked: bool, stride: int
) -> None:
    """All at once, each in a session of its own, so that they wait for their retries together."""
    whole = b"".join(stream(FORMATS[api]("Hel", "lo"), chunked=chunked))
    places = range(0, len(whole), stride)
    async with open_raw_server(lambda body: [whole[: int(said(body))]]) as server:
        async with open_host(tmp_path, server.url, api) as host:
            with trio.fail_after(2000):
                for place in places:
                    await host.send(str(place), session=f"s{place}", run_id=f"r{place}")
                ends = [await host.runtime.runs.wait(f"r{place}") for place in places]
            for place, end in zip(places, ends, strict=True):
                assert end.text in ("", "Hel", "Hello")
                assert end.state is (RunState.ERROR if end.text != "Hello" else end.state)
                assert (await last_words(host, f"s{place}"))[0] == end.text
            assert [len(end.text) for end in ends] == sorted(len(end.text) for end in ends), "the later, the more"
            assert {end.state for end in ends} == {RunState.ERROR, RunState.FINAL}


async def test_a_server_that_does_not_accept_is_given_up_and_named(
    tmp_path: Path, patient_clock: trio.testing.MockClock
) -> None:
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for held in (first, second):  # the queue of those that wait to be accepted is full; what comes now hangs
            held.setblocking(False)
            held.connect_ex(full.getsockname())
        async with open_host(tmp_path, f"http://127.0.0.1:{full.getsockname()[1]}") as host:
            end = await host.ask("hi")
            assert (end.state, end.error_kind) == (RunState.ERROR, "timeout")
            assert "could not connect to 127.0.0.1" in (end.error_message or "")
            retries = [event.retry for event in host.events.of(end_of(host)) if isinstance(event, RunStatus)]
            assert [retry["attempt"] for retry in retries if retry] == [1], "tried again once, and visibly"


def end_of(host: TestRuntime) -> str:
    (run_id,) = host.events.terminals()
    return run_id


async def test_a_server_that_is_not_there_is_an_error_that_says_where_it_was_looked_for(
    tmp_path: Path, patient_clock: trio.testing.MockClock
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        async with open_host(tmp_path, f"http://127.0.0.1:{nobody.getsockname()[1]}") as host:
            end = await host.ask("hi")
            assert end.state is RunState.ERROR
            assert f"127.0.0.1:{nobody.getsockname()[1]}" in (end.error_message or "")


# -- people, deadlines, the end of the process -------------------------------------------------------------------------

SLOW = [*head_of(completions("Hel", stop=None)), None]


async def test_a_deadline_ends_a_run_and_keeps_what_arrived(
    tmp_path: Path, patient_clock: trio.testing.MockClock
) -> None:
    async with open_raw_server(lambda _: SLOW) as server, open_host(tmp_path, server.url) as host:
        end = await host.ask("hi", deadline=5.0)
        assert (end.state, end.error_kind, end.text) == (RunState.ERROR, "timeout", "Hel")
        assert await last_words(host) == ("Hel", "aborted")


@pytest.mark.parametrize("heard", [False, True])
async def test_an_abort_ends_a_run_and_keeps_what_arrived(
    tmp_path: Path, patient_clock: trio.testing.MockClock, heard: bool
) -> None:
    async with open_raw_server(lambda _: SLOW) as server, open_host(tmp_path, server.url) as host:
        await host.send("hi", run_id="r1")
        await host.events.wait_for(lambda event: isinstance(event, RunDelta if heard else RunStarted))
        run = host.runtime.runs.open_run("r1")
        assert run is not None and host.runtime.runs.abort(run, "rpc")
        assert not host.runtime.runs.abort(run, "rpc"), "once"
        end = await host.runtime.runs.wait("r1")
        assert (end.state, end.stop_reason, end.text) == (RunState.ABORTED, "rpc", "Hel" if heard else "")


@pytest.mark.parametrize("drain", [0.0, 30.0])
async def test_the_end_of_the_process_is_an_end_of_the_run_and_says_so(
    tmp_path: Path, patient_clock: trio.testing.MockClock, drain: float
) -> None:
    pieces = stream(completions("Hel", "lo"))
    finished = [*pieces[:2], 10.0, *pieces[2:]]
    async with open_raw_server(lambda body: SLOW if said(body) == "hang" else finished) as server:
        async with open_host(tmp_path / "state", server.url, drain=drain) as host:
            for words in ("hang", "finish"):
                await host.send(words, session=words, run_id=words)
                await host.send("later", session=words, run_id=f"after {words}", queue_mode="followup")
            while len([event for event in host.events.events if isinstance(event, RunDelta)]) < 2:
                await trio.testing.wait_all_tasks_blocked()
        ends = host.events.terminals()
        host.events.check(["hang", "finish"])
        assert (ends["hang"].state, ends["hang"].stop_reason) == (RunState.ABORTED, "restart")
        assert ends["finish"].state is (RunState.FINAL if drain else RunState.ABORTED)
        assert {"after hang", "after finish"}.isdisjoint(ends), "what waits, waits for the next start"
        async with open_host(tmp_path / "state", server.url) as after:
            assert (await after.runtime.runs.wait("after hang")).state is RunState.FINAL
            assert (await after.runtime.runs.wait("after finish")).state is RunState.FINAL
            assert await after.runtime.runs.wait("hang") == ends["hang"]
            texts = [
                message.text for message in await after.transcript("hang") if isinstance(message, AssistantMessage)
            ]
            assert texts == ["Hel", "Hello"]


def check_end(end: Terminal, way: Way) -> None:
    assert end.error_kind == way.kind, end.error_message
    assert end.state is (RunState.FINAL if way.kind is None else RunState.ERROR)
    assert end.text == way.text
    assert way.words in (end.error_message or "")
    if end.message is not None and end.message.usage is not None:
        assert 0 <= end.message.usage.total_tokens <= 1 << 55
