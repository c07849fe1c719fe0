"""Who is told of decisions; those themselves are tried by `handlers/test_devices` and `properties/test_door`."""

from typing import Any

import trio
import trio.testing

from triops.gateway.approvals import KEPT, Announcer
from triops.gateway.pairing import PendingPairing


def asked(request_id: str, device_id: str = "d") -> PendingPairing:
    about: dict[str, Any] = {"client_id": "cli", "client_mode": "cli", "platform": "x", "public_key": "k"}
    return PendingPairing(
        request_id=request_id, device_id=device_id, role="operator", roles=("operator",), scopes=(), ts=1, **about
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
