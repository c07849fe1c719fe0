"""The head of a request, read before anybody knows whether it will be HTTP or a WebSocket."""

import msgspec
import trio

from triops.gateway.transport import Transport

MAX_HEAD = 16 * 1024
HEAD_DEADLINE = 10.0  # seconds from the accept, or from the end of the last response, to a whole head


class HeadError(Exception):
    """This is no request that can be served; `status` is what to answer, 0 for nothing (the peer left)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Head(msgspec.Struct, frozen=True):
    """What was asked, as far as the split needs it; names of headers in lower case."""

    method: str
    target: str
    headers: tuple[tuple[bytes, bytes], ...]

    def get(self, name: bytes) -> str | None:
        """The first value of a header."""
        return next((value.decode("latin-1") for key, value in self.headers if key == name), None)

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        return self.target.partition("?")[2]

    @property
    def is_websocket(self) -> bool:
        return (self.get(b"upgrade") or "").strip().lower() == "websocket"


def parse_head(data: bytes) -> Head | None:
    """The head at the beginning of `data`, None while it is not all there.

    Raises:
        HeadError: it is too large, or no HTTP/1.1 request.
    """
    if data.startswith(b"\x16"):
        raise HeadError(400, "no TLS is spoken on this port; use http:// or ws://")
    end = data.find(b"\r\n\r\n")
    if end < 0 or end > MAX_HEAD:
        if len(data) > MAX_HEAD:
            raise HeadError(431, f"the request head is larger than {MAX_HEAD} bytes")
        return None
    first, *lines = data[:end].lstrip(b"\r\n").split(b"\r\n")
    parts = first.split(b" ")
    if len(parts) != 3 or not parts[2].startswith(b"HTTP/1.") or not parts[0].isalpha() or not parts[1]:
        raise HeadError(400, "not an HTTP/1.1 request")
    headers: list[tuple[bytes, bytes]] = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not name or name != name.strip():
            raise HeadError(400, "malformed header line")
        headers.append((name.lower(), value.strip()))
    try:
        return Head(parts[0].decode("ascii"), parts[1].decode("ascii"), tuple(headers))
    except UnicodeDecodeError:
        raise HeadError(400, "the request line is not ASCII") from None


def check_upgrade(head: Head) -> None:
    """Refuse a WebSocket handshake that is none (RFC 6455 §4.2.1), in words that the framing library does not have.

    Raises:
        HeadError: another version (426), or something is missing (400).
    """
    version = head.get(b"sec-websocket-version")
    if version not in (None, "13"):
        raise HeadError(426, f"WebSocket version {version} is not spoken here; use 13")
    handshake = (value for name, value in head.headers if name == b"connection" or name.startswith(b"sec-websocket-"))
    for told, wanted in (
        (all(map(bytes.isascii, handshake)), "headers in ASCII"),
        (head.method == "GET", "the method GET"),
        ("upgrade" in (head.get(b"connection") or "").lower(), "Connection: Upgrade"),
        (version, "Sec-WebSocket-Version: 13"),
        (head.get(b"sec-websocket-key"), "a Sec-WebSocket-Key"),
    ):
        if not told:
            raise HeadError(400, f"a WebSocket upgrade needs {wanted}")


async def read_head(transport: Transport) -> Head:
    """The first head; all that was read is pushed back, so that the real parser sees it too.

    Raises:
        HeadError: too large (431), too slow (408), malformed (400, 426), or the peer left (0).
    """
    data = b""
    with trio.move_on_after(HEAD_DEADLINE):
        while True:
            head = parse_head(data)
            if head is not None:
                if head.is_websocket:
                    check_upgrade(head)
                transport.push_back(data)
                return head
            chunk = await transport.receive_some()
            if not chunk:
                raise HeadError(0 if not data.strip() else 400, "the peer left before its request was complete")
            data += chunk
    raise HeadError(408 if data else 0, f"no complete request within {HEAD_DEADLINE:.0f} s")
