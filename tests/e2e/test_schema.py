"""What the gateway sends fits what is published and what was recorded: every method and every event, once through."""

import json
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.gateway.handlers.test_devices import FAR, connected, refusal
from tests.kit import schema
from tests.kit.host import ECHO, TestHost, open_test_gateway
from tests.kit.schema import Watch, published_faults, shape_faults
from tests.kit.wire import Client, Refused

from triops.agents.model import RetryNotice, TextDelta
from triops.gateway.client import DeviceIdentity
from triops.gateway.hello import EVENTS
from triops.gateway.methods import METHODS
from triops.gateway.scopes import PAIRING, READ, WRITE

Clock = trio.testing.MockClock

JOB = {"name": "job", "schedule": {"kind": "every", "everyMs": 60_000}, "payload": {"kind": "systemEvent", "text": "x"}}
TRACKED = {"id": "gateway-client", "version": "1", "platform": "test", "mode": "ui", "displayName": "A desktop"}
CONFIG = {"agents": {"defaults": {**ECHO["agents"]["defaults"], "heartbeat": {"every": "3m"}}}}

DOOR = ("device.", "gateway.")


async def every_method_of_the_door(host: TestHost, operator: Client) -> set[str]:
    """Call each method on devices and secrets so that it answers; the names of those that were called."""
    called: set[str] = set()
    mine, other = (DeviceIdentity(Ed25519PrivateKey.generate()) for _ in range(2))

    async def ask(method: str, client: Client = operator, **params: Any) -> Any:
        called.add(method)
        return await client.request(method, params)

    await ask("gateway.identity.get")
    async with connected(host, mine, READ, PAIRING) as client:
        asked = await ask("device.scopes.requestUpgrade", client, scopes=[WRITE])
        await operator.event("device.pair.requested")
        await ask("device.pair.list")
        await ask("device.pair.approve", **asked)
        for request in (asked, {"requestId": "nobody's"}):
            await ask("device.scopes.waitUpgrade", client, **request)
        await ask("device.pair.rename", client, deviceId=mine.id, label="Mine")
        await ask("device.token.rotate", client, deviceId=mine.id, role="operator", scopes=[READ])
    await ask("device.token.rotate", deviceId=mine.id, role="operator")
    await ask("device.token.revoke", deviceId=mine.id, role="operator")
    waits = (await refusal(host, other, address=FAR))["details"]["requestId"]
    await ask("device.pair.list")
    await ask("device.pair.reject", requestId=waits)
    await ask("device.pair.remove", deviceId=mine.id)
    await ask("gateway.token.rotate")
    return called


async def every_method(client: Client) -> set[str]:
    """Call each other method so that it answers; the names of those that were called."""
    called: set[str] = {"connect"}

    async def ask(method: str, **params: Any) -> Any:
        called.add(method)
        return await client.request(method, params)

    await ask("sessions.subscribe")
    await ask("sessions.messages.subscribe", key="agent:main:other")
    await ask("chat.send", sessionKey="main", message='CALL:sessions_list {"limit": 3}', idempotencyKey="tool")
    await client.terminal("tool")
    await ask("chat.send", sessionKey="main", message="again", idempotencyKey="tool2")
    await client.terminal("tool2")
    await ask("chat.send", sessionKey="main", message="FAIL:400", idempotencyKey="fails")
    await client.terminal("fails")
    await ask("chat.send", sessionKey="main", message="FAIL:500", idempotencyKey="retried")
    await client.terminal("retried")
    await ask("chat.send", sessionKey="main", message="HANG", idempotencyKey="hangs")
    await ask("chat.send", sessionKey="main", message="SAY:later", idempotencyKey="waits", queueMode="followup")
    await ask("agent.wait", runId="waits", timeoutMs=0)
    await ask("chat.history", sessionKey="main")
    await ask("chat.abort", sessionKey="main", runId="hangs")
    await client.ended("hangs")
    await client.ended("waits")
    await ask("chat.send", sessionKey="main", message="HANG", idempotencyKey="hangs")  # it is over, and answers so
    spawn = 'CALL:sessions_spawn {"runtime": "subagent", "task": "TOKENS:3 ITL:40"}'
    await ask("agent", message=spawn, sessionKey="agent:main:other", idempotencyKey="agent")
    await client.ended("agent")
    await client.until(lambda frame: frame["type"] == "res")  # the second answer
    await ask("agent.wait", runId="agent")
    await ask("agent.wait", runId="fails")
    await ask("agent.identity.get", sessionKey="main")
    await ask("chat.history", sessionKey="agent:main:other", limit=1)
    created = await ask("sessions.create", key="agent:main:made", label="Made", message="SAY:hi")
    await client.ended(created["runId"])
    await ask("sessions.send", key="agent:main:made", message="SAY:more")
    await ask("sessions.list", limit=2)
    await ask("sessions.reset", key="agent:main:made")
    job = await ask("cron.add", **JOB)
    assert (await ask("cron.run", id=job["id"]))["ok"]
    await client.event("cron", action="finished")
    for method in ("cron.list", "cron.status"):
        await ask(method)
    await ask("cron.get", id=job["id"])
    await ask("cron.runs", id=job["id"])
    await ask("cron.remove", id=job["id"])
    for method in (
        "health",
        "status",
        "models.list",
        "models.authStatus",
        "channels.status",
        "config.get",
        "system-presence",
        "logs.tail",
    ):
        await ask(method)
    await ask("last-heartbeat")
    await ask("wake", text="up", mode="now")
    await client.event("heartbeat")
    await ask("last-heartbeat")
    await ask("sessions.messages.unsubscribe", key="agent:main:other")
    await client.event("health")
    await client.event("tick")
    await ask("sessions.unsubscribe")
    await client.request("sessions.subscribe")
    return called


