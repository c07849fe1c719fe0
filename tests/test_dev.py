"""The developer's commands: planted faults are caught, steps are shown and not repeated."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("agents", "runtime", "gateway", "bench")
UPWARDS = {"agents": "runtime", "runtime": "gateway", "gateway": "bench"}

CLEAN = "VALUE = 1\n"
YIELD_IN_NURSERY = """\
from collections.abc import AsyncIterator

import trio


async def numbers() -> AsyncIterator[int]:
    async with trio.open_nursery():
        yield 1
"""
PLANTED = {
    "ruff format": dict.fromkeys(FLOORS, "VALUE = {'a':1}\n"),
    "ruff": dict.fromkeys(FLOORS, "import runtime\n\nVALUE = runtime\n"),
    "flake8-async": dict.fromkeys(FLOORS, YIELD_IN_NURSERY),
    "pyright": dict.fromkeys(FLOORS, 'VALUE: int = "one"\n'),
    "lint-imports": {floor: f"import triops.{above}\n\nVALUE = triops.{above}\n" for floor, above in UPWARDS.items()},
}
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for python is a shell script")


@pytest.fixture
def dev(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """`dev.py`, with an environment of its own and no uv."""
    monkeypatch.setenv("TRIOPS_VENV", str(tmp_path / "venv"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(ROOT))
    spec = importlib.util.spec_from_file_location("dev", ROOT / "dev.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_tree(root: Path, planted: dict[str, str]) -> None:
    (root / "src" / "triops").mkdir(parents=True)
    (root / "src" / "triops" / "__init__.py").write_text('"""Face."""\n')
    (root / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    for floor in FLOORS:
        (root / floor).mkdir()
        (root / floor / "__init__.py").write_text(f'"""{floor}."""\n')
        (root / floor / "module.py").write_text(planted.get(floor, CLEAN))
        (root / "src" / "triops" / floor).symlink_to(f"../../{floor}", target_is_directory=True)


def run_tool(dev: ModuleType, name: str, tree: Path) -> subprocess.CompletedProcess[str]:
    command = dev.checks(tree, Path(sys.executable))[name]
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1", "PATH": os.defpath}
    return subprocess.run(
        command, check=False, cwd=tree, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.mark.slow
@pytest.mark.parametrize("tool", PLANTED)
def test_check_catches_a_fault_planted_in_any_floor(dev: ModuleType, tool: str, tmp_path: Path) -> None:
    clean, faulty = tmp_path / "clean", tmp_path / "faulty"
    make_tree(clean, {})
    make_tree(faulty, PLANTED[tool])

    passed = run_tool(dev, tool, clean)
    assert passed.returncode == 0, passed.stdout

    failed = run_tool(dev, tool, faulty)
    assert failed.returncode != 0
    for floor in PLANTED[tool]:
        named = f"triops.{floor}.module" if tool == "lint-imports" else str(Path(floor, "module.py"))
        assert named in failed.stdout, failed.stdout


def test_an_old_python_can_read_the_file_and_say_that_it_is_too_old() -> None:
    ast.parse((ROOT / "dev.py").read_text(encoding="utf-8"), feature_version=(3, 7))


def test_an_unknown_command_is_a_usage_error_and_installs_nothing(
    dev: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dev.main(["tset"]) == 2
    assert "'tset'" in capsys.readouterr().err
    assert not (tmp_path / "venv").exists()


def make_environment(dev: ModuleType, script: str) -> None:
    """An environment whose `python` is a shell script."""
    dev.PYTHON.parent.mkdir(parents=True)
    dev.PYTHON.write_text(f"#!/bin/sh\n{script}\n")
    dev.PYTHON.chmod(0o755)
    version = ".".join(str(part) for part in sys.version_info[:3])
    (dev.VENV / "pyvenv.cfg").write_text(f"home = /nowhere\nversion = {version}\n")


@posix_only
def test_a_second_run_installs_nothing_until_the_project_file_changes(
    dev: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    make_environment(dev, "exit 0")
    assert dev.main(["setup"]) == 0
    first = capsys.readouterr().out
    assert dev.main(["setup"]) == 0
    second = capsys.readouterr().out
    dev.STAMPS.write_text(json.dumps({**json.loads(dev.STAMPS.read_text()), "tools": "of an older pyproject.toml"}))
    assert dev.main(["setup"]) == 0
    third = capsys.readouterr().out

    assert "[1/3] Installing Triops" in first and "[3/3] Installing the demonstration model" in first
    assert "[" not in second
    assert "[1/1] Installing the tools" in third


@posix_only
def test_a_machine_without_the_engine_goes_on_and_other_failures_stop(
    dev: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    make_environment(dev, 'case "$*" in *demo*) echo no wheel for this system; exit 1;; esac')
    assert dev.main(["setup"]) == 0
    said = capsys.readouterr()
    assert "no wheel for this system" in said.err and "Going on without" in said.err
    assert "Ready" in said.out

    dev.PYTHON.write_text("#!/bin/sh\necho disk is full; exit 1\n")
    dev.STAMPS.unlink()
    assert dev.main(["setup"]) == 1
    said = capsys.readouterr()
    assert "disk is full" in said.err and "Command:" in said.err
    assert "Ready" not in said.out
