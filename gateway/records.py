"""The door's records: paired devices with their tokens, and pairing requests; how they are made, and read and written
inside a transaction. Decides nothing."""

from typing import Literal

import msgspec

from triops.gateway.devices import normalise_metadata
from triops.gateway.scopes import covers
from triops.runtime.secrets import Secret
from triops.runtime.store import devices
from triops.runtime.store.db import Db

PENDING_TTL_MS = 300_000
"""How long a pairing request waits after its last refresh."""


class DeviceToken(msgspec.Struct, frozen=True, kw_only=True):
    """A device's own secret for one role."""

    token: Secret
    role: str
    scopes: tuple[str, ...]
    created_at_ms: int
    rotated_at_ms: int | None = None
    revoked_at_ms: int | None = None
    issuer: str | None = None
    """Generation of the shared secret that a browser's token is bound to: it ends with that secret."""

    @property
    def issued_at_ms(self) -> int:
        return self.rotated_at_ms or self.created_at_ms


class PairedDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A device that was approved (§6.6)."""

    device_id: str
    public_key: str
    client_id: str
    client_mode: str
    platform: str
    device_family: str | None = None
    display_name: str | None = None
    operator_label: str | None = None
    """What operators call it."""
    roles: tuple[str, ...]
    scopes: tuple[str, ...]
    """The approved ones: no token and no connection goes beyond them, save the local backend's shared secret."""
    tokens: tuple[DeviceToken, ...] = ()
    """At most one a role."""
    remote_ip: str | None = None
    approved_via: Literal["owner", "silent"]
    created_at_ms: int
    approved_at_ms: int
    last_seen_at_ms: int | None = None

    def token_for(self, role: str) -> DeviceToken | None:
        return next((token for token in self.tokens if token.role == role), None)

    def live_token(self, generation: str) -> DeviceToken | None:
        """The operator's token if it still opens anything: not revoked, within what is approved, and not bound to
        another secret than the gateway's present one."""
        token = self.token_for("operator")
        if token is None or token.revoked_at_ms is not None or token.issuer not in (None, generation):
            return None
        return token if "operator" in self.roles and covers(self.scopes, token.scopes) else None

    def with_token(self, token: DeviceToken) -> "PairedDevice":
        """The same with `token` in the place of the one it had for that role."""
        others = (other for other in self.tokens if other.role != token.role)
        return msgspec.structs.replace(self, tokens=(*others, token))


class PendingPairing(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A request that waits for somebody's approval (§6.5); one a device. Also the payload of its event."""

    request_id: str
    device_id: str
    public_key: str
    display_name: str | None = None
    platform: str
    device_family: str | None = None
    client_id: str
    client_mode: str
    role: str
    roles: tuple[str, ...]
    scopes: tuple[str, ...]
    remote_ip: str | None = None
    silent: bool = msgspec.field(default_factory=bool)  # a factory: `omit_defaults` leaves out plain defaults
    is_repair: bool = msgspec.field(default_factory=bool)
    ts: int


def issue_token(
    token: Secret,
    scopes: tuple[str, ...],
    *,
    now: int,
    old: DeviceToken | None,
    issuer: str | None,
    role: str = "operator",
) -> DeviceToken:
    """A new token in the place of `old`."""
    return DeviceToken(
        token=token,
        role=role,
        scopes=scopes,
        created_at_ms=old.created_at_ms if old else now,
        rotated_at_ms=now if old else None,
        issuer=issuer,
    )


def pairing_request(
    device: PairedDevice,
    live: PendingPairing | None,
    scopes: tuple[str, ...],
    *,
    now: int,
    new_id: str,
    is_repair: bool = True,
) -> PendingPairing:
    """What a device as `device` describes it asks for: its `live` request, refreshed, if that covers `scopes` and says
    the same of what an approval pins; else a new one in its place."""
    if (
        live is not None
        and now < live.ts + PENDING_TTL_MS
        and live.public_key == device.public_key
        and normalise_metadata(live.platform) == normalise_metadata(device.platform)
        and normalise_metadata(live.device_family) == normalise_metadata(device.device_family)
        and covers(live.scopes, scopes)
    ):
        return msgspec.structs.replace(live, ts=now)
    return PendingPairing(
        request_id=new_id,
        device_id=device.device_id,
        public_key=device.public_key,
        display_name=device.display_name,
        platform=device.platform,
        device_family=device.device_family,
        client_id=device.client_id,
        client_mode=device.client_mode,
        role="operator",
        roles=("operator",),
        scopes=tuple(dict.fromkeys(scopes)),
        remote_ip=device.remote_ip,
        is_repair=is_repair,
        ts=now,
    )


_decode_device = msgspec.json.Decoder(PairedDevice, dec_hook=lambda kind, value: kind(value)).decode
_decode_pending = msgspec.json.Decoder(PendingPairing).decode
_encode = msgspec.json.Encoder(enc_hook=lambda value: value.reveal()).encode


def load_device(db: Db, device_id: str) -> PairedDevice | None:
    record = devices.device(db, device_id)
    return _decode_device(record) if record else None


def load_devices(db: Db) -> list[PairedDevice]:
    """All, the last approved first."""
    found = map(_decode_device, devices.every_device(db))
    return sorted(found, key=lambda device: device.approved_at_ms, reverse=True)


def save_device(db: Db, device: PairedDevice) -> None:
    devices.save(db, device.device_id, _encode(device).decode(), device.approved_at_ms)


def load_pending(db: Db, device_id: str) -> PendingPairing | None:
    """What the device asked for last, however long ago."""
    request = devices.pending(db, device_id)
    return _decode_pending(request) if request else None


def find_pending(db: Db, request_id: str, *, now: int) -> PendingPairing | None:
    """The request of this id, if it still waits."""
    request = devices.asked(db, request_id)
    pending = _decode_pending(request) if request else None
    return pending if pending is not None and now < pending.ts + PENDING_TTL_MS else None


def load_all_pending(db: Db, *, now: int) -> list[PendingPairing]:
    """Those that still wait, the newest first."""
    found = map(_decode_pending, devices.every_pending(db, expired=now - PENDING_TTL_MS))
    return sorted(found, key=lambda pending: pending.ts, reverse=True)


def save_pending(db: Db, asked: PendingPairing, *, now: int) -> None:
    """Store a request in the place of the device's last one."""
    text = _encode(asked).decode()
    devices.ask(db, asked.request_id, asked.device_id, text, asked.ts, expired=now - PENDING_TTL_MS)
