"""Who is let in by whom, over real sockets: requests, approvals, tokens taken back, scopes that are asked for."""

import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.kit.host import TOKEN, TestHost, open_test_gateway
from tests.kit.wire import Client, Closed, Refused, connect_params

from triops.gateway.client import DeviceIdentity
from triops.gateway.scopes import ADMIN, PAIRING, READ, WRITE

Clock = trio.testing.MockClock
FAR = "10.0.0.9"


@pytest.fixture
def device() -> DeviceIdentity:
    return DeviceIdentity(Ed25519PrivateKey.generate())


@asynccontextmanager
async def connected(
    host: TestHost, device: DeviceIdentity, *scopes: str, address: str = "127.0.0.1", token: str = TOKEN
) -> AsyncGenerator[Client]:
    """A socket past its hello, with a proof of `device`."""
    async with host.socket(address) as client:
        challenge = await client.event("connect.challenge")
        params = connect_params(token=token, client="test", mode="test", scopes=scopes or (READ,))
        params["device"] = device.proof(params, challenge)
        client.hello = await client.request("connect", params)
        yield client


async def refusal(host: TestHost, device: DeviceIdentity, *scopes: str, **more: Any) -> dict[str, Any]:
    with pytest.raises(Refused) as refused:
        async with connected(host, device, *scopes, **more):
            pass
    return refused.value.error


async def denied(client: Client, method: str, params: Mapping[str, Any]) -> str:
    with pytest.raises(Refused) as refused:
        await client.request(method, params)
    assert refused.value.error["code"] == "INVALID_REQUEST"
    return refused.value.error["message"]


def last(client: Client, name: str) -> dict[str, Any]:
    """The payload of the last event of that name among the frames that were read."""
    return next(frame["payload"] for frame in reversed(client.frames) if frame.get("event") == name)


async def close_of(client: Client) -> tuple[int, str]:
    """How the gateway closes it, within a second."""
    with trio.fail_after(1), pytest.raises(Closed) as closed:
        while True:
            await client.read()
    return closed.value.code, closed.value.reason


async def test_a_device_from_elsewhere_asks_is_approved_and_comes_in(tmp_path: Path, device: DeviceIdentity) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as operator:
        error = await refusal(host, device, READ, address=FAR)
        asked = await operator.event("device.pair.requested")
        request_id = error["details"]["requestId"]
        about = {"requestId": request_id, "deviceId": device.id, "publicKey": device.public_key, "remoteIp": FAR}
        assert asked == about | {
            "platform": "test",
            "clientId": "test",
            "clientMode": "test",
            "role": "operator",
            "roles": ["operator"],
            "scopes": [READ],
            "silent": False,
            "isRepair": False,
            "ts": asked["ts"],
        }
        assert (await operator.request("device.pair.list"))["pending"] == [asked]
        told = await operator.request("device.pair.approve", {"requestId": request_id})
        resolved = last(operator, "device.pair.resolved")
        ts = resolved.pop("ts")
        assert resolved == {"requestId": request_id, "deviceId": device.id, "decision": "approved"}
        shown = told["device"]
        assert told["requestId"] == request_id
        at = shown["createdAtMs"]
        assert at <= ts
        assert shown["tokens"] == [{"role": "operator", "scopes": [READ], "createdAtMs": at}]
        recorded = (
            "deviceId publicKey platform clientId clientMode role roles scopes approvedVia createdAtMs approvedAtMs"
        )
        assert set(shown) == {*recorded.split(), "tokens", "remoteIp"}
        async with connected(host, device, READ, address=FAR) as client:
            assert client.hello["auth"]["scopes"] == [READ]
            listed = await operator.request("device.pair.list")
            assert listed["pending"] == []
            (row,) = listed["paired"]
            assert (row["connected"], row["lastSeenReason"], row["approvedVia"]) == (True, "connect", "owner")
            token = client.hello["auth"]["deviceToken"]
            assert token not in str(listed)
        assert token not in str(host.log)
        async with host.socket() as stranger:
            challenge = await stranger.event("connect.challenge")
            claim = connect_params(token="wrong", client="test", mode="test", scopes=(READ,))
            claim["device"] = device.proof(claim, challenge) | {"signature": "AAAA"}
            with pytest.raises(Refused, match="signature"):
                await stranger.request("connect", claim)
            (socket,) = (each for each in host.gateway.services.sockets if each.device == device.id)
            (row,) = (await operator.request("device.pair.list"))["paired"]
            assert row["connected"] is False, "it only claims to be that one, and is being closed"
            assert not socket.admitted
        again = {"requestId": request_id}
        assert (await denied(operator, "device.pair.approve", again)).startswith("unknown requestId")


