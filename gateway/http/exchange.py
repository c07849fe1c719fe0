"""HTTP/1.1 on one connection, over h11: requests in, JSON responses out, keep-alive, and a peer that leaves cancels
what it asked for. Routing is `routes.py`."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from http import HTTPStatus
from typing import Any

import h11
import msgspec
import trio

from triops.gateway.http.head import MAX_HEAD
from triops.gateway.transport import Broken, Transport

MAX_BODY = 16 * 1024 * 1024
BODY_DEADLINE = 30.0  # seconds
IDLE = 75.0  # seconds that a kept-alive connection may be silent
MAX_EARLY = 65536  # bytes of further requests that are read while one is answered

SECURITY_HEADERS = (
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Referrer-Policy", b"no-referrer"),
    (b"Permissions-Policy", b"camera=(), microphone=(self), geolocation=()"),
    (b"Cache-Control", b"no-store"),
)


class HttpRequest(msgspec.Struct, frozen=True):
    """One whole request; names of headers in lower case."""

    method: str
    target: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        return self.target.partition("?")[2]

    def get(self, name: bytes) -> str | None:
        return next((value.decode("latin-1") for key, value in self.headers if key == name), None)


class HttpResponse(msgspec.Struct, frozen=True):
    """A status and JSON."""

    status: int
    payload: Any
    headers: tuple[tuple[bytes, bytes], ...] = ()


Answer = Callable[[HttpRequest], Awaitable[HttpResponse]]

_encode = msgspec.json.Encoder(enc_hook=str).encode


def error_body(message: str, kind: str) -> dict[str, Any]:
    """The body of a refusal that has no method: `{error:{message,type}}` (protocol, HTTP §1.2)."""
    return {"error": {"message": message, "type": kind}}


async def refuse(transport: Transport, status: int, message: str) -> None:
    """Answer before or instead of parsing, and be done with the connection."""
    body = _encode(error_body(message, "invalid_request_error"))
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json; charset=utf-8\r\n"
    head += f"Content-Length: {len(body)}\r\nConnection: close\r\n"
    head += "".join(f"{name.decode()}: {value.decode()}\r\n" for name, value in SECURITY_HEADERS)
    try:
        await transport.send_all(head.encode() + b"\r\n" + body)
    except Broken:
        return  # it left
    await transport.linger()


async def serve_http(transport: Transport, answer: Answer, busy: Callable[[], AbstractContextManager[None]]) -> None:
    """Serve requests until the peer closes, errs or is silent for `IDLE` seconds. Does not close the transport.

    From a whole request to its written answer the connection is inside `busy()`.
    """
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
    while True:
        try:
            request = await _read_request(transport, connection)
        except h11.RemoteProtocolError as error:
            await refuse(transport, error.error_status_hint if error.error_status_hint >= 400 else 400, str(error))
            return
        except _TooLarge:
            await refuse(transport, 413, f"the body is larger than {MAX_BODY} bytes")
            return
        except trio.TooSlowError:
            return
        if request is None:
            return
        with busy():
            response = await _answer(transport, connection, request, answer)
            if response is None:
                return
            await transport.send_all(_encoded(connection, request, response))
        if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
            return
        connection.start_next_cycle()


class _TooLarge(Exception):
    pass


async def _read_request(transport: Transport, connection: h11.Connection) -> HttpRequest | None:
    head: h11.Request | None = None
    body = bytearray()
    deadline = trio.current_time() + IDLE
    while True:
        event = connection.next_event()
        match event:
            case h11.Request():
                head = event
                deadline = trio.current_time() + BODY_DEADLINE
                if int(dict(event.headers).get(b"content-length", b"0")) > MAX_BODY:
                    raise _TooLarge
                if connection.they_are_waiting_for_100_continue:
                    await transport.send_all(
                        connection.send(h11.InformationalResponse(status_code=100, headers=[])) or b""
                    )
            case h11.Data():
                body += event.data
                if len(body) > MAX_BODY:
                    raise _TooLarge
            case h11.EndOfMessage():
                assert head is not None
                return HttpRequest(
                    head.method.decode("ascii"), head.target.decode("ascii"), tuple(head.headers), bytes(body)
                )
            case h11.ConnectionClosed():
                return None
            case _ if event is h11.NEED_DATA:
                with trio.fail_at(deadline):
                    connection.receive_data(await transport.receive_some())
            case _:
                return None


async def _answer(
    transport: Transport, connection: h11.Connection, request: HttpRequest, answer: Answer
) -> HttpResponse | None:
    """Answer, while watching whether the peer is still there; None when it left (what it asked for is cancelled)."""
    response: HttpResponse | None = None

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
                nursery.cancel_scope.cancel(reason="the client left")
                return

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, name="watch the client")
        response = await answer(request)
        nursery.cancel_scope.cancel(reason="answered")
    return response


def _encoded(connection: h11.Connection, request: HttpRequest, response: HttpResponse) -> bytes:
    body = _encode(response.payload)
    headers = [
        *SECURITY_HEADERS,
        *response.headers,
        (b"Content-Type", b"application/json; charset=utf-8"),
        (b"Content-Length", b"%d" % len(body)),
    ]
    reason = HTTPStatus(response.status).phrase.encode()
    data = connection.send(h11.Response(status_code=response.status, headers=headers, reason=reason)) or b""
    if request.method != "HEAD":
        data += connection.send(h11.Data(data=body)) or b""
    return data + (connection.send(h11.EndOfMessage()) or b"")
