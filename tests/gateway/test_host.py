"""A process that hosts a gateway: how it starts, is found, and ends. What it serves is tested elsewhere."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.kit.process import COMMAND, SECONDS, Home, open_gateway_process, stop

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


async def test_a_password_has_no_token_file(tmp_path: Path) -> None:
    home = Home(tmp_path, SCRIPTED | {"gateway": {"auth": {"password": "a-long-password"}}})
    async with open_gateway_process(home):
        assert set(json.loads(home.paths.discovery.read_text())) == {"url", "pid", "version"}
        assert (await home.run("sessions", "list")).code == 0


async def test_a_gateway_that_other_machines_reach_says_so_and_is_found_on_the_loopback(tmp_path: Path) -> None:
    home = Home(tmp_path, SCRIPTED | {"gateway": {"bind": "lan"}})
    async with open_gateway_process(home) as gateway:
        assert gateway.url == f"http://127.0.0.1:{gateway.port}"
        assert f"Listening: 0.0.0.0:{gateway.port}\n" in (await home.run("gateway", "status")).out
        assert f"at=0.0.0.0:{gateway.port}" in home.said()


posix_only = pytest.mark.skipif(os.name != "posix", reason="signals")


@posix_only
@pytest.mark.parametrize("ignored", [False, True])
async def test_a_hangup_stops_it_unless_it_was_to_be_ignored(tmp_path: Path, ignored: bool) -> None:
    home = Home(tmp_path, SCRIPTED)
    with started(home, "nohup" if ignored else "env") as process:
        process.send_signal(signal.SIGHUP)
        if ignored:
            assert (await home.run("gateway", "status")).code == 0
            process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
    assert not home.paths.discovery.exists()


@posix_only
async def test_a_second_signal_does_not_wait_for_the_runs(tmp_path: Path) -> None:
    home = Home(tmp_path, SCRIPTED)
    with started(home) as process:
        assert (await home.run("sessions", "send", "main", "HANG", "--no-wait")).code == 0
        process.send_signal(signal.SIGTERM)
        while "a second signal does not wait" not in home.said():  # noqa: ASYNC110 - another process
            await trio.sleep(0.01)
        for _ in range(3):  # who is impatient presses more than once
            process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS / 4) == 0
    assert not home.paths.discovery.exists()


@contextmanager
def started(home: Home, *prefix: str) -> Generator["subprocess.Popen[bytes]"]:
    """`triops gateway run`, once it can be found; what it prints is not read."""
    command = [*prefix, *COMMAND, "gateway", "run", "--port", "0"]
    null = subprocess.DEVNULL
    with subprocess.Popen(command, env=home.environ, stdin=null, stdout=null, stderr=null) as process:
        try:
            while not home.paths.discovery.exists():
                assert process.poll() is None
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"models": {"providers": {"x": {"api": "openai-completions"}}}}, "models.providers.x.baseUrl"),
        ({"agents": {"defaults": {"workspace": "triops.json"}}}, "agents.defaults.workspace"),
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
