"""The Python client of the gateway protocol: one connection, its requests, events and chats, on Trio or asyncio.

It does not reconnect, keeps no device tokens, and does not know where a gateway is: that is its caller's business.
"""

import itertools
import json
import sys
import uuid
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from math import inf
from typing import Any, NoReturn, Self

import anyio
import msgspec
import wsproto.events as ws
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from triops import __version__
from triops.gateway.client_socket import (
    CLOSE_SECONDS,
    HANDSHAKE_SECONDS,
    ClientSocket,
    GatewayClosed,
    GatewayError,
    open_socket,
)
from triops.gateway.identity import DeviceIdentity

__all__ = [
    "ChatRun",
    "DeviceIdentity",
    "Event",
    "EventStream",
    "EventsLost",
    "GatewayClient",
    "GatewayClosed",
    "GatewayError",
    "Responses",
    "open_client",
]

ABORT_SECONDS = 2.0
EVENT_CAPACITY = 1024  # some 30 s of a fast answer's deltas; past it the consumer is told how many it missed
RESPONSE_CAPACITY = 16  # `agent` sends two under one id; more than these, unread, are dropped
SCOPES = ("operator.read", "operator.write", "operator.admin")


@dataclass(eq=False)
class EventsLost(Exception):
    """A consumer was slower than its events; `count` of them are missing at this place. It may go on reading."""

    count: int

    def __str__(self) -> str:
        return f"{self.count} events: this consumer is slower than the gateway"


class Event(msgspec.Struct, frozen=True, tag_field="type", tag="event"):
    """One event of the gateway; names and payloads are the protocol's."""

    event: str
    payload: dict[str, Any] = {}
    seq: int | None = None
    """Place among this connection's numbered events; `None` for those outside the numbering."""


class _Response(msgspec.Struct, frozen=True, tag_field="type", tag="res"):
    id: str
    ok: bool
    payload: Any = None
    error: dict[str, Any] = {}


_decoder = msgspec.json.Decoder(Event | _Response)


class EventStream:
    """Events that one consumer asked for and has not read yet. Bounded: a slow one loses some, and is told."""

    def __init__(
        self, client: "GatewayClient", wanted: Callable[[Event], bool], capacity: int = EVENT_CAPACITY
    ) -> None:
        self._client = client
        self._wanted = wanted
        self._lost = 0
        self.inlet, self.outlet = anyio.create_memory_object_stream[Event](capacity)

    def offer(self, event: Event) -> None:
        if not self._wanted(event):
            return
        try:
            if not self._lost:
                self.inlet.send_nowait(event)
                return
        except anyio.WouldBlock:
            pass
        self._lost += 1  # and so is what follows, until the consumer was told: one gap, in one place

    async def receive(self) -> Event:
        """The next event. Raises `EventsLost` where some are missing, `GatewayClosed` after the last."""
        if self._lost and not self.outlet.statistics().current_buffer_used:
            lost, self._lost = self._lost, 0
            raise EventsLost(lost)
        try:
            return await self.outlet.receive()
        except anyio.EndOfStream:
            self._client.raise_closed()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        return await self.receive()


class Responses:
    """The answers to one request, in order. Which one is the last is not on the wire but in their content."""

    def __init__(self, client: "GatewayClient", outlet: MemoryObjectReceiveStream[_Response]) -> None:
        self._client = client
        self._outlet = outlet

    async def receive(self) -> Any:
        """The next answer's payload. Raises `GatewayError` for a refusal, `GatewayClosed` when none can come."""
        try:
            response = await self._outlet.receive()
        except anyio.EndOfStream:
            self._client.raise_closed()
        if response.ok:
            return response.payload
        get = response.error.get
        words = get("message", "no reason given")
        raise GatewayError(
            get("code", "UNAVAILABLE"), words, get("details"), get("retryable", False), get("retryAfterMs")
        )


