import os
import signal
import subprocess
import sys

import pytest

from triops.gateway.cli.process import is_running, stop_signals

posix_only = pytest.mark.skipif(os.name != "posix", reason="signals; on Windows a process that is ended is gone")


@posix_only
def test_a_process_runs_until_it_ends_seen_by_its_parent_or_not():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert is_running(process.pid)
        process.kill()
        if sys.platform == "linux":
            while is_running(process.pid):
                pass  # nobody has looked after it yet
        process.wait()
        assert not is_running(process.pid)


@posix_only
def test_a_hangup_that_nohup_ignores_stops_nothing():
    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert stop_signals() == [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert stop_signals() == [signal.SIGINT, signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_break_stops_where_there_is_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(signal, "SIGHUP", raising=False)
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGINT, raising=False)
    assert stop_signals() == [signal.SIGINT, signal.SIGTERM, signal.SIGINT]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_a_process_gets_as_many_descriptors_as_it_may_have():
    code = "import resource as r; from triops.gateway.cli.process import raise_descriptor_limit as f;"
    code += "r.setrlimit(r.RLIMIT_NOFILE, (64, 512)); print(f(), r.getrlimit(r.RLIMIT_NOFILE))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "512 (512, 512)"
