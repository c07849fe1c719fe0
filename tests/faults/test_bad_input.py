"""Whatever a socket sends: it gets a clear error, the process stays up, and the next client is served."""

import json
import os
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from tests.kit.host import TOKEN, TestHost, open_test_gateway
from tests.kit.process import SECONDS, Home, open_gateway_process
from tests.kit.wire import Client, Closed, Refused, connect_params, read_answer

from triops.gateway.hello import MAX_PAYLOAD
from triops.gateway.http.head import MAX_HEAD
from triops.gateway.server import UNAUTHENTICATED_PER_ADDRESS
from triops.gateway.session import MAX_PREAUTH_BYTES

Clock = trio.testing.MockClock
DEEP = 100_000
MEGABYTE = 1024 * 1024
JOB = {"schedule": {"kind": "every", "everyMs": 60_000}, "payload": {"kind": "systemEvent", "text": "x"}}
GONE = 3.0  # seconds in which a refused socket must really be closed; its peer may linger for one


@asynccontextmanager
async def over_tcp(host: TestHost, *, hello: bool = True) -> AsyncGenerator[Client]:
    """A client on a socket of the real port."""
    async with await trio.open_tcp_stream("127.0.0.1", host.port) as stream:
        client = Client(stream)
        await client.upgrade({"Host": f"127.0.0.1:{host.port}"})
        if hello:
            client.hello = await client.connect(connect_params(token=TOKEN))
        yield client


async def check_serves(host: TestHost) -> None:
    """A client that comes now is answered, and nothing that happened was a fault of ours."""
    async with over_tcp(host) as client:
        await client.say("SAY:still here", key="after", session="after")
        final = await client.terminal("after")
        assert final["message"]["content"][0]["text"] == "still here"
    assert host.faults() == []


async def until_gone(stream: trio.abc.ReceiveStream) -> bytes:
    """All that still comes, up to the end of the connection."""
    got = b""
    with trio.fail_after(GONE):
        try:
            while data := await stream.receive_some():
                got += data
        except trio.BrokenResourceError:
            pass
    return got


def request(method: str, params: str = "{}", id: str = '"x"', type: str = '"req"') -> str:
    return f'{{"type":{type},"id":{id},"method":{method},"params":{params}}}'


def send(message: str = '"hi"', session: str = '"main"') -> str:
    return request(
        '"chat.send"', f'{{"sessionKey":{session},"message":{message},"idempotencyKey":"bad-{id(message)}"}}'
    )