class ChatRun(EventStream):
    """A run that this client started: iterate over its `chat` events; the last one is its terminal event."""

    def __init__(self, client: "GatewayClient", run_id: str) -> None:
        super().__init__(client, lambda event: event.event == "chat" and event.payload.get("runId") == run_id)
        self.run_id = run_id
        self.ack: dict[str, Any] = {}
        self.is_over = False

    async def __anext__(self) -> Event:
        if self.is_over:
            raise StopAsyncIteration
        event = await self.receive()
        self.is_over = event.payload.get("state") in ("final", "aborted", "error")
        return event


class GatewayClient:
    """A connection that said hello. Made by `open_client`; good until that block ends or the gateway closes it."""

    def __init__(self, socket: ClientSocket, on_gap: Callable[[int, int], None] | None) -> None:
        self.hello: dict[str, Any] = {}
        self._socket = socket
        self._on_gap = on_gap
        self._ids = itertools.count(1)
        self._calls: dict[str, MemoryObjectSendStream[_Response]] = {}
        self._streams: list[EventStream] = []
        self._seq = 0
        self._silence = anyio.CancelScope()
        self._silence_limit = inf
        self._closed: GatewayClosed | None = None
        self.ended = anyio.Event()

    async def request(self, method: str, params: Mapping[str, Any] | None = None) -> Any:
        """The payload of the (first) answer. Raises `GatewayError`, or `GatewayClosed`.

        A caller who is cancelled meanwhile loses the answer only: the gateway may have done what was asked.
        """
        async with self.requests(method, params) as responses:
            return await responses.receive()

    @asynccontextmanager
    async def requests(self, method: str, params: Mapping[str, Any] | None = None) -> AsyncGenerator[Responses]:
        """Send a request that has more than one answer, as `agent` has: `accepted`, then its result."""
        if self._closed:
            self.raise_closed()
        id_ = str(next(self._ids))
        frame = {"type": "req", "id": id_, "method": method, "params": params or {}}
        inlet, outlet = anyio.create_memory_object_stream[_Response](RESPONSE_CAPACITY)
        with inlet, outlet:
            self._calls[id_] = inlet
            try:
                try:
                    await self._socket.send(ws.TextMessage(_encode(frame)))
                except GatewayClosed:
                    await self.ended.wait()  # the reader is about to learn why
                    self.raise_closed()
                yield Responses(self, outlet)
            finally:
                del self._calls[id_]

    @contextmanager
    def events(self, *names: str, capacity: int = EVENT_CAPACITY) -> Generator[EventStream]:
        """The events of these names (without one: all), from now on until the block ends."""
        stream = EventStream(self, lambda event: not names or event.event in names, capacity)
        with self._subscribed(stream):
            yield stream

    @contextmanager
    def _subscribed(self, stream: EventStream) -> Generator[None]:
        if self._closed:
            stream.inlet.close()
        with stream.inlet, stream.outlet:
            self._streams.append(stream)
            try:
                yield
            finally:
                self._streams.remove(stream)

    @asynccontextmanager
    async def chat(
        self, session_key: str, message: str, *, key: str | None = None, **params: Any
    ) -> AsyncGenerator[ChatRun]:
        """Send a message and follow its run; `params` are further ones of `chat.send`, by their wire names.

        Leaving the block before the terminal event, cancelled or not, aborts the run. `key` is the idempotency key
        and the run's id; with the key of a run that is over, `ack["status"]` says so and no event need follow.
        """
        run_id = key or str(uuid.uuid4())
        send = {"sessionKey": session_key, "message": message, "idempotencyKey": run_id, **params}
        run = ChatRun(self, run_id)
        with self._subscribed(run):
            try:
                try:
                    run.ack = await self.request("chat.send", send)
                except GatewayError:
                    run.is_over = True
                    raise
                yield run
            finally:  # also of who was cancelled before the ack: there may be a run as well
                if not run.is_over and not self._closed:
                    with anyio.move_on_after(ABORT_SECONDS, shield=True), suppress(GatewayError, GatewayClosed):
                        await self.request("chat.abort", {"sessionKey": session_key, "runId": run_id})

    def raise_closed(self) -> NoReturn:
        """Raise what the connection ended with; a new exception for each who asks."""
        assert self._closed
        raise GatewayClosed(self._closed.code, self._closed.reason)

    async def run(self) -> None:
        """Read until the connection ends, however it ends; then tell all who wait."""
        try:
            with self._silence:
                while True:
                    await self._dispatch(await self._socket.receive())
            await self._socket.refuse(4000, "tick timeout")
        except GatewayClosed as closed:
            self._closed = closed
        finally:
            self._closed = self._closed or GatewayClosed(1006, "the client was closed")
            for inlet in (*self._calls.values(), *(stream.inlet for stream in self._streams)):
                inlet.close()
            self.ended.set()

    async def _dispatch(self, text: str) -> None:
        self._silence.deadline = anyio.current_time() + self._silence_limit
        try:
            frame = _decoder.decode(text)
        except msgspec.ValidationError:
            return  # a kind of frame that this version does not know
        except msgspec.DecodeError:
            await self._socket.refuse(1007, "malformed JSON")
        if isinstance(frame, _Response):
            if call := self._calls.get(frame.id):
                with suppress(anyio.WouldBlock):
                    call.send_nowait(frame)
            return
        if frame.seq is not None:
            expected, self._seq = self._seq + 1, frame.seq
            if frame.seq > expected and self._on_gap is not None:
                self._on_gap(expected, frame.seq)
        for stream in self._streams:
            stream.offer(frame)

    async def greet(self, params: dict[str, Any], challenge: EventStream, device: DeviceIdentity | None) -> None:
        """Answer the challenge with `connect` and keep the hello; from then on a silent gateway is a lost one."""
        asked = await challenge.receive()
        if device is not None:
            params["device"] = device.proof(params, asked.payload)
        self.hello = await self.request("connect", params)
        self._silence_limit = 2 * self.hello["policy"]["tickIntervalMs"] / 1000
        self._silence.deadline = anyio.current_time() + self._silence_limit


