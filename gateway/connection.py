"""One WebSocket client: its nursery holds the reader, the writer, the keep-alive and a task for each request.

The reader never waits for a handler; all output goes through the outbox and the one writer. A client that leaves ends
this nursery and nothing else: its runs belong to the runtime.
"""

from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import uuid4

import trio
from trio_websocket import ConnectionClosed, HandshakeError, WebSocketConnection, wrap_server_stream
from wsproto.utilities import LocalProtocolError

from triops.gateway.door import Caller
from triops.gateway.errors import ErrorShape, WireError
from triops.gateway.frames import Request, encode_error, encode_response
from triops.gateway.hello import MAX_PAYLOAD, hello_ok
from triops.gateway.methods import ANSWERED, Call, dispatch
from triops.gateway.outbox import Outbox
from triops.gateway.pairing import Admit, Refuse
from triops.gateway.schema.connect import ConnectParams
from triops.gateway.scopes import READ, effective
from triops.gateway.services import Services
from triops.gateway.session import (
    HANDSHAKE_SECONDS,
    TOO_BIG,
    Action,
    Authenticate,
    Close,
    Dispatch,
    GatewaySession,
    Send,
    State,
    close_reason,
)
from triops.gateway.transport import Broken, Transport, close_frame, text_frame
from triops.runtime.boundaries import contain
from triops.runtime.errors import Unavailable

PREAUTH_BYTES = 256 * 1024  # of the socket, before anybody is known; the session's own limit is the frame's
REQUESTS_AT_WORK = 32  # of one connection; past it the reader stops reading
REQUESTS_WAITING = 256  # parked ones (`agent.wait`, the second answer of `agent`); past it `UNAVAILABLE`
PING_EVERY = 25.0  # seconds; a pong must come within as many
ABNORMAL = 1006  # never sent: there was no close frame
CLOSE_GRACE = 1.0  # seconds that a close handshake may take


