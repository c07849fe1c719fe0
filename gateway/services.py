"""What every connection and request shares: the runtime below, the fan-out, presence, counters. No logic."""

from functools import partial

import trio

from triops.gateway.admission import Parking, WriteLimiter
from triops.gateway.deliveries import Deliveries
from triops.gateway.fanout import Fanout
from triops.gateway.feeds import Feeds
from triops.gateway.frames import StateVersion
from triops.gateway.presence import Presence
from triops.gateway.rows import session_row
from triops.runtime.compose import Runtime
from triops.runtime.logs import Log


class Services:
    """Made once by the server; belongs to the Trio thread."""

    def __init__(self, runtime: Runtime, *, version: str, boot_id: str) -> None:
        self.runtime = runtime
        self.version = version
        self.boot_id = boot_id
        self.log: Log = runtime.log.bind("gateway")
        self.fanout = Fanout(runtime.bus, partial(session_row, runtime))
        self.presence = Presence(runtime.clock, version=version)
        self.writes = WriteLimiter(trio.current_time)
        self.parking = Parking()
        self.feeds = Feeds()
        self.deliveries = Deliveries(runtime, self.log)
        self.started_at = runtime.clock()
        self.listening: list[str] = []
        """Addresses, once the port is open."""
        self.health_version = 1

    @property
    def uptime_ms(self) -> int:
        return self.runtime.clock() - self.started_at

    def broadcast_presence(self) -> None:
        """Tell those who may read who is here now."""
        payload = {"presence": self.presence.entries()}
        self.fanout.broadcast("presence", payload, state_version=self.state_version(), reads=True)

    def state_version(self) -> StateVersion:
        """The counters that ride on `presence` and `health`."""
        return StateVersion(self.presence.version, self.health_version)
