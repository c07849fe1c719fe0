"""A process that hosts a gateway: how it starts, is found, and ends. What it serves is tested elsewhere."""

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.kit.process import Home, open_gateway_process, stop

SCRIPTED = {
    "models": {"providers": {"scripted": {"api": "scripted"}}},
    "agents": {"defaults": {"model": {"primary": "scripted/echo"}}},
}


async def test_a_gateway_is_found_by_its_file_and_leaves_none_behind(tmp_path: Path) -> None:
    home = Home(tmp_path, SCRIPTED)
    async with open_gateway_process(home) as gateway:
        found = json.loads(home.paths.discovery.read_text())
        assert (found["url"], found["pid"]) == (gateway.url, gateway.pid)
        assert Path(found["tokenFile"]) == home.paths.token
        assert home.paths.token.stat().st_mode & 0o077 == 0
        answer = await gateway.http("GET", "/status")
        assert (answer.status, answer.body["pid"]) == (200, gateway.pid)
        assert (await gateway.http("GET", "/status", token="another-token-altogether")).status == 401
        again = await home.run("gateway", "run", "--port", "0")
        assert (again.code, "already runs" in again.err) == (75, True)
        assert gateway.token not in home.said()
    assert not home.paths.discovery.exists()
    for words in ("listening", "asked to stop", "SIGTERM", "stopping", "stopped"):
        assert words in home.said()
    assert "Traceback" not in home.said()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no modes on Windows")
async def test_a_token_that_others_could_read_is_narrowed_and_said(tmp_path: Path) -> None:
    home = Home(tmp_path, SCRIPTED)
    home.paths.token.write_text("a-token-that-everybody-could-read\n")
    home.paths.token.chmod(0o644)
    ran = await home.run("gateway", "start", "--port", "0")
    await stop(home)
    assert ran.code == 0, ran
    assert f"{home.paths.token} had mode 0644" in ran.err
    assert home.paths.token.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"models": {"providers": {"x": {"api": "openai-completions"}}}}, "models.providers.x.baseUrl"),
        ({"models": {"providers": {"x": {"api": "klingon", "baseUrl": "http://127.0.0.1:1"}}}}, "klingon"),
        ({"gateway": {"port": -1}}, "gateway.port"),
    ],
)
async def test_a_configuration_that_cannot_be_used_says_what_and_exits_78(
    tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    home = Home(tmp_path, config)
    ran = await home.run("gateway", "run", "--port", "0")
    assert ran.code == 78, ran
    assert words in ran.err
    assert "Traceback" not in ran.err


async def test_a_state_that_is_no_database_says_where_it_lies_and_exits_78(tmp_path: Path) -> None:
    home = Home(tmp_path, SCRIPTED)
    home.paths.database.write_text("not a database, and long enough to be looked at as one" * 20)
    ran = await home.run("gateway", "run", "--port", "0")
    assert ran.code == 78, ran
    assert str(home.paths.database) in ran.err


async def test_a_port_that_is_taken_exits_76(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ran = await Home(tmp_path, SCRIPTED).run("gateway", "run", "--port", str(taken.getsockname()[1]))
    assert ran.code == 76, ran
    assert "--port 0" in ran.err
