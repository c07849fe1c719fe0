"""The head of a request, cut anywhere, and what is not one."""

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from triops.gateway.http.head import HEAD_DEADLINE, MAX_HEAD, HeadError, check_upgrade, parse_head, read_head
from triops.gateway.transport import Transport

GET = b"GET /status?x=1 HTTP/1.1\r\nHost: 127.0.0.1:1\r\nX-Empty:\r\nX-Two:  a b \r\n\r\n"


def test_a_head_is_read_with_lower_case_names_and_stripped_values() -> None:
    head = parse_head(GET + b"body")
    assert head is not None
    assert (head.method, head.target, head.path, head.query) == ("GET", "/status?x=1", "/status", "x=1")
    assert head.headers == ((b"host", b"127.0.0.1:1"), (b"x-empty", b""), (b"x-two", b"a b"))
    assert (head.get(b"x-two"), head.get(b"none"), head.is_websocket) == ("a b", None, False)


@given(st.integers(0, len(GET) - 1))
def test_a_head_that_is_not_all_there_is_none_yet(cut: int) -> None:
    assert parse_head(GET[:cut]) is None


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"GET / SPDY/3\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * MAX_HEAD, 431),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * MAX_HEAD + b"\r\n\r\n", 431),
    ],
)
def test_what_is_no_head_is_refused(data: bytes, status: int) -> None:
    with pytest.raises(HeadError) as error:
        parse_head(data)
    assert error.value.status == status


@given(st.binary(max_size=200))
def test_no_bytes_make_it_raise_anything_else(data: bytes) -> None:
    status = 400
    try:
        parse_head(data + b"\r\n\r\n")
    except HeadError as error:
        status = error.status
    assert status in (400, 431)


@given(st.text())
def test_only_the_word_websocket_asks_for_one(word: str) -> None:
    head = parse_head(b"GET / HTTP/1.1\r\nUpgrade: " + "".join(word.split()).encode("utf-8", "replace") + b"\r\n\r\n")
    assert head is None or head.is_websocket == (word.strip().lower() == "websocket")


UPGRADE = {"Upgrade": "websocket", "Connection": "keep-alive, Upgrade", "Sec-WebSocket-Version": "13"}
UPGRADE |= {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}


@pytest.mark.parametrize(
    ("method", "header", "value", "status", "words"),
    [
        ("GET", "Sec-WebSocket-Version", "8", 426, "version 8"),
        ("GET", "Sec-WebSocket-Version", None, 400, "Sec-WebSocket-Version"),
        ("GET", "Sec-WebSocket-Key", None, 400, "Sec-WebSocket-Key"),
        ("GET", "Connection", "close", 400, "Connection"),
        ("POST", "Upgrade", "websocket", 400, "GET"),
        ("GET", "Connection", "Upgrade, \xe9", 400, "ASCII"),
        ("GET", "Sec-WebSocket-Extensions", "\xe9", 400, "ASCII"),
    ],
)
async def test_an_upgrade_that_is_none_is_refused_with_what_it_lacks(
    method: str, header: str, value: str | None, status: int, words: str
) -> None:
    def text(headers: dict[str, str | None]) -> bytes:
        lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
        return "\r\n".join([f"{method} / HTTP/1.1", *lines, "", ""]).encode()

    ours, theirs = trio.testing.memory_stream_pair()
    await ours.send_all(text({**UPGRADE, header: value}))
    with pytest.raises(HeadError, match=words) as error:
        await read_head(Transport(theirs))
    assert error.value.status == status
    if method == "GET":
        head = parse_head(text({**UPGRADE}))
        assert head is not None
        check_upgrade(head)


async def test_what_was_read_is_given_back_to_the_real_parser() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    transport = Transport(theirs)
    await ours.send_all(GET + b"more")
    await read_head(transport)
    assert await transport.receive_some() == GET + b"more"


async def test_a_peer_that_says_nothing_is_let_go_and_one_that_is_slow_is_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    for said, status in ((b"", 0), (b"GET / HT", 408)):
        ours, theirs = trio.testing.memory_stream_pair()
        await ours.send_all(said) if said else None
        began = trio.current_time()
        with pytest.raises(HeadError) as error:
            await read_head(Transport(theirs))
        assert error.value.status == status
        assert trio.current_time() - began == pytest.approx(HEAD_DEADLINE)


async def test_a_peer_that_leaves_is_not_answered_unless_it_had_begun() -> None:
    for said, status in ((b"", 0), (b"\r\n", 0), (b"GET / HT", 400)):
        ours, theirs = trio.testing.memory_stream_pair()
        await ours.send_all(said) if said else None
        await ours.send_eof()
        with pytest.raises(HeadError) as error:
            await read_head(Transport(theirs))
        assert error.value.status == status
