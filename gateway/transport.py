"""One client's byte stream, shared by the HTTP and the WebSocket side: what was read too early is given back, writes
never mix, and the socket is really closed."""

from socket import socket as Socket

import trio

from triops.agents.sockets import send_now

WRITE_DEADLINE = 10.0  # seconds for one write; past it the peer is given up and its connection dropped
LINGER = 1.0  # seconds in which a peer that was refused may finish what it was sending


class Transport(trio.abc.HalfCloseableStream):
    """A socket with push-back, a lock around whole writes, and a cap on what an unknown peer may send.

    trio-websocket sends each frame by one `send_all`; ready-made frames go through the same lock, so that both
    interleave frame by frame. A write that waits for room and is cancelled or late may have sent half a frame: the
    stream is closed then. `raw` is the socket under `stream` (`with_raw`), where there is one.
    """

    def __init__(self, stream: trio.abc.HalfCloseableStream, raw: Socket | None = None) -> None:
        self._stream = stream
        self._raw = raw
        self._early = b""
        self._lock = trio.StrictFIFOLock()
        self._left: int | None = None
        self.overflowed = False
        """The cap was reached; nothing more was read."""
        self.late = False
        """A write took too long; the stream is closed."""

    def push_back(self, data: bytes) -> None:
        """Give `data` to the next reader first."""
        self._early = data + self._early

    def cap(self, size: int | None) -> None:
        """Read at most `size` bytes from now on (what was pushed back counts); None lifts the cap."""
        self._left = size

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._early:
            await trio.lowlevel.checkpoint()
            data, self._early = self._early, b""
        else:
            data = bytes(await self._stream.receive_some(65536 if max_bytes is None else max_bytes))
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                self.overflowed = True
                return b""
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """As the stream's, but no checkpoint where the socket has room: a loop that only sends must make its own."""
        if self._raw is not None and not self._lock.locked():
            now = send_now(self._raw, data)
            if now == len(data):
                return
            data = memoryview(data)[now:]
        try:
            self._lock.acquire_nowait()  # so that nobody else follows a part that is sent
        except trio.WouldBlock:
            await self._lock.acquire()
        sent = False
        try:
            with trio.fail_after(WRITE_DEADLINE):
                await self._stream.send_all(data)
            sent = True
        except trio.TooSlowError:
            self.late = True
            raise trio.BrokenResourceError(f"a write took more than {WRITE_DEADLINE:.0f} s") from None
        finally:
            self._lock.release()
            if not sent:
                await trio.aclose_forcefully(self._stream)

    async def linger(self) -> None:
        """Send nothing more and read off what the peer still sends, for `LINGER` seconds: a socket that is closed with
        data unread is reset, and the peer loses what it was told last."""
        try:
            with trio.move_on_after(LINGER):
                await self._stream.send_eof()
                while await self._stream.receive_some(65536):
                    pass
        except Broken:
            pass  # it left

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


Broken = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)
"""What a peer that goes away looks like."""


def close_frame(code: int, reason: str) -> bytes:
    """An unmasked WebSocket close frame (RFC 6455 §5.5.1) for a reason of at most 123 bytes."""
    payload = code.to_bytes(2, "big") + reason.encode()
    return b"\x88" + bytes((len(payload),)) + payload


def text_frame(payload: bytes) -> bytes:
    """An unmasked, final WebSocket text frame (RFC 6455 §5.2)."""
    size = len(payload)
    if size < 126:
        return b"\x81" + bytes((size,)) + payload
    if size < 65536:
        return b"\x81\x7e" + size.to_bytes(2, "big") + payload
    return b"\x81\x7f" + size.to_bytes(8, "big") + payload
