"""Who is told of decisions, and what a token is bound to; the rest is tried by `handlers/test_devices` and
`properties/test_door`."""

from typing import Any

import apsw
import pytest
import trio
import trio.testing

from triops.gateway.approvals import KEPT, Announcer, Approver, approve, rotate
from triops.gateway.records import DeviceToken, PairedDevice, PendingPairing, save_device, save_pending
from triops.gateway.scopes import ADMIN, READ, WRITE
from triops.runtime.secrets import Secret
from triops.runtime.store.migrations import migrate

OWNER = Approver(frozenset((ADMIN,)), None)
NEW = Secret("new")


@pytest.fixture
def db() -> Any:
    db: Any = apsw.Connection(":memory:")
    migrate(db)
    return db


def keep(db: Any, **about: Any) -> DeviceToken:
    """A device that may read and write, with a token that reads; the token."""
    token = DeviceToken(token=Secret("old"), role="operator", scopes=(READ,), created_at_ms=1, **about)
    known: dict[str, Any] = {"client_id": "webchat-ui", "client_mode": "webchat", "platform": "x", "public_key": "k"}
    times = {"created_at_ms": 1, "approved_at_ms": 1}
    scopes = (READ, WRITE)
    device = PairedDevice(
        device_id="d", roles=("operator",), scopes=scopes, tokens=(token,), approved_via="owner", **times, **known
    )
    save_device(db, device)
    return token


def approved(db: Any, *scopes: str) -> DeviceToken:
    """The token that the device has once its request for `scopes` is approved under the secret `present`."""
    save_pending(db, asked("r", scopes=scopes), now=1)
    _, device = approve(db, "r", OWNER, now=9, token=NEW, generation="present")
    assert device.tokens == (device.live_token("present"),), "what was approved opens something"
    return device.tokens[0]


def test_an_approval_keeps_the_token_that_will_do_and_whatever_it_is_bound_to(db: Any) -> None:
    for issuer in (None, "present"):
        token = keep(db, issuer=issuer)
        assert approved(db, READ) == token
        wider = approved(db, WRITE)
        assert (wider.token, wider.scopes, wider.issuer) == (NEW, (READ, WRITE), issuer)


@pytest.mark.parametrize("about", [{"issuer": "an older one"}, {"issuer": "present", "revoked_at_ms": 5}])
def test_an_approval_replaces_a_token_that_opens_nothing_and_gives_only_what_was_asked(db: Any, about: Any) -> None:
    keep(db, **about)
    token = approved(db, WRITE)
    assert (token.token, token.scopes, token.issuer, token.revoked_at_ms) == (NEW, (WRITE,), "present", None)


@pytest.mark.parametrize(
    ("about", "issuer"),
    [
        ({}, None),
        ({"issuer": "present"}, "present"),
        ({"issuer": "an older one"}, "present"),
        ({"issuer": "", "revoked_at_ms": 5}, "present"),
    ],
)
def test_a_pages_token_stays_bound_when_it_is_rotated_and_to_the_secret_of_today(
    db: Any, about: Any, issuer: str | None
) -> None:
    keep(db, **about)
    token = rotate(db, "d", "operator", None, OWNER, now=9, token=NEW, generation="present")
    assert token == DeviceToken(
        token=NEW, role="operator", scopes=(READ,), created_at_ms=1, rotated_at_ms=9, issuer=issuer
    )


def asked(request_id: str, device_id: str = "d", scopes: tuple[str, ...] = ()) -> PendingPairing:
    about: dict[str, Any] = {"client_id": "cli", "client_mode": "cli", "platform": "x", "public_key": "k"}
    return PendingPairing(
        request_id=request_id, device_id=device_id, role="operator", roles=("operator",), scopes=scopes, ts=1, **about
    )


async def test_a_decision_is_told_to_who_waits_and_kept_for_who_asks_late() -> None:
    told: list[Any] = []
    announcer = Announcer(lambda *event: told.append(event), lambda: 7)
    heard: list[str] = []
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            heard.append(await announcer.decision("r1", "d"))

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        announcer.resolved(asked("r1", "another device"), "approved")
        announcer.resolved(asked("r1"), "rejected")
    assert heard == ["rejected"] == [await announcer.decision("r1", "d")]
    about = {"requestId": "r1", "deviceId": "d", "decision": "rejected", "ts": 7}
    assert told[-1] == ("device.pair.resolved", about, "operator.pairing")
    for number in range(KEPT):
        announcer.resolved(asked(f"later{number}"), "approved")
    with trio.move_on_after(0.01) as scope:
        await announcer.decision("r1", "d")
    assert scope.cancelled_caught, "an old one is forgotten"
