"""Slash commands: the gateway answers them, and each answer is a run of its own that no model saw."""

from pathlib import Path
from typing import Any

import pytest
from tests.kit.host import ECHO, open_test_gateway
from tests.kit.wire import Client, Refused

from triops.agents.model import ModelInfo, ModelRef
from triops.agents.providers.scripted import ScriptedProvider
from triops.gateway.handlers.commands import Command, parse
from triops.runtime.models import ProviderEntry

MAIN = "agent:main:main"


async def told(client: Client, text: str, *, key: str | None = None, **params: Any) -> str:
    key = key or f"k {text}"
    await client.say(text, key=key, **params)
    return (await client.terminal(key))["message"]["content"][0]["text"]


def two_models() -> tuple[ScriptedProvider, ProviderEntry]:
    scripted = ScriptedProvider()
    other = ModelInfo(ref=ModelRef("scripted", "other"), api="scripted")
    return scripted, ProviderEntry(provider=scripted, why="the test", models=(other,))


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("/status", Command("status")),
        ("  /STATUS  ", Command("status")),
        ("/model a/b/c -s", Command("model", "a/b/c -s")),
        ("/models", Command("model", "list")),
        ("/commands", Command("help")),
        ("/id", Command("whoami")),
        ("/think high", Command("think", "high")),
        ("/stop", Command("stop")),
        ("/etc/hosts is empty", None),
        ("/nosuchcommand", None),
        ("/", None),
        ("what is /status?", None),
    ],
)
def test_a_word_after_a_slash_is_a_command_if_somebody_knows_it(text: str, command: Command | None) -> None:
    assert parse(text) == command


async def test_a_command_is_answered_without_a_model_and_leaves_no_message(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        assert "/status" in await told(client, "/help")
        status = await told(client, "/status", key="s")
        assert "Model: scripted/echo" in status and "Provider scripted: ready" in status
        assert "operator.admin" in await told(client, "/whoami")
        assert "no /think" in await told(client, "/think high")
        assert "Nothing to do" in await told(client, "/compact")
        assert client.events("agent") == []
        assert host.model.requests == []
        assert (await client.request("chat.history", {"sessionKey": "main"}))["messages"] == []
        assert (await client.request("agent.wait", {"runId": "s"}))["status"] == "ok"


async def test_a_command_that_comes_again_does_nothing_again_and_is_answered_as_before(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        await told(client, "/new", key="n")
        await told(client, "words", key="w")
        async with host.client() as again:
            assert (await again.say("/new", key="n"))["status"] == "ok"
            assert "New session" in (await again.terminal("n"))["message"]["content"][0]["text"]
        assert len((await client.request("chat.history", {"sessionKey": "main"}))["messages"]) == 3
        with pytest.raises(Refused):
            await client.say("/reset", key="n")


async def test_a_session_can_change_its_model_and_take_the_default_again(tmp_path: Path) -> None:
    scripted, entry = two_models()
    async with open_test_gateway(tmp_path, providers=(entry,)) as host, host.client() as client:
        assert "scripted/echo" in await told(client, "/models")
        assert "Current: scripted/echo (the default)" in await told(client, "/model")
        assert "scripted/other" in await told(client, "/model scripted/other")
        await told(client, "hello")
        assert [str(request.model.ref) for request in scripted.requests] == ["scripted/other"]
        assert "unknown model 'nobody/x'" in await told(client, "/model nobody/x")
        assert "one model" in await told(client, "/model -g scripted/other")
        assert "Current: scripted/other" in await told(client, "/model status")
        assert "scripted/echo (the default)" in await told(client, "/model default")


async def test_a_new_session_stops_what_runs_and_forgets(tmp_path: Path) -> None:
    scripted, entry = two_models()
    async with open_test_gateway(tmp_path, providers=(entry,)) as host, host.client() as client:
        await client.say("HANG", key="run")
        assert await told(client, "/new scripted/other") == (
            "New session started. This session uses scripted/other from its next message on."
        )
        assert client.events("chat", "run")[-1]["stopReason"] == "reset"
        await told(client, "hello")
        assert len(scripted.requests[-1].messages) == 1


async def test_who_may_not_reset_may_not_by_a_command(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client(scopes=["operator.write"]) as client:
        for text in ("/new", "/reset"):
            with pytest.raises(Refused) as caught:
                await client.say(text, key=text)
            assert caught.value.error["details"]["missingScope"] == "operator.admin"
        assert "Session:" in await told(client, "/status")


async def test_over_http_the_answer_is_the_reply(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path, config=ECHO) as host:
        said = {"sessionKey": "main", "message": "/status", "idempotencyKey": "k"}
        answer = await host.rpc("chat.send", said, final=True)
        assert (answer["status"], answer["state"]) == ("ok", "final")
        assert "Model:" in answer["text"]