def _encode(frame: dict[str, Any]) -> str:
    """JSON text; a lone surrogate, which UTF-8 cannot say, becomes U+FFFD."""
    try:
        return msgspec.json.encode(frame).decode()
    except UnicodeEncodeError:
        text = json.dumps(msgspec.to_builtins(frame), ensure_ascii=False)
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@asynccontextmanager
async def open_client(
    url: str,
    *,
    token: str | None = None,
    client_id: str = "gateway-client",
    mode: str = "backend",
    version: str = __version__,
    platform: str = sys.platform,
    scopes: Sequence[str] = SCOPES,
    caps: Sequence[str] = (),
    device: DeviceIdentity | None = None,
    on_gap: Callable[[int, int], None] | None = None,
) -> AsyncGenerator[GatewayClient]:
    """Connect to the gateway at `url` (`ws`, `wss`, `http` or `https`) and keep the connection for the block.

    Raises `OSError` when nothing listens there, `GatewayError` when the gateway refuses (`details` say why),
    `GatewayClosed` when it hangs up, `TimeoutError` when it takes over 15 s to answer. What the block raises comes
    out as it is, in no group. `on_gap(expected, received)`, which must not raise, hears of missing events. At the end
    of the block, cancelled or not, the socket is closed within a second; runs go on unless aborted.
    """
    params: dict[str, Any] = {
        "minProtocol": 4,
        "maxProtocol": 4,
        "client": {"id": client_id, "version": version, "platform": platform, "mode": mode},
        "role": "operator",
        "scopes": list(scopes),
        "caps": list(caps),
        "auth": {} if token is None else {"token": token},
    }
    failure: Exception | None = None
    async with open_socket(url) as socket, anyio.create_task_group() as tasks:
        client = GatewayClient(socket, on_gap)
        try:
            with client.events("connect.challenge") as challenge, anyio.fail_after(HANDSHAKE_SECONDS):
                tasks.start_soon(client.run)
                await client.greet(params, challenge, device)
            yield client
        except Exception as error:  # noqa: BLE001 - raised again below: here the task group would wrap it in a group
            failure = error
        finally:
            with anyio.move_on_after(CLOSE_SECONDS, shield=True):
                await socket.close(1000, "")
                await client.ended.wait()
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
