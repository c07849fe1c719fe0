"""One test for each class of OpenClaw's advisories that this code has a surface for and no test elsewhere.

Elsewhere: self-declared scopes, silent re-pairing, a narrow token that claims `backend` (`test_pairing`); rotations and
approvals beyond one's own, stale tokens and their sockets (`handlers/test_devices`, `properties/test_door`); method by
scope (`test_matrix`); `Host` and `Origin` (`test_spellings`, `test_locality`); guesses made at once (`test_limiter`,
`test_door`); sockets before authentication (`test_server`); the configuration as it is shown (`handlers/test_system`).
Setup codes, exec approvals, webhooks, a sandbox and media fetching do not exist here.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import trio.testing
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.kit.host import ECHO, TOKEN, TestHost, open_test_gateway
from tests.kit.wire import Refused, connect_params

from triops.gateway.cli.output import printable
from triops.gateway.client import DeviceIdentity

Clock = trio.testing.MockClock
FAR = "10.0.0.9"
CANARY = "canary-5b1e77d09a64c3f2"


async def guess(host: TestHost, auth: dict[str, str], address: str = FAR, device: Any = None) -> str:
    """A connect with these credentials; why it was refused."""
    async with host.socket(address) as socket:
        params = connect_params(token=None) | {"auth": auth}
        challenge = await socket.event("connect.challenge")
        if device is not None:
            params["device"] = device.proof(params, challenge)
        with pytest.raises(Refused) as refused:
            await socket.request("connect", params)
        return refused.value.error["details"]["code"]


async def test_a_made_up_device_token_does_not_switch_the_limit_off(tmp_path: Path, autojump_clock: Clock) -> None:
    """GHSA-6p8r-6m93-557f."""
    async with open_test_gateway(tmp_path, virtual=True, secret="short-secret") as host:
        device = DeviceIdentity(Ed25519PrivateKey.generate())
        tried = [await guess(host, {"token": f"guess-{n}", "deviceToken": "made-up"}, device=device) for n in range(12)]
        assert tried[-1] == "AUTH_RATE_LIMITED"


async def test_another_spelling_of_an_address_is_no_second_budget(tmp_path: Path, autojump_clock: Clock) -> None:
    """GHSA-5847-rm3g-23mw."""
    async with open_test_gateway(tmp_path, virtual=True) as host:
        for n in range(10):
            await guess(host, {"token": "guess"}, FAR if n % 2 else f"::ffff:{FAR}")
        assert await guess(host, {"token": "guess"}, f"::ffff:{FAR}") == "AUTH_RATE_LIMITED"


@pytest.mark.parametrize(
    "path", ["/rpc%2fstatus", "/rpc%252fstatus", "/%2573tatus", "//status", "/./status", "/x/../status"]
)
async def test_a_path_is_decoded_once_and_never_walked(tmp_path: Path, path: str) -> None:
    """GHSA-v865-p3gq-hw6m: who is not known learns nothing, who is gets no route by another name."""
    async with open_test_gateway(tmp_path) as host:
        for verb in ("GET", "POST"):
            body = None if verb == "GET" else {}
            assert (await host.http(verb, path, body, token=None)).status == 401
            assert (await host.http(verb, path, body)).status == 404


async def test_a_token_in_the_url_opens_nothing(tmp_path: Path) -> None:
    """GHSA-rchv-x836-w7xp: it would stand in histories and logs."""
    async with open_test_gateway(tmp_path) as host:
        for name in ("token", "access_token", "auth", "password"):
            assert (await host.http("GET", f"/status?{name}={TOKEN}", token=None)).status == 401
        assert TOKEN not in str(host.log)


@pytest.mark.parametrize("name", ["X-OpenClaw-Scopes", "X-Remote-User", "Authorization", "Cookie"])
async def test_no_header_gives_scopes(tmp_path: Path, name: str) -> None:
    """GHSA-rqpp-rjj8-7wv8: a client that may nothing keeps nothing of what it declares."""
    async with open_test_gateway(tmp_path) as host:
        async with host.socket(FAR, headers={name: "operator.admin"}) as socket:
            hello = await socket.connect(connect_params(token=TOKEN))
            assert hello["auth"]["scopes"] == []


async def test_a_name_identifies_nobody(tmp_path: Path) -> None:
    """GHSA-f5mf-3r52-r83w: another key is another device, whatever it calls itself."""
    one, two = (DeviceIdentity(Ed25519PrivateKey.generate()) for _ in range(2))
    async with open_test_gateway(tmp_path) as host:
        for device, address in ((one, "127.0.0.1"), (two, FAR)):
            async with host.socket(address) as socket:
                params = connect_params(token=TOKEN, client="test", mode="test")
                params["client"] |= {"displayName": "Ann's phone", "instanceId": "same"}
                params["device"] = device.proof(params, await socket.event("connect.challenge"))
                if device is one:
                    await socket.request("connect", params)
                    continue
                with pytest.raises(Refused, match="PAIRING_REQUIRED"):
                    await socket.request("connect", params)


def test_what_a_device_calls_itself_cannot_steer_the_terminal_of_who_approves_it() -> None:
    """GHSA-4hmj-39m8-jwc7."""
    assert printable("phone\x1b[2J\x9b1A\r") == "phone\\x1b[2J\\x9b1A\\x0d"
    assert printable("\u202egpj.exe\u2066\u200b") == "\\u202egpj.exe\\u2066\\u200b"


async def test_no_secret_leaves_in_logs_database_errors_or_events(tmp_path: Path) -> None:
    """GHSA-chf7-jq6g-qrwv, GHSA-8mh7-phf8-xgfm: a canary in every place that a secret can come from."""
    provider = {"api": "openai-completions", "baseUrl": "http://127.0.0.1:9/v1", "apiKey": f"sk-{CANARY}"}
    provider |= {"headers": {"X-Api-Key": f"h-{CANARY}"}, "models": [{"id": "m"}]}
    config = ECHO | {
        "models": {"providers": {"x": provider}},
        "gateway": {"auth": {"mode": "token", "token": f"t-{CANARY}", "password": f"p-{CANARY}"}},
        "env": {"vars": {"SOME_API_KEY": f"e-{CANARY}"}},
    }
    told: list[str] = []
    async with open_test_gateway(tmp_path, config=config, secret=f"t-{CANARY}") as host:
        token = f"t-{CANARY}"
        for name in ("token", "password", "deviceToken", "bootstrapToken"):
            async with host.socket() as socket:
                with pytest.raises(Refused):
                    await socket.connect(connect_params(token=None) | {"auth": {name: f"x{token}"}})
                told += map(json.dumps, socket.frames)
        async with host.socket() as socket:
            await socket.connect(connect_params(token=token))
            for method in ("config.get", "status", "health", "models.list", "logs.tail", "device.pair.list"):
                await socket.request(method)
            for wrong in ({}, {"x": 1}):
                with pytest.raises(Refused):
                    await socket.request("chat.send", wrong)
            params = {"sessionKey": "main", "message": "SAY:x", "idempotencyKey": "k"}
            await socket.request("chat.send", params)
            await socket.terminal("k")
            told += map(json.dumps, socket.frames)
        for target in ("/status", "/metrics", "/sessions", f"/status?limit={'9' * 30}"):
            told.append(str((await host.http("GET", target, token=token)).body))
        told += map(str, host.log)
    assert CANARY not in "".join(told)
    files = [path for path in (tmp_path / "state").rglob("*") if path.is_file() and path.name != "triops.json"]
    assert {"triops.sqlite"} < {path.name for path in files}
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []
