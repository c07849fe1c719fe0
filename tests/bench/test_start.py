import subprocess
import sys
from pathlib import Path

import pytest

from triops.bench.launch import MARKS
from triops.bench.start import imports_by_package

TRACE = """
import time: self [us] | cumulative | imported package
import time:       150 |        150 |   trio._core
import time:      2000 |       2150 | trio
a line of the log
import time:       300 |        300 | apsw
"""


def test_imports_are_summed_by_package_the_dearest_first():
    assert imports_by_package(TRACE) == [("trio", 2.15), ("apsw", 0.3)]


@pytest.mark.slow  # starts a process
def test_a_launched_module_runs_with_its_arguments_and_leaves_its_marks(tmp_path: Path):
    marks = tmp_path / "marks"
    command = [sys.executable, "-m", "triops.bench.launch", str(marks), "json.tool", "--json-lines"]
    done = subprocess.run(command, input=b'{"a":1}', capture_output=True, check=True)
    assert b'"a": 1' in done.stdout
    ready, imports = MARKS.unpack(marks.read_bytes())
    assert ready > 0
    assert imports > 0
