"""`triops devices` against a gateway of a few lines."""

import json
from typing import Any

import pytest

WAITS = {
    "requestId": "3f2ed718-aa70",
    "deviceId": "fe812c12f3ab4ce6",
    "publicKey": "k",
    "displayName": "Ann's phone\x1b[2J",
    "clientId": "openclaw-ios",
    "clientMode": "ui",
    "platform": "ios",
    "scopes": ["operator.read", "operator.write"],
    "remoteIp": "10.0.0.9",
    "ts": 0,
}
PAIRED = {
    "deviceId": "dbc298251c51321b",
    "publicKey": "k",
    "clientId": "cli",
    "clientMode": "cli",
    "platform": "linux",
    "scopes": [],
    "connected": False,
    "tokens": [{"role": "operator", "scopes": [], "createdAtMs": 1}],
}


@pytest.fixture
def listed(gateway: Any) -> Any:
    gateway.answers["device.pair.list"] = {"pending": [WAITS], "paired": [PAIRED]}
    return gateway


def test_the_list_says_who_waits_and_how_to_let_them_in(run: Any, listed: Any):
    out = run("devices", "list").out
    assert "3f2ed718  fe812c12f3ab  Ann's phone\\x1b[2J  openclaw-ios (ios)  read, write  10.0.0.9" in out
    assert "triops devices approve" in out
    assert "dbc298251c51  -     cli (linux)  no scopes  paired" in out
    listed.answers["device.pair.list"] = {"pending": [], "paired": [PAIRED | {"connected": True}]}
    assert "connected" in run("devices", "list").out
    revoked = PAIRED | {"tokens": [{"revokedAtMs": 1}]}
    listed.answers["device.pair.list"] = {"pending": [], "paired": [revoked]}
    assert "revoked" in run("devices", "list").out
    listed.answers["device.pair.list"] = {"pending": [], "paired": []}
    assert run("devices", "list").out == "No devices.\n"


@pytest.mark.parametrize("given", [[], ["3f2e"], ["3f2ed718-aa70"]])
def test_the_one_that_waits_is_meant(run: Any, listed: Any, given: list[str]):
    listed.answers["device.pair.approve"] = {"requestId": "r", "device": WAITS}
    assert run("devices", "approve", *given).out == "Device fe812c12f3ab may connect with read, write.\n"
    assert listed.calls[-1].params == {"requestId": "3f2ed718-aa70"}
    listed.answers["device.pair.reject"] = {"requestId": "r", "deviceId": WAITS["deviceId"]}
    assert "not let in" in run("devices", "reject", *given).out


@pytest.mark.parametrize("verb", ["remove", "rotate", "revoke"])
def test_a_device_is_known_by_the_start_of_its_id(run: Any, listed: Any, verb: str):
    method = "device.pair.remove" if verb == "remove" else f"device.token.{verb}"
    listed.answers[method] = {"deviceId": PAIRED["deviceId"]}
    assert "Device dbc298251c51" in run("devices", verb, "dbc2").out
    params = {"deviceId": PAIRED["deviceId"]} | ({} if verb == "remove" else {"role": "operator"})
    assert listed.calls[-1].params == params
    failed = run("devices", verb, "Ann's phone")
    assert (failed.code, "triops devices list" in failed.err) == (1, True)
    assert json.loads(run("devices", verb, "dbc2", "--json").out) == {"deviceId": PAIRED["deviceId"]}


def test_when_nobody_or_several_are_meant_it_says_so(run: Any, listed: Any):
    others = [WAITS, WAITS | {"requestId": "3f999999-aa70"}]
    listed.answers["device.pair.list"] = {"pending": others, "paired": []}
    assert "2 requests could be meant: 3f2ed718-aa7, 3f999999-aa7" in run("devices", "approve", "3f").err
    listed.answers["device.pair.list"] = {"pending": [], "paired": []}
    assert "connect again" in run("devices", "approve").err
    assert "there are no devices" in run("devices", "remove", "x").err


def test_what_the_gateway_says_to_do_is_printed(run: Any, listed: Any):
    error = {"code": "FORBIDDEN", "message": "no", "details": {"remediationHint": "do this"}}
    listed.answers["device.pair.approve"] = (403, {"error": error})
    assert run("devices", "approve").err == "triops: no\ndo this\n"
