"""What operators decide on devices, as transactions on their records (protocol §5.7, §6.5), and who hears of it.

Nobody hands on what he does not have: an approval, a rotation stays within the scopes of the connection that asks for
it, and a device's own connection without `operator.admin` decides on that device only.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import trio

from triops.gateway.records import (
    DeviceToken,
    PairedDevice,
    PendingPairing,
    find_pending,
    issue_token,
    load_device,
    save_device,
)
from triops.gateway.scopes import ADMIN, PAIRING, covers
from triops.runtime.clock import Clock
from triops.runtime.errors import Invalid
from triops.runtime.secrets import Secret
from triops.runtime.store import devices
from triops.runtime.store.db import Db

Decision = Literal["approved", "rejected"]
KEPT = 256  # decisions; who asks for an older one is told that it expired


class Approver(msgspec.Struct, frozen=True):
    """Who decides: what its connection may, and the device that it is, if it proved to be one."""

    scopes: frozenset[str]
    device: str | None

    def require(self, device_id: str, words: str) -> None:
        """Refuse with `words` to decide on a device that is not its own, unless it is an administrator."""
        if ADMIN not in self.scopes and self.device not in (None, device_id):
            raise Invalid(words)


def approve(
    db: Db, request_id: str, by: Approver, *, now: int, token: Secret, generation: str
) -> tuple[PendingPairing, PairedDevice]:
    """Give a device what it asked for; `token` becomes its own unless the one it has will do. `generation` is that of
    the gateway's present secret: a token that was bound to one, a web page's, is bound to this one then."""
    asked = _request(db, request_id, now)
    by.require(asked.device_id, "device pairing approval denied")
    if not covers(by.scopes, asked.scopes):
        raise Invalid("device pairing approval denied: it asks for more than you may yourself")
    known = load_device(db, asked.device_id)
    old = known.token_for(asked.role) if known else None
    live = known.live_token(generation) if known else None
    if live is None or not covers(live.scopes, asked.scopes):
        scopes = tuple(sorted({*(live.scopes if live else ()), *asked.scopes}))
        issuer = generation if old and old.issuer is not None else None
        issued = issue_token(token, scopes, now=now, old=old, issuer=issuer, role=asked.role)
    else:
        issued = live
    device = PairedDevice(
        device_id=asked.device_id,
        public_key=asked.public_key,
        client_id=asked.client_id,
        client_mode=asked.client_mode,
        platform=asked.platform,
        device_family=asked.device_family,
        display_name=asked.display_name or (known and known.display_name),
        operator_label=known and known.operator_label,
        roles=tuple(dict.fromkeys((*(known.roles if known else ()), *asked.roles))),
        scopes=tuple(dict.fromkeys((*(known.scopes if known else ()), *asked.scopes))),
        tokens=known.tokens if known else (),
        remote_ip=asked.remote_ip,
        approved_via="owner",
        created_at_ms=known.created_at_ms if known else now,
        approved_at_ms=now,
        last_seen_at_ms=known and known.last_seen_at_ms,
    ).with_token(issued)
    save_device(db, device)
    devices.settle(db, asked.device_id)
    return asked, device


def reject(db: Db, request_id: str, by: Approver, *, now: int) -> PendingPairing:
    """Refuse a device what it asked for."""
    asked = _request(db, request_id, now)
    by.require(asked.device_id, "device pairing rejection denied")
    devices.settle(db, asked.device_id)
    return asked


def remove(db: Db, device_id: str, by: Approver) -> None:
    """Forget a device: its tokens open nothing any more."""
    _known(db, device_id, by, "device pairing removal denied")
    devices.remove(db, device_id)


def rename(db: Db, device_id: str, label: str, by: Approver) -> None:
    """Give a device the name under which operators know it."""
    device = _known(db, device_id, by, "device pairing rename denied")
    save_device(db, msgspec.structs.replace(device, operator_label=label))


def rotate(
    db: Db,
    device_id: str,
    role: str,
    scopes: tuple[str, ...] | None,
    by: Approver,
    *,
    now: int,
    token: Secret,
    generation: str,
) -> DeviceToken:
    """Put `token` in the place of a device's present one, with its scopes or with `scopes`; `generation` is as in
    `approve`."""
    denied = "device token rotation denied"
    device = _known(db, device_id, by, denied)
    old = _token(device, role, denied)
    wanted = old.scopes if scopes is None else tuple(sorted(set(scopes)))
    if not covers(device.scopes, wanted):
        raise Invalid(f"{denied}: the device is not approved for that much; it must ask for it first")
    if not covers(by.scopes, wanted):
        raise Invalid(f"{denied}: the token would open more than you may yourself")
    issuer = generation if old.issuer is not None else None
    issued = issue_token(token, wanted, now=now, old=old, issuer=issuer, role=role)
    save_device(db, device.with_token(issued))
    return issued


def revoke(db: Db, device_id: str, role: str, by: Approver, *, now: int) -> None:
    """End a device's token."""
    denied = "device token revocation denied"
    device = _known(db, device_id, by, denied)
    revoked = msgspec.structs.replace(_token(device, role, denied), revoked_at_ms=now)
    save_device(db, device.with_token(revoked))


def _request(db: Db, request_id: str, now: int) -> PendingPairing:
    asked = find_pending(db, request_id, now=now)
    if asked is None:
        raise Invalid("unknown requestId: it may have been decided on, or have expired after five minutes")
    return asked


def _known(db: Db, device_id: str, by: Approver, denied: str) -> PairedDevice:
    by.require(device_id, denied)
    device = load_device(db, device_id)
    if device is None:
        raise Invalid("unknown deviceId")
    return device


def _token(device: PairedDevice, role: str, denied: str) -> DeviceToken:
    token = device.token_for(role)
    if token is None:
        raise Invalid(f"{denied}: the device has no token of role {role!r}")
    return token


class Announcer:
    """Tells operators of pairing requests and their ends, and those who wait for one end of theirs."""

    def __init__(self, tell: Callable[[str, Any, str], None], clock: Clock) -> None:
        self._tell = tell
        """Broadcasts an event to the connections with a scope."""
        self._clock = clock
        self._made: OrderedDict[tuple[str, str], Decision] = OrderedDict()
        self._changed = trio.Event()

    def requested(self, asked: PendingPairing) -> None:
        """A new request waits for somebody's approval."""
        self._tell("device.pair.requested", asked, PAIRING)

    def resolved(self, asked: PendingPairing, decision: Decision) -> None:
        """A request waits no more; sync."""
        self._made[asked.request_id, asked.device_id] = decision
        if len(self._made) > KEPT:
            self._made.popitem(last=False)
        self._changed.set()
        self._changed = trio.Event()
        about = {"requestId": asked.request_id, "deviceId": asked.device_id, "decision": decision}
        self._tell("device.pair.resolved", about | {"ts": self._clock()}, PAIRING)

    async def decision(self, request_id: str, device_id: str) -> Decision:
        """Wait until a device's request is decided on; at once if it was."""
        while (made := self._made.get((request_id, device_id))) is None:
            await self._changed.wait()
        return made
