import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from tests.bench.test_html import made

from triops.bench.errors import BenchFailed
from triops.bench.memory import measure, rss_of_tree, slope, tree_of
from triops.bench.progress import live
from triops.bench.report import text
from triops.bench.subjects import Targets
from triops.bench.turns import results


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
    assert slope([(turns, 50 + turns / 500) for turns in (0, 100, 250, 400)]) == pytest.approx(2.0)
    assert slope([(5, 50.0), (5, 51.0)]) == 0.0


@pytest.mark.slow  # starts a process
@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
async def test_memory_is_looked_at_on_the_way(
    model_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with live(), trio.fail_after(20):
        blocks = await measure(Targets(model=model_url, floor=False), 25)
    (found,) = results(blocks)
    after = [f"after {turns} turns, MB" for turns in (10, 15, 20, 25)]
    assert list(found.metrics) == ["idle, MB", *after, "each turn of the second half, kB"]
    assert [found.metrics[name].unit for name in ("idle, MB", "each turn of the second half, kB")] == ["MB", "kB"]
    assert all(found.metrics[name].p50 > 10 for name in after)
    assert (found.failed, len(blocks[0].records)) == (0, 25), "a record a turn"
    assert "ms, or as named" in text({}, [found])
    assert not made(blocks).count("<svg"), "what is no time has no plot of times"
    assert "memory, triops" in capsys.readouterr().err, "a terminal sees how far it is"


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
async def test_memory_of_a_gateway_that_runs_already_is_not_measured(model_url: str):
    with pytest.raises(BenchFailed, match="--start"):
        await measure(Targets(url="ws://127.0.0.1:1", model=model_url), 1)


@pytest.mark.slow  # starts a process
@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
async def test_memory_with_a_dead_model_has_failed():
    with trio.fail_after(20):
        failure = pytest.RaisesExc(BenchFailed, match="its first turn did not end as it should")
        with pytest.RaisesGroup(failure, flatten_subgroups=True):
            await measure(Targets(model="http://127.0.0.1:9", floor=False), 25)
