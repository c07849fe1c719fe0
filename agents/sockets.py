"""Sending to a socket that has room, and taking what it holds: no wait, so no deadline to arm and no step of the loop.

Where it has none, Trio's own stream goes on.
"""

import socket

import trio


def with_raw(stream: trio.SocketStream) -> tuple[trio.SocketStream, socket.socket]:
    """`stream` anew, to be used and closed in its place, and the socket under it, for the others."""
    old = stream.socket
    raw = socket.socket(old.family, old.type, old.proto, fileno=old.detach())
    return trio.SocketStream(trio.socket.from_stdlib_socket(raw)), raw


def send_now(raw: socket.socket, data: bytes | bytearray | memoryview) -> int:
    """Send what there is room for at once, and give back how many bytes that was. Nobody else may be sending."""
    try:
        return raw.send(data)
    except OSError:  # no room, or gone: who sends the rest finds out which
        return 0


def receive_now(raw: socket.socket, size: int) -> bytes | None:
    """What is there already, b"" at the end; None where that is nothing.

    Raises:
        OSError: the connection is broken, which is not told twice.
    """
    try:
        return raw.recv(size)
    except BlockingIOError:
        return None
