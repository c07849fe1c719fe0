"""Whole byte streams that nobody would send, through the real door: a gateway in this process, h11 and the WebSocket.

Each stream is some requests, or an upgrade and some frames, good and bad ones, damaged and cut at random places.
Nothing may be a fault of ours, every stream has its end, and who did not send the secret gets nothing but refusals.
"""

import base64
import json
import random
import re
import tempfile
import time
from collections import Counter
from pathlib import Path

import trio
import trio.testing
from tests.kit.fuzz import SLOW, connect_frame, damaged_bytes
from tests.kit.host import TOKEN, TestHost, open_test_gateway

PATIENCE = 200.0  # virtual seconds: above all deadlines of a connection together
A_GATEWAY = 1000  # streams, then another one
STATUS = re.compile(rb"HTTP/1\.1 (\d+) ")
GOOD = re.compile(rb"HTTP/1\.1 200 .*?\r\n\r\n", re.DOTALL)
LIVE = b"Content-Length: 27\r\n"  # of what a probe says
CHUNKED = (
    b"2\r\n{}\r\n0\r\n\r\n",
    b"2\r\n{}\r\n",
    b"2;x=y\r\n{}\r\n0\r\nTrailer: x\r\n\r\n",
    b"-2\r\n{}\r\n0\r\n\r\n",
    b"0x2\r\n{}\r\n0\r\n\r\n",
    b"ffffffffffffffff\r\n{}\r\n0\r\n\r\n",
    b"2\r\n{}0\r\n\r\n",
    b"2\n{}\n0\n\n",
    b"1000001\r\n{}",
)
PATHS = (
    b"/healthz",
    b"/status",
    b"/rpc/status",
    b"/nowhere",
    b"http://localhost/status",
    b"*",
    b"/sessions/main/history",
)


def request(draw: random.Random) -> bytes:
    """One request, its body whole, half, or told in two ways."""
    lines = [
        b"%s %s HTTP/1.%d"
        % (draw.choice((b"GET", b"POST", b"HEAD", b"PUT")), draw.choice(PATHS), draw.choice((1, 1, 0)))
    ]
    lines += [b"Host: localhost"] * draw.choice((1, 1, 1, 1, 0, 2))
    lines += [b"Authorization: Bearer %s" % (TOKEN.encode() if draw.random() < 0.5 else b"guess")] * (
        draw.random() < 0.8
    )
    lines += [b"Expect: " + draw.choice((b"100-continue", b"x"))] * (draw.random() < 0.1)
    lines += [b"Connection: " + draw.choice((b"close", b"keep-alive", b"Upgrade"))] * (draw.random() < 0.2)
    lines += [b"Upgrade: " + draw.choice((b"h2c", b"TLS/1.0"))] * (draw.random() < 0.05)
    body = b""
    match draw.random():
        case chance if chance < 0.3:
            body = draw.choice((b"{}", b"{", b"[]" * 100, b"\xff\x00"))
            lines.append(b"Content-Length: %d" % (len(body) + draw.choice((0, 0, 0, 1, -1, 2**24, 2**70))))
        case chance if chance < 0.7:
            body = draw.choice(CHUNKED)
            lines.append(
                b"Transfer-Encoding: " + draw.choice((b"chunked", b"chunked", b"chunked", b"gzip, chunked", b"x"))
            )
            lines += [b"Content-Length: 2"] * (draw.random() < 0.1)
        case _:
            pass
    return b"\r\n".join([*lines, b"", body])


