"""The commands against the gateway itself, with the scripted model, in a process of its own or hosted by `chat`."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from tests.kit.typist import Typist

from triops.gateway.cli.process import COMMAND, ask_to_end
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

    for words, code in (("SAY:yes", 0), ("FAIL:401", 1)):
        params = json.dumps({"sessionKey": "main", "message": words, "idempotencyKey": words})
        assert run("gateway", "call", "chat.send", "--wait", "--params", params).code == code
    assert "yes" in run("chat", "SAY:yes \udcff", "--session", "k\udcff").out

    added = json.loads(run("cron", "add", "--job", json.dumps(JOB), "--json").out)
    assert "every 3m" in run("cron", "list").out
    assert run("cron", "rm", added["id"]).code == 0
    assert run("cron", "list").out == "No jobs.\n"
    assert run("cron", "rm", added["id"]).code == 1

    assert "scripted/echo" in run("models", "list").out
    assert run("chat", "SAY:hello") == (0, "hello\n", "[scripted/echo: configured]\n")
    assert run("sessions", "send", "main", "SAY:again") == (0, "again\n", "")
    assert run("sessions", "send", "nobody-yet", "SAY:welcome") == (0, "welcome\n", "")
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
        error = json.loads(ran.err)["error"]
        assert (ran.code, error["code"]) == (76, "PORT_TAKEN")
        words = f"cannot listen on 127.0.0.1:{port}: another program listens there; "
        assert run("gateway", "start").err.startswith(f"triops: {words}")
        assert json.loads(run("gateway", "run", "--json").err.splitlines()[-1])["error"] == error
        assert run("chat", "SAY:hello").out == "hello\n"


def test_chats_that_begin_at_once_share_one_gateway(configured: Paths):
    chats = [
        subprocess.Popen([*COMMAND, "chat", "--session", f"s{i}", f"SAY:{i}"], stdin=subprocess.DEVNULL, stdout=-1)
        for i in range(4)
    ]
    assert [(chat.communicate(timeout=60)[0], chat.returncode) for chat in chats] == [
        (f"{i}\n".encode(), 0) for i in range(4)
    ]
    assert read_discovery(configured) is None


posix_only = pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals and signals")


@posix_only
def test_a_chat_whose_gateway_stops_becomes_one_itself(run: Any, configured: Paths):
    assert run("gateway", "start").code == 0
    typist = Typist()
    typist.until("> ")
    assert run("gateway", "stop").code == 0
    typist.type("SAY:still here\n")
    typist.until("(the gateway is gone; this chat is one now)")
    typist.until("still here")
    typist.until("> ")
    assert run("gateway", "status").code == 0
    typist.type("\x04")
    assert typist.close() == 0
    assert read_discovery(configured) is None


@posix_only
def test_a_chat_that_hosts_says_what_it_waits_for_and_a_second_signal_hastens_it(run: Any, configured: Paths):
    typist = Typist()
    typist.until("> ")
    assert run("sessions", "send", "other", "HANG", "--no-wait").code == 0
    typist.type("\x04")
    typist.until("(waiting for runs that others asked for: 1; Ctrl-C ends them)")
    typist.type("\x03")
    assert typist.close() == 0
    assert states(configured) == ["aborted"]


@posix_only
def test_stop_ends_a_chat_that_hosts_and_its_answer_in_order(run: Any, configured: Paths):
    typist = Typist()
    typist.until("> ")
    typist.type("HANG\n")
    while read_discovery(configured) is None or states(configured) != ["running"]:
        pass  # another process
    assert run("gateway", "stop").code == 0
    assert typist.close() == 128 + signal.SIGTERM
    assert (read_discovery(configured), states(configured)) == (None, ["aborted"])


def states(paths: Paths) -> list[str]:
    """Those of all runs, as they stand on disk."""
    with closing(sqlite3.connect(paths.database)) as db:
        return [state for (state,) in db.execute("SELECT state FROM runs")]
