"""Transactions on paired devices and pairing requests. The records are the door's; here they are JSON."""

from triops.runtime.store.db import Db


def device(db: Db, device_id: str) -> str | None:
    """The record of a paired device."""
    row = db.execute("SELECT record FROM devices WHERE device_id = ?", (device_id,)).fetchone()
    return row[0] if row else None


def every_device(db: Db) -> list[str]:
    """The records of all paired devices."""
    return [record for (record,) in db.execute("SELECT record FROM devices")]


def pending(db: Db, device_id: str) -> str | None:
    """The pairing request of a device."""
    row = db.execute("SELECT request FROM pairing_requests WHERE device_id = ?", (device_id,)).fetchone()
    return row[0] if row else None


def asked(db: Db, request_id: str) -> str | None:
    """A pairing request by its own id."""
    row = db.execute("SELECT request FROM pairing_requests WHERE request_id = ?", (request_id,)).fetchone()
    return row[0] if row else None


def every_pending(db: Db, *, expired: int) -> list[str]:
    """The pairing requests from after `expired`."""
    return [
        request for (request,) in db.execute("SELECT request FROM pairing_requests WHERE created_at > ?", (expired,))
    ]


def save(db: Db, device_id: str, record: str, now: int) -> None:
    """Store a paired device."""
    db.execute(
        "INSERT INTO devices (device_id, record, approved_at) VALUES (?, ?, ?)"
        " ON CONFLICT (device_id) DO UPDATE SET record = excluded.record",
        (device_id, record, now),
    )


def remove(db: Db, device_id: str) -> None:
    """Forget a device and what it asked for."""
    db.execute("DELETE FROM devices WHERE device_id = ?", (device_id,))
    settle(db, device_id)


def ask(db: Db, request_id: str, device_id: str, request: str, now: int, *, expired: int) -> None:
    """Store a pairing request in the place of the device's last one; those from before `expired` are forgotten."""
    db.execute("DELETE FROM pairing_requests WHERE device_id = ? OR created_at < ?", (device_id, expired))
    db.execute(
        "INSERT INTO pairing_requests (request_id, device_id, request, created_at) VALUES (?, ?, ?, ?)",
        (request_id, device_id, request, now),
    )


def settle(db: Db, device_id: str) -> None:
    """Forget the pairing request of a device."""
    db.execute("DELETE FROM pairing_requests WHERE device_id = ?", (device_id,))
