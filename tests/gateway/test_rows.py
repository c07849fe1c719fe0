"""Sessions and models as clients know them."""

from pathlib import Path
from typing import Any

import trio
from tests.kit.host import open_test_gateway

from triops.agents.errors import ProviderError
from triops.agents.model import ModelInfo, ModelRef
from triops.agents.providers.scripted import ScriptedProvider
from triops.runtime.models import ProviderEntry

ALIASED = {
    "agents": {
        "defaults": {
            "model": {"primary": "one/a"},
            "models": {"one/a": {"alias": "quick"}, "broken/z": {"alias": "slow"}},
        }
    }
}


def info(provider: str, model: str, **more: Any) -> ModelInfo:
    return ModelInfo(ref=ModelRef(provider, model), name=model.upper(), api="scripted", **more)


class Broken(ScriptedProvider):
    async def discover(self) -> list[ModelInfo]:
        raise ProviderError("auth", "the key is wrong")


async def test_models_say_whether_they_can_be_used_and_what_they_are_called(tmp_path: Path) -> None:
    providers = (
        ProviderEntry(provider=ScriptedProvider(id="one"), why="test", models=(info("one", "a", context_window=9000),)),
        ProviderEntry(provider=Broken(id="broken"), why="test", models=(info("broken", "z"),)),
        ProviderEntry(provider=ScriptedProvider(id="small"), why="test", models=(info("small", "m", demo=True),)),
    )
    async with open_test_gateway(tmp_path, config=ALIASED, providers=providers) as host:
        with trio.fail_after(5):
            while {state.state for state in host.runtime.catalog.states()} != {"ready", "failed"}:
                await host.rpc("health")
        rows = {f"{row['provider']}/{row['id']}": row for row in (await host.rpc("models.list"))["models"]}
        a, z, m = rows["one/a"], rows["broken/z"], rows["small/m"]
        assert (a["alias"], a["tags"], a["available"], a["contextWindow"], a["name"]) == (
            "quick",
            ["default"],
            True,
            9000,
            "A",
        )
        assert (z["alias"], z["available"]) == ("slow", False)
        assert (m["tags"], m["supportsTools"], "alias" in m) == (["demo"], False, False)


async def test_a_session_is_shown_with_its_model_its_usage_and_its_parent(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        await client.say('CALL:sessions_spawn {"task": "SAY:done", "label": "Helper"}', key="k")
        await client.ended("k")
        main, child = sorted((await host.rpc("sessions.list"))["sessions"], key=lambda row: len(row["key"]))
        assert (main["isMain"], main["isBackground"], main["kind"], main["status"]) == (True, False, "direct", "done")
        assert main["lastRunId"] == "k"
        assert main["inputTokens"] > 0
        assert main["totalTokens"] >= main["inputTokens"] + main["outputTokens"]
        assert main["runtimeMs"] == main["endedAt"] - main["startedAt"]
        assert (child["label"], child["spawnedBy"], child["parentSessionKey"]) == (
            "Helper",
            "agent:main:main",
            "agent:main:main",
        )
        assert (child["isBackground"], child["spawnDepth"], child["createdVia"]) == (True, 1, "spawn")
        defaults = (await host.rpc("sessions.list"))["defaults"]
        assert (defaults["modelProvider"], defaults["model"]) == ("scripted", "echo")


async def test_a_session_whose_run_failed_says_so(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        await client.say("FAIL:400", key="k")
        await client.ended("k")
        (row,) = (await host.rpc("sessions.list"))["sessions"]
        assert row["status"] == "failed"
        assert row["lastRunError"]
