"""What a person is told to do about a refusal, and that every refusal of the door tells it."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.kit.host import ECHO, TOKEN, open_test_gateway
from tests.kit.wire import Refused, connect_params

from triops.gateway.auth import FailureReason, unauthorized
from triops.gateway.cli.main import COMMANDS
from triops.gateway.client import DeviceIdentity
from triops.gateway.errors import ErrorShape
from triops.gateway.remedies import remedied


@pytest.mark.parametrize("reason", get_args(FailureReason))
def test_every_failure_to_prove_oneself_has_a_command_that_exists(reason: FailureReason) -> None:
    details = remedied(unauthorized(reason).shape).details
    assert details is not None
    found = re.search(r"triops ([a-z-]+)", details["remediationHint"])
    assert found is not None
    assert found[1] in COMMANDS


def test_a_device_that_waits_is_let_in_by_the_command_that_is_told_once() -> None:
    details = {"code": "PAIRING_REQUIRED", "requestId": "r-1", "remediationHint": "Approve it."}
    error = remedied(ErrorShape(code="NOT_PAIRED", message="m", details=details))
    assert error.details is not None
    assert error.details["remediationHint"] == "Approve it. On the gateway's machine: triops devices approve r-1"
    assert remedied(error) == error


def test_what_has_no_remedy_stays_as_it_is() -> None:
    for error in (ErrorShape(code="UNAVAILABLE", message="m"), ErrorShape(code="FORBIDDEN", message="m", details={})):
        assert remedied(error) is error


def _connect(**changes: Any) -> dict[str, Any]:
    return connect_params(token=TOKEN) | changes


@pytest.mark.parametrize(
    ("cause", "params"),
    [
        ("AUTH_TOKEN_MISMATCH", _connect(auth={"token": "wrong"})),
        ("DEVICE_IDENTITY_REQUIRED", _connect(auth={})),
        ("CONTROL_UI_DEVICE_IDENTITY_REQUIRED", connect_params(token=TOKEN, client="openclaw-tui", mode="ui")),
        ("CONTROL_UI_ORIGIN_NOT_ALLOWED", connect_params(token=TOKEN, client="openclaw-control-ui", mode="webchat")),
        ("PROTOCOL_MISMATCH", _connect(minProtocol=5, maxProtocol=5)),
        ("ROLE_NOT_SUPPORTED", _connect(role="node")),
    ],
)
async def test_every_refused_connect_is_logged_whole_and_told_how_to_mend_it(
    tmp_path: Path, cause: str, params: dict[str, Any]
) -> None:
    async with open_test_gateway(tmp_path, config=ECHO) as host:
        async with host.socket() as socket:
            with pytest.raises(Refused) as refused:
                await socket.connect(params)
            await socket.closed()
        details = refused.value.error["details"]
        assert details["code"] == cause
        assert details["remediationHint"]
        while not (told := [record for record in host.log if record.message == "refused a connect"]):
            await host.http("GET", "/healthz")  # the line comes when the socket is gone
        about = told[0].fields
        client = params["client"]
        assert (about["cause"], about["clientId"], about["mode"]) == (cause, client["id"], client["mode"])
        assert about["locality"] == "direct_local"
        assert about["reason"] == refused.value.error["message"]


async def test_a_device_that_is_held_is_logged_with_its_id_and_its_requests(tmp_path: Path) -> None:
    device = DeviceIdentity(Ed25519PrivateKey.generate())
    async with open_test_gateway(tmp_path) as host, host.socket("10.0.0.9") as socket:
        params = connect_params(token=TOKEN)
        params["device"] = device.proof(params, await socket.event("connect.challenge"))
        with pytest.raises(Refused) as refused:
            await socket.request("connect", params)
        (told,) = host.warnings()
        request_id = refused.value.error["details"]["requestId"]
        assert (told.fields["deviceId"], told.fields["requestId"]) == (device.id, request_id)
        assert told.fields["locality"] == "remote"
        assert f"triops devices approve {request_id}" in refused.value.error["details"]["remediationHint"]


@pytest.mark.parametrize(
    ("cause", "headers"),
    [
        ("HOST_NOT_ALLOWED", {"Host": "evil.example"}),
        ("PROXY_ATTRIBUTION_REQUIRED", {"X-Forwarded-For": "10.0.0.1"}),
        ("PROXY_ATTRIBUTION_REQUIRED", {"Tailscale-User-Login": "ann@example.com"}),
        ("CONTROL_UI_ORIGIN_NOT_ALLOWED", {"Origin": "https://evil.example"}),
        ("AUTH_TOKEN_MISMATCH", {"Authorization": "Bearer wrong"}),
        ("AUTH_TOKEN_MISSING", {}),
    ],
)
async def test_a_refused_request_tells_how_to_mend_it_too(tmp_path: Path, cause: str, headers: dict[str, str]) -> None:
    async with open_test_gateway(tmp_path) as host:
        answer = await host.http("GET", "/status", headers=headers, token=None)
        assert answer.body["error"]["details"]["code"] == cause
        assert answer.body["error"]["details"]["remediationHint"]
        (told,) = host.warnings()
        assert (told.fields["cause"], told.fields["locality"]) == (cause, told.fields["locality"])
