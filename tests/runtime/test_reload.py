"""A configuration file that changes while the gateway runs: what is taken up, what is kept, what is said."""

import json
from pathlib import Path
from typing import Any

import trio
from tests.kit.host import TestHost, open_test_gateway

from triops.runtime.config import (
    AgentDefaults,
    AgentEntry,
    AgentsConfig,
    Config,
    CronConfig,
    GatewayConfig,
    ModelChoice,
)
from triops.runtime.reload import PAUSE, differences, taken_up

CONFIG: dict[str, Any] = {
    "models": {"mode": "replace", "providers": {"scripted": {}}},
    "agents": {"defaults": {"model": "scripted/echo"}},
}
"""Nothing is looked for but what it names."""


def write(tmp_path: Path, text: str) -> None:
    (tmp_path / "state" / "triops.json").write_text(text)


def said(host: TestHost, words: str) -> list[dict[str, Any]]:
    return [dict(record.fields) for record in host.log if words in record.message]


def test_models_are_taken_up_and_an_address_needs_a_restart() -> None:
    held = Config(agents=AgentsConfig(entries={"main": AgentEntry(workspace="a")}))
    agents = AgentsConfig(
        defaults=AgentDefaults(model=ModelChoice(primary="x/y"), workspace="b"),
        entries={"main": AgentEntry(workspace="c", name="Ada"), "new": AgentEntry()},
    )
    new = Config(agents=agents, gateway=GatewayConfig(port=1), cron=CronConfig(enabled=False))
    now = taken_up(held, new)
    assert list(differences(held, now)) == ["agents.defaults.model.primary", "agents.entries.main.name"]
    assert list(differences(now, new)) == [
        "gateway.port",
        "agents.defaults.workspace",
        "agents.entries.main.workspace",
        "agents.entries.new",
        "cron.enabled",
    ]


async def test_a_provider_that_is_added_while_the_gateway_runs_is_warmed_and_answers(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with (
        open_test_gateway(tmp_path, config=CONFIG, providers=(), environ={}, virtual=True) as host,
        host.client() as client,
    ):
        await client.say("/model lab/m", key="before")
        assert "unknown model 'lab/m'" in str(await client.terminal("before"))
        await client.say("TOKENS:4 ITL:2000", key="meanwhile")
        providers = {"scripted": {}, "lab": {"api": "scripted", "models": [{"id": "m"}]}}
        config = {"models": {"mode": "replace", "providers": providers}, "agents": {"defaults": {"model": "lab/m"}}}
        write(tmp_path, json.dumps(config | {"cron": {"enabled": False}}))
        await trio.sleep(5 * PAUSE)
        states = {state.provider: state.state for state in host.runtime.catalog.states()}
        assert (states["scripted"], states["lab"]) == ("ready", "ready")
        await client.event("chat.metadata.changed")
        await client.say("Hello", key="after", session="other")
        await client.terminal("after")
        (row,) = [row for row in (await client.request("sessions.list"))["sessions"] if row["key"].endswith("other")]
        assert (row["modelProvider"], row["model"]) == ("lab", "m")
        assert "tok0" in str(await client.terminal("meanwhile")), "what ran went on"
        assert (await client.request("config.get"))["parsed"]["agents"] == config["agents"]
        (taken,) = said(host, "was taken up")
        assert taken["changed"] == "agents.defaults.model.primary, models.providers.lab"
        assert said(host, "needs a restart") == [{"path": "cron.enabled"}]


async def test_a_change_with_faults_keeps_the_old_configuration_and_is_told_of_once(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with open_test_gateway(tmp_path, config=CONFIG, providers=(), environ={}, virtual=True, faulty=True) as host:
        write(
            tmp_path, '{agents: {defaults: {model: "lab/m"}}, gateway: {port: "soon"}, models: {providers: {lab: {}}}}'
        )
        await trio.sleep(10 * PAUSE)
        (told,) = said(host, "cannot be used")
        assert (
            "gateway.port: expected `int`, got `str`" in told["faults"] and "lab.baseUrl: is missing" in told["faults"]
        )
        assert host.runtime.catalog.default == "scripted/echo" and host.runtime.config.gateway.port == 18789
        shown = (await host.rpc("status"))["configPending"]
        assert shown == f"the changed file cannot be used, the old one holds: {told['faults']}"
        write(tmp_path, json.dumps(CONFIG))
        await trio.sleep(3 * PAUSE)
        assert (await host.rpc("status"))["configPending"] == "", "it is what it was"
        write(tmp_path, '{agents: {defaults: {model: "scripted/other"}}, gateway: {port: 1}}')
        await trio.sleep(10 * PAUSE)
        assert host.runtime.catalog.default == "scripted/other" and len(said(host, "cannot be used")) == 1
        assert (await host.rpc("status"))["configPending"] == "these wait for a restart of the gateway: gateway.port"


async def test_a_file_that_is_still_being_written_is_not_read(tmp_path: Path, autojump_clock: Any) -> None:
    async with open_test_gateway(tmp_path, config=CONFIG, providers=(), environ={}, virtual=True) as host:
        await trio.sleep(PAUSE / 3)
        for size in range(10):
            write(tmp_path, "{" * size)
            await trio.sleep(PAUSE / 2)
        write(tmp_path, json.dumps(CONFIG | {"tools": {"deny": ["exec"]}}))
        await trio.sleep(3 * PAUSE)
        assert host.runtime.config.tools.deny == ("exec",)


async def test_a_provider_that_a_change_leaves_alone_is_not_asked_again(tmp_path: Path, autojump_clock: Any) -> None:
    async with open_test_gateway(tmp_path, config=CONFIG, providers=(), environ={}, virtual=True) as host:
        await trio.sleep(1)
        (before,) = (entry for entry in host.runtime.catalog.entries() if entry.provider.id == "scripted")
        write(tmp_path, json.dumps(CONFIG | {"tools": {"deny": ["exec"]}}))
        await trio.sleep(3 * PAUSE)
        (after,) = (entry for entry in host.runtime.catalog.entries() if entry.provider.id == "scripted")
        assert after is before and len(said(host, "was taken up")) == 1
        write(tmp_path, json.dumps(CONFIG | {"models": {**CONFIG["models"], "patienceSeconds": 1}}))
        await trio.sleep(3 * PAUSE)
        (after,) = (entry for entry in host.runtime.catalog.entries() if entry.provider.id == "scripted")
        assert after is not before
