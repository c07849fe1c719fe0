"""The door with real records behind it: devices, tokens, limits. Its decisions are tested with `pairing` and `auth`."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.kit.host import ECHO, TOKEN, TestHost, open_test_gateway
from tests.kit.wire import Refused, connect_params

from triops.gateway.client import DeviceIdentity
from triops.gateway.scopes import ADMIN, READ

Clock = trio.testing.MockClock


async def connect(
    host: TestHost,
    device: DeviceIdentity,
    *,
    address: str = "127.0.0.1",
    spoil: dict[str, Any] | None = None,
    page: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """A connect with a device proof, from our own page if wanted; its hello."""
    origin = {"Origin": f"http://127.0.0.1:{host.port}"} if page else {}
    async with host.socket(address, headers=origin) as socket:
        challenge = await socket.event("connect.challenge")
        settings: dict[str, Any] = {"token": TOKEN, "client": "test", "mode": "test"} | more
        params = connect_params(**settings)
        params["device"] = device.proof(params, challenge) | (spoil or {})
        return await socket.request("connect", params)


@pytest.fixture
def device() -> DeviceIdentity:
    return DeviceIdentity(Ed25519PrivateKey.generate())


async def test_a_local_device_is_approved_silently_and_its_token_opens_the_door_after_a_restart(
    tmp_path: Path, device: DeviceIdentity
) -> None:
    async with open_test_gateway(tmp_path) as host:
        hello = await connect(host, device)
        assert hello["auth"]["scopes"] == ["operator.admin", "operator.read", "operator.write"]
        token = hello["auth"]["deviceToken"]
        assert token not in str(host.log)
    async with open_test_gateway(tmp_path) as host:
        again = await connect(host, device, token=token)
        assert again["auth"]["method"] == "device-token"
        assert again["auth"]["deviceToken"] == token


async def test_the_token_of_a_web_page_ends_with_the_secret_that_it_came_from(
    tmp_path: Path, device: DeviceIdentity
) -> None:
    web = {"client": "openclaw-control-ui", "mode": "webchat", "page": True}
    async with open_test_gateway(tmp_path) as host:
        hello = await connect(host, device, **web)
        token = hello["auth"]["deviceToken"]
        assert (await connect(host, device, token=token, **web))["auth"]["method"] == "device-token"
    async with open_test_gateway(tmp_path, secret="another-secret-of-enough-length") as host:
        with pytest.raises(Refused):
            await connect(host, device, token=token, **web)


async def test_a_device_from_elsewhere_is_held_with_a_request_that_stays_the_same(
    tmp_path: Path, device: DeviceIdentity
) -> None:
    async with open_test_gateway(tmp_path) as host:
        errors: list[dict[str, Any]] = []
        for _ in range(2):
            with pytest.raises(Refused) as refused:
                await connect(host, device, address="10.0.0.9")
            errors.append(refused.value.error)
        assert errors[0]["code"] == "NOT_PAIRED"
        assert errors[0]["details"]["code"] == "PAIRING_REQUIRED"
        assert errors[0]["details"]["requestId"] == errors[1]["details"]["requestId"]


async def test_a_device_that_is_sent_is_verified_and_never_ignored(tmp_path: Path, device: DeviceIdentity) -> None:
    other = DeviceIdentity(Ed25519PrivateKey.generate())
    async with open_test_gateway(tmp_path) as host:
        for spoil in (
            {"signature": "AAAA"},
            {"nonce": "another"},
            {"signedAt": 1},
            {"publicKey": other.public_key},
            {"id": other.id},
        ):
            with pytest.raises(Refused) as refused:
                await connect(host, device, spoil=spoil, client="gateway-client", mode="backend")
            assert refused.value.error["details"]["code"].startswith("DEVICE_AUTH"), spoil


async def test_a_device_token_never_gets_more_than_it_was_given(tmp_path: Path, device: DeviceIdentity) -> None:
    async with open_test_gateway(tmp_path) as host:
        hello = await connect(host, device, scopes=("operator.read",))
        assert hello["auth"]["scopes"] == ["operator.read"]
        token = hello["auth"]["deviceToken"]
        with pytest.raises(Refused):
            await connect(host, device, token=token)
        with pytest.raises(Refused):
            await connect(
                host, device, token=token, scopes=("operator.admin",), client="gateway-client", mode="backend"
            )
        narrow = await connect(host, device, token=token, scopes=("operator.read",))
        assert narrow["auth"]["scopes"] == ["operator.read"]


async def test_local_approval_is_switched_off_by_the_configuration(tmp_path: Path, device: DeviceIdentity) -> None:
    config = ECHO | {"gateway": {"nodes": {"pairing": {"autoApproveLocal": False}}}}
    async with open_test_gateway(tmp_path, config=config) as host:
        with pytest.raises(Refused) as refused:
            await connect(host, device)
        assert refused.value.error["code"] == "NOT_PAIRED"
        assert await connect(host, device, client="gateway-client", mode="backend"), "the backend is not paired"


async def test_one_device_twice_at_once_is_one_record(tmp_path: Path, device: DeviceIdentity) -> None:
    async with open_test_gateway(tmp_path) as host, trio.open_nursery() as nursery:
        hellos: list[dict[str, Any]] = []

        async def one() -> None:
            hellos.append(await connect(host, device))

        for _ in range(5):
            nursery.start_soon(one)
    assert len({hello["auth"]["deviceToken"] for hello in hellos}) == 1


async def test_guesses_over_a_socket_are_counted_with_those_over_http(tmp_path: Path, autojump_clock: Clock) -> None:
    async with open_test_gateway(tmp_path, virtual=True) as host:
        for number in range(10):
            if number % 2:
                assert (await host.http("GET", "/status", token=f"guess-{number}", address="10.0.0.5")).status == 401
            else:
                async with host.socket("10.0.0.5") as socket:
                    with pytest.raises(Refused):
                        await socket.connect(connect_params(token=f"guess-{number}"))
        async with host.socket("10.0.0.5") as socket:
            with pytest.raises(Refused) as refused:
                await socket.connect(connect_params(token=TOKEN))
            assert refused.value.error["details"]["code"] == "AUTH_RATE_LIMITED"
            assert refused.value.error["retryAfterMs"] > 0


async def test_guesses_from_this_machine_are_delayed_and_never_shut_the_user_out(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with open_test_gateway(tmp_path, virtual=True) as host:
        waits: list[float] = []
        for number in range(20):
            began = trio.current_time()
            assert (await host.http("GET", "/status", token=f"guess-{number}")).status == 401
            waits.append(trio.current_time() - began)
        assert waits[:10] == [0] * 10
        assert waits[10] > 0
        assert max(waits) <= 5
        assert (await host.http("GET", "/status")).status == 200


async def test_a_right_secret_is_not_delayed_by_wrong_ones_whose_clients_wait_or_leave(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with open_test_gateway(tmp_path, virtual=True) as host, trio.open_nursery() as nursery:
        for number in range(15):
            assert (await host.http("GET", "/status", token=f"guess-{number}")).status == 401
        began = trio.current_time()
        for _ in range(9):
            nursery.start_soon(partial(host.http, "GET", "/status", token="another-guess"))
        await trio.testing.wait_all_tasks_blocked()
        assert (await host.http("GET", "/status")).status == 200
        async with host.client():
            pass
        assert trio.current_time() == began
        nursery.cancel_scope.cancel(reason="their answers are not waited for")
    reasons = [record.fields["reason"] for record in host.log if record.message == "refused a request"]
    assert len(reasons) == 20  # of 24; a minute's rest is counted
    assert "another-guess" not in str(host.log)


@pytest.mark.parametrize(
    ("secret", "told"),
    [
        ({"mode": "password", "password": TOKEN}, (20, 80)),  # ten are free, ten held their places
        ({"token": TOKEN}, (100, 0)),
    ],
)
async def test_who_guesses_at_once_over_many_sockets_is_bounded_and_keeps_nobody_out_where_guessing_is_vain(
    tmp_path: Path, autojump_clock: Clock, secret: dict[str, str], told: tuple[int, int]
) -> None:
    async with open_test_gateway(tmp_path, config=ECHO | {"gateway": {"auth": secret}}, virtual=True) as host:
        statuses: list[int] = []

        async def guess() -> None:
            statuses.append((await host.http("GET", "/status", token="a-guess")).status)

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(guess)
            await trio.testing.wait_all_tasks_blocked()
            assert (await host.http("GET", "/status", token=TOKEN)).status == (200 if told == (100, 0) else 429)
        assert (statuses.count(401), statuses.count(429)) == told
        assert (await host.http("GET", "/status", token=TOKEN)).status == 200


async def test_a_silent_approval_is_logged_once_with_what_it_allows(tmp_path: Path, device: DeviceIdentity) -> None:
    async with open_test_gateway(tmp_path) as host:
        for scopes in ((READ,), (READ,), (READ, ADMIN)):
            await connect(host, device, scopes=scopes)
        told = [record for record in host.log if record.message == "approved a device of this machine"]
        assert [(record.fields["scopes"], record.fields["admin"]) for record in told] == [
            ([READ], False),
            ([READ, ADMIN], True),
        ]
        assert {record.fields["device"] for record in told} == {device.id}


async def test_a_request_that_is_refused_is_logged_with_its_cause_and_its_peer(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        await host.http("GET", "/status", token=None, address="10.0.0.9")
        (told,) = [record for record in host.log if record.message == "refused a request"]
        assert (told.fields["peer"], told.fields["details"]["code"]) == ("10.0.0.9", "AUTH_TOKEN_MISSING")


async def test_a_page_that_guesses_is_locked_out_and_programs_are_not(tmp_path: Path, autojump_clock: Clock) -> None:
    async with open_test_gateway(tmp_path, virtual=True) as host:
        page = {"Origin": f"http://127.0.0.1:{host.port}"}
        statuses = [
            (await host.http("POST", "/rpc/health", {}, token=f"guess-{n}", headers=page)).status for n in range(11)
        ]
        assert statuses == [401] * 10 + [429]
        assert (await host.http("POST", "/rpc/health", {})).status == 200


async def test_mode_none_lets_in_this_machine_and_nobody_else(tmp_path: Path) -> None:
    config = ECHO | {"gateway": {"auth": {"mode": "none"}}}
    async with open_test_gateway(tmp_path, config=config) as host:
        assert (await host.http("GET", "/status", token=None)).status == 200
        assert (await host.http("GET", "/status", token=None, address="10.0.0.9")).status == 401
        own_port = await host.http("GET", "/status", token=None, headers={"Origin": "http://localhost:5173"})
        assert own_port.status in (400, 403)  # without a secret another page of this machine is an attacker


async def test_a_password_works_as_the_bearer(tmp_path: Path) -> None:
    config = ECHO | {"gateway": {"auth": {"mode": "password", "password": "correct horse battery"}}}
    async with open_test_gateway(tmp_path, config=config) as host:
        assert (await host.http("GET", "/status")).status == 200  # the test host's secret, whatever it is called
        async with host.socket() as socket:
            params = connect_params(token=None) | {"auth": {"password": TOKEN}}
            assert (await socket.connect(params))["auth"]["method"] == "password"


async def test_a_scope_cap_of_the_head_narrows_a_connect(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        async with host.socket(headers={"x-openclaw-scopes": "operator.read"}) as socket:
            hello = await socket.connect(connect_params(token=TOKEN))
            assert hello["auth"]["scopes"] == ["operator.read"]
