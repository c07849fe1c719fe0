"""What is built and installed is what lies in the tree."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from triops.agents.providers import demo

ROOT = Path(__file__).parents[1]
FLOORS = ("agents", "runtime", "gateway", "bench")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The tree without its history and products, so that a build leaves nothing in ours."""
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in (*FLOORS, "src"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=skip)
    for name in ("pyproject.toml", "setup.py", "dev.py", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def build_wheel(checkout: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "made"]
    return subprocess.run(
        command, check=False, cwd=checkout, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.mark.slow
def test_wheel_holds_every_file_of_the_floors_and_no_other(checkout: Path) -> None:
    built = build_wheel(checkout)
    assert built.returncode == 0, built.stdout

    (wheel,) = (checkout / "made").glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    lying = {f"triops/{path.name}" for path in (ROOT / "src" / "triops").iterdir() if path.is_file()}
    for floor in FLOORS:
        files = (path for path in (ROOT / floor).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        lying |= {f"triops/{path.relative_to(ROOT).as_posix()}" for path in files}
    assert packed == lying


@pytest.mark.slow
def test_build_and_commands_stop_where_the_checkout_lost_its_links(checkout: Path) -> None:
    link = checkout / "src" / "triops" / "gateway"
    link.unlink()
    link.write_text("../../gateway")  # what Git leaves on a Windows without links

    built = build_wheel(checkout)
    asked = subprocess.run(
        [sys.executable, "dev.py", "setup"], check=False, cwd=checkout, text=True, capture_output=True
    )

    for status, said in ((built.returncode, built.stdout), (asked.returncode, asked.stderr)):
        assert status == 1
        assert "src/triops/gateway" in said
        assert "git config core.symlinks true && git checkout -- src/triops" in said
    assert not (checkout / ".venv").exists()


def test_the_extra_demo_names_the_engine_that_the_command_installs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["optional-dependencies"]["demo"] == [demo.ENGINE_PACKAGE]