async def test_a_request_that_is_rejected_or_too_old_lets_nobody_in(
    tmp_path: Path, device: DeviceIdentity, autojump_clock: Clock
) -> None:
    async with open_test_gateway(tmp_path, virtual=True) as host, host.client() as operator:
        first = (await refusal(host, device, address=FAR))["details"]["requestId"]
        assert await operator.request("device.pair.reject", {"requestId": first}) == {
            "requestId": first,
            "deviceId": device.id,
        }
        assert last(operator, "device.pair.resolved")["decision"] == "rejected"
        second = (await refusal(host, device, address=FAR))["details"]["requestId"]
        assert second != first
        await trio.sleep(300)  # meanwhile the operator answers no pings
        assert (await host.rpc("device.pair.list"))["pending"] == []
        late = await host.http("POST", "/rpc/device.pair.approve", {"requestId": second})
        assert late.status == 400
        assert late.body["error"]["message"].startswith("unknown requestId")
        assert (await refusal(host, device, address=FAR))["details"]["requestId"] != second


async def test_a_broader_request_takes_the_place_of_the_first(tmp_path: Path, device: DeviceIdentity) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as operator:
        first = (await refusal(host, device, READ, address=FAR))["details"]["requestId"]
        broader = (await refusal(host, device, WRITE, address=FAR))["details"]["requestId"]
        resolved = await operator.event("device.pair.resolved")
        assert (resolved["requestId"], resolved["decision"]) == (first, "rejected")
        (pending,) = (await operator.request("device.pair.list"))["pending"]
        assert pending["requestId"] == broader


async def test_a_device_that_comes_back_as_it_was_does_not_lose_what_it_asked_for(
    tmp_path: Path, device: DeviceIdentity
) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as operator:
        async with connected(host, device, READ):
            pass
        asked = (await refusal(host, device, ADMIN, address=FAR))["details"]["requestId"]
        async with connected(host, device, READ):
            (pending,) = (await operator.request("device.pair.list"))["pending"]
            assert pending["requestId"] == asked
        async with connected(host, device, ADMIN):  # on this machine that is approval enough
            assert (await operator.event("device.pair.resolved"))["decision"] == "approved"
            assert (await operator.request("device.pair.list"))["pending"] == []


async def test_nobody_approves_more_than_he_may_himself(tmp_path: Path, device: DeviceIdentity) -> None:
    async with open_test_gateway(tmp_path) as host:
        asked = {"requestId": (await refusal(host, device, ADMIN, address=FAR))["details"]["requestId"]}
        async with host.client(scopes=[PAIRING, WRITE]) as operator:
            assert "more than you may" in await denied(operator, "device.pair.approve", asked)
        async with host.client(scopes=[READ]) as reader:
            with pytest.raises(Refused) as refused:
                await reader.request("device.pair.approve", asked)
            assert refused.value.error["details"]["missingScope"] == PAIRING


async def test_a_device_that_is_no_administrator_sees_and_decides_on_itself_only(tmp_path: Path) -> None:
    mine, other = (DeviceIdentity(Ed25519PrivateKey.generate()) for _ in range(2))
    async with open_test_gateway(tmp_path) as host:
        async with connected(host, other, READ):
            pass
        asked = {"requestId": (await refusal(host, other, WRITE, address=FAR))["details"]["requestId"]}
        async with connected(host, mine, PAIRING, READ, WRITE) as client:
            listed = await client.request("device.pair.list")
            assert [row["deviceId"] for row in listed["paired"]] == [mine.id]
            assert listed["pending"] == []
            target = {"deviceId": other.id}
            for method, params in {
                "device.pair.approve": asked,
                "device.pair.reject": asked,
                "device.pair.remove": target,
                "device.pair.rename": target | {"label": "x"},
                "device.token.rotate": target | {"role": "operator"},
                "device.token.revoke": target | {"role": "operator"},
            }.items():
                assert "denied" in await denied(client, method, params), method
            assert await client.request("device.pair.rename", {"deviceId": mine.id, "label": "mine"})
            (row,) = (await client.request("device.pair.list"))["paired"]
            assert row["operatorLabel"] == "mine"


