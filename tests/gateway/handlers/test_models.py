"""What clients see of the models and of the credentials with which they are asked."""

from pathlib import Path
from typing import Any

import pytest
from tests.kit.host import open_test_gateway
from tests.kit.wire import Refused

from triops.agents.errors import ProviderError
from triops.agents.model import ModelInfo, ModelRef
from triops.agents.providers.scripted import ScriptedProvider
from triops.runtime.models import ProviderEntry

CONFIG = {
    "agents": {
        "defaults": {
            "model": {"primary": "one/a", "fallbacks": ["two/found"]},
            "models": {"two/found": {"alias": "f"}},
        },
        "entries": {"main": {}, "writer": {"model": "one/b"}},
    }
}


class Listing(ScriptedProvider):
    def __init__(self, id: str, *listed: str, failure: Exception | None = None) -> None:
        super().__init__(id=id)
        self.listed: tuple[str, ...] = listed
        self.failure = failure

    async def discover(self) -> list[ModelInfo]:
        if self.failure is not None:
            raise self.failure
        return [info(self.id, name) for name in self.listed]

    async def resolve_dynamic(self, model_id: str) -> None:
        """None: it lists all it has."""


class Account(Listing):
    expires = 0

    async def prepare_auth(self) -> int:
        return self.expires


def info(provider: str, model: str) -> ModelInfo:
    return ModelInfo(ref=ModelRef(provider, model), name=model.upper(), api="scripted")


def providers() -> tuple[ProviderEntry, ...]:
    one = ProviderEntry(provider=Listing("one"), why="test", models=(info("one", "a"), info("one", "b")), key="config")
    return (one, ProviderEntry(provider=Listing("two", "found", "more"), why="test"))


def ids(answer: dict[str, Any]) -> list[str]:
    return [f"{row['provider']}/{row['id']}" for row in answer["models"]]


async def test_the_views_are_what_stands_in_the_configuration_what_it_names_and_all(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path, config=CONFIG, providers=providers()) as host:
        await host.rpc("models.list", {"refresh": True})
        assert ids(await host.rpc("models.list", {"view": "provider-config"})) == ["one/a", "one/b"]
        assert ids(await host.rpc("models.list", {"view": "configured"})) == ["one/a", "one/b", "two/found"]
        everything = ["one/a", "one/b", "two/found", "two/more"]
        assert ids(await host.rpc("models.list")) == ids(await host.rpc("models.list", {"view": "all"})) == everything
        assert ids(await host.rpc("models.list", {"provider": "two"})) == everything[2:]


async def test_tags_are_those_of_the_agent_that_is_asked_for(tmp_path: Path) -> None:
    async def tags(params: dict[str, Any]) -> dict[str, list[str]]:
        return {row["id"]: row["tags"] for row in (await host.rpc("models.list", params))["models"] if "tags" in row}

    async with open_test_gateway(tmp_path, config=CONFIG, providers=providers()) as host:
        assert await tags({"refresh": True}) == {"a": ["default"], "found": ["fallback#1"]}
        assert (
            await tags({"agentId": "writer"}) == await tags({"sessionKey": "agent:writer:main"}) == {"b": ["default"]}
        )


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"refresh": True, "preparedOnly": True}, "exclude each other"),
        ({"authProfileId": "mine"}, "there is no auth profile 'mine'"),
        ({"agentId": "nobody"}, "no longer exists"),
    ],
)
async def test_a_filter_that_cannot_be_is_refused(tmp_path: Path, params: dict[str, Any], said: str) -> None:
    async with open_test_gateway(tmp_path, config=CONFIG, providers=providers()) as host, host.client() as client:
        with pytest.raises(Refused, match=said):
            await client.request("models.list", params)


async def test_a_default_model_that_nobody_has_does_not_look_healthy(tmp_path: Path) -> None:
    config = {"agents": {"defaults": {"model": "lab/gone"}}}
    entries = (ProviderEntry(provider=Listing("lab", "there"), why="test"),)
    async with open_test_gateway(tmp_path, config=config, providers=entries) as host, host.client() as client:
        await host.rpc("models.list", {"refresh": True})
        models = (await client.request("status"))["models"]
        assert models["default"] == "lab/gone" and "provider lab is ready and does not have it" in models["fault"]
        assert (await host.rpc("health"))["modelRuntime"]["degraded"] is True
        await client.say("/status", key="k")
        assert models["fault"] in str(await client.terminal("k"))


async def test_a_refresh_finds_what_is_new_and_says_how_each_provider_answered(tmp_path: Path) -> None:
    shelf = Listing("shelf")
    refused = Listing("refused", failure=ProviderError("auth", "no such key"))
    away = Listing("away", failure=ProviderError("connection", "nobody listens"))
    entries = tuple(ProviderEntry(provider=provider, why="test") for provider in (shelf, refused, away))
    async with open_test_gateway(tmp_path, config={}, providers=entries) as host:
        assert ids(await host.rpc("models.list", {"refresh": True})) == []
        shelf.listed = ("new",)
        answer = await host.rpc("models.list", {"refresh": True})
        assert ids(answer) == ["shelf/new"]
        assert {each["provider"]: each["status"] for each in answer["providerOutcomes"]} == {
            "shelf": "ready",
            "refused": "auth-rejected",
            "away": "unavailable",
        }
        states = {each["provider"]: each for each in (await host.rpc("health"))["modelRuntime"]["providers"]}
        assert (states["away"]["state"], states["away"]["reason"]) == ("failed", "nobody listens")


async def test_what_a_provider_is_asked_with_is_told_by_its_kind_and_never_by_its_value(tmp_path: Path) -> None:
    no_key = ProviderError("auth", "set LAB_API_KEY")
    account = Account("account")
    entries = (
        ProviderEntry(provider=Listing("keyed", "k"), why="test", key="env"),
        ProviderEntry(provider=Listing("open"), why="test"),
        ProviderEntry(provider=Listing("keyless", failure=no_key), why="test", models=(info("keyless", "m"),)),
        ProviderEntry(
            provider=Listing("refused", failure=no_key), why="test", models=(info("refused", "m"),), key="env"
        ),
        ProviderEntry(provider=account, why="test"),
    )
    config = {"agents": {"defaults": {"model": "keyed/k"}}}
    async with open_test_gateway(tmp_path, config=config, providers=entries) as host:

        async def status() -> dict[str, Any]:
            rows = (await host.rpc("models.authStatus", {"refresh": True}))["providers"]
            return {row["provider"]: row for row in rows}

        day = 24 * 3_600_000
        found: list[str] = []
        for account.expires in (host.runtime.clock() + 2 * day, host.runtime.clock() + 1000, 1):
            found.append((await status())["account"]["status"])
        assert found == ["ok", "expiring", "expired"]
        rows = await status()
        told = {id: row["status"] for id, row in rows.items() if id != "account"}
        assert told == {"keyed": "static", "open": "static", "keyless": "missing", "refused": "expired"}
        assert rows["keyed"]["apiKey"] == {"source": "env"} and "apiKey" not in rows["open"]
        assert rows["keyless"]["reason"] == "set LAB_API_KEY"
        reasons = {row["provider"]: row.get("unavailableReason") for row in (await host.rpc("models.list"))["models"]}
        assert reasons == {"keyed": None, "keyless": "missing-auth", "refused": "auth-failed"}
