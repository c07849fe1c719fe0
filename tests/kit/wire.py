"""Clients by hand, for tests that look at the wire: WebSocket frames and HTTP answers over any stream."""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import h11
import trio
import wsproto.events as ws
from tests.kit import canary
from wsproto import ConnectionType, WSConnection

LIMIT = 10.0  # seconds that a test waits for anything; bounded, and far above what it takes
VIRTUAL_LIMIT = 7200.0  # the same on a mock clock, where waiting for the next tick costs nothing


class Refused(Exception):
    """An error answer; `error` is its object."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(json.dumps(error))
        self.error = error


class Closed(Exception):
    """The gateway closed the WebSocket."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}")
        self.code = code
        self.reason = reason


class HttpAnswer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: Any


def connect_params(
    *,
    token: str | None,
    client: str = "gateway-client",
    mode: str = "backend",
    scopes: tuple[str, ...] = ("operator.admin", "operator.read", "operator.write"),
    caps: tuple[str, ...] = (),
) -> dict[str, Any]:
    return {
        "minProtocol": 4,
        "maxProtocol": 4,
        "client": {"id": client, "version": "1", "platform": "test", "mode": mode},
        "role": "operator",
        "scopes": list(scopes),
        "caps": list(caps),
        "auth": {} if token is None else {"token": token},
    }


