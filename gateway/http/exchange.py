"""HTTP/1.1 on one connection, over h11: requests in, JSON responses or event streams out, keep-alive, and a peer that
leaves cancels what it asked for. Routing is `routes.py`."""

import re
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, ExitStack
from http import HTTPStatus
from math import inf
from typing import Any

import h11
import msgspec
import trio

from triops.gateway.http.head import HEAD_DEADLINE, MAX_HEAD, Head, HeadError
from triops.gateway.transport import Broken, Transport

MAX_BODY = 16 * 1024 * 1024
BODY_DEADLINE = 30.0  # seconds
IDLE = 15.0  # seconds that a kept-alive connection may be silent
MAX_EARLY = 65536  # bytes of further requests that are read while one is answered

SECURITY_HEADERS = (
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Referrer-Policy", b"no-referrer"),
    (b"Permissions-Policy", b"camera=(), microphone=(self), geolocation=()"),
    (b"Cache-Control", b"no-store"),
)


EVENT_STREAM = b"text/event-stream; charset=utf-8"


class HttpResponse(msgspec.Struct, frozen=True):
    """A status and JSON, or `bytes` as they are."""

    status: int
    payload: Any
    headers: tuple[tuple[bytes, bytes], ...] = ()
    content_type: bytes = b"application/json; charset=utf-8"


class Stream:
    """A response that is written while it is made: server-sent events. Its head goes out with the first of them."""

    def __init__(
        self, transport: Transport, connection: h11.Connection, leave: Callable[[], None], endless: Callable[[], None]
    ) -> None:
        self._transport = transport
        self._connection = connection
        self._leave = leave
        self.endless = endless
        """Say that nobody need wait for the end of this one when the gateway stops; sync."""
        self.begun = False

    async def send(self, data: bytes) -> None:
        """Send whole events; returns when they are written. When the peer has left, the request is cancelled."""
        out = b""
        if not self.begun:
            self.begun = True
            headers = [*SECURITY_HEADERS, (b"Content-Type", EVENT_STREAM)]
            out = self._connection.send(h11.Response(status_code=200, headers=headers, reason=b"OK")) or b""
        try:
            await self._transport.send_all(out + (self._connection.send(h11.Data(data=data)) or b""))
        except Broken:
            self._leave()
            await trio.lowlevel.checkpoint()


Answer = Callable[[bytes, Stream], Awaitable[HttpResponse | None]]
"""Given the body, the response; None when it was streamed."""
Admit = Callable[[Head], Awaitable[Answer | HttpResponse]]
"""Given the head, who answers once the body is there; or the response of who wants no body, or is not let in."""

_encode = msgspec.json.Encoder(enc_hook=str).encode


def sse(payload: Any, event: str = "", id: int | None = None) -> bytes:
    """One server-sent event."""
    head = b"" if id is None else b"id: %d\n" % id
    head += b"event: %b\n" % event.encode() if event else b""
    return b"%bdata: %b\n\n" % (head, _encode(payload))


def error_body(message: str, kind: str) -> dict[str, Any]:
    """The body of a refusal that has no method: `{error:{message,type}}` (protocol, HTTP §1.2)."""
    return {"error": {"message": message, "type": kind}}


async def refuse(transport: Transport, status: int, message: str) -> None:
    """Answer before or instead of parsing, and be done with the connection."""
    headers = ((b"Upgrade", b"websocket"), (b"Sec-WebSocket-Version", b"13")) if status == 426 else ()
    response = HttpResponse(status, error_body(message, "invalid_request_error"), headers)
    try:
        await transport.send_all(_encoded(h11.Connection(h11.SERVER), response, close=True))
    except Broken:
        return  # it left
    await transport.linger()


async def serve_http(transport: Transport, admit: Admit, busy: Callable[[], AbstractContextManager[None]]) -> None:
    """Serve requests until the peer closes or is silent for `IDLE` seconds. Does not close the transport.

    No body is read before its head is admitted; who is not let in and sends one loses the connection. From a whole
    request to its written answer the connection is inside `busy()`.

    Raises:
        HeadError: the peer erred; the caller tells it.
    """
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
    try:
        while await _serve_one(transport, connection, admit, busy):
            connection.start_next_cycle()
            await trio.lowlevel.checkpoint()  # many requests may be there at once, and room for their answers
    except h11.RemoteProtocolError as error:
        message = str(error).partition(": bytearray")[0]
        raise HeadError(error.error_status_hint if error.error_status_hint >= 400 else 400, message) from None


