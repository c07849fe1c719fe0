"""HTTP/1.1 on one connection, with an answer of the test's own."""

import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, contextmanager, nullcontext
from functools import partial
from typing import Any

import h11
import trio
import trio.testing
from tests.kit.wire import HttpAnswer, next_answer

from triops.agents.sockets import with_raw
from triops.gateway.http.exchange import (
    BODY_DEADLINE,
    IDLE,
    MAX_BODY,
    MAX_EARLY,
    HttpResponse,
    Stream,
    refuse,
    serve_http,
)
from triops.gateway.http.head import HEAD_DEADLINE, Head, HeadError
from triops.gateway.transport import Transport

Clock = trio.testing.MockClock


async def echo(head: Head, body: bytes) -> HttpResponse:
    return HttpResponse(200, {"method": head.method, "path": head.path, "query": head.query, "body": body.decode()})


def let_in(answer: Callable[[Head, bytes], Awaitable[HttpResponse]]) -> Any:
    """Admit everybody."""

    async def admit(head: Head) -> Any:
        return lambda body, stream: answer(head, body)

    return admit


async def keep_out(head: Head) -> HttpResponse:
    return HttpResponse(401, {"path": head.path})


def h11_client(method: str = "GET") -> h11.Connection:
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
    connection.send(h11.EndOfMessage())
    return connection