class Connection:
    """A client past its upgrade. Also a `methods.Subscriber` and a `fanout.Audience`."""

    def __init__(self, ws: WebSocketConnection, transport: Transport, caller: Caller, services: Services) -> None:
        self._ws = ws
        self._transport = transport
        self._caller = caller
        self._services = services
        self._session = GatewaySession(nonce=str(uuid4()))
        self._slots = trio.Semaphore(REQUESTS_AT_WORK)
        self._parked = 0
        self._close: Close | None = None
        """Why we end it, if we do."""
        self._since: float | None = None
        """When it was let in."""
        self._granted: tuple[str, ...] = ()
        self._told = False
        """The door has logged why it was not."""
        self.closed = trio.Event()
        """The socket is gone, and nothing of this connection runs any more."""
        self.id = str(uuid4())
        self.actor = caller.address
        self.device: str | None = None
        self._by_secret = False
        self.scopes: frozenset[str] = frozenset()
        self.outbox = Outbox()
        self.reads = False
        self.all_sessions = False
        self.session_keys: set[str] = set()
        self.scoped = False
        self.tool_events = False
        self.since = 0
        self.turn_phases = False

    @property
    def unknown(self) -> bool:
        """It has not been let in yet."""
        return self._session.state in (State.NEW, State.CONNECT, State.DECIDING)

    @property
    def admitted(self) -> bool:
        """It was let in, though it may be closing by now."""
        return self._since is not None

    @property
    def by_secret(self) -> bool:
        """It stands on the gateway's own secret, or what it stands on is being decided."""
        return self._by_secret or self._session.state is State.DECIDING

    async def serve(self, nursery: trio.Nursery) -> bool:
        """Talk until either side closes; whether the peer was stopped in the middle of what it sends. `nursery` is this
        connection's own."""
        nursery.start_soon(self._write, nursery, name="writer")
        nursery.start_soon(self._keep_handshake_time, name="handshake deadline")
        try:
            await self._act(self._session.opened(self._services.runtime.clock()), nursery)
            while True:
                message = await self._ws.get_message()
                actions = (
                    self._session.text_frame(message) if isinstance(message, str) else self._session.binary_frame()
                )
                await self._act(actions, nursery)
        except ConnectionClosed as closed:
            if self._close is not None:
                await trio.sleep_forever()  # we say goodbye: the writer waits for the peer's, and ends us
            if self._transport.overflowed:
                self._close = Close(TOO_BIG, "preauth payload too large")
                await self._transport.send_all(close_frame(self._close.code, self._close.reason))
            return self._transport.overflowed or (closed.reason is not None and closed.reason.code == TOO_BIG)

    def left(self) -> None:
        """The socket is gone and no task of this connection runs any more: nobody need tell it anything."""
        self._services.fanout.leave(self)
        if self._services.presence.gone(self.id):
            self._services.broadcast_presence()
        self.closed.set()
        slow = self.outbox.overflowed or self._transport.late
        ended = self._close or (Close(ABNORMAL, "slow consumer") if slow else self._ws.closed)
        about = {"code": ended.code, "reason": ended.reason} if ended else {"code": ABNORMAL, "reason": "cut off"}
        if self._since is not None:
            seconds = round(trio.current_time() - self._since, 3)
            self._services.log.info("client left", **self._who(), scopes=self._granted, seconds=seconds, **about)
        elif self._close is not None and not self._told:
            if (error := self._close.error) is not None:
                about |= {"cause": (error.details or {}).get("code", error.code)}
                about |= {"reason": error.message, "details": error.details}
            who = self._who()
            who["clientId"] = who.pop("client", None)
            self._services.log.refusal("refused a connect", **about, **who, locality=self._caller.locality)

    def _who(self) -> dict[str, Any]:
        """The client, as the log names it."""
        about: dict[str, Any] = {"conn": self.id, "peer": self._caller.address}
        if (client := self._session.client) is not None:
            about |= {"client": client.id, "mode": client.mode}
        return about

    def close(self, code: int, reason: str, error: ErrorShape | None = None) -> None:
        """Send what waits, then close; sync, returns at once. Nothing that arrives from now on is done."""
        self._session.end()
        if self._close is None:
            self._close = Close(code, close_reason(reason), error)
            self.outbox.ring()

    # -- what the session says -------------------------------------------------------------------------------------

    async def _act(self, actions: list[Action], nursery: trio.Nursery) -> None:
        for action in actions:
            match action:
                case Send(frame, refused):
                    self.outbox.put(frame)
                    if refused is not None:
                        self._services.log.refusal("refused a frame", reason=refused.message, **self._who())
                case Close(code, reason, error):
                    self.close(code, reason, error)
                case Authenticate(params):
                    nursery.start_soon(self._authenticate, params, nursery, name="authenticate")
                case Dispatch(request):
                    try:
                        self._slots.acquire_nowait()  # nearly always: one checkpoint less on each request
                    except trio.WouldBlock:
                        await self._slots.acquire()
                    nursery.start_soon(self._request, request, nursery, name=request.method)

    async def _authenticate(self, params: ConnectParams, nursery: trio.Nursery) -> None:
        log = self._services.log
        self.device = params.device.id if params.device else None
        with contain(log, "a connect failed by our own fault", failed=lambda _: self.close(1011, "internal error")):
            try:
                decision = await self._services.door.admit(params, self._caller, nonce=self._session.nonce)
                if isinstance(decision, Admit):
                    await self._welcome(params, decision, nursery)
                    return
            except Unavailable as fault:  # the disk's
                error = WireError("UNAVAILABLE", str(fault), retryable=True)
                decision = Refuse(error=error, close_reason="the state cannot be used")
            self._told = True
            await self._act(self._session.refused(decision.error, reason=decision.close_reason), nursery)

    async def _welcome(self, params: ConnectParams, admitted: Admit, nursery: trio.Nursery) -> None:
        hello = await hello_ok(self._services, self.id, admitted)
        if self._session.state is not State.DECIDING or self._close is not None:
            return  # it took too long, or what it stood on was taken back, and the close is on its way
        self._transport.cap(None)
        self._granted = admitted.scopes
        self._by_secret = admitted.method != "device-token" or bool(admitted.token and admitted.token.issuer)
        self.scopes = effective(admitted.scopes)
        self.reads = READ in self.scopes
        self.scoped = "session-scoped-events" in params.caps
        self.tool_events = "tool-events" in params.caps
        self.since = self._services.runtime.clock()
        self.turn_phases = "turn-phases" in params.caps
        if params.device is not None:
            self.actor = params.device.id
        # First the hello, then events: joining afterwards keeps the order.
        actions = self._session.admitted(hello)
        await self._act(actions[:1], nursery)
        self._services.fanout.join(self)
        nursery.start_soon(self._keep_alive, nursery, name="keep-alive")
        if self._services.presence.connected(
            self.id, params.client, scopes=admitted.scopes, address=self._caller.address, device=self.device
        ):
            self._services.broadcast_presence()
        self._since = trio.current_time()
        self._services.log.info("client connected", **self._who(), scopes=self._granted, method=admitted.method)
        await self._act(actions[1:], nursery)

    # -- requests --------------------------------------------------------------------------------------------------

    async def _request(self, request: Request, nursery: trio.Nursery) -> None:
        """One request, to its answer: the request boundary."""
        parked = False

        def park() -> None:
            nonlocal parked
            if self._parked >= REQUESTS_WAITING:
                raise WireError("UNAVAILABLE", "too many requests of this connection wait already", retryable=True)
            parked = True
            self._parked += 1
            self._slots.release()

        try:
            if self._close is not None:
                return
            respond = partial(self._respond, request)
            call = Call(self._services, self, respond, park=park, subscriber=self)
            error: ErrorShape | None = None
            try:
                payload = await dispatch(call, request)
                if payload is not ANSWERED:
                    respond(payload)
            except Exception as failure:  # noqa: BLE001 - the request boundary
                error = self._services.shape_of(failure, method=request.method)
                if error.code != "INTERNAL_ERROR":
                    about = {"method": request.method, "code": error.code, "reason": error.message}
                    self._services.log.refusal("refused a call", "info", **about, **self._who())
                respond(error)
            await self._act(self._session.answered(error), nursery)
        finally:
            if parked:
                self._parked -= 1
            else:
                self._slots.release()

    def _respond(self, request: Request, payload: Any) -> None:
        if isinstance(payload, ErrorShape):
            self.outbox.put(encode_error(request.id, payload))
        else:
            self.outbox.put(encode_response(request.id, payload))

    # -- keeping the socket ----------------------------------------------------------------------------------------

    async def _write(self, nursery: trio.Nursery) -> None:
        """The one writer: ready-made frames, many in one write; at the end the close."""
        try:
            while True:
                frames = self.outbox.take()
                if frames:
                    await self._transport.send_all(b"".join(map(text_frame, frames)))
                elif self._close is not None:
                    break
                elif not self.outbox.overflowed:
                    await self.outbox.wait()  # with no checkpoint since the look at all three: no ring is missed
                if self.outbox.overflowed:
                    self._close = Close(1008, "slow consumer")
                    break
            assert self._close is not None
            with trio.move_on_after(CLOSE_GRACE):
                await self._ws.aclose(self._close.code, self._close.reason)
        except (*Broken, ConnectionClosed):
            pass  # it left, or takes no more
        nursery.cancel_scope.cancel(reason="the connection is closed")

    async def _keep_handshake_time(self) -> None:
        await trio.sleep(HANDSHAKE_SECONDS)
        for action in self._session.timed_out():
            if isinstance(action, Close):
                self.close(action.code, action.reason)

    async def _keep_alive(self, nursery: trio.Nursery) -> None:
        while True:
            await trio.sleep(PING_EVERY)
            try:
                with trio.fail_after(PING_EVERY):
                    await self._ws.ping()
            except (trio.TooSlowError, ConnectionClosed, *Broken):
                self._close = self._close or Close(ABNORMAL, "no answer to a ping")
                nursery.cancel_scope.cancel(reason="no pong")