class Client:
    """A WebSocket client that reads when it is asked to: `frames` is everything that came, in order."""

    def __init__(self, stream: trio.abc.HalfCloseableStream, *, limit: float = LIMIT) -> None:
        self.stream = stream
        self._limit = limit
        self.hello: dict[str, Any] = {}
        self.frames: list[dict[str, Any]] = []
        self.pings = 0
        self.answers_pings = True
        self._ws = WSConnection(ConnectionType.CLIENT)
        self._parts = ""
        self._last_id = 0
        self._looked = 0

    async def upgrade(self, headers: Mapping[str, str]) -> None:
        """Raises `Refused` with status and body when the gateway takes no WebSocket."""
        rest = [(name.encode(), value.encode()) for name, value in headers.items() if name != "Host"]
        await self.stream.send_all(self._ws.send(ws.Request(host=headers["Host"], target="/", extra_headers=rest)))
        with trio.fail_after(self._limit):
            while True:
                for event in self._ws.events():
                    match event:
                        case ws.AcceptConnection():
                            return
                        case ws.RejectConnection():
                            raise Refused({"status": event.status_code})
                        case _:
                            pass
                self._ws.receive_data(bytes(await self.stream.receive_some()) or None)

    async def send(self, frame: object) -> None:
        """A text frame: JSON of what is not a string."""
        text = frame if isinstance(frame, str) else json.dumps(frame)
        await self.stream.send_all(self._ws.send(ws.TextMessage(text)))

    async def send_binary(self, data: bytes) -> None:
        await self.stream.send_all(self._ws.send(ws.BytesMessage(data)))

    async def close(self, code: int, reason: str) -> None:
        """Begin the close handshake."""
        await self.stream.send_all(self._ws.send(ws.CloseConnection(code, reason)))

    async def ping(self) -> None:
        await self.stream.send_all(self._ws.send(ws.Ping(os.urandom(4))))

    async def read(self) -> dict[str, Any]:
        """The next frame. Raises `Closed`."""
        with trio.fail_after(self._limit):
            while self._looked == len(self.frames):
                await self._receive()
        self._looked += 1
        return self.frames[self._looked - 1]

    async def _receive(self) -> None:
        for event in self._ws.events():
            match event:
                case ws.TextMessage():
                    self._parts += event.data
                    if event.message_finished:
                        self.frames.append(frame := json.loads(self._parts))
                        if not frame.get("ok"):
                            canary.check(self._parts, "an event or a refusal")
                        self._parts = ""
                case ws.Ping():
                    self.pings += 1
                    if self.answers_pings:
                        await self.stream.send_all(self._ws.send(event.response()))
                case ws.CloseConnection():
                    raise Closed(int(event.code), event.reason or "")
                case _:
                    pass
        if self._looked < len(self.frames):
            return
        try:
            data = bytes(await self.stream.receive_some())
        except trio.BrokenResourceError:
            data = b""
        self._ws.receive_data(data or None)

    async def closed(self) -> Closed:
        """Read to the end; how it ended."""
        try:
            while True:
                await self.read()
        except Closed as closed:
            return closed

    async def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Read to the first frame that is `wanted`, counting from the last one read."""
        while not wanted(frame := await self.read()):
            pass
        return frame

    async def event(self, name: str, **payload: Any) -> dict[str, Any]:
        """Read to the first event of that name whose payload has these members; its payload."""

        def wanted(frame: dict[str, Any]) -> bool:
            return frame.get("event") == name and payload.items() <= frame["payload"].items()

        return (await self.until(wanted))["payload"]

    async def answer(self, request_id: str) -> Any:
        """Read to the answer of a request; its payload. Raises `Refused`."""
        frame = await self.until(lambda frame: frame["type"] == "res" and frame["id"] == request_id)
        if not frame["ok"]:
            raise Refused(frame["error"])
        return frame.get("payload")

    async def ask(self, method: str, params: object = None) -> str:
        """Send a request and read nothing; its id."""
        self._last_id += 1
        await self.send({"type": "req", "id": f"r{self._last_id}", "method": method, "params": params or {}})
        return f"r{self._last_id}"

    async def request(self, method: str, params: object = None) -> Any:
        """Send a request and read to its (first) answer."""
        return await self.answer(await self.ask(method, params))

    async def connect(self, params: dict[str, Any]) -> dict[str, Any]:
        await self.until(lambda frame: frame.get("event") == "connect.challenge")
        return await self.request("connect", params)

    async def say(self, message: str, *, key: str, session: str = "main", **params: Any) -> dict[str, Any]:
        """`chat.send`; the ack."""
        return await self.request(
            "chat.send", {"sessionKey": session, "message": message, "idempotencyKey": key, **params}
        )

    async def terminal(self, run_id: str) -> dict[str, Any]:
        """Read to a run's terminal `chat` event; its payload."""

        def wanted(frame: dict[str, Any]) -> bool:
            payload = frame.get("payload") or {}
            over = payload.get("state") in ("final", "aborted", "error")
            return frame.get("event") == "chat" and payload.get("runId") == run_id and over

        return (await self.until(wanted))["payload"]

    async def ended(self, run_id: str) -> dict[str, Any]:
        """A run's terminal, whether it was read already or is still to come."""
        over = ("final", "aborted", "error")
        told = [payload for payload in self.events("chat", run_id) if payload["state"] in over]
        return told[0] if told else await self.terminal(run_id)

    def events(self, name: str | None = None, run_id: str | None = None) -> list[dict[str, Any]]:
        """The payloads of events that came so far."""
        return [
            frame["payload"]
            for frame in self.frames
            if frame["type"] == "event"
            and name in (None, frame["event"])
            and run_id in (None, frame["payload"].get("runId"))
        ]


async def read_answer(stream: trio.abc.ReceiveStream, *, head_only: bool = False, limit: float = LIMIT) -> HttpAnswer:
    """One HTTP answer; its body decoded if it is JSON."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="HEAD" if head_only else "GET", target="/", headers=[("Host", "x")]))
    connection.send(h11.EndOfMessage())
    return await next_answer(stream, connection, limit=limit)


async def next_answer(
    stream: trio.abc.ReceiveStream, connection: h11.Connection, *, limit: float = LIMIT
) -> HttpAnswer:
    """The next answer on a connection whose request h11 knows."""
    head: h11.Response | None = None
    body = b""
    with trio.fail_after(limit):
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(bytes(await stream.receive_some()))
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                headers = {name.decode(): value.decode() for name, value in head.headers}
                text = body.decode("utf-8")
                if head.status_code >= 400:
                    canary.check(text, "an error answer")
                is_json = headers.get("content-type", "").startswith("application/json")
                return HttpAnswer(head.status_code, headers, json.loads(text) if text and is_json else text or None)
            elif isinstance(event, h11.ConnectionClosed):
                raise AssertionError("closed without an answer")
