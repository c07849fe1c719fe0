"""`start` and `stop` are tried on a stand-in that holds the state folder's lock, publishes itself and serves."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from triops.gateway.cli import gateway as gateway_commands
from triops.gateway.cli import process
from triops.runtime.instance import read_discovery
from triops.runtime.paths import Paths, prepare_state

STAND_IN = """
import os, signal, sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from triops.runtime.instance import hold_instance
from triops.runtime.paths import locate

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/readyz" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass

print("arguments:", *sys.argv[1:], flush=True)
paths = locate(os.environ)
if "--port" in sys.argv:
    sys.exit("it crashed, says the stand-in") if sys.argv[-1] == "1" else None
    if sys.argv[-1] == "2":
        print('{"error": {"code": "PORT_TAKEN", "message": "no port", "hint": "take another"}}')
        sys.exit(76)
server = HTTPServer(("127.0.0.1", 0), Handler)
if hasattr(signal, "SIGTERM"):
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
paths.token.write_text("t")
with hold_instance(paths) as instance, instance.published(f"http://127.0.0.1:{server.server_port}", "1.2.3"):
    server.serve_forever(poll_interval=0.01)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paths: Paths) -> Iterator[None]:
    """Let `start` run the stand-in, and leave none behind."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(process, "COMMAND", [sys.executable, str(script)])
    yield
    if (left := read_discovery(paths)) is not None:
        process.ask_to_end(left.pid)


def test_start_status_stop(run: Any, stand_in: None, paths: Paths):
    started = run("gateway", "start", "--port", "0", "--json")
    assert (started.code, started.err) == (0, "")
    said = json.loads(started.out)
    found = read_discovery(paths)
    assert found is not None
    assert said == {
        "running": True,
        "pid": found.pid,
        "url": found.url,
        "version": "1.2.3",
        "output": str(paths.logs / "gateway.out"),
    }
    assert (paths.logs / "gateway.out").read_text() == "arguments: gateway run --json --port 0\n"
    if os.name == "posix":
        assert (paths.logs / "gateway.out").stat().st_mode & 0o777 == 0o600

    again = run("gateway", "start", "--json")
    assert again.code == 75
    assert json.loads(again.err)["error"]["pid"] == found.pid

    stopped = run("gateway", "stop")
    assert stopped == (0, f"The gateway (pid {found.pid}) has stopped.\n", "")
    assert read_discovery(paths) is None
    assert run("gateway", "stop") == (0, f"No gateway runs on {paths.state}.\n", "")


def test_start_tells_why_the_gateway_ended_at_once(run: Any, stand_in: None):
    ran = run("gateway", "start", "--port", "1")
    assert ran.code == 1
    assert "ended at once, with exit code 1" in ran.err
    assert "it crashed, says the stand-in" in ran.err


def test_an_error_of_the_gateway_that_start_started_is_its_own(run: Any, stand_in: None):
    assert run("gateway", "start", "--port", "2") == (76, "", "triops: no port\ntake another\n")
    error = {"code": "PORT_TAKEN", "message": "no port", "hint": "take another"}
    assert json.loads(run("gateway", "start", "--port", "2", "--json").err)["error"] == error


def test_start_tells_what_is_wrong_with_the_configuration(run: Any, stand_in: None, paths: Paths):
    paths.state.mkdir(mode=0o700)
    paths.config.write_text("{gateway: {bind: 'lan', nonsense: 1}}")
    paths.config.chmod(0o600)
    ran = run("gateway", "start", "--port", "2")
    warnings = [line for line in ran.err.splitlines() if line.startswith("triops: warning: ")]
    assert [word in " ".join(warnings) for word in ("gateway.nonsense", "other machines can reach")] == [True, True]
    assert len(run("gateway", "start", "--port", "2", "--json").err.splitlines()) == 1


def test_start_does_not_wait_for_ever(run: Any, stand_in: None, monkeypatch: pytest.MonkeyPatch, paths: Paths):
    monkeypatch.setattr(gateway_commands, "START_SECONDS", 0)
    ran = run("gateway", "start")
    assert ran.code == 1
    assert "was not ready within 0 s" in ran.err
    assert "triops gateway stop" in ran.err
    while read_discovery(paths) is None:
        pass  # it goes on starting; the fixture ends it


def test_a_broken_configuration_is_told_before_anything_starts(run: Any, stand_in: None, paths: Paths):
    paths.state.mkdir()
    paths.config.write_text("{gateway: {bind: 7}}")
    ran = run("gateway", "start")
    assert ran.code == 78
    assert "gateway.bind" in ran.err


def test_status_of_a_running_gateway(run: Any, gateway: Any):
    gateway.answers["status"] = {"pid": os.getpid(), "runtimeVersion": "0.0.0", "listening": ["0.0.0.0:1", "[::]:1"]}
    address = gateway.url.removeprefix("http://")
    assert run("gateway", "status") == (
        0,
        f"Runtime: running (pid {os.getpid()})\nListening: 0.0.0.0:1, [::]:1\n"
        f"Probe target: ws://{address}\nRPC probe: ok\n",
        "",
    )
    assert json.loads(run("gateway", "status", "--json").out) == {
        "running": True,
        "pid": os.getpid(),
        "version": "0.0.0",
        "listening": "0.0.0.0:1, [::]:1",
        "probeTarget": f"ws://{address}",
        "rpc": {"ok": True},
    }


def test_status_says_what_of_the_configuration_does_not_hold(run: Any, gateway: Any):
    gateway.answers["status"] = {"pid": 1, "runtimeVersion": "0", "listening": [], "configPending": "it is broken"}
    assert run("gateway", "status").out.endswith("RPC probe: ok\nConfiguration: it is broken\n")
    assert json.loads(run("gateway", "status", "--json").out)["configPending"] == "it is broken"


def test_status_of_a_gateway_that_refuses(run: Any, gateway: Any):
    gateway.answers["status"] = (401, {"error": {"message": "Unauthorized"}})
    ran = run("gateway", "status")
    assert (ran.code, ran.out.splitlines()[-1]) == (1, "RPC probe: failed (Unauthorized)")


def test_status_of_another_gateway_says_nothing_of_our_own(run: Any, gateway: Any):
    ran = run("gateway", "status", "--url", "http://127.0.0.1:9", "--json")
    told = json.loads(ran.out)
    assert (ran.code, set(told), told["running"]) == (1, {"running", "probeTarget", "rpc"}, False)
    assert run("gateway", "status", "--url", "http://127.0.0.1:9").out.startswith("Runtime: unknown\nProbe target: ")


def test_status_of_no_gateway(run: Any, paths: Paths):
    ran = run("gateway", "status")
    assert (ran.code, ran.out.splitlines()[0]) == (1, f"Runtime: stopped (no gateway runs on {paths.state})")
    assert json.loads(run("gateway", "status", "--json").out) == {"running": False, "rpc": {"ok": False}}


def test_call_wants_an_object(run: Any, gateway: Any):
    assert run("gateway", "call", "health", "--params", "[1]").code == 2


@pytest.mark.parametrize(
    "wrong",
    [("--url", "http://127.0.0.1:99999"), ("--url", "http://[::1"), ("--token", "a\nb"), ("--token", "\udcff")],
)
def test_an_address_or_a_token_that_cannot_be_is_a_fault_of_usage(run: Any, paths: Paths, wrong: tuple[str, str]):
    ran = run("cron", "list", *wrong)
    assert (ran.code, wrong[0] in ran.err) == (2, True)


def test_the_token_is_shown_and_says_how_to_get_one(run: Any, paths: Paths):
    failed = run("gateway", "token", "show")
    assert (failed.code, "triops gateway start" in failed.err) == (1, True)
    prepare_state(paths)
    paths.token.write_text("the-token\n")
    assert run("gateway", "token", "show").out == "the-token\n"
    paths.config.write_text('{"gateway": {"auth": {"token": "another-of-the-configuration"}}}')
    shown = json.loads(run("gateway", "token", "show", "--json").out)
    assert shown == {"token": "another-of-the-configuration", "tokenFile": None}
    paths.config.write_text('{"gateway": {"auth": {"mode": "none"}}}')
    assert "connect-info" in run("gateway", "token", "show").err


def test_the_token_is_changed_in_its_file_while_no_gateway_runs(run: Any, paths: Paths):
    prepare_state(paths)
    paths.token.write_text("the-token\n")
    done = run("gateway", "token", "rotate")
    new = paths.token.read_text().strip()
    assert (done.code, len(new)) == (0, 43)
    assert new not in done.out
    paths.config.write_text('{"gateway": {"auth": {"token": "another-of-the-configuration"}}}')
    failed = run("gateway", "token", "rotate")
    assert (failed.code, "change it there" in failed.err) == (78, True)
    assert paths.token.read_text().strip() == new


def test_a_running_gateway_changes_its_token_itself(run: Any, gateway: Any, paths: Paths):
    gateway.answers["gateway.token.rotate"] = {"ok": True}
    assert run("gateway", "token", "rotate").code == 0
    assert gateway.calls[-1].method == "gateway.token.rotate"
    assert paths.token.read_text() == "the-token\n", "that is not the command's to write"
