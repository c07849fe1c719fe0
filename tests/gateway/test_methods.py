"""The table of methods, and every handler against whatever params a client may think of."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.kit.host import ECHO, TestHost, open_test_gateway
from tests.kit.wire import Refused

from triops.gateway.methods import METHODS
from triops.gateway.scopes import SCOPES

ADVERTISED = {
    *("chat.send", "chat.history", "chat.abort", "agent", "agent.wait", "agent.identity.get"),
    *("sessions.list", "sessions.create", "sessions.send", "sessions.reset"),
    *("sessions.subscribe", "sessions.unsubscribe", "sessions.messages.subscribe", "sessions.messages.unsubscribe"),
    *("models.list", "models.authStatus", "wake", "health", "status", "channels.status", "config.get"),
    *("cron.add", "cron.list", "cron.get", "cron.run", "cron.runs", "cron.remove", "cron.status"),
    *("system-presence", "last-heartbeat", "logs.tail"),
    *("device.pair.list", "device.pair.approve", "device.pair.reject", "device.pair.remove", "device.pair.rename"),
    *("device.token.rotate", "device.token.revoke", "device.scopes.requestUpgrade", "device.scopes.waitUpgrade"),
    *("gateway.identity.get", "gateway.token.rotate"),
}

STRANGE: list[Any] = [
    None,
    True,
    -1,
    0,
    2**63,
    10**40,
    1.5,
    1e308,
    "",
    " ",
    "main",
    "\x00",
    "\ud800",
    "é" * 2000,
    "agent:main:main",
    "agent:nobody:main",
    "agent::",
    [],
    [1],
    [{}],
    {},
    {"x": 1},
    {"kind": "every", "everyMs": 10**30},
    {"kind": "at", "at": "never"},
    {"kind": "cron", "expr": "* * * * * * * *", "tz": "Nowhere/City"},
    {"kind": "systemEvent", "text": ""},
]
FIELDS_OF_CRON_ADD = ("name", "schedule", "payload", "sessionTarget", "wakeMode", "sessionKey", "enabled", "delivery")
WHOLE: dict[str, dict[str, Any]] = {
    "chat.send": {"sessionKey": "main", "message": "SAY:x", "idempotencyKey": "k"},
    "chat.history": {"sessionKey": "main"},
    "chat.abort": {"sessionKey": "main"},
    "agent": {"message": "SAY:x", "idempotencyKey": "a"},
    "agent.wait": {"runId": "k", "timeoutMs": 0},
    "sessions.send": {"key": "main", "message": "SAY:x"},
    "sessions.reset": {"key": "main"},
    "sessions.messages.subscribe": {"key": "main"},
    "sessions.messages.unsubscribe": {"key": "main"},
    "wake": {"mode": "next-heartbeat", "text": "x"},
    "cron.add": {
        "name": "n",
        "schedule": {"kind": "every", "everyMs": 3_600_000},
        "payload": {"kind": "systemEvent", "text": "t"},
        "sessionTarget": "main",
    },
}


def fields_of(name: str) -> tuple[str, ...]:
    kind = METHODS[name].decoder.type
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return FIELDS_OF_CRON_ADD
    return tuple(field.encode_name for field in msgspec.structs.fields(kind) if field.type is not Any)


def test_the_table_is_what_the_protocol_promises_and_each_scope_exists() -> None:
    assert set(METHODS) == ADVERTISED
    assert {entry.scope for entry in METHODS.values()} <= {None, *SCOPES}
    writes = {name for name, entry in METHODS.items() if entry.control_plane}
    decisions = {name for name in METHODS if name.startswith(("device.pair.", "device.token."))} - {"device.pair.list"}
    assert writes == {"cron.add", "cron.remove", "cron.run", "gateway.token.rotate"} | decisions


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ADVERTISED))
async def test_no_params_make_a_method_fail_by_our_own_fault(tmp_path: Path, name: str) -> None:
    config = ECHO | {"messages": {"queue": {"cap": 1000}}}
    async with open_test_gateway(tmp_path, config=config, virtual=True) as host, host.client() as client:
        host.gateway.services.writes.count = lambda *_: None  # type: ignore[method-assign] # else it is all that is seen
        await host.rpc("chat.send", {"sessionKey": "main", "message": "SAY:x", "idempotencyKey": "k"}, final=True)
        whole = WHOLE.get(name, {})
        for field in fields_of(name):
            for value in STRANGE:
                if (name, field) == ("agent.wait", "timeoutMs"):
                    continue  # it would wait
                params = whole | {field: value}
                await client.send(json.dumps({"type": "req", "id": "x", "method": name, "params": params}))
                frame = await client.until(lambda frame: frame["type"] == "res")
                if not frame["ok"]:
                    assert frame["error"]["code"] in ("INVALID_REQUEST", "UNAVAILABLE", "NOT_PAIRED"), (params, frame)
                if frame["ok"] and name == "agent":
                    await client.until(lambda frame: frame["type"] == "res")


async def refusal(host: TestHost, method: str, params: Any) -> dict[str, Any]:
    async with host.client() as client:
        with pytest.raises(Refused) as refused:
            await client.request(method, params)
        return refused.value.error


async def test_a_fault_names_its_path_and_only_the_variant_that_was_meant(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        job = WHOLE["cron.add"] | {"schedule": {"kind": "every"}}
        error = await refusal(host, "cron.add", job)
        assert error["code"] == "INVALID_REQUEST"
        assert "everyMs" in error["message"]
        assert "expr" not in error["message"]
        assert not error.get("retryable")
        error = await refusal(host, "sessions.list", {"limit": 0})
        assert error["message"] == "invalid sessions.list params: at /limit: must be >= 1"


async def test_a_scope_that_is_missing_is_named(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client(scopes=["operator.read"]) as client:
        assert client.hello["auth"]["scopes"] == ["operator.read"]
        for method, scope in (("chat.send", "write"), ("cron.add", "admin"), ("sessions.reset", "admin")):
            with pytest.raises(Refused) as refused:
                await client.request(method, {})
            assert refused.value.error == {
                "code": "FORBIDDEN",
                "message": f"missing scope: operator.{scope}",
                "details": {
                    "code": "MISSING_SCOPE",
                    "missingScope": f"operator.{scope}",
                    "requiredScopes": [f"operator.{scope}"],
                },
            }
        assert (await client.request("status"))["ok"] is True


async def test_a_writer_may_read_and_an_administrator_may_all(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        async with host.client(scopes=["operator.write"]) as client:
            assert await client.request("sessions.list")
        async with host.client(scopes=["operator.admin"]) as client:
            assert (await client.say("SAY:x", key="k"))["status"] == "started"
            assert (await client.terminal("k"))["state"] == "final"
