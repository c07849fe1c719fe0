"""Who is here: one entry for the gateway and one for each tracked client (protocol §3.4)."""

import platform
import socket

from msgspec.structs import replace

from triops.gateway.schema.connect import ClientInfo, PresenceEntry
from triops.gateway.scopes import SCOPES, limited
from triops.runtime.clock import Clock

UNTRACKED = frozenset({"cli", "backend", "probe"})
"""Client modes that come and go with single commands."""
KEEP_GONE_MS = 300_000
"""How long a client that left is still shown, with `reason: disconnect`."""


_SAME = [name for name in ClientInfo.__struct_fields__ if name in PresenceEntry.__struct_fields__]


class Presence:
    """The list, and the counter that rides on it."""

    def __init__(self, clock: Clock, *, version: str) -> None:
        self._clock = clock
        host = socket.gethostname()
        self._entries = {
            "self": PresenceEntry(
                host=host,
                version=version,
                platform=f"{platform.system().lower()} {platform.release()}",
                mode="gateway",
                reason="self",
                text=f"Gateway: {host} · app {version} · mode gateway · reason self",
                ts=clock(),
            )
        }
        self.version = 1

    def connected(
        self,
        connection_id: str,
        client: ClientInfo,
        *,
        scopes: tuple[str, ...],
        address: str,
        device: str | None = None,
    ) -> bool:
        """Note a client that said hello; False for those that are not tracked."""
        if client.mode in UNTRACKED:
            return False
        name = client.display_name or client.id
        now = self._clock()
        self._entries[connection_id] = PresenceEntry(
            ts=now,
            host=name,
            client_id=client.id,
            ip=address,
            **{name: getattr(client, name) for name in _SAME},
            reason="connect",
            text=f"{name} · mode {client.mode}",
            online_since=now,
            device_id=device,
            roles=("operator",),
            scopes=limited(scopes, SCOPES),
        )
        self.version += 1
        return True

    def gone(self, connection_id: str) -> bool:
        """Note that a client left; False when it was not tracked."""
        entry = self._entries.get(connection_id)
        if entry is None:
            return False
        self._entries[connection_id] = replace(entry, reason="disconnect", ts=self._clock())
        self.version += 1
        return True

    def entries(self) -> tuple[PresenceEntry, ...]:
        """Everybody, the gateway first; who left some minutes ago is forgotten."""
        now = self._clock()
        self._entries = {
            id: entry
            for id, entry in self._entries.items()
            if entry.reason != "disconnect" or entry.ts > now - KEEP_GONE_MS
        }
        self._entries["self"] = replace(self._entries["self"], ts=now)
        return tuple(self._entries.values())
