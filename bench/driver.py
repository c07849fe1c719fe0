"""The load generator's client: as little work as possible between the socket and the clock. Knows no statistics.

wsproto straight on a Trio stream, and not the public client: a frame is stamped as soon as its bytes are read, before
it is parsed or another task hears of it. On the floor this costs 0.1–0.2 ms of CPU a turn less than trio-websocket.
"""

import itertools
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from urllib.parse import urlsplit

import msgspec
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import CloseConnection, Event, Ping, RejectConnection, Request, TextMessage
from wsproto.utilities import RemoteProtocolError

from triops.bench.errors import BenchFailed

now = time.perf_counter_ns
"""The same clock as the mock model's marks."""

SCOPES = ["operator.read", "operator.write", "operator.admin"]
HANDSHAKE_LIMIT = 30.0
ANSWER_LIMIT = 60.0
TERMINAL = ("final", "error", "aborted")


class Place(msgspec.Struct, frozen=True):
    """What a URL names."""

    host: str
    port: int
    secure: bool
    target: str

    @property
    def netloc(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def place_of(url: str, option: str = "--url", example: str = "ws://127.0.0.1:18789") -> Place:
    """Taken apart, as `option` it was given as.

    Raises:
        BenchFailed: it is no URL of a server.
    """
    try:
        parts = urlsplit(url)
        secure = parts.scheme in ("wss", "https")
        if not parts.hostname or not (secure or parts.scheme in ("ws", "http")):
            raise ValueError("no address of a server")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return Place(parts.hostname, parts.port or (443 if secure else 80), secure, target)
    except ValueError as error:
        raise BenchFailed(f"{option} {url!r}: {error}; write for example {example}") from error


class Turn(msgspec.Struct):
    """What the client saw of one turn, in ns of `perf_counter_ns`; 0 where a thing did not happen."""

    run: str
    session: str
    sent: int = 0
    acked: int = 0
    first_delta: int = 0
    final: int = 0
    due: int = 0
    """When an open loop wanted it sent; a closed loop has no such moment."""
    state: str = "timeout"
    """`final`, `error`, `aborted`; `refused` (no ack) or `timeout`."""
    error: str = ""
    phases: dict[str, float] = {}
    """ms that a gateway says it spent in each, where it has the cap `turn-phases`; in its order."""


class Frame(msgspec.Struct, frozen=True):
    type: str
    id: str = ""
    event: str = ""
    ok: bool = False
    payload: msgspec.Raw = msgspec.Raw(b"null")
    error: msgspec.Raw = msgspec.Raw()


class ChatPayload(msgspec.Struct, frozen=True, rename="camel"):
    run_id: str = ""
    state: str = ""
    error_message: str = ""


class AgentData(msgspec.Struct, frozen=True):
    phases: dict[str, float] = {}


class AgentPayload(msgspec.Struct, frozen=True, rename="camel"):
    run_id: str = ""
    data: AgentData = AgentData()


decode_frame = msgspec.json.Decoder(Frame).decode
decode_chat = msgspec.json.Decoder(ChatPayload).decode
decode_agent = msgspec.json.Decoder(AgentPayload).decode


class Driver:
    """One connection to one gateway, shared by all sessions under load; made by `open_driver`."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self._writing = trio.Lock()
        self._partial = ""
        self._numbers = itertools.count()
        self._turns: dict[str, tuple[Turn, trio.Event]] = {}
        self._asked: dict[str, trio.MemorySendChannel[Frame]] = {}
        self.listener: Callable[[Frame, int], None] = lambda frame, stamp: None
        """Told of each frame and its moment; must not wait."""

    async def connect(self, place: Place, token: str) -> None:
        """Upgrade, answer the challenge and wait for `hello-ok`, as a local backend (protocol 4).

        Raises:
            BenchFailed: the gateway refused.
        """
        await self._send(Request(host=place.netloc, target=place.target))
        await self._wait_for(lambda frame: frame.event == "connect.challenge")
        client = {"id": "gateway-client", "version": "0", "platform": "bench", "mode": "backend"}
        params: dict[str, object] = {"minProtocol": 4, "maxProtocol": 4, "client": client, "role": "operator"}
        params |= {"scopes": SCOPES, "caps": ["turn-phases"], "auth": {"token": token}}
        await self._request("connect", "connect", params)
        hello = await self._wait_for(lambda frame: frame.id == "connect")
        if not hello.ok:
            raise BenchFailed(f"the gateway refused to connect: {bytes(hello.error).decode()}")

    async def read(self) -> None:
        """Take in frames until cancelled.

        Raises:
            BenchFailed: the gateway closed the connection, or sent what is no frame of this protocol.
        """
        with _as_failure():
            while True:
                stamp, frames = await self._receive()
                for frame in frames:
                    self._note(frame, stamp)

    async def ask(self, method: str, params: object) -> msgspec.Raw:
        """Any request; gives the payload of its answer.

        Raises:
            BenchFailed: the gateway refused, or said nothing in time.
        """
        id, (send, receive) = f"{method} {next(self._numbers)}", trio.open_memory_channel[Frame](1)
        self._asked[id] = send
        try:
            with send, receive, trio.fail_after(ANSWER_LIMIT):
                await self._request(id, method, params)
                answer = await receive.receive()
        except trio.TooSlowError as error:
            raise BenchFailed(f"the gateway did not answer {method} within {ANSWER_LIMIT:.0f} s") from error
        finally:
            self._asked.pop(id, None)
        if not answer.ok:
            raise BenchFailed(f"the gateway refused {method}: {bytes(answer.error).decode()}")
        return answer.payload

    async def chat(self, turn: Turn, message: str) -> None:
        """Play one turn, from `chat.send` to its terminal event, and note in it what is seen. Cancelled from outside,
        its later events are ignored."""
        _, over = self._turns[turn.run] = turn, trio.Event()
        try:
            params = {"sessionKey": turn.session, "message": message, "idempotencyKey": turn.run}
            turn.sent = await self._request(turn.run, "chat.send", params)
            await over.wait()
        finally:
            del self._turns[turn.run]

    def _note(self, frame: Frame, stamp: int) -> None:
        self.listener(frame, stamp)
        if asked := self._asked.pop(frame.id, None):
            return asked.send_nowait(frame)
        if frame.event == "agent":
            end = decode_agent(frame.payload) if b'"phases"' in bytes(frame.payload) else AgentPayload()
            if end.data.phases and (found := self._turns.get(end.run_id)):
                found[0].phases = end.data.phases
            return
        chat = decode_chat(frame.payload) if frame.event == "chat" else None
        known = self._turns.get(chat.run_id if chat else frame.id)
        if known is None:
            return
        turn, over = known
        if chat is None and frame.ok:
            turn.acked = stamp
        elif chat is None:
            turn.state, turn.error = "refused", bytes(frame.error).decode()
            over.set()
        elif chat.state == "delta":
            turn.first_delta = turn.first_delta or stamp
        elif chat.state in TERMINAL:
            turn.final, turn.state, turn.error = stamp, chat.state, chat.error_message
            over.set()

    async def _request(self, id: str, method: str, params: object) -> int:
        frame = {"type": "req", "id": id, "method": method, "params": params}
        return await self._send(TextMessage(msgspec.json.encode(frame).decode()))

    async def _send(self, event: Event) -> int:
        """Returns the moment just before the write; waiting for other senders comes before it."""
        async with self._writing:
            data = self._protocol.send(event)
            stamp = now()
            with _as_failure():
                await self._stream.send_all(data)
        return stamp

    async def _wait_for(self, wanted: Callable[[Frame], bool]) -> Frame:
        while True:
            _, frames = await self._receive()
            for frame in frames:
                if wanted(frame):
                    return frame

    async def _receive(self) -> tuple[int, list[Frame]]:
        """What one read held, and when it was there."""
        with _as_failure():
            data = await self._stream.receive_some(65_536)
            stamp = now()
            self._protocol.receive_data(bytes(data) or None)
        frames: list[Frame] = []
        for event in self._protocol.events():
            match event:
                case TextMessage(data=text):
                    self._partial += text
                    if event.message_finished:
                        frames.append(decode_frame(self._partial))
                        self._partial = ""
                case Ping():
                    await self._send(event.response())
                case CloseConnection(code=code, reason=reason):
                    raise BenchFailed(f"the gateway closed the connection: {code} {reason or ''}".rstrip())
                case RejectConnection(status_code=status):
                    raise BenchFailed(f"the gateway answered the upgrade with HTTP {status}")
                case _:
                    pass
        return stamp, frames


@contextmanager
def _as_failure() -> Generator[None]:
    try:
        yield
    except (trio.BrokenResourceError, RemoteProtocolError) as error:
        raise BenchFailed(f"the connection to the gateway broke: {error}") from error
    except msgspec.DecodeError as error:
        raise BenchFailed(f"the gateway sent a frame that cannot be read: {error}") from error


@asynccontextmanager
async def open_driver(url: str, token: str) -> AsyncGenerator[Driver]:
    """A connected driver (`ws`, `wss`, `http` or `https` URL); the end of the block closes it.

    Raises:
        BenchFailed: nobody listens there, or the gateway refused; inside the block, when the connection was lost.
    """
    place = place_of(url)
    try:
        opener = trio.open_ssl_over_tcp_stream if place.secure else trio.open_tcp_stream
        stream = await opener(place.host, place.port)
    except OSError as error:
        raise BenchFailed(f"no gateway listens at {url}: {error}") from error
    driver = Driver(stream)
    try:
        with trio.move_on_after(HANDSHAKE_LIMIT) as limit, _as_failure():
            await driver.connect(place, token)
        if limit.cancelled_caught:
            raise BenchFailed(f"{url} listens, but said no hello within {HANDSHAKE_LIMIT:.0f} s")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(driver.read)
            yield driver
            nursery.cancel_scope.cancel(reason="the measurement is over")
    finally:
        await trio.aclose_forcefully(stream)