async def test_a_removed_device_is_closed_and_must_be_approved_again(tmp_path: Path, device: DeviceIdentity) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as operator:
        async with connected(host, device, READ) as client:
            token = client.hello["auth"]["deviceToken"]
            waits = (await refusal(host, device, ADMIN, address=FAR))["details"]["requestId"]
            assert await operator.request("device.pair.remove", {"deviceId": device.id}) == {"deviceId": device.id}
            assert await close_of(client) == (4001, "client invalidated: device-pair-removed")
        assert last(operator, "device.pair.resolved")["requestId"] == waits
        assert (await refusal(host, device, READ, token=token))["details"]["code"] == "AUTH_TOKEN_MISMATCH"
        assert (await denied(operator, "device.pair.remove", {"deviceId": device.id})) == "unknown deviceId"


async def test_what_a_client_says_after_it_was_shut_out_is_not_heard(tmp_path: Path, device: DeviceIdentity) -> None:
    async with open_test_gateway(tmp_path) as host, connected(host, device, WRITE) as client:
        await host.rpc("device.pair.remove", {"deviceId": device.id})
        await client.ask("chat.send", {"sessionKey": "main", "message": "SAY:x", "idempotencyKey": "k"})
        assert (await client.closed()).code == 4001
        assert (await host.rpc("sessions.list"))["sessions"] == []


async def test_a_rotated_token_opens_nothing_and_its_device_is_told_the_new_one(
    tmp_path: Path, device: DeviceIdentity
) -> None:
    target = {"deviceId": device.id, "role": "operator"}
    async with open_test_gateway(tmp_path) as host, host.client() as operator:
        async with connected(host, device, READ, PAIRING) as client:
            old = client.hello["auth"]["deviceToken"]
            answer = await client.request("device.token.rotate", target)
            assert (answer["tokenDelivery"], answer["scopes"]) == ("in-band", [PAIRING, READ])
            assert await close_of(client) == (4001, "client invalidated: device-token-rotated")
        assert (await refusal(host, device, READ, token=old))["details"]["code"] == "AUTH_TOKEN_MISMATCH"
        async with connected(host, device, READ, token=answer["token"]) as client:
            withheld = await operator.request("device.token.rotate", target | {"scopes": [READ]})
            assert "token" not in withheld
            assert withheld["tokenDelivery"] == "withheld-cross-device"
            await close_of(client)
        await refusal(host, device, READ, token=answer["token"])
        assert answer["token"] not in str(host.log)


async def test_a_rotation_gives_nobody_more(tmp_path: Path, device: DeviceIdentity) -> None:
    target = {"deviceId": device.id, "role": "operator"}
    async with open_test_gateway(tmp_path) as host, host.client() as operator:
        async with connected(host, device, READ, PAIRING) as client:
            words = await denied(operator, "device.token.rotate", target | {"scopes": [ADMIN]})
            assert "not approved for that much" in words
            unknown = await denied(operator, "device.token.rotate", target | {"scopes": [READ, "operator.x"]})
            assert unknown.startswith("unknown scope: operator.x; there are operator.admin, ")
            assert "no token of role" in await denied(operator, "device.token.rotate", target | {"role": "node"})
        async with connected(host, device, ADMIN):
            pass
        async with connected(host, device, READ, PAIRING) as client:  # its token could do more than this connection
            assert "more than you may" in await denied(client, "device.token.rotate", target)
            assert await client.request("device.token.rotate", target | {"scopes": [READ]})


async def test_a_revoked_token_never_works_again(tmp_path: Path, device: DeviceIdentity) -> None:
    target = {"deviceId": device.id, "role": "operator"}
    async with open_test_gateway(tmp_path) as host, host.client() as operator:
        async with connected(host, device, READ) as client:
            old = client.hello["auth"]["deviceToken"]
            answer = await operator.request("device.token.revoke", target)
            assert answer == target | {"revokedAtMs": answer["revokedAtMs"]}
            assert await close_of(client) == (4001, "client invalidated: device-token-revoked")
        await refusal(host, device, READ, token=old)
        async with connected(host, device, READ) as client:
            assert client.hello["auth"]["deviceToken"] != old
        await refusal(host, device, READ, token=old)


async def test_a_connect_that_is_being_decided_on_does_not_survive_what_takes_it_back(
    tmp_path: Path, device: DeviceIdentity
) -> None:
    async with open_test_gateway(tmp_path) as host:
        async with connected(host, device, READ):
            pass
        async with host.socket() as client:
            params = connect_params(token=TOKEN, client="test", mode="test", scopes=(READ,))
            params["device"] = device.proof(params, await client.event("connect.challenge"))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.rpc, "device.pair.remove", {"deviceId": device.id})
                await client.send({"type": "req", "id": "c", "method": "connect", "params": params})
            code = 4001
            try:
                await client.answer("c")
            except Closed as closed:
                code = closed.code
            else:
                paired = (await host.rpc("device.pair.list"))["paired"]
                if paired:  # the connect came second, and approved it anew
                    assert await client.request("health")
                else:
                    code, _ = await close_of(client)
            assert code == 4001


