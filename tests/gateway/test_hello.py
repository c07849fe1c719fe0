"""What a client is told when it is let in."""

from pathlib import Path

import pytest
from tests.kit.host import TOKEN, open_test_gateway
from tests.kit.wire import Refused, connect_params

from triops.gateway.hello import EVENTS
from triops.gateway.methods import METHODS


async def test_a_backend_with_the_token_keeps_its_scopes_and_needs_no_device(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        hello = client.hello
        assert (hello["type"], hello["protocol"], hello["server"]["version"]) == ("hello-ok", 4, "0.0.0-test")
        assert hello["features"]["methods"] == list(METHODS)
        assert hello["features"]["events"] == list(EVENTS)
        assert hello["auth"] == {
            "method": "token",
            "role": "operator",
            "scopes": ["operator.admin", "operator.read", "operator.write"],
        }
        assert hello["policy"]["maxPayload"] == 16 * 1024 * 1024
        assert hello["policy"]["tickIntervalMs"] == 30_000
        assert hello["policy"]["attachments"] == {"maxBytes": 10 * 1024 * 1024, "maxImageBytes": 6 * 1024 * 1024}
        snapshot = hello["snapshot"]
        assert snapshot["sessionDefaults"]["mainSessionKey"] == "agent:main:main"
        assert snapshot["stateDir"] == str(host.runtime.paths.state)
        assert snapshot["authMode"] == "token"
        assert snapshot["health"]["ok"] is True


async def test_who_is_no_administrator_is_not_told_where_things_lie(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client(scopes=["operator.read"]) as client:
        assert not {"configPath", "stateDir", "authMode"} & client.hello["snapshot"].keys()


async def test_every_event_that_is_sent_was_advertised(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client(caps=("tool-events",)) as client:
        await client.request("sessions.subscribe")
        await client.say("CALL:sessions_list {}", key="k")
        await client.ended("k")
        await client.request("wake", {"mode": "now", "text": "SAY:x"})
        await host.http("POST", "/heartbeat")
        await client.event("heartbeat")
        assert {frame["event"] for frame in client.frames if frame["type"] == "event"} <= set(EVENTS)


@pytest.mark.parametrize(
    ("client", "mode", "scopes"),
    [
        ("cli", "cli", ["operator.admin", "operator.read", "operator.write"]),
        ("gateway-client", "backend", ["operator.admin", "operator.read", "operator.write"]),
        ("test", "test", []),
        ("gateway-client", "cli", []),
        ("openclaw-macos", "ui", []),
    ],
)
async def test_only_the_command_line_and_local_backends_keep_scopes_without_a_device(
    tmp_path: Path, client: str, mode: str, scopes: list[str]
) -> None:
    async with open_test_gateway(tmp_path) as host, host.socket() as socket:
        hello = await socket.connect(connect_params(token=TOKEN, client=client, mode=mode))
        assert hello["auth"]["scopes"] == scopes


@pytest.mark.parametrize("client", ["openclaw-control-ui", "openclaw-tui"])
async def test_user_interfaces_without_a_device_are_refused(tmp_path: Path, client: str) -> None:
    async with open_test_gateway(tmp_path) as host:
        origin = {"Origin": f"http://127.0.0.1:{host.port}"}
        async with host.socket(headers=origin) as socket:
            with pytest.raises(Refused) as refused:
                await socket.connect(connect_params(token=TOKEN, client=client, mode="ui"))
            assert refused.value.error["details"]["code"] == "CONTROL_UI_DEVICE_IDENTITY_REQUIRED"
            assert (await socket.closed()).code == 1008


async def test_a_backend_elsewhere_or_in_a_page_has_no_scopes_without_a_device(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        async with host.client(address="10.0.0.9") as client:
            assert client.hello["auth"]["scopes"] == []
        async with host.socket(headers={"Origin": f"http://127.0.0.1:{host.port}"}) as socket:
            hello = await socket.connect(connect_params(token=TOKEN))
            assert hello["auth"]["scopes"] == []


async def test_a_tracked_client_is_announced_and_its_leaving_too(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as watcher:
        async with host.socket() as socket:
            await socket.connect(connect_params(token=TOKEN, client="test", mode="test"))
            frame = await watcher.until(lambda frame: frame.get("event") == "presence")
            assert [entry["reason"] for entry in frame["payload"]["presence"]] == ["self", "connect"]
            assert frame["stateVersion"]["presence"] == 2
        frame = await watcher.until(lambda frame: frame.get("event") == "presence")
        assert [entry["reason"] for entry in frame["payload"]["presence"]] == ["self", "disconnect"]
        assert frame["stateVersion"]["presence"] == 3
        assert len(await watcher.request("system-presence")) == 2
