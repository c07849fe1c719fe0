"""The protocol state of one connection (§3.1): frames in, actions out. Never awaits; knows no sockets, stores, methods.

A connection is `NEW` until its challenge is out, waits in `CONNECT` for the one request that may come first, and in
`DECIDING` for the shell's answer to `Authenticate`; frames that come meanwhile are kept. Then it is `READY`, where each
request is dispatched, until it is `CLOSING`, where nothing counts any more. Every way out of the first three states is
a close with a code; a refusal is always sent before the close. `_NEXT` is the whole machine: what it does not list is
a fault of ours. What a text means in each state stands in the table at the end of the class.
"""

from collections.abc import Callable
from enum import Enum, auto
from typing import ClassVar

import msgspec

from triops.gateway.errors import ErrorShape, WireError
from triops.gateway.frames import (
    NO_ID,
    InvalidFrame,
    MalformedFrame,
    Request,
    decode_params,
    decode_request,
    encode_error,
    encode_event,
    encode_response,
)
from triops.gateway.remedies import remedied
from triops.gateway.schema.connect import (
    MIN_NODE_PROTOCOL,
    MIN_PROBE_PROTOCOL,
    PROTOCOL,
    ClientInfo,
    ConnectParams,
    HelloOk,
)

HANDSHAKE_SECONDS = 15.0
MAX_PREAUTH_BYTES = 65_536
MAX_PENDING_FRAMES = 16
MAX_UNAUTHORIZED_CALLS = 10
MAX_REASON_BYTES = 120  # the close frame allows 123; recorded reasons end here

NORMAL, PROTOCOL_ERROR, POLICY, TOO_BIG = 1000, 1002, 1008, 1009


class Send(msgspec.Struct, frozen=True):
    """Send this text frame."""

    frame: bytes
    refused: ErrorShape | None = None
    """It says this of a frame that was none, and the connection lives on."""


class Close(msgspec.Struct, frozen=True):
    """Send a close frame; nothing is sent or read after it."""

    code: int
    reason: str
    error: ErrorShape | None = None
    """What the client was told before, if it was."""


class Authenticate(msgspec.Struct, frozen=True):
    """Decide on this connect, then call `admitted` or `refused`."""

    params: ConnectParams


class Dispatch(msgspec.Struct, frozen=True):
    """Run this request, and tell `answered` how it ended."""

    request: Request


Action = Send | Close | Authenticate | Dispatch


class State(Enum):
    """Where a connection stands; the module says what each means."""

    NEW = auto()
    CONNECT = auto()
    DECIDING = auto()
    READY = auto()
    CLOSING = auto()


class Input(Enum):
    """What moves it on."""

    OPENED = auto()
    CONNECTED = auto()
    ADMITTED = auto()
    TIMED_OUT = auto()
    ENDED = auto()


_NEXT: dict[tuple[State, Input], State] = {
    (State.NEW, Input.OPENED): State.CONNECT,
    (State.CONNECT, Input.CONNECTED): State.DECIDING,
    (State.CONNECT, Input.TIMED_OUT): State.CLOSING,
    (State.CONNECT, Input.ENDED): State.CLOSING,
    (State.DECIDING, Input.ADMITTED): State.READY,
    (State.DECIDING, Input.TIMED_OUT): State.CLOSING,
    (State.DECIDING, Input.ENDED): State.CLOSING,
    (State.READY, Input.TIMED_OUT): State.READY,
    (State.READY, Input.ENDED): State.CLOSING,
    (State.CLOSING, Input.ADMITTED): State.CLOSING,
    (State.CLOSING, Input.TIMED_OUT): State.CLOSING,
    (State.CLOSING, Input.ENDED): State.CLOSING,
}


