"""What the gateway says of itself."""

from pathlib import Path

from tests.kit.host import TOKEN, open_test_gateway


async def test_the_configuration_is_shown_without_its_secrets_and_its_place_only_to_administrators(
    tmp_path: Path,
) -> None:
    config = {
        "gateway": {"auth": {"mode": "token", "token": "a-secret-of-the-configuration"}},
        "models": {
            "providers": {
                "x": {"api": "openai-completions", "baseUrl": "http://127.0.0.1:9/v1", "apiKey": "sk-canary-12345"}
            }
        },
        "agents": {"defaults": {"model": {"primary": "scripted/echo"}}},
    }
    async with open_test_gateway(tmp_path, config=config) as host:
        shown = await host.rpc("config.get")
        assert shown["exists"] is True
        assert shown["path"] == str(host.runtime.paths.config)
        assert shown["config"]["agents"] == config["agents"]
        text = str(shown)
        assert "a-secret-of-the-configuration" not in text
        assert "sk-canary-12345" not in text
        async with host.client(scopes=["operator.read"]) as client:
            assert (await client.request("config.get"))["path"] == "triops.json"


async def test_health_needs_no_scope_and_tells_no_secret(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client(scopes=[]) as client:
        health = await client.request("health", {"probe": True})
        assert health["ok"] is True
        assert health["defaultAgentId"] == "main"
        assert TOKEN not in str(health)


async def test_models_are_listed_with_their_state(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        await host.rpc("chat.send", {"sessionKey": "m", "message": "SAY:x", "idempotencyKey": "k"}, final=True)
        (row,) = (await host.rpc("models.list"))["models"]
        assert (row["provider"], row["id"], row["available"], row["tags"]) == ("scripted", "echo", True, ["default"])
        assert (await host.rpc("models.list", {"provider": "other"}))["models"] == []


async def test_a_wake_is_a_visible_system_message_and_now_means_a_run(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        await client.request("wake", {"mode": "next-heartbeat", "text": "noted"})
        await client.request("wake", {"mode": "now", "text": "SAY:awake"})
        final = await client.until(lambda frame: frame.get("payload", {}).get("state") == "final")
        assert final["payload"]["message"]["content"][0]["text"] == "awake"
        history = (await client.request("chat.history", {"sessionKey": "main"}))["messages"]
        assert [(message["role"], message["content"]) for message in history[:2]] == [
            ("system", "noted"),
            ("system", "SAY:awake"),
        ]


async def test_a_heartbeat_is_told_and_remembered(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        assert await client.request("last-heartbeat") is None
        beat = (await host.http("POST", "/heartbeat")).body
        assert beat["status"] == "sent"
        told = await client.event("heartbeat")
        assert told == beat == await client.request("last-heartbeat")
        assert (await host.http("GET", "/heartbeat")).body == beat


async def test_the_log_is_tailed_by_its_cursor(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        tail = await client.request("logs.tail")
        assert any("client connected" in line for line in tail["lines"])
        host.runtime.log.info("something new")
        more = await client.request("logs.tail", {"cursor": tail["cursor"]})
        assert sum("something new" in line for line in more["lines"]) == 1
        assert not set(more["lines"]) & set(tail["lines"])
        assert TOKEN not in str(tail)


async def test_the_web_chat_is_the_one_channel(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        status = await host.rpc("channels.status")
        assert status["channelOrder"] == ["webchat"]
        assert status["channels"]["webchat"]["connected"] is True
