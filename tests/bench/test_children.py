import os
import subprocess
import sys
from importlib import reload
from typing import Any

import pytest
import trio

from triops.bench import children


@pytest.mark.skipif(sys.platform == "win32", reason="a group has no number there")
async def test_a_child_has_a_group_of_its_own_that_the_terminal_s_ctrl_c_does_not_reach():
    with trio.fail_after(20):
        async with children.open_child([sys.executable, "-c", "input()"], subprocess.DEVNULL, None) as process:
            assert os.getpgid(process.pid) == process.pid != os.getpgid(0)


async def test_a_child_that_will_not_end_is_killed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(children, "TERMINATE_GRACE", 0.05)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    with trio.fail_after(20):
        async with children.open_child([sys.executable, "-c", deaf], subprocess.PIPE, None) as process:
            assert process.stdout is not None
            await process.stdout.receive_some()
    assert process.returncode


def test_on_windows_a_child_is_ended_with_all_below_it(monkeypatch: pytest.MonkeyPatch):
    asked: list[list[str]] = []

    def note(argv: list[str], **options: Any) -> None:
        asked.append(argv)

    with monkeypatch.context() as windows:
        windows.setattr(sys, "platform", "win32")
        windows.setattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 512, raising=False)
        windows.setattr(subprocess, "run", note)
        twin = reload(children)
        assert twin.OWN_GROUP == {"creationflags": 512}
        assert not twin.signal_group(7, twin.LOOK)
        assert not twin.signal_group(7, twin.TERMINATE)
    reload(children)
    assert asked == [["taskkill", "/T", "/F", "/PID", "7"]]