class GatewaySession:
    """One connection's side of the protocol. `nonce` must be fresh and unguessable: devices sign it."""

    def __init__(self, *, nonce: str) -> None:
        self.nonce = nonce
        self.state = State.NEW
        self.client: ClientInfo | None = None
        """Who it is, once its connect could be read."""
        self._connect_id = ""
        self._pending: list[str] = []
        self._unauthorized = 0

    def opened(self, now_ms: int) -> list[Action]:
        """The socket is open: challenge the client."""
        self._step(Input.OPENED)
        return [Send(encode_event("connect.challenge", {"nonce": self.nonce, "ts": now_ms}).frame(None))]

    def text_frame(self, text: str) -> list[Action]:
        """A text message arrived. Never raises for what a client sends."""
        return self._ON_TEXT[self.state](self, text)

    def binary_frame(self) -> list[Action]:
        """A binary message arrived; the protocol has none."""
        if self.state is State.READY:
            return [_invalid(NO_ID, "invalid request frame: must be object")]
        return self._close(NORMAL, "binary frame")

    def timed_out(self) -> list[Action]:
        """The handshake took longer than `HANDSHAKE_SECONDS`."""
        was = self.state
        return [] if self._step(Input.TIMED_OUT) is was else [Close(NORMAL, "handshake timeout")]

    def admitted(self, hello: HelloOk) -> list[Action]:
        """The connect was let in: greet, then take up the frames that came early."""
        if self._step(Input.ADMITTED) is State.CLOSING:
            return []
        early, self._pending = self._pending, []
        actions: list[Action] = [Send(encode_response(self._connect_id, hello))]
        return actions + [action for text in early for action in self._call(text)]

    def refused(self, error: WireError, *, reason: str | None = None) -> list[Action]:
        """The connect was not let in: say why, then close; `reason` if the close says more than the error."""
        return self._refuse(self._connect_id, error, reason=reason)

    def end(self) -> None:
        """It is over: nothing that still comes counts."""
        if self.state is not State.NEW:
            self._step(Input.ENDED)

    def answered(self, error: ErrorShape | None) -> list[Action]:
        """A dispatched request got this answer. Who keeps calling what its role may not is closed."""
        wrong = error is not None and error.message.startswith("unauthorized role:")
        self._unauthorized = self._unauthorized + 1 if wrong else 0
        return self._close(POLICY, "repeated unauthorized calls") if self._unauthorized > MAX_UNAUTHORIZED_CALLS else []

    def _first(self, text: str) -> list[Action]:
        if _too_big(text):
            return self._close(TOO_BIG, "preauth payload too large")
        try:
            request = decode_request(text)
        except MalformedFrame as error:
            return self._close(NORMAL, str(error))
        except InvalidFrame:
            return self._close(POLICY, "invalid request frame")
        if request.method != "connect":
            error = WireError("INVALID_REQUEST", "invalid handshake: first request must be connect")
            return self._refuse(request.id, error)
        try:
            params = decode_params("connect", _connect_params, request.params)
        except WireError as error:
            return self._refuse(request.id, error)
        self.client = params.client
        if not _speaks(params):
            return self._refuse(request.id, _protocol_mismatch(params), PROTOCOL_ERROR)
        if (fault := _role_fault(params)) is not None:
            return self._refuse(request.id, fault)
        self._step(Input.CONNECTED)
        self._connect_id = request.id
        return [Authenticate(params)]

    def _early(self, text: str) -> list[Action]:
        if _too_big(text):
            return self._close(TOO_BIG, "preauth payload too large")
        if len(self._pending) == MAX_PENDING_FRAMES:
            return self._close(POLICY, "too many pending handshake frames")
        self._pending.append(text)
        return []

    def _call(self, text: str) -> list[Action]:
        try:
            request = decode_request(text)
        except MalformedFrame as error:
            return [_invalid(NO_ID, f"invalid request frame: {error}")]
        except InvalidFrame as error:
            return [_invalid(error.id, str(error))]
        if request.method == "connect":
            return [_invalid(request.id, "connect is only valid as the first request")]
        return [Dispatch(request)]

    def _refuse(self, id: str, error: WireError, code: int = POLICY, reason: str | None = None) -> list[Action]:
        if self.state is State.CLOSING:
            return []
        said, shape = str(error) if reason is None else reason, remedied(error.shape)
        return [Send(encode_error(id, shape)), *self._close(code, said, shape)]

    def _close(self, code: int, reason: str, error: ErrorShape | None = None) -> list[Action]:
        was, _ = self.state, self._step(Input.ENDED)
        return [] if was is State.CLOSING else [Close(code, close_reason(reason), error)]

    def _step(self, event: Input) -> State:
        try:
            self.state = _NEXT[self.state, event]
        except KeyError:
            raise AssertionError(f"{event.name} in {self.state.name}") from None
        return self.state

    _ON_TEXT: ClassVar[dict[State, Callable[["GatewaySession", str], list[Action]]]] = {
        State.CONNECT: _first,
        State.DECIDING: _early,
        State.READY: _call,
        State.CLOSING: lambda _session, _text: [],
    }


_connect_params = msgspec.json.Decoder(ConnectParams)
_OLDEST = {"probe": MIN_PROBE_PROTOCOL, "node": MIN_NODE_PROTOCOL}


def _speaks(params: ConnectParams) -> bool:
    """Whether there is a protocol that both sides know (§3.3)."""
    return params.min_protocol <= PROTOCOL and params.max_protocol >= _OLDEST.get(params.client.mode, PROTOCOL)


def _protocol_mismatch(params: ConnectParams) -> WireError:
    details = {
        "code": "PROTOCOL_MISMATCH",
        "clientMinProtocol": params.min_protocol,
        "clientMaxProtocol": params.max_protocol,
        "expectedProtocol": PROTOCOL,
        "minimumProbeProtocol": MIN_PROBE_PROTOCOL,
    }
    return WireError("INVALID_REQUEST", "protocol mismatch", details=details)


def _role_fault(params: ConnectParams) -> WireError | None:
    """Why this gateway has no place for the client's role; `None` for operators."""
    if "worker" in (params.role, params.client.mode) or params.client.id == "openclaw-worker":
        return WireError("INVALID_REQUEST", "invalid-handshake")
    if params.role == "node":
        details = {"code": "ROLE_NOT_SUPPORTED", "role": "node"}
        return WireError("INVALID_REQUEST", "role not supported: this gateway takes no nodes", details=details)
    return None if params.role == "operator" else WireError("INVALID_REQUEST", "invalid role")


def _invalid(id: str | int, message: str) -> Send:
    error = ErrorShape(code="INVALID_REQUEST", message=message)
    return Send(encode_error(id, error), error)


def _too_big(text: str) -> bool:
    return len(text) > MAX_PREAUTH_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_PREAUTH_BYTES


def close_reason(text: str) -> str:
    """`text`, cut to what a close frame holds, never within a character."""
    return text.encode("utf-8", "replace")[:MAX_REASON_BYTES].decode("utf-8", "ignore")
