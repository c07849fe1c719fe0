import subprocess
import sys
from pathlib import Path

import pytest

from triops.bench.launch import MARKS
from triops.bench.start import Report, imports_by_package, start_table
from triops.bench.stats import Summary, summarise

TRACE = """
import time: self [us] | cumulative | imported package
import time:       150 |        150 |   trio._core
import time:      2000 |       2150 | trio
a line of the log
import time:       300 |        300 | apsw
"""


def report(rss: dict[str, list[float]]) -> Report:
    one = summarise([10.0, 20.0, 30.0])
    spans: dict[str, Summary] = dict.fromkeys(["spawn", "import", "listen", "hello", "total"], one)
    imports = [("trio", 2.15, 2)]
    return Report({"date": "today"}, {"triops": spans, "floor": spans}, imports, {"triops --version": one}, rss, 1_000)


def test_imports_are_summed_by_package_the_dearest_first():
    assert imports_by_package(TRACE) == [("trio", 2.15, 2), ("apsw", 0.3, 1)]


def test_the_table_names_phases_imports_commands_and_memory():
    lines = start_table(report({"triops": [50.0, 60.0], "floor": [30.0, 31.5]})).splitlines()
    assert [line.split()[0] for line in lines[3:8]] == ["spawn", "import", "listen", "hello", "total"]
    assert lines[7].split() == ["total", "20.0", "(10.0–30.0)", "20.0", "(10.0–30.0)"]
    assert ["trio", "2.1", "2"] in [line.split() for line in lines]
    assert ["floor", "30.0", "31.5"] in [line.split() for line in lines]


def test_memory_that_was_not_read_is_said():
    assert "not measured, this system has no /proc" in start_table(report({"triops": []}))


@pytest.mark.slow  # starts a process
def test_a_launched_module_runs_with_its_arguments_and_leaves_its_marks(tmp_path: Path):
    marks = tmp_path / "marks"
    command = [sys.executable, "-m", "triops.bench.launch", str(marks), "json.tool", "--json-lines"]
    done = subprocess.run(command, input=b'{"a":1}', capture_output=True, check=True)
    assert b'"a": 1' in done.stdout
    ready, imports = MARKS.unpack(marks.read_bytes())
    assert ready > 0
    assert imports > 0