async def test_a_device_asks_for_more_and_gets_the_token_that_has_it(tmp_path: Path, device: DeviceIdentity) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as operator:
        async with connected(host, device, READ) as client:
            narrow = client.hello["auth"]["deviceToken"]
            asked = await client.request("device.scopes.requestUpgrade", {"scopes": [WRITE]})
            assert await client.request("device.scopes.requestUpgrade", {"scopes": [READ]}) == asked
            event = await operator.event("device.pair.requested")
            assert (event["requestId"], event["scopes"], event["isRepair"]) == (asked["requestId"], [WRITE], True)
            answers: list[Any] = []
            async with trio.open_nursery() as nursery:

                async def wait() -> None:
                    answers.append(await client.request("device.scopes.waitUpgrade", asked))

                nursery.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked()
                assert answers == []
                await operator.request("device.pair.approve", asked)
            (answer,) = answers
            assert (answer["status"], answer["scopes"]) == ("approved", [READ, WRITE])
            assert await client.request("device.scopes.waitUpgrade", asked) == answer, "a late question gets it too"
            assert client.hello["auth"]["scopes"] == [READ], "this connection has what it had"
        async with connected(host, device, WRITE, token=answer["deviceToken"], address=FAR) as client:
            assert client.hello["auth"]["scopes"] == [WRITE]
        await refusal(host, device, READ, token=narrow)


async def test_a_wait_ends_with_a_rejection_with_time_and_for_strangers_at_once(
    tmp_path: Path, device: DeviceIdentity, autojump_clock: Clock
) -> None:
    async with open_test_gateway(tmp_path, virtual=True) as host:
        async with connected(host, device, READ) as client:
            asked = await client.request("device.scopes.requestUpgrade", {"scopes": [WRITE]})
            await host.rpc("device.pair.reject", asked)
            assert await client.request("device.scopes.waitUpgrade", asked) == asked | {"status": "rejected"}
            asked = await client.request("device.scopes.requestUpgrade", {"scopes": [WRITE]})
            start = trio.current_time()
            assert await client.request("device.scopes.waitUpgrade", asked) == asked | {"status": "expired"}
            assert trio.current_time() - start == pytest.approx(300, abs=1)
            unknown = {"requestId": "nobody's"}
            assert await client.request("device.scopes.waitUpgrade", unknown) == unknown | {"status": "expired"}
            assert "unknown scope" in await denied(client, "device.scopes.requestUpgrade", {"scopes": ["operator.x"]})
        other = DeviceIdentity(Ed25519PrivateKey.generate())
        async with connected(host, device, READ) as client, connected(host, other, READ) as stranger:
            asked = await client.request("device.scopes.requestUpgrade", {"scopes": [WRITE]})
            await host.rpc("device.pair.approve", asked)
            assert await stranger.request("device.scopes.waitUpgrade", asked) == asked | {"status": "expired"}
        async with host.client() as operator, connected(host, device, READ) as client:
            assert (await client.request("device.scopes.waitUpgrade", asked))["status"] == "approved"
            await host.rpc("device.pair.remove", {"deviceId": device.id})
            with pytest.raises(Refused) as refused:
                await operator.request("device.scopes.requestUpgrade", {"scopes": [WRITE]})
            assert refused.value.error["details"]["code"] == "DEVICE_IDENTITY_REQUIRED"


async def test_a_page_that_asked_for_more_gets_no_token_that_ended_with_the_secret(tmp_path: Path) -> None:
    device = DeviceIdentity(Ed25519PrivateKey.generate())
    async with open_test_gateway(tmp_path) as host:
        origin = {"Origin": f"http://127.0.0.1:{host.port}"}

        async def connect(client: Client, token: str, id: str = "openclaw-control-ui", mode: str = "webchat") -> None:
            params = connect_params(token=token, client=id, mode=mode, scopes=(READ,))
            params["device"] = device.proof(params, await client.event("connect.challenge"))
            await client.request("connect", params)

        async with host.socket(headers=origin) as page:
            await connect(page, TOKEN)
            asked = await page.request("device.scopes.requestUpgrade", {"scopes": [WRITE]})
            await host.rpc("device.pair.approve", asked)
            answer = await page.request("device.scopes.waitUpgrade", asked)
            assert (answer["status"], answer["scopes"]) == ("approved", [READ, WRITE])
            await host.rpc("gateway.token.rotate")
            assert await close_of(page) == (4001, "gateway auth changed")
        async with host.socket(headers=origin) as page:
            with pytest.raises(Refused):
                await connect(page, answer["deviceToken"])
        async with host.socket() as backend:
            token = host.runtime.paths.token.read_text().strip()
            await connect(backend, token, "gateway-client", "backend")
            assert (await backend.request("device.scopes.waitUpgrade", asked))["status"] == "rejected"