def frame(draw: random.Random) -> bytes:
    """One WebSocket frame; most of them break a rule of RFC 6455."""
    kind = draw.random()
    first, payload = 0x81, connect_frame(draw).encode()
    if kind < 0.15:
        first, payload = 0x88, draw.choice((b"", b"\x03", draw.randrange(6000).to_bytes(2, "big") + b"\xff\xfebye"))
    elif kind < 0.3:
        first, payload = draw.choice((0x89, 0x8A, 0x09)), bytes(draw.choice((0, 4, 125, 126, 70_000)))
    elif kind < 0.45:  # compressed, reserved bits and opcodes, a continuation of nothing, a message that has no end
        first = draw.choice((0xC1, 0xA1, 0x91, 0x83, 0x8B, 0x80, 0x01, 0x82))
    elif kind < 0.6:
        payload = draw.choice((b"\xff\xfe", b"\xed\xa0\x80", b"{" * 70_000, b"[" * 5000, b"null", b'{"type":"req"}'))
    mask = draw.choice((b"\x00\x00\x00\x00", b"\x01\x02\x03\x04"))
    size, length = len(payload) + draw.choice((0,) * 12 + (1, -1, 2**62, 2**63)), b""
    size = max(size, 0)
    short = size if size < 126 else 126 if size < 2**16 else 127
    if short > 125 or draw.random() < 0.03:  # the latter: a length that is longer than need be
        short = max(short, 126)
        length = size.to_bytes(2 if short == 126 else 8, "big")
    masked = draw.random() < 0.93
    body = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload)) if masked and any(mask) else payload
    return bytes((first, short | 0x80 * masked)) + length + mask * masked + body


def upgrade(draw: random.Random) -> bytes:
    more = draw.choice(
        (b"", b"", b"Sec-WebSocket-Extensions: permessage-deflate\r\n", b"Sec-WebSocket-Protocol: x, y\r\n")
    )
    key = base64.b64encode(draw.randbytes(draw.choice((16, 16, 16, 3))))
    return (
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n%s\r\n" % (key, more)
    )


def stream(draw: random.Random) -> list[bytes]:
    """What one connection sends, in the pieces that it sends."""
    if draw.random() < 0.5:
        data = b"".join(request(draw) for _ in range(draw.randint(1, 4)))
    else:
        data = upgrade(draw) + b"".join(frame(draw) for _ in range(draw.randint(0, 5)))
    if draw.random() < 0.4:
        data = damaged_bytes(draw, data)
    cuts = sorted(draw.randrange(len(data) + 1) for _ in range(draw.choice((0, 1, 3, 8)))) if data else []
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


async def send(host: TestHost, draw: random.Random) -> Counter[str]:
    """One stream, to its end; what came back."""
    pieces = stream(draw)
    ours, heard = host.dial(), b""

    async def say() -> None:
        for piece in pieces:
            await ours.send_all(piece)
            await trio.testing.wait_all_tasks_blocked()
        if draw.random() < 0.9:
            await ours.send_eof()

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(say)
            try:
                while data := await ours.receive_some():
                    heard += data
            except trio.BrokenResourceError:
                pass
            nursery.cancel_scope.cancel(reason="it is over")
    await trio.aclose_forcefully(ours)
    assert not host.faults(), host.faults()[:1]
    host.log.clear()
    assert not heard or heard.startswith(b"HTTP/1.1 "), heard[:100]
    assert b"hello-ok" not in heard, "let in without the secret"
    told = Counter(match.decode() for match in STATUS.findall(heard))
    if TOKEN.encode() not in b"".join(pieces):
        assert b'"uptimeMs"' not in heard, "answered without the secret"
        assert all(LIVE in head for head in GOOD.findall(heard)), "answered without the secret"
    return told


async def streams(count: int, seed: int) -> None:
    """Try `count` streams. What fails is raised with the seed that shows it again."""
    longest, told = 0.0, Counter[str]()
    for begun in range(0, count, A_GATEWAY):
        with tempfile.TemporaryDirectory() as folder:
            async with open_test_gateway(Path(folder), virtual=True, faulty=True) as host:
                for number in range(begun, min(begun + A_GATEWAY, count)):
                    start = time.perf_counter()
                    try:
                        told += await send(host, random.Random(f"stream/{seed}/{number}"))
                    except Exception as error:
                        raise AssertionError(f"stream/{seed}/{number}: {error!r}") from error
                    longest = max(longest, time.perf_counter() - start)
                async with host.client():
                    pass  # the right ones get in all the same
    assert longest < SLOW, f"stream: an input took {longest:.1f} s"
    shown = json.dumps(dict(sorted(told.items())))
    print(f"stream: {count} inputs, the longest took {longest * 1000:.1f} ms, answers {shown}")
