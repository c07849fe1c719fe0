"""The door's records in the store: paired devices and pairing requests, read and written inside a transaction."""

import msgspec

from triops.gateway.pairing import PENDING_TTL_MS, PairedDevice, PendingPairing
from triops.runtime.store import devices
from triops.runtime.store.db import Db

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
