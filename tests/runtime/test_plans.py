import os
from pathlib import Path
from typing import Any

import pytest
from tests.kit.host import ECHO, open_test_gateway

from triops.runtime.config import AgentDefaults, AgentEntry, AgentsConfig, Config
from triops.runtime.paths import Paths, StateError
from triops.runtime.plans import prepare_workspaces


def prepare(tmp_path: Path, workspace: str | None = None, **entries: AgentEntry) -> None:
    config = Config(agents=AgentsConfig(defaults=AgentDefaults(workspace=workspace), entries=entries))
    prepare_workspaces(config, Paths(tmp_path / "state", tmp_path / "triops.json"))


def test_the_folder_of_every_agent_is_there_from_the_start(tmp_path: Path):
    prepare(tmp_path, "deep/down", a=AgentEntry(), b=AgentEntry(workspace="own"))
    assert (tmp_path / "deep" / "down" / "a").is_dir() and (tmp_path / "own").is_dir()
    assert os.name == "nt" or (tmp_path / "own").stat().st_mode & 0o777 == 0o700
    prepare(tmp_path)
    assert (tmp_path / "state" / "workspace").is_dir()


@pytest.mark.parametrize(
    ("workspace", "entries", "said"),
    [
        ("file", {}, "agents.defaults.workspace: {}/file: it is not a folder; "),
        ("file/below", {}, "agents.defaults.workspace: {}/file/below: it cannot be made: "),
        ("fine", {"a": AgentEntry(workspace="file")}, "agents.entries.a.workspace: {}/file: it is not a folder; "),
    ],
)
def test_a_workspace_that_cannot_be_is_named_with_its_key(
    tmp_path: Path, workspace: str, entries: dict[str, AgentEntry], said: str
):
    (tmp_path / "file").touch()
    with pytest.raises(StateError) as caught:
        prepare(tmp_path, workspace, **entries)
    assert (
        str(caught.value)
        .replace(os.sep, "/")
        .startswith(f"{tmp_path}/triops.json: ".replace(os.sep, "/") + said.format(str(tmp_path).replace(os.sep, "/")))
    )


def test_a_workspace_in_which_nothing_can_be_written_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "w").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # a mode would not keep out a superuser
    with pytest.raises(StateError, match=r"may not read and write in it; correct that, or name another folder"):
        prepare(tmp_path, "w")


async def test_a_workspace_that_is_lost_while_the_gateway_runs_costs_no_run(tmp_path: Path) -> None:
    agents: dict[str, Any] = ECHO["agents"]
    config = {"agents": {"defaults": agents["defaults"] | {"workspace": str(tmp_path / "w")}}}
    async with open_test_gateway(tmp_path, config=config) as host, host.client() as client:
        (tmp_path / "w").rmdir()
        await client.say('CALL:write {"path": "a.txt", "content": "kept"}', key="k")
        assert (await client.ended("k"))["state"] == "final"
    assert (tmp_path / "w" / "a.txt").read_text() == "kept"


async def test_what_a_prompt_leaves_out_is_logged_once(tmp_path: Path) -> None:
    agents: dict[str, Any] = ECHO["agents"]
    config = {"agents": {"defaults": agents["defaults"] | {"workspace": str(tmp_path / "w")}}}
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "AGENTS.md").write_text("x" * 200_000)
    async with open_test_gateway(tmp_path, config=config) as host, host.client() as client:
        for key in ("k1", "k2"):
            await client.say("hello", key=key)
            assert (await client.ended(key))["state"] == "final"
    said = [str(record.fields["what"]) for record in host.log if record.message == "left out of the prompt"]
    assert len(said) == 1 and said[0].startswith("AGENTS.md: ")