async def test_an_approval_that_was_taken_back_brings_no_token(tmp_path: Path, device: DeviceIdentity) -> None:
    async with open_test_gateway(tmp_path) as host:
        async with connected(host, device, READ) as client:
            asked = await client.request("device.scopes.requestUpgrade", {"scopes": [WRITE]})
            await host.rpc("device.pair.approve", asked)
            await host.rpc("device.token.revoke", {"deviceId": device.id, "role": "operator"})
        async with host.socket() as client:  # the backend, which gets no new token
            params = connect_params(token=TOKEN)
            params["device"] = device.proof(params, await client.event("connect.challenge"))
            await client.request("connect", params)
            assert await client.request("device.scopes.waitUpgrade", asked) == asked | {"status": "rejected"}


async def test_an_unpaired_backend_is_told_what_to_do_before_it_asks_for_more(
    tmp_path: Path, device: DeviceIdentity
) -> None:
    async with open_test_gateway(tmp_path) as host, host.socket() as client:
        challenge = await client.event("connect.challenge")
        params = connect_params(token=TOKEN)
        params["device"] = device.proof(params, challenge)
        await client.request("connect", params)
        with pytest.raises(Refused) as refused:
            await client.request("device.scopes.requestUpgrade", {"scopes": [WRITE]})
        assert "not paired" in refused.value.error["message"]


async def test_the_gateway_has_one_identity_that_outlives_it(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        first = await host.rpc("gateway.identity.get")
        assert set(first) == {"deviceId", "publicKey"}
        assert os.name != "posix" or host.runtime.paths.identity.stat().st_mode & 0o077 == 0
    async with open_test_gateway(tmp_path) as host:
        assert await host.rpc("gateway.identity.get") == first


async def test_a_new_gateway_token_closes_who_stands_on_the_old_one(tmp_path: Path, device: DeviceIdentity) -> None:
    async with open_test_gateway(tmp_path) as host:
        async with connected(host, device, READ) as client:
            token = client.hello["auth"]["deviceToken"]
        async with host.client() as operator, connected(host, device, READ, token=token) as paired:
            assert (await operator.request("gateway.token.rotate"))["ok"] is True
            assert await close_of(operator) == (4001, "gateway auth changed")
            assert await paired.request("health"), "its device token holds"
        new = host.runtime.paths.token.read_text().strip()
        assert (await host.http("GET", "/status")).status == 401
        assert (await host.http("GET", "/status", token=new)).status == 200
        assert new not in str(host.log)


async def test_a_page_whose_token_came_from_the_old_one_is_closed_too(tmp_path: Path, device: DeviceIdentity) -> None:
    async with open_test_gateway(tmp_path) as host:
        token = TOKEN
        for _ in range(2):  # with the gateway's token, then with the one that it got by it
            async with host.socket(headers={"Origin": f"http://127.0.0.1:{host.port}"}) as page:
                params = connect_params(token=token, client="openclaw-control-ui", mode="webchat")
                params["device"] = device.proof(params, await page.event("connect.challenge"))
                hello = await page.request("connect", params)
                token = hello["auth"]["deviceToken"]
                if hello["auth"]["method"] == "device-token":
                    await host.rpc("gateway.token.rotate")
                    assert await close_of(page) == (4001, "gateway auth changed")


@pytest.mark.parametrize(
    ("auth", "words"),
    [
        ({"token": "written-in-the-configuration"}, "gateway.auth.token"),
        ({"mode": "password", "password": "written-there-as-well"}, "no token to change"),
    ],
)
async def test_a_token_of_the_configuration_is_changed_there(tmp_path: Path, auth: Any, words: str) -> None:
    config = {"agents": {"defaults": {"model": {"primary": "scripted/echo"}}}, "gateway": {"auth": auth}}
    async with open_test_gateway(tmp_path, config=config) as host, host.client() as operator:
        assert words in await denied(operator, "gateway.token.rotate", {})
        assert not host.runtime.paths.token.exists()