FRAMES = [
    ("{nope", "invalid", "malformed JSON"),
    ("", "invalid", "malformed JSON"),
    ("\x00", "invalid", "malformed JSON"),
    ("[" * DEEP, "invalid", "nested too deep"),
    ('{"a":' * DEEP, "invalid", "nested too deep"),
    (request('"health"', "[" * DEEP + "]" * DEEP), "invalid", "nested too deep"),
    (request('"health"', '{"a":' * DEEP + "1" + "}" * DEEP), "invalid", "nested too deep"),
    ("null", "invalid", "must be object"),
    ("[]", "invalid", "must be object"),
    ("1e999", "invalid", "malformed JSON"),
    ("NaN", "invalid", "malformed JSON"),
    ("{}", "invalid", "must have required property 'type'"),
    (request('"health"', type='"nope"'), "x", "at /type: must be equal to constant"),
    (request('"health"', id="5"), 5, "at /id: must be string"),
    (request('"health"', id='""'), "", "at /id: must NOT have fewer than 1 characters"),
    (request("null"), "x", "at /method: must be string"),
    (request('"no.such.method"'), "x", "unknown method: no.such.method"),
    (request('"health"', "[]"), "x", "invalid health params: must be object"),
    (request('"health"', '{"nope": 1}'), "x", "unexpected property 'nope'"),
    (request('"chat.history"', '{"sessionKey": "main", "limit": 1e30}'), "x", "at /limit: must be integer"),
    (request('"chat.history"', '{"sessionKey": "main", "limit": "5"}'), "x", "at /limit: must be integer"),
    (request('"chat.history"', f'{{"sessionKey": "main", "limit": {"9" * 400}}}'), "x", "at /limit"),
    (request('"connect"'), "x", "connect is only valid as the first request"),
    (send(session=json.dumps("k" * 10_000)), "x", "at /sessionKey: must NOT have more than 512 characters"),
    (send(session='""'), "x", "sessionKey is empty"),
    (send(json.dumps("m" * (MEGABYTE + 1))), "x", "message has 1048577 bytes; at most 1048576 are allowed"),
    (send(json.dumps("é" * (MEGABYTE // 2 + 1), ensure_ascii=False)), "x", "message has 1048578 bytes"),
    (send("5"), "x", "at /message: must be string"),
]


async def test_every_bad_frame_is_refused_in_words_and_the_socket_serves_on(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, over_tcp(host) as client:
        for text, id, words in FRAMES:
            await client.send(text)
            answer = await client.until(lambda frame: frame["type"] == "res")
            shown = (text[:80], answer)
            assert (answer["id"], answer["ok"], answer["error"]["code"]) == (id, False, "INVALID_REQUEST"), shown
            assert words in answer["error"]["message"], shown
            assert len(answer["error"]["message"]) < 1000, shown
            assert not answer["error"].get("retryable"), shown
        await client.send_binary(b"\x00" * 1000)
        answer = await client.until(lambda frame: frame["type"] == "res")
        assert (answer["id"], answer["error"]["code"]) == ("invalid", "INVALID_REQUEST")
        assert (await client.request("health"))["ok"] is True
        assert (await client.request("sessions.list"))["sessions"] == []
        await check_serves(host)


@pytest.mark.parametrize("text", ["\x00", "a\x00b", "\ud800", "a\udfffb", "\ufffe", "\U0010ffff", "\u202e"])
async def test_text_that_few_programs_expect_is_answered_or_refused_wherever_it_stands(
    tmp_path: Path, text: str
) -> None:
    async with open_test_gateway(tmp_path) as host, over_tcp(host) as client:
        await client.say(text, key="message")  # ASCII JSON: a lone surrogate goes out as its escape
        assert (await client.terminal("message"))["state"] == "final"
        (shown, _) = (await client.request("chat.history", {"sessionKey": "main"}))["messages"]
        assert shown["content"] == text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        codes: set[str] = set()
        for method, params in (
            ("chat.send", {"sessionKey": f"agent:main:{text}", "message": "hi", "idempotencyKey": "1"}),
            ("chat.send", {"sessionKey": text, "message": "hi", "idempotencyKey": "2"}),
            ("chat.send", {"sessionKey": "main", "message": "hi", "idempotencyKey": text}),
            ("sessions.create", {"label": text}),
            ("sessions.create", {"key": f"agent:main:dashboard:{text}"}),
            ("sessions.list", {"search": text}),
            ("cron.add", JOB | {"name": text}),
            (text, {}),
        ):
            try:
                await client.request(method, params)
            except Refused as refused:
                codes.add(refused.error["code"])
        assert codes == {"INVALID_REQUEST"}  # the method, at least
        await client.request("sessions.list")
        await check_serves(host)


FIRST = [
    ("{nope", 1000, "malformed JSON"),
    ("[" * 60_000, 1000, "JSON nested too deep"),
    ("[]", 1008, "invalid request frame"),
    (request('"health"'), 1008, "invalid handshake: first request must be connect"),
    (request('"connect"', "[]"), 1008, "invalid connect params"),
    (request('"connect"', json.dumps({"minProtocol": "4"})), 1008, "invalid connect params"),
    ('"' + "x" * MAX_PREAUTH_BYTES + '"', 1009, "preauth payload too large"),
    ('"' + "é" * (MAX_PREAUTH_BYTES // 2) + '"', 1009, "preauth payload too large"),
    ('"' + "x" * MEGABYTE + '"', 1009, "preauth payload too large"),
]


@pytest.mark.slow
async def test_a_bad_first_frame_closes_with_its_reason_and_the_socket_is_gone(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:

        async def one(text: str, code: int, reason: str) -> None:
            async with over_tcp(host, hello=False) as client:
                await client.event("connect.challenge")
                try:
                    await client.send(text)
                except trio.BrokenResourceError:
                    pass  # closed before all of it was sent
                closed = await client.closed()
                assert (closed.code, closed.reason[: len(reason)]) == (code, reason)
                await until_gone(client.stream)  # though the client never answers the close

        async with trio.open_nursery() as nursery:
            for text, code, reason in FIRST:
                nursery.start_soon(one, text, code, reason)
        await check_serves(host)


async def test_a_frame_past_the_limit_closes_with_1009_and_the_socket_is_gone(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        async with over_tcp(host) as client:
            assert client.hello["policy"]["maxPayload"] == MAX_PAYLOAD
            try:
                await client.send("x" * (MAX_PAYLOAD + 1))
                assert (await client.closed()).code == 1009
            except trio.BrokenResourceError:
                pytest.fail("it was not told why")
            await until_gone(client.stream)
        await check_serves(host)


async def test_a_frame_that_only_says_how_large_it_is_costs_nothing(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        async with over_tcp(host) as client:
            await client.stream.send_all(b"\x81\xff" + (2**62).to_bytes(8, "big") + b"mask" + b"x" * 100)
            await client.stream.send_eof()
            await until_gone(client.stream)
        await check_serves(host)


@pytest.mark.parametrize("hello", [True, False])
async def test_a_peer_that_is_half_gone_is_let_go(tmp_path: Path, hello: bool) -> None:
    async with open_test_gateway(tmp_path) as host:
        async with over_tcp(host, hello=hello) as client:
            await client.stream.send_eof()
            await until_gone(client.stream)
        async with await trio.open_tcp_stream("127.0.0.1", host.port) as stream:
            await stream.send_all(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n")
            await stream.send_eof()
            assert b"400" in (await until_gone(stream)).partition(b"\r\n")[0]
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert host.gateway.services.fanout.connections() == []
        await check_serves(host)


HEADS = [
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n", 400),  # TLS
    (b"\x00" * 100 + b"\r\n\r\n", 400),
    (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", 400),
    (b"GET / HTTP/2.0\r\n\r\n", 400),
    (b"GET /\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: nine\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nX: " + b"x" * MAX_HEAD + b"\r\n\r\n", 431),
    (b"GET /" + b"x" * 2 * MAX_HEAD, 431),
    (b"GET /\xff HTTP/1.1\r\n\r\n", 400),
]


async def test_a_head_that_is_none_is_answered_and_closed(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        for head, status in HEADS:
            async with await trio.open_tcp_stream("127.0.0.1", host.port) as stream:
                await stream.send_all(head)
                answer = await until_gone(stream)
                assert answer.startswith(f"HTTP/1.1 {status} ".encode()), (head[:60], answer[:300])
                body = json.loads(answer.partition(b"\r\n\r\n")[2])
                assert body["error"]["message"], head[:60]
        await check_serves(host)


BODIES = [
    (b"{nope", "malformed JSON"),
    (b'{"sessionKey": "' + b"[" * DEEP, "malformed JSON"),
    (b"[" * DEEP, "must be object"),  # known before its depth is
    (b"\xff\xfe", "malformed JSON"),
    (b"[]", "must be object"),
    (b'{"sessionKey": "main"}\x00', "malformed JSON"),
    (b'{"sessionKey": 5}', "at /sessionKey: must be string"),
]


async def test_a_bad_body_is_a_400_with_the_same_words(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        for body, words in BODIES:
            answer = await host.http("POST", "/rpc/chat.history", body)
            assert answer.status == 400, (body[:40], answer)
            assert words in answer.body["error"]["message"], (body[:40], answer)
        answer = await host.http("POST", "/rpc/no.such.method", {})
        assert (answer.status, answer.body["error"]["message"]) in [
            (status, "unknown method: no.such.method") for status in (400, 404)
        ]
        await check_serves(host)


async def test_forty_that_trickle_their_heads_are_told_408_and_hold_nobody_up(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    answers: list[int] = []
    async with open_test_gateway(tmp_path, virtual=True) as host, trio.open_nursery() as nursery:

        async def trickle(stream: trio.StapledStream[Any, Any]) -> None:
            try:
                for byte in b"GET /health HTTP/1.1\r\nX: " + b"x" * 100:
                    await stream.send_all(bytes((byte,)))
                    await trio.sleep(1)
            except trio.BrokenResourceError:
                pass  # closed

        for _ in range(40):
            stream = host.dial("10.0.0.1")
            nursery.start_soon(trickle, stream)

            async def read(stream: trio.StapledStream[Any, Any] = stream) -> None:
                answers.append((await read_answer(stream, limit=60)).status)

            nursery.start_soon(read)
        await trio.sleep(5)
        async with host.client(address="10.0.0.1") as client:
            began = trio.current_time()
            await client.request("health")
            assert trio.current_time() == began
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert answers == [408] * 40


async def test_who_trickles_a_first_frame_or_a_body_is_told_that_it_took_too_long(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with open_test_gateway(tmp_path, virtual=True) as host:
        async with host.socket() as client, trio.open_nursery() as nursery:

            async def trickle() -> None:
                try:
                    await client.stream.send_all(b"\x81\xfe\x40\x00mask")
                    while True:
                        await client.stream.send_all(b"x")
                        await trio.sleep(1)
                except trio.BrokenResourceError:
                    pass  # closed

            nursery.start_soon(trickle)
            began = trio.current_time()
            closed = await client.closed()
            assert (closed.code, closed.reason) == (1000, "handshake timeout")
            assert trio.current_time() - began < 20
        stream = host.dial()
        head = f"POST /rpc/health HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\n"
        await stream.send_all(head.encode() + b"Content-Length: 100\r\n\r\n{")
        assert (await read_answer(stream, limit=120)).status == 408


@pytest.mark.slow
async def test_a_thousand_that_connect_at_once_get_in_or_a_503_and_the_gateway_is_there_for_the_next(
    tmp_path: Path,
) -> None:
    room_for_sockets()
    home = Home(tmp_path, {"models": {"providers": {"scripted": {"api": "scripted"}}}})
    async with open_gateway_process(home) as gateway:
        outcomes: Counter[str] = Counter()
        leave, answered = trio.Event(), trio.Semaphore(0)

        async def one() -> None:
            try:
                stream = await trio.open_tcp_stream("127.0.0.1", gateway.port)
            except OSError as error:
                outcomes[type(error).__name__] += 1
                answered.release()
                return
            async with stream:
                client = Client(stream, limit=SECONDS)
                try:
                    await client.upgrade({"Host": f"127.0.0.1:{gateway.port}"})
                    await client.event("connect.challenge")
                    outcomes["in"] += 1
                except Refused as refused:
                    outcomes[str(refused.error["status"])] += 1
                except (trio.BrokenResourceError, Closed) as error:
                    outcomes[type(error).__name__] += 1
                answered.release()
                await leave.wait()
                if client.frames:  # those inside are served
                    await client.request("connect", connect_params(token=gateway.token))
                    outcomes["served"] += 1

        async with trio.open_nursery() as nursery:
            for _ in range(1000):
                nursery.start_soon(one)
            with trio.fail_after(SECONDS):
                for _ in range(1000):
                    await answered.acquire()
            assert outcomes == {"in": UNAUTHENTICATED_PER_ADDRESS, "503": 1000 - UNAUTHENTICATED_PER_ADDRESS}
            assert (await gateway.rpc("health"))["ok"] is True  # in the middle of it
            leave.set()
        assert outcomes["served"] == UNAUTHENTICATED_PER_ADDRESS
        async with gateway.client() as client:
            assert (await client.request("health"))["ok"] is True


def room_for_sockets() -> None:
    """Let this process have a thousand sockets, where that has to be asked for."""
    if os.name != "nt":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