class Peer:
    """A client on a memory stream that reads answers one after the other."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self._rest = b""

    async def send(self, text: str) -> None:
        await self.stream.send_all(text.replace("\n", "\r\n").encode())

    async def answer(self, *, head_only: bool = False) -> HttpAnswer:
        connection = h11_client("HEAD" if head_only else "GET")
        if self._rest:
            connection.receive_data(self._rest)
        answer = await next_answer(self.stream, connection)
        self._rest, _ = connection.trailing_data
        return answer

    async def ended(self) -> bool:
        return not self._rest and await self.stream.receive_some() == b""


@asynccontextmanager
async def served(
    answer: Callable[[Head, bytes], Awaitable[HttpResponse]] = echo, busy: Any = nullcontext, *, admit: Any = None
) -> AsyncGenerator[Peer]:
    ours, theirs = trio.testing.memory_stream_pair()

    async def serve() -> None:
        transport = Transport(theirs)
        try:
            await serve_http(transport, admit or let_in(answer), busy)
        except HeadError as error:
            await refuse(transport, error.status, str(error))
        await trio.aclose_forcefully(theirs)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)  # noqa: ASYNC113 - a stream keeps what is sent before it is read
        yield Peer(ours)
        nursery.cancel_scope.cancel()


async def test_requests_on_one_connection_are_answered_one_after_the_other() -> None:
    async with served() as peer:
        for number in range(3):
            await peer.send(f"POST /a?n={number} HTTP/1.1\nHost: x\nContent-Length: 2\n\nhi")
            answer = await peer.answer()
            assert answer.body == {"method": "POST", "path": "/a", "query": f"n={number}", "body": "hi"}
            assert answer.headers["content-type"] == "application/json; charset=utf-8"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert "microphone=(self)" in answer.headers["permissions-policy"]


async def test_pipelined_requests_wait_their_turn() -> None:
    async with served() as peer:
        await peer.send("".join(f"GET /{n} HTTP/1.1\nHost: x\n\n" for n in range(5)))
        assert [(await peer.answer()).body["path"] for _ in range(5)] == [f"/{n}" for n in range(5)]


async def test_requests_in_one_breath_leave_others_their_turns() -> None:
    ours, theirs = (trio.SocketStream(trio.socket.from_stdlib_socket(each)) for each in socket.socketpair())
    turns, count = 0, 300

    async def others() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async def admit(head: Head) -> HttpResponse:
        return HttpResponse(200, {"turns": turns})

    transport = Transport(*with_raw(theirs))
    async with ours, transport, trio.open_nursery() as nursery:
        await ours.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * count)
        nursery.start_soon(others)
        nursery.start_soon(serve_http, transport, admit, nullcontext)
        peer = Peer(ours)
        told = [(await peer.answer()).body["turns"] for _ in range(count)]
        assert told[-1] - told[0] >= count - 2
        nursery.cancel_scope.cancel(reason="seen")


async def test_requests_that_come_while_one_is_answered_are_answered_too(autojump_clock: Clock) -> None:
    async def slow(head: Head, body: bytes) -> HttpResponse:
        await trio.sleep(1)
        return await echo(head, body)

    async with served(slow) as peer:
        await peer.send("GET /0 HTTP/1.1\nHost: x\n\n")
        for number in range(1, 4):
            await trio.sleep(0.1)
            await peer.send(f"GET /{number} HTTP/1.1\nHost: x\n\n")
        assert [(await peer.answer()).body["path"] for _ in range(4)] == ["/0", "/1", "/2", "/3"]


async def test_a_head_request_gets_the_head_alone() -> None:
    async with served() as peer:
        await peer.send("HEAD /a HTTP/1.1\nHost: x\n\n")
        answer = await peer.answer(head_only=True)
        assert (answer.status, answer.body) == (200, None)
        assert int(answer.headers["content-length"]) > 10
        await peer.send("GET /b HTTP/1.1\nHost: x\n\n")
        assert (await peer.answer()).body["path"] == "/b"


async def test_a_chunked_body_is_one_body() -> None:
    async with served() as peer:
        await peer.send("POST /a HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n\n3\nabc\n")
        await trio.testing.wait_all_tasks_blocked()
        await peer.send("2\nde\n0\n\n")
        assert (await peer.answer()).body["body"] == "abcde"


async def test_a_request_cut_anywhere_is_the_same_request() -> None:
    text = b"POST /cut HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
    async with served() as peer:
        for byte in text:
            await peer.stream.send_all(bytes((byte,)))
            await trio.testing.wait_all_tasks_blocked()
        assert (await peer.answer()).body["body"] == "abc"


async def test_connection_close_and_http_1_0_are_obeyed() -> None:
    for request in ("GET / HTTP/1.1\nHost: x\nConnection: close\n\n", "GET / HTTP/1.0\n\n"):
        async with served() as peer:
            await peer.send(request)
            assert (await peer.answer()).status == 200
            assert await peer.ended()


async def test_a_client_that_expects_to_be_told_may_go_on() -> None:
    async with served() as peer:
        await peer.send("POST /a HTTP/1.1\nHost: x\nContent-Length: 2\nExpect: 100-continue\n\n")
        assert (await peer.stream.receive_some()).startswith(b"HTTP/1.1 100")
        await peer.send("hi")
        assert (await peer.answer()).body["body"] == "hi"


async def test_who_is_not_let_in_is_told_before_its_body_is_read() -> None:
    async with served(admit=keep_out) as peer:
        for path in ("/a", "/b"):
            await peer.send(f"GET {path} HTTP/1.1\nHost: x\n\n")
            answer = await peer.answer()
            assert (answer.status, answer.body) == (401, {"path": path})
    for framing in ("Content-Length: 5", "Content-Length: 5\nExpect: 100-continue", "Transfer-Encoding: chunked"):
        async with served(admit=keep_out) as peer:
            await peer.send(f"POST / HTTP/1.1\nHost: x\n{framing}\n\n")
            answer = await peer.answer()
            assert (answer.status, answer.headers["connection"]) == (401, "close")
            assert await peer.ended()


async def test_a_target_may_be_absolute_and_its_authority_counts() -> None:
    hosts: list[str | None] = []

    async def answer(head: Head, body: bytes) -> HttpResponse:
        hosts.append(head.get(b"host"))
        return await echo(head, body)

    async with served(answer) as peer:
        await peer.send("GET http://a:1/path?q=1 HTTP/1.1\nHost: b\n\n")
        body = (await peer.answer()).body
        assert (hosts, body["path"], body["query"]) == (["a:1"], "/path", "q=1")


async def test_an_unknown_upgrade_is_no_reason_to_refuse() -> None:
    async with served() as peer:  # Java's client asks for h2c with each first request
        for number in range(2):
            await peer.send(f"GET /{number} HTTP/1.1\nHost: x\nUpgrade: h2c\nConnection: Upgrade\n\n")
            assert (await peer.answer()).body["path"] == f"/{number}"


async def test_a_malformed_request_gets_its_status_and_the_end() -> None:
    chunked = "POST / HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n"
    for request, status, words in (
        ("GET / HTTP/1.1\n\n", 400, "Host"),
        ("GET / HTTP/1.1\nHost: x\nContent-Length: x\n\n", 400, "bad Content-Length"),
        ("GET / HTTP/1.1\nHost: x\nContent-Length: 1\nContent-Length: 2\n\n", 400, "conflicting"),
        (f"{chunked}Content-Length: 4\n\n0\n\nGET / HTTP/1.1\nHost: x\n\n", 400, "contradict"),
        (f"{chunked}\nzz\n", 400, "illegal chunk header"),
        ("GET / HTTP/1.1\nHost: x\nExpect: fish\n\n", 417, "100-continue"),
    ):
        async with served() as peer:
            await peer.send(request)
            answer = await peer.answer()
            assert answer.status == status, request
            assert words in answer.body["error"]["message"]
            assert "bytearray" not in answer.body["error"]["message"]
            assert answer.headers["connection"] == "close"
            assert answer.body["error"]["type"] == "invalid_request_error"
            assert await peer.ended()


async def test_a_body_past_the_limit_is_413_whether_it_says_so_or_not() -> None:
    asked: list[Head] = []

    async def answer(head: Head, body: bytes) -> HttpResponse:
        asked.append(head)
        return await echo(head, body)

    async with served(answer) as peer:
        await peer.send(f"POST / HTTP/1.1\nHost: x\nContent-Length: {MAX_BODY + 1}\n\n")
        refused = await peer.answer()
        assert refused.status == 413
        assert str(MAX_BODY) in refused.body["error"]["message"]
    async with served(answer) as peer:
        await peer.send("POST / HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n\n")
        async with trio.open_nursery() as nursery:

            async def flood() -> None:
                for _ in range(17):
                    await peer.stream.send_all(b"100000\r\n" + b"x" * 0x100000 + b"\r\n")

            nursery.start_soon(flood)
            assert (await peer.answer()).status == 413
    assert asked == []


async def test_a_client_that_leaves_cancels_what_it_asked_for() -> None:
    cancelled = trio.Event()

    async def wait(head: Head, body: bytes) -> HttpResponse:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    for more in (False, True):
        cancelled = trio.Event()
        async with served(wait) as peer:
            await peer.send("GET / HTTP/1.1\nHost: x\n\n")
            await trio.testing.wait_all_tasks_blocked()
            if more:
                await peer.send("GET /more HTTP/1.1\nHost: x\n\n")
                await trio.testing.wait_all_tasks_blocked()
            await peer.stream.aclose()
            with trio.fail_after(5):
                await cancelled.wait()


async def test_a_reset_while_it_waits_is_no_fault_of_ours() -> None:
    class Reset(trio.abc.HalfCloseableStream):
        def __init__(self) -> None:
            self.data = [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"]

        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            await trio.lowlevel.checkpoint()
            if self.data:
                return self.data.pop()
            raise trio.BrokenResourceError

        async def send_all(self, data: object) -> None:
            raise trio.BrokenResourceError

        async def wait_send_all_might_not_block(self) -> None: ...
        async def send_eof(self) -> None: ...
        async def aclose(self) -> None: ...

    async def wait(head: Head, body: bytes) -> HttpResponse:
        await trio.sleep_forever()
        raise AssertionError

    with trio.fail_after(5):
        await serve_http(Transport(Reset()), let_in(wait), nullcontext)
        await refuse(Transport(Reset()), 400, "no")


async def test_a_client_may_not_pile_up_requests_without_end() -> None:
    async def wait(head: Head, body: bytes) -> HttpResponse:
        await trio.sleep_forever()
        raise AssertionError

    ours, theirs = trio.testing.lockstep_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_http, Transport(theirs), let_in(wait), nullcontext)
        await ours.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        sent = 0
        with trio.move_on_after(0.2):
            while True:
                await ours.send_all(b"x" * 1024)
                sent += 1024
        assert MAX_EARLY <= sent <= MAX_EARLY + 65536 + 1024
        nursery.cancel_scope.cancel()


async def test_silence_ends_a_connection(autojump_clock: Clock) -> None:
    async with served() as peer:
        began = trio.current_time()
        assert await peer.ended()
        assert trio.current_time() - began == IDLE


async def test_a_head_or_body_that_stalls_is_told_so(autojump_clock: Clock) -> None:
    body = "POST / HTTP/1.1\nHost: x\nContent-Length: 99\n\na"
    for said, seconds in (("GET / HT", HEAD_DEADLINE), (body, BODY_DEADLINE)):
        async with served() as peer:
            await peer.send(said)
            began = trio.current_time()
            async with trio.open_nursery() as nursery:

                async def trickle() -> None:
                    while True:
                        await trio.sleep(2)
                        await peer.send("a")

                nursery.start_soon(trickle)
                with trio.fail_after(100):
                    answer = await next_answer(peer.stream, h11_client(), limit=100)
                nursery.cancel_scope.cancel()
            assert (answer.status, trio.current_time() - began) == (408, seconds)
            assert f"within {seconds:.0f} s" in answer.body["error"]["message"]


async def test_it_is_busy_from_the_request_to_the_written_answer() -> None:
    log: list[str] = []

    @contextmanager
    def busy() -> Any:
        log.append("busy")
        yield
        log.append("idle")

    async def answer(head: Head, body: bytes) -> HttpResponse:
        log.append("answer")
        return HttpResponse(200, {})

    async with served(answer, busy) as peer:
        await trio.testing.wait_all_tasks_blocked()
        assert log == []
        await peer.send("GET / HTTP/1.1\nHost: x\n\n")
        await peer.answer()
        await trio.testing.wait_all_tasks_blocked()
        assert log == ["busy", "answer", "idle"]


async def test_who_is_refused_may_finish_what_it_was_sending_but_not_for_ever(autojump_clock: Clock) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(refuse, Transport(theirs), 431, "too large"))
        began = trio.current_time()
        while nursery.child_tasks:
            await ours.send_all(b"still talking")
            await trio.sleep(0.25)
        assert trio.current_time() - began <= 1.25
    data = await ours.receive_some()
    assert data.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")


async def test_who_speaks_another_websocket_is_told_which_is_spoken() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refuse, Transport(theirs), 426, "version 8")
        answer = await next_answer(ours, h11_client())
        await ours.aclose()
    assert (answer.status, answer.headers["sec-websocket-version"]) == (426, "13")
    assert (answer.headers["upgrade"], answer.headers["connection"]) == ("websocket", "close")


# -- streams ---------------------------------------------------------------------------------------------------------


def streamed(answer: Callable[[Stream], Awaitable[HttpResponse | None]]) -> Any:
    """Admit everybody to a stream."""

    async def admit(head: Head) -> Any:
        return lambda body, stream: answer(stream)

    return admit


async def test_a_stream_is_sent_as_it_is_made_and_its_connection_serves_on() -> None:
    more = trio.Event()

    async def count(stream: Stream) -> None:
        await stream.send(b"data: 1\n\n")
        await more.wait()
        await stream.send(b"data: 2\n\n")

    async with served(admit=streamed(count)) as peer:
        await peer.send("GET / HTTP/1.1\nHost: x\n\n")
        early = await peer.stream.receive_some()
        assert b"text/event-stream" in early
        assert b"nosniff" in early
        assert early.endswith(b"data: 1\n\n\r\n")
        more.set()
        peer._rest = bytes(early)
        assert (await peer.answer()).body == "data: 1\n\ndata: 2\n\n"
        await peer.send("GET / HTTP/1.1\nHost: x\n\n")
        assert (await peer.answer()).status == 200


async def test_a_client_of_http_1_0_gets_a_stream_that_ends_with_its_connection() -> None:
    async def once(stream: Stream) -> None:
        await stream.send(b"data: 1\n\n")

    async with served(admit=streamed(once)) as peer:
        await peer.send("GET / HTTP/1.0\nHost: x\n\n")
        assert (await peer.answer()).body == "data: 1\n\n"
        assert await peer.ended()


async def test_a_client_that_leaves_a_stream_cancels_it_whether_it_waits_or_writes() -> None:
    for waits in (True, False):
        over = trio.Event()

        async def forever(stream: Stream) -> None:
            try:
                while True:
                    await stream.send(b"data: 1\n\n")
                    if waits:  # noqa: B023 - it runs within this round
                        await trio.sleep_forever()
            finally:
                over.set()  # noqa: B023

        async with served(admit=streamed(forever)) as peer:
            await peer.send("GET / HTTP/1.1\nHost: x\n\n")
            await peer.stream.receive_some()
            await trio.aclose_forcefully(peer.stream)
            with trio.fail_after(5):
                await over.wait()


async def test_what_fails_within_a_stream_is_cut_off_so_that_it_cannot_be_taken_for_whole() -> None:
    async def half(stream: Stream) -> HttpResponse:
        await stream.send(b"data: 1\n\n")
        return HttpResponse(500, {})

    async with served(admit=streamed(half)) as peer:
        await peer.send("GET / HTTP/1.1\nHost: x\n\n")
        data = b""
        while chunk := await peer.stream.receive_some():
            data += chunk
        assert data.endswith(b"data: 1\n\n\r\n")


async def test_nobody_waits_for_the_end_of_a_stream_that_has_none() -> None:
    waiting: list[bool] = []

    @contextmanager
    def busy() -> Any:
        waiting.append(True)
        yield
        waiting.clear()

    async def endless(stream: Stream) -> None:
        stream.endless()
        await stream.send(b": hello\n\n")
        await trio.sleep_forever()

    async with served(busy=busy, admit=streamed(endless)) as peer:
        await peer.send("GET / HTTP/1.1\nHost: x\n\n")
        await peer.stream.receive_some()
        assert waiting == []
