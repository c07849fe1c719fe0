"""The client's end of a WebSocket over a byte stream: whole text messages in, whole frames out. Knows no gateway."""

import ssl
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import urlsplit

import anyio
import wsproto.events as ws
from anyio.abc import ByteStream
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

HANDSHAKE_SECONDS = 15.0
WRITE_SECONDS = 10.0
CLOSE_SECONDS = 1.0
MAX_MESSAGE = 32 * 1024 * 1024  # characters; past it the connection closes with 1009


@dataclass(eq=False)
class GatewayError(Exception):
    """The gateway refused a request, or the connection. `code` and `details` are the protocol's."""

    code: str
    message: str
    details: Any = None
    retryable: bool = False
    retry_after_ms: int | None = None

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


@dataclass(eq=False)
class GatewayClosed(Exception):
    """The connection is over. `code` and `reason` are the close frame's; 1006 means that there was none."""

    code: int
    reason: str

    def __str__(self) -> str:
        return f"gateway connection closed: {self.code} {self.reason}".rstrip()


class ClientSocket:
    """See the module; made by `open_socket`."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._ws = WSConnection(ConnectionType.CLIENT)
        self._inbound: deque[ws.Event] = deque()
        self._lock = anyio.Lock()

    async def upgrade(self, host: str, target: str) -> None:
        await self.send(ws.Request(host=host, target=target))
        if isinstance(answer := await self._next(), ws.RejectConnection):
            body = b""
            with suppress(GatewayClosed):  # a body without a length ends with the connection
                while isinstance(part := await self._next(), ws.RejectData) and not part.body_finished:
                    body += part.data
            status = answer.status_code
            text = f"no WebSocket here: HTTP {status} {body[:500].decode(errors='replace').strip()}"
            raise GatewayError(f"HTTP_{status}", text, retryable=status in (429, 503))

    async def receive(self) -> str:
        """The next message. Answers pings and the peer's close; raises `GatewayClosed` when there is no more."""
        parts: list[str] = []
        size = 0
        while True:
            event = await self._next()
            if isinstance(event, ws.TextMessage):
                parts.append(event.data)
                size += len(event.data)
                if size > MAX_MESSAGE:
                    await self.refuse(1009, "message too large")
                if event.message_finished:
                    return "".join(parts)
            elif isinstance(event, ws.Ping):
                await self.send(event.response())
            elif isinstance(event, ws.CloseConnection):
                if self._ws.state is not ConnectionState.CLOSED:
                    with suppress(GatewayClosed):
                        await self.send(event.response())
                raise GatewayClosed(int(event.code), event.reason or "")

    async def _next(self) -> ws.Event:
        while not self._inbound:
            try:
                self._ws.receive_data(await self._stream.receive())
                self._inbound.extend(self._ws.events())
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError) as lost:
                raise GatewayClosed(1006, "connection lost") from lost
            except RemoteProtocolError as fault:
                raise GatewayClosed(1002, str(fault)) from fault
        return self._inbound.popleft()

    async def send(self, frame: ws.Event, seconds: float = WRITE_SECONDS) -> None:
        """Write one whole frame, cancelled or not: after half a frame nothing could follow. One writer at a time."""
        with anyio.move_on_after(seconds, shield=True):
            async with self._lock:
                try:
                    await self._stream.send(self._ws.send(frame))
                    return
                except (anyio.BrokenResourceError, anyio.ClosedResourceError, LocalProtocolError) as lost:
                    raise GatewayClosed(1006, "connection lost") from lost
        await anyio.aclose_forcefully(self._stream)
        raise GatewayClosed(1006, f"the gateway took no data for {seconds:g} s")

    async def close(self, code: int, reason: str) -> None:
        with suppress(GatewayClosed):
            await self.send(ws.CloseConnection(code, reason), CLOSE_SECONDS)

    async def refuse(self, code: int, reason: str) -> NoReturn:
        await self.close(code, reason)
        raise GatewayClosed(code, reason)


@asynccontextmanager
async def open_socket(url: str) -> AsyncGenerator[ClientSocket]:
    parts = urlsplit(url)
    host = parts.hostname or "127.0.0.1"
    with anyio.fail_after(HANDSHAKE_SECONDS):
        if parts.scheme in ("ws", "http"):
            stream = await anyio.connect_tcp(host, parts.port or 80)
        else:
            context = ssl.create_default_context()
            port = parts.port or 443
            stream = await anyio.connect_tcp(host, port, ssl_context=context, tls_standard_compatible=False)
    async with stream:
        socket = ClientSocket(stream)
        with anyio.fail_after(HANDSHAKE_SECONDS):
            await socket.upgrade(parts.netloc.rpartition("@")[2], parts.path or "/")
        yield socket
