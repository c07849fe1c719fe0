"""What every connection and request shares: the runtime below, the fan-out, presence, counters. No logic."""

from collections.abc import Collection
from functools import partial
from typing import Any, Protocol
from uuid import uuid4

import trio

from triops.gateway.admission import Parking, WriteLimiter
from triops.gateway.approvals import Announcer
from triops.gateway.door import Door
from triops.gateway.errors import ErrorShape, error_shape
from triops.gateway.fanout import Fanout
from triops.gateway.feeds import Feeds
from triops.gateway.frames import StateVersion
from triops.gateway.presence import Presence
from triops.gateway.rows import session_row
from triops.gateway.scopes import READ
from triops.runtime.compose import Runtime
from triops.runtime.logs import Log


class Socket(Protocol):
    """A WebSocket, from its upgrade on."""

    device: str | None
    """The device that it proved, or is about to prove, to be."""

    @property
    def admitted(self) -> bool:
        """It was let in."""
        ...

    @property
    def by_secret(self) -> bool:
        """It stands on the gateway's own secret, or may be about to."""
        ...

    def close(self, code: int, reason: str) -> None: ...


class Services:
    """Made once by the server; belongs to the Trio thread."""

    def __init__(self, runtime: Runtime, *, host: str, version: str) -> None:
        self.runtime = runtime
        self.version = version
        self.log: Log = runtime.log.bind("gateway")
        self.fanout = Fanout(runtime.bus, partial(session_row, runtime))
        self.presence = Presence(runtime.clock, version=version)
        self.writes = WriteLimiter(trio.current_time)
        self.parking = Parking()
        self.feeds = Feeds()
        self.announcer = Announcer(
            lambda name, payload, scope: self.fanout.broadcast(name, payload, scope=scope), runtime.clock
        )
        self.door = Door(runtime, bind_host=host, log=self.log, announcer=self.announcer)
        self.sockets: Collection[Socket] = ()
        """All of them."""
        self.on_secret: set[trio.CancelScope] = set()
        """Requests over HTTP that are being answered, and that the gateway's secret let in."""
        self.rotating = trio.Lock()
        self.started_at = runtime.clock()
        self.listening: list[str] = []
        """Addresses, once the port is open."""
        self.health_version = 1

    @property
    def uptime_ms(self) -> int:
        return self.runtime.clock() - self.started_at

    def shape_of(self, failure: Exception, **about: Any) -> ErrorShape:
        """What a client is told of a request that failed; by our own fault, the log has the cause."""
        log_id = uuid4().hex[:12]
        shape = error_shape(failure, log_id=log_id)
        if shape.code == "INTERNAL_ERROR":
            self.log.error("a request failed by our own fault", **about, id=log_id, error=failure)
        return shape

    def broadcast_presence(self) -> None:
        """Tell those who may read who is here now."""
        payload = {"presence": self.presence.entries()}
        self.fanout.broadcast("presence", payload, state_version=self.state_version(), scope=READ)

    def state_version(self) -> StateVersion:
        """The counters that ride on `presence` and `health`."""
        return StateVersion(self.presence.version, self.health_version)
