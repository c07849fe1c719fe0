"""The door's records on disk: what is listed, in which order, and what is forgotten."""

from typing import Any

import apsw
import pytest

from triops.gateway.records import (
    PENDING_TTL_MS,
    PairedDevice,
    PendingPairing,
    find_pending,
    load_all_pending,
    load_device,
    load_devices,
    load_pending,
    pairing_request,
    save_device,
    save_pending,
)
from triops.runtime.store.migrations import migrate


@pytest.fixture
def db() -> Any:
    db: Any = apsw.Connection(":memory:")
    migrate(db)
    return db


def device(id: str, at: int) -> PairedDevice:
    known: dict[str, Any] = {"client_id": "cli", "client_mode": "cli", "platform": "linux", "public_key": id}
    return PairedDevice(
        device_id=id, roles=("operator",), scopes=(), approved_via="owner", created_at_ms=at, approved_at_ms=at, **known
    )


def request(id: str, at: int) -> PendingPairing:
    return pairing_request(device(id, 1), None, (), now=at, new_id=f"request-{id}")


def test_devices_are_listed_the_last_approved_first_and_requests_the_newest(db: Any) -> None:
    for id, at in (("a", 2), ("b", 3), ("c", 1)):
        save_device(db, device(id, at))
        save_pending(db, request(id, at), now=at)
    assert [each.device_id for each in load_devices(db)] == ["b", "a", "c"]
    assert [each.device_id for each in load_all_pending(db, now=3)] == ["b", "a", "c"]


def test_a_record_is_read_as_it_was_written_and_none_is_none(db: Any) -> None:
    assert load_device(db, "a") is load_pending(db, "a") is find_pending(db, "request-a", now=2) is None
    save_device(db, device("a", 1))
    save_pending(db, request("a", 2), now=2)
    assert load_device(db, "a") == device("a", 1)
    assert load_pending(db, "a") == find_pending(db, "request-a", now=2) == request("a", 2)


def test_a_request_takes_the_place_of_its_device_s_last_one_and_forgets_the_expired_of_others(db: Any) -> None:
    start, later = 1_000_000, 1_000_000 + PENDING_TTL_MS
    for id, at in (("old", start), ("young", start + 1), ("a", start + 1)):
        save_pending(db, request(id, at), now=at)
    save_pending(db, request("a", later), now=later)
    assert [each.device_id for each in load_all_pending(db, now=later)] == ["a", "young"]
    assert find_pending(db, "request-young", now=later) is not None
    assert find_pending(db, "request-young", now=later + 1) is None, "it is as old as one may be"
    save_pending(db, request("b", later + 1), now=later + 1)
    kept = db.execute("SELECT device_id FROM pairing_requests ORDER BY device_id").fetchall()
    assert kept == [("a",), ("b",), ("young",)], "what may no longer be approved goes with the next request"