async def test_every_answer_and_every_event_fits(tmp_path: Path, autojump_clock: Clock, frames: Watch) -> None:
    async with open_test_gateway(tmp_path, config=CONFIG, virtual=True) as host:
        async with host.client(caps=("tool-events",)) as client:
            called = await every_method(client)
            others = {name for name in METHODS if not name.startswith(DOOR)}
            assert called == others | {"connect"}, "call the new method in `every_method`"
            with pytest.raises(Refused):
                await client.request("no.such.method")
            asked = {"sessionKey": "main", "message": "CALL:sessions_list {}", "idempotencyKey": "elsewhere"}
            await host.rpc("chat.send", asked, final=True)
            async with host.client(client=TRACKED):
                await client.event("presence")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.gateway.stop)
                await client.event("shutdown")
                await client.closed()
    sent = {frame["event"] for frame in frames.frames if frame["type"] == "event"}
    untold = {name for name in set(EVENTS) - sent if not name.startswith(DOOR)}
    assert untold <= {"chat.metadata.changed"}, "make the new event happen in `every_method`"


async def test_every_answer_and_event_of_the_door_fits(tmp_path: Path, frames: Watch) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as operator:
        called = await every_method_of_the_door(host, operator)
    assert called == {name for name in METHODS if name.startswith(DOOR)}, "call the new method"
    sent = {frame["event"] for frame in frames.frames if frame["type"] == "event"}
    assert {name for name in EVENTS if name.startswith(DOOR)} <= sent


async def test_what_is_told_of_a_call_that_is_made_again_fits(tmp_path: Path, autojump_clock: Clock) -> None:
    kinds = "rate_limit", "server_error"
    notices = [RetryNotice(attempt, 3, f"it said {kind}", 1.0, kind) for attempt, kind in enumerate(kinds, 1)]
    async with open_test_gateway(tmp_path, script=[[*notices, TextDelta("at last")]], virtual=True) as host:
        async with host.client() as client:
            await client.say("hi", key="k")
            assert (await client.terminal("k"))["state"] == "final"
            told = [payload for payload in client.events("chat", "k") if payload["state"] == "status"]
            assert [payload.get("retry", {}).get("reason") for payload in told] == ["rate_limit", None]
            data = [payload["data"] for payload in client.events("agent", "k") if payload["stream"] == "run_status"]
            assert [retry["reason"] for retry in data] == ["it said rate_limit", "it said server_error"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TickEvent", {"ts": "now"}),
        ("TickEvent", {"ts": 1, "more": 1}),
        ("AgentEvent", {"runId": "r", "seq": 1, "stream": "lifecycle", "data": {}}),
        ("ResponseFrame", {"type": "res", "id": "", "ok": True}),
    ],
)
def test_what_the_published_schema_does_not_allow_is_found(name: str, value: Any) -> None:
    assert published_faults(name, value)


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ({"ok": True, "aborted": True, "runIds": ["r"], "why": "?"}, "'why' (str)"),
        ({"ok": True, "aborted": True}, "lacks 'runIds'"),
        ({"ok": True, "aborted": 1, "runIds": []}, "aborted is integer"),
        ({"ok": True, "aborted": True, "runIds": [1]}, "runIds[] is integer"),
        ([], "is list"),
    ],
)
def test_what_was_never_recorded_is_found(value: Any, fault: str) -> None:
    (found,) = shape_faults("res chat.abort", value)
    assert fault in found
    assert not shape_faults("res chat.abort", {"ok": True, "aborted": False, "runIds": []})


def test_a_number_that_is_left_out_is_found() -> None:
    watch = Watch()
    conversation = watch.conversation()
    for seq in (1, 3):
        conversation.told(json.dumps({"type": "event", "event": "tick", "payload": {"ts": 1}, "seq": seq}))
    assert ["seq 3 after 1" in fault for fault in watch.faults] == [True]


def test_the_extras_name_definitions_that_exist() -> None:
    known = {*schema.ANSWERS.values(), *schema.MEMBERS.values(), *schema.EVENTS.values(), *schema.CHAT.values()}
    assert set(schema.BEYOND) <= known
