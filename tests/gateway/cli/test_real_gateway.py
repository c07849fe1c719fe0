"""The commands against the gateway itself, with the scripted model, in a process of its own or hosted by `chat`."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from triops.gateway.cli.process import ask_to_end
from triops.runtime.instance import read_discovery
from triops.runtime.paths import Paths

pytestmark = pytest.mark.slow

CONFIG = {
    "gateway": {"port": 0},
    "models": {
        "mode": "replace",
        "providers": {
            "scripted": {"api": "scripted", "models": [{"id": "echo", "contextWindow": 8000, "maxTokens": 1000}]}
        },
    },
    "agents": {"defaults": {"model": {"primary": "scripted/echo"}}},
}

JOB = {
    "name": "test",
    "schedule": {"kind": "every", "everyMs": 180_000},
    "payload": {"kind": "systemEvent", "text": "test"},
    "sessionTarget": "current",
}


@pytest.fixture
def configured(paths: Paths) -> Iterator[Paths]:
    paths.state.mkdir(mode=0o700)
    paths.config.write_text(json.dumps(CONFIG))
    paths.config.chmod(0o600)
    yield paths
    if (left := read_discovery(paths)) is not None:
        ask_to_end(left.pid)


def test_the_life_of_a_gateway_in_the_background(run: Any, configured: Paths):
    assert run("gateway", "start").code == 0
    status = json.loads(run("gateway", "status", "--json").out)
    assert (status["running"], status["rpc"]) == (True, {"ok": True})
    assert run("gateway", "run").code == 75

    added = json.loads(run("cron", "add", "--job", json.dumps(JOB), "--json").out)
    assert "every 3m" in run("cron", "list").out
    assert run("cron", "rm", added["id"]).code == 0
    assert run("cron", "list").out == "No jobs.\n"
    assert run("cron", "rm", added["id"]).code == 1

    assert "scripted/echo" in run("models", "list").out
    assert run("chat", "SAY:hello") == (0, "hello\n", "[scripted/echo: configured]\n")
    assert run("sessions", "send", "main", "SAY:again") == (0, "again\n", "")
    assert run("sessions", "send", "nobody", "hi").err.endswith("triops sessions list\n")
    assert "agent:main:main" in run("sessions", "list").out
    failed = run("chat", "FAIL:401", "--json")
    assert (failed.code, json.loads(failed.err)["error"]["code"]) == (1, "RUN_FAILED")
    assert "triops: listening" in run("logs").out

    assert run("gateway", "stop").code == 0
    assert run("gateway", "status").code == 1
    assert "triops: listening" in run("logs").out, "from the file"


def test_chat_hosts_a_gateway_while_it_talks(run: Any, configured: Paths):
    ran = run("chat", "SAY:hello")
    assert ran == (0, "hello\n", "[scripted/echo: configured]\n")
    assert read_discovery(configured) is None


def test_a_taken_port_stops_the_gateway_and_not_the_chat(run: Any, configured: Paths):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        configured.config.write_text(json.dumps(CONFIG | {"gateway": {"port": port}}))
        ran = run("gateway", "start", "--json")
        assert (ran.code, json.loads(ran.err)["error"]["code"]) == (76, "PORT_TAKEN")
        assert run("chat", "SAY:hello").out == "hello\n"
