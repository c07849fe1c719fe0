"""The methods of the protocol: name → handler, the type of its params, the scope it needs.

`@method("chat.send", scope="operator.write")` makes the entry; the WebSocket and `POST /rpc/<method>` dispatch
through the same table, and `hello-ok` advertises it.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, get_type_hints

import msgspec

from triops.gateway.errors import WireError
from triops.gateway.frames import Request, decode_params
from triops.gateway.scopes import require_scope
from triops.gateway.services import Services


class Peer(Protocol):
    """Who calls, over whichever transport."""

    @property
    def id(self) -> str:
        """The connection's id; of a plain HTTP request, a fresh one."""
        ...

    @property
    def scopes(self) -> frozenset[str]:
        """All that it may, implied scopes included (`scopes.effective`)."""
        ...

    @property
    def actor(self) -> str:
        """Who is counted by the control-plane limit: device, or address."""
        ...


class Subscriber(Peer, Protocol):
    """A peer with a socket, that events can be sent to."""

    all_sessions: bool
    session_keys: set[str]
    tool_events: bool
    device: str | None
    """The device that it proved to be."""
    since: int
    """When it was let in, in milliseconds: what ended before, it cannot have heard."""


class Call:
    """One request under way. A handler returns its payload, or answers by `respond` itself and returns `ANSWERED`."""

    __slots__ = ("final", "park", "peer", "respond", "services", "subscriber")

    def __init__(
        self,
        services: Services,
        peer: Peer,
        respond: Callable[[Any], None],
        *,
        park: Callable[[], None] = lambda: None,
        subscriber: Subscriber | None = None,
        final: bool = False,
    ) -> None:
        self.services = services
        self.peer = peer
        self.respond = respond
        """Send a payload, or an `ErrorShape`, under this request's id; sync, never raises."""
        self.park = park
        """Say, once, that from now on this request only waits: it gives its slot to others. Sync; raises `WireError`
        when too many wait already."""
        self.subscriber = subscriber
        """The peer's socket; None over plain HTTP."""
        self.final = final
        """The caller waits for the end of the run, not for its acceptance."""

    def require_subscriber(self, method: str) -> Subscriber:
        """The socket that events can be sent to.

        Raises:
            WireError: the call came over plain HTTP.
        """
        if self.subscriber is None:
            raise WireError("INVALID_REQUEST", f"{method} only subscribes a socket; over HTTP there is none")
        return self.subscriber


ANSWERED: Any = object()
"""What a handler returns that has answered by itself."""

Handler = Callable[[Call, Any], Awaitable[Any]]


class Method(msgspec.Struct, frozen=True):
    """One entry of the table."""

    name: str
    handler: Handler
    decoder: msgspec.json.Decoder[Any]
    scope: str | None
    """None: every authenticated operator."""
    control_plane: bool
    """Counts against the limit of control-plane writes."""


METHODS: dict[str, Method] = {}

NODE_METHODS = frozenset(
    (
        *(f"node.{name}" for name in ("event", "invoke.progress", "invoke.result", "skills.update")),
        *(f"node.{name}" for name in ("pending.ack", "pending.drain", "pending.pull")),
        *("node.pluginSurface.refresh", "node.pluginTools.update", "skills.bins"),
    )
)
"""What only a connection of role `node` may call; there are none here."""


def method(name: str, *, scope: str | None, control_plane: bool = False) -> Callable[[Handler], Handler]:
    """Enter the decorated coroutine `(call, params: SomeStruct) -> payload` as method `name`."""

    def enter(handler: Handler) -> Handler:
        params: Any = get_type_hints(handler)["params"]
        METHODS[name] = Method(name, handler, msgspec.json.Decoder(params), scope, control_plane)
        return handler

    return enter


class NoParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`{}`."""


async def dispatch(call: Call, request: Request) -> Any:
    """Check and run one request.

    Returns:
        The payload, or `ANSWERED`.

    Raises:
        WireError: unknown method, missing scope, wrong params, too many control-plane writes.
        RuntimeFault: the runtime refuses.
    """
    entry = METHODS.get(request.method)
    if entry is None:
        if request.method in NODE_METHODS:
            raise WireError("INVALID_REQUEST", "unauthorized role: operator")
        raise WireError("INVALID_REQUEST", f"unknown method: {request.method}")
    if entry.scope is not None:
        require_scope(entry.scope, call.peer.scopes)
    if entry.control_plane:
        call.services.writes.count(entry.name, call.peer.actor)
    params = decode_params(entry.name, entry.decoder, request.params)
    return await entry.handler(call, params)
