"""Sending to a socket that has room without waiting for it: no deadline to arm, no step of the loop.

Where it has none, or is broken, Trio's own stream goes on, and says so.
"""

import socket

import trio


def with_raw(stream: trio.SocketStream) -> tuple[trio.SocketStream, socket.socket]:
    """`stream` anew, to be used and closed in its place, and the socket under it, for `send_now`."""
    old = stream.socket
    raw = socket.socket(old.family, old.type, old.proto, fileno=old.detach())
    return trio.SocketStream(trio.socket.from_stdlib_socket(raw)), raw


def send_now(raw: socket.socket, data: bytes | bytearray | memoryview) -> int:
    """Send what there is room for at once, and give back how many bytes that was. Nobody else may be sending."""
    try:
        return raw.send(data)
    except OSError:  # no room, or gone: who sends the rest finds out which
        return 0
