import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from triops.bench.errors import BenchFailed
from triops.bench.memory import LOOKS, Look, measure, memory_table, rss_of_tree, slope, tree_of
from triops.bench.progress import live
from triops.bench.subjects import Targets


def test_memory_is_that_of_a_process_and_of_its_children():
    if sys.platform != "linux":
        assert rss_of_tree(os.getpid()) is None
        return
    alone = rss_of_tree(os.getpid())
    with subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], stdin=-1, stdout=-1) as child:
        assert child.stdout is not None
        child.stdout.readline()
        together = rss_of_tree(os.getpid())
    assert alone is not None
    assert together is not None
    assert together > alone + 3  # an interpreter has more than 3 MB
    resident = int(re.findall(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])
    assert tree_of(os.getpid())[os.getpid()] == pytest.approx(resident * 1024, rel=0.2), "resident, not virtual"


def test_of_no_process_there_is_no_tree():
    assert tree_of(0) == {}


def test_the_slope_is_that_of_the_line_through_the_looks():
    assert slope([Look(turns, 50 + turns / 500) for turns in (0, 100, 250, 400)]) == pytest.approx(2.0)
    assert slope([Look(5, 50.0), Look(5, 51.0)]) == 0.0


@pytest.mark.slow  # starts a process
@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
async def test_memory_is_looked_at_on_the_way(
    model_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with live(), trio.fail_after(20):
        report = await measure(Targets(model=model_url, floor=False), 25)
    (looks,) = report.looks.values()
    assert (len(looks), looks[0].turns, looks[-1].turns) == (LOOKS + 1, 0, 25)
    assert all(look.rss_mb > 10 for look in looks)
    assert "triops" in memory_table(report)
    assert "memory, triops" in capsys.readouterr().err, "a terminal sees how far it is"


async def test_memory_of_a_gateway_that_runs_already_is_not_measured():
    with pytest.raises(BenchFailed, match="--start"):
        await measure(Targets(url="ws://127.0.0.1:1"), 1)
