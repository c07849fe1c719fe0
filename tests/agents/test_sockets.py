"""Sending what there is room for, and a stream that goes on where there is none."""

import socket
import struct

import pytest
import trio

from triops.agents.sockets import receive_now, send_now, with_raw


async def test_a_stream_and_its_socket_are_one_and_close_together() -> None:
    one, other = socket.socketpair()
    with other:
        first = trio.SocketStream(trio.socket.from_stdlib_socket(one))
        stream, raw = with_raw(first)
        async with stream:
            assert first.socket.fileno() == -1 and raw.fileno() == stream.socket.fileno()
            assert send_now(raw, b"now ") == 4
            await stream.send_all(b"later")
            assert other.recv(99) == b"now later"
            assert receive_now(raw, 99) is None
            other.send(b"back again")
            assert (receive_now(raw, 4), await stream.receive_some()) == (b"back", b" again")
            other.shutdown(socket.SHUT_WR)
            assert receive_now(raw, 99) == b""
        assert raw.fileno() == -1 and send_now(raw, b"x") == 0 and other.recv(99) == b""


async def test_a_reset_is_told_by_who_meets_it_first() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one, (other, _) = socket.create_connection(listener.getsockname()), listener.accept()
        stream, raw = with_raw(trio.SocketStream(trio.socket.from_stdlib_socket(one)))
        async with stream:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            other.close()
            with pytest.raises(ConnectionResetError):
                receive_now(raw, 99)


async def test_a_full_socket_takes_a_part_then_nothing_and_neither_is_an_error() -> None:
    one, other = socket.socketpair()
    with other:
        stream, raw = with_raw(trio.SocketStream(trio.socket.from_stdlib_socket(one)))
        async with stream:
            data = bytes(8 << 20)
            assert 0 < send_now(raw, data) < len(data)
            assert send_now(raw, data) == 0
            other.close()
            assert send_now(raw, b"x") == 0
            with pytest.raises(trio.BrokenResourceError):
                await stream.send_all(b"x")
