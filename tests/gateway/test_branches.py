"""The door's decisions have no line and no branch that the tests that mirror them leave out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("module", ["locality", "auth", "devices", "pairing", "session"])
def test_every_branch_of_a_decision_is_tried(module: str, tmp_path: Path) -> None:
    def coverage(*arguments: str) -> None:
        command = [sys.executable, "-P", "-m", "coverage", *arguments]
        environ = os.environ | {"COVERAGE_FILE": str(tmp_path / "data")}
        done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    only = f"--include=*/gateway/{module}.py"
    coverage("run", "--branch", only, "-m", "pytest", "-q", "--hypothesis-seed=0", f"tests/gateway/test_{module}.py")
    coverage("report", "--show-missing", "--fail-under=100", only)