async def serve_websocket(
    transport: Transport,
    caller: Caller,
    services: Services,
    *,
    opened: Callable[[Connection], None],
) -> None:
    """Upgrade a request whose head is read and checked, and serve the client until it is gone.

    `opened` is told of the connection, so that a shutdown can close it. The transport is closed at the end.
    """
    transport.cap(PREAUTH_BYTES)
    cut_short = False
    try:
        async with trio.open_nursery() as nursery:
            with trio.fail_after(HANDSHAKE_SECONDS):
                request = await wrap_server_stream(
                    nursery, transport, message_queue_size=16, max_message_size=MAX_PAYLOAD, receive_buffer_size=65536
                )
                ws = await request.accept()
            connection = Connection(ws, transport, caller, services)
            opened(connection)
            cut_short = await connection.serve(nursery)
            nursery.cancel_scope.cancel(reason="the connection is over")
        if cut_short:
            await transport.linger()  # only here does the library, which reads on after a message too big, read no more
    except* (ConnectionClosed, HandshakeError, LocalProtocolError, trio.TooSlowError, *Broken):
        # The peer left, or never meant it. The library sends what a closing connection cannot send any more, from its
        # own reader too (a pong), and says so by LocalProtocolError.
        pass
    finally:
        await trio.aclose_forcefully(transport)
