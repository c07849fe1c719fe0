import json
from typing import Any

import msgspec
import pytest

from triops.gateway.frames import StateVersion
from triops.gateway.schema.connect import (
    AttachmentPolicy,
    ConnectParams,
    Credentials,
    Features,
    HelloAuth,
    HelloOk,
    Policy,
    PresenceEntry,
    Server,
    SessionDefaults,
    Snapshot,
)

LEAST: dict[str, Any] = {
    "minProtocol": 4,
    "maxProtocol": 4,
    "client": {"id": "cli", "version": "1", "platform": "linux", "mode": "cli"},
}


def decode(**fields: Any) -> ConnectParams:
    return msgspec.json.decode(json.dumps(LEAST | fields), type=ConnectParams)


def test_the_least_connect_is_an_operators_without_scopes() -> None:
    params = decode()
    assert (params.role, params.scopes, params.caps, params.device) == ("operator", (), (), None)
    assert params.auth == Credentials()


def test_every_field_of_the_protocol_is_taken() -> None:
    params = decode(
        client=LEAST["client"]
        | {
            "displayName": "d",
            "buildId": "b",
            "deviceFamily": "f",
            "modelIdentifier": "m",
            "timeZone": "UTC",
            "instanceId": "i",
        },
        caps=["tool-events", "an-unknown-cap"],
        commands=["system.run"],
        permissions={"camera": True},
        pathEnv="/bin",
        computerUse={"x": 1},
        workerRuns={},
        modelCatalog={"shortId": "s"},
        role="node",
        scopes=["operator.read"],
        auth={
            "token": "",
            "bootstrapToken": "b",
            "deviceToken": "d",
            "password": "p",
            "approvalRuntimeToken": "a",
            "agentRuntimeIdentityToken": "g",
        },
        device={"id": "i", "publicKey": "k", "signature": "s", "signedAt": 0, "nonce": "n"},
        locale="en",
        userAgent="u",
    )
    assert params.client.time_zone == "UTC"
    assert params.auth.token == ""


@pytest.mark.parametrize(
    "wrong",
    [
        {"foo": 1},
        {"minProtocol": 0},
        {"scopes": [""]},
        {"auth": {"secret": "x"}},
        {"client": LEAST["client"] | {"id": "ios-node"}},
        {"client": LEAST["client"] | {"mode": "operator"}},
        {"client": LEAST["client"] | {"timeZone": "x" * 65}},
        {"device": {"id": "i", "publicKey": "k", "signature": "s", "signedAt": -1, "nonce": "n"}},
        {"device": {"id": "i"}},
        {"role": ""},
    ],
)
def test_what_the_protocol_does_not_know_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode(**wrong)


def test_secrets_do_not_print() -> None:
    params = decode(auth={"token": "canary-1", "password": "canary-2"})
    assert repr(params.auth) == "Credentials(token, password)"
    hello = HelloAuth(method="token", role="operator", scopes=(), device_token="canary-3")
    assert "canary" not in repr(params) + repr(hello)


def test_hello_has_the_protocols_names_in_its_order() -> None:
    hello = HelloOk(
        server=Server(version="1", conn_id="c"),
        features=Features(("health",), ("tick",)),
        snapshot=Snapshot(
            presence=[PresenceEntry(ts=1, client_id="cli", roles=("operator",))],
            health={"ok": True},
            state_version=StateVersion(1, 2),
            uptime_ms=3,
            session_defaults=SessionDefaults(
                default_agent_id="main",
                main_key="main",
                main_session_key="agent:main:main",
                scope="per-sender",
                model_configured=True,
            ),
        ),
        auth=HelloAuth(
            method="device-token", role="operator", scopes=("operator.read",), device_token="t", issued_at_ms=5
        ),
        policy=Policy(max_payload=6, max_buffered_bytes=7, tick_interval_ms=8, attachments=AttachmentPolicy(9, 10)),
    )
    assert json.loads(msgspec.json.encode(hello)) == {
        "type": "hello-ok",
        "protocol": 4,
        "server": {"version": "1", "connId": "c"},
        "features": {"methods": ["health"], "events": ["tick"], "capabilities": []},
        "snapshot": {
            "presence": [{"ts": 1, "clientId": "cli", "roles": ["operator"]}],
            "health": {"ok": True},
            "stateVersion": {"presence": 1, "health": 2},
            "uptimeMs": 3,
            "sessionDefaults": {
                "defaultAgentId": "main",
                "mainKey": "main",
                "mainSessionKey": "agent:main:main",
                "scope": "per-sender",
                "modelConfigured": True,
                "ownership": "sole",
                "selectionRequired": False,
            },
        },
        "auth": {
            "method": "device-token",
            "role": "operator",
            "scopes": ["operator.read"],
            "deviceToken": "t",
            "issuedAtMs": 5,
        },
        "policy": {
            "maxPayload": 6,
            "maxBufferedBytes": 7,
            "tickIntervalMs": 8,
            "attachments": {"maxBytes": 9, "maxImageBytes": 10},
        },
    }
    assert msgspec.json.encode(hello).startswith(b'{"type":"hello-ok","protocol":4,"server":')


def test_empty_scopes_are_said_to_be_empty() -> None:
    auth = HelloAuth(method="token", role="operator", scopes=())
    assert msgspec.json.encode(auth) == b'{"method":"token","role":"operator","scopes":[]}'
