"""Writes to one client: whole, in order, and not for ever."""

import socket
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing

from triops.agents.sockets import with_raw
from triops.gateway.transport import WRITE_DEADLINE, Transport

LARGE = bytes(range(256)) * 16_384  # 4 MiB: more than a socket holds


@pytest.fixture
async def ends() -> AsyncGenerator[tuple[Transport, trio.SocketStream]]:
    """A transport over a real socket, and its peer."""
    ours, theirs = (trio.SocketStream(trio.socket.from_stdlib_socket(each)) for each in socket.socketpair())
    transport = Transport(*with_raw(ours))
    async with transport, theirs:
        yield transport, theirs


Ends = tuple[Transport, trio.SocketStream]


async def read_all(stream: trio.SocketStream, size: int) -> bytes:
    held = bytearray()
    while len(held) < size and (data := await stream.receive_some()):
        held += data
    return bytes(held)


async def test_a_small_write_is_there_before_anything_else_runs(ends: Ends) -> None:
    transport, theirs = ends
    sending = transport.send_all(b"hello")
    with pytest.raises(StopIteration):
        sending.send(None)  # no step of the loop between the call and its end
    assert await theirs.receive_some() == b"hello"


async def test_writes_at_once_arrive_whole_and_in_order_though_the_first_has_no_room(ends: Ends) -> None:
    transport, theirs = ends
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.send_all, LARGE)
        await trio.testing.wait_all_tasks_blocked()
        for data in (b"second", memoryview(b"third"), bytearray(b"fourth")):
            nursery.start_soon(transport.send_all, data)
            await trio.testing.wait_all_tasks_blocked()
        assert await read_all(theirs, len(LARGE) + 17) == LARGE + b"secondthirdfourth"


async def test_a_write_waits_behind_another_though_there_is_room_again() -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    small = [bytes([64 + number]) for number in range(20)]
    held = bytearray()

    def read() -> None:
        with suppress(BlockingIOError):
            while data := theirs.recv(1 << 20):
                held.extend(data)

    async with Transport(*with_raw(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))) as transport:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.send_all, LARGE)
            for data in small:
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(transport.send_all, data)
                held.extend(theirs.recv(1 << 16))  # room, before anybody runs
            while len(held) < len(LARGE) + len(small):
                read()
                await trio.lowlevel.checkpoint()
    theirs.close()
    assert bytes(held) == LARGE + b"".join(small)


async def test_a_write_that_is_cancelled_with_a_part_sent_closes_the_stream(ends: Ends) -> None:
    transport, theirs = ends
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.send_all, LARGE)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel(reason="the test")
    assert len(await read_all(theirs, len(LARGE))) < len(LARGE)
    with pytest.raises(trio.ClosedResourceError):
        await transport.send_all(b"more")


async def test_a_peer_that_does_not_read_is_given_up(ends: Ends, autojump_clock: Any) -> None:
    transport, _ = ends
    with pytest.raises(trio.BrokenResourceError, match="a write took more than 10 s"):
        await transport.send_all(LARGE)
    assert transport.late and trio.current_time() == pytest.approx(WRITE_DEADLINE)


async def test_a_peer_that_is_gone_is_a_broken_stream(ends: Ends) -> None:
    transport, theirs = ends
    await theirs.aclose()
    with pytest.raises(trio.BrokenResourceError):
        for _ in range(3):
            await transport.send_all(b"x")