async def _serve_one(
    transport: Transport,
    connection: h11.Connection,
    admit: Admit,
    busy: Callable[[], AbstractContextManager[None]],
) -> bool:
    """Serve the next request; whether the connection can take another."""
    head = await _next_head(transport, connection)
    if head is None:
        return False
    answer = await admit(head)
    if isinstance(answer, HttpResponse):
        unread = not isinstance(connection.next_event(), h11.EndOfMessage)
        with busy():
            await transport.send_all(_encoded(connection, answer, head, close=unread))
        if unread:
            await transport.linger()
    else:
        body = await _read_body(transport, connection, head)
        with ExitStack() as waited_for:
            waited_for.enter_context(busy())

            async def reply(leave: Callable[[], None]) -> bytes:
                stream = Stream(transport, connection, leave, waited_for.close)
                response = await answer(body, stream)
                if response is None:
                    return connection.send(h11.EndOfMessage()) or b""
                return b"" if stream.begun else _encoded(connection, response, head)  # what failed midway is cut off

            rest = await _watched(transport, connection, reply)
            if not rest:
                return False
            await transport.send_all(rest)
    return connection.our_state is h11.DONE and connection.their_state is h11.DONE


async def _next_head(transport: Transport, connection: h11.Connection) -> Head | None:
    """The head of the next request; None when the peer left, or said nothing for too long."""
    deadline = inf
    while (event := connection.next_event()) is h11.NEED_DATA:
        begun = bool(connection.trailing_data[0])
        deadline = min(deadline, trio.current_time() + (HEAD_DEADLINE if begun else IDLE))
        with trio.move_on_at(deadline) as late:
            connection.receive_data(await transport.receive_some())
        if late.cancelled_caught:
            if begun:
                raise HeadError(408, f"no complete request within {HEAD_DEADLINE:.0f} s")
            return None
    if not isinstance(event, h11.Request):
        return None
    target, headers = event.target.decode("ascii"), tuple(event.headers)
    if absolute := _ABSOLUTE.fullmatch(target):  # its authority counts, not the Host beside it (RFC 9112 §3.2.2)
        target = absolute[2]
        headers = (*(pair for pair in headers if pair[0] != b"host"), (b"host", absolute[1].encode()))
    head = Head(event.method.decode("ascii"), target, headers)
    if (head.get(b"expect") or "100-continue").lower() != "100-continue":
        raise HeadError(417, "no other Expect than 100-continue is known")
    if head.get(b"transfer-encoding") and head.get(b"content-length"):
        raise HeadError(400, "Content-Length and Transfer-Encoding contradict each other; send one")
    return head


_ABSOLUTE = re.compile(r"https?://([^/?#]*)(/.*)", re.IGNORECASE)


async def _read_body(transport: Transport, connection: h11.Connection, head: Head) -> bytes:
    body = bytearray()
    too_large = HeadError(413, f"the body is larger than {MAX_BODY} bytes")
    if int(head.get(b"content-length") or 0) > MAX_BODY:
        raise too_large
    if connection.they_are_waiting_for_100_continue:
        await transport.send_all(connection.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
    try:
        with trio.fail_after(BODY_DEADLINE):
            while not isinstance(event := connection.next_event(), h11.EndOfMessage):
                if isinstance(event, h11.Data):
                    body += event.data
                    if len(body) > MAX_BODY:
                        raise too_large
                else:
                    connection.receive_data(await transport.receive_some())
    except trio.TooSlowError:
        raise HeadError(408, f"no complete body within {BODY_DEADLINE:.0f} s") from None
    return bytes(body)


async def _watched(
    transport: Transport, connection: h11.Connection, reply: Callable[[Callable[[], None]], Awaitable[bytes]]
) -> bytes | None:
    """Await `reply`, while watching whether the peer is still there; None when it left (`reply` is cancelled, as it is
    by the callable that it is given)."""
    rest: bytes | None = None

    def leave() -> None:
        nursery.cancel_scope.cancel(reason="the client left")

    async def watch() -> None:
        size = 0
        while size < MAX_EARLY:
            try:
                early = await transport.receive_some()
            except Broken:
                early = b""
            connection.receive_data(early)  # a pipelined request waits its turn
            size += len(early)
            if not early:
                leave()
                return

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, name="watch the client")
        rest = await reply(leave)
        nursery.cancel_scope.cancel(reason="answered")
    return rest


def _encoded(
    connection: h11.Connection, response: HttpResponse, head: Head | None = None, *, close: bool = False
) -> bytes:
    body = response.payload if isinstance(response.payload, bytes) else _encode(response.payload)
    headers = [
        *SECURITY_HEADERS,
        *response.headers,
        (b"Content-Type", response.content_type),
        (b"Content-Length", b"%d" % len(body)),
        *([(b"Connection", b"close")] if close else ()),
    ]
    reason = HTTPStatus(response.status).phrase.encode()
    data = connection.send(h11.Response(status_code=response.status, headers=headers, reason=reason)) or b""
    if head is None or head.method != "HEAD":
        data += connection.send(h11.Data(data=body)) or b""
    return data + (connection.send(h11.EndOfMessage()) or b"")
