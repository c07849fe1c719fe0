#!/usr/bin/env python3
"""The developer's commands: `python3 dev.py chat`, `test`, `check`. Standard library only; needs Python 3.11.

Makes an environment in `.venv` (or where TRIOPS_VENV says), installs there what a command needs and what is not
there yet, and runs the command. It knows nothing of how Triops works.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  # the point is to tell those who have an older one
    sys.exit(f"Triops needs Python 3.11 or newer, this is {sys.version_info[0]}.{sys.version_info[1]}")

import hashlib
import io
import json
import os
import shutil
import subprocess
import time
import tomllib
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from setup import FLOORS, lost_links

ROOT = Path(__file__).resolve().parent
VENV = Path(os.environ.get("TRIOPS_VENV") or ROOT / ".venv").absolute()
SCRIPTS = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = SCRIPTS / ("python.exe" if os.name == "nt" else "python")
STAMPS = VENV / "triops-installed.json"
SOURCES = [*FLOORS, "tests", "src/triops/__init__.py", "src/triops/testing.py", "setup.py", "dev.py"]

DEFAULT_QUESTION = "What is photosynthesis?"
"""The embedded model answered it well 23 times of 23, given a plain system prompt; see CONTRIBUTING.md."""

HELP = f"""\
usage: python3 dev.py COMMAND …

  chat [QUESTION …]   ask a model, by default the small one that comes along: "{DEFAULT_QUESTION}"
  run ARGS …          the triops command of this checkout
  bench ARGS …        triops bench
  test [ARGS …]       the tests (ARGS go to pytest)
  check               what a change must pass: format, lint, types, floors, tests
  soak [ARGS …]       the long tests
  fuzz [COUNT [SEED]] damaged frames, handshakes and HTTP heads, a tenth as many whole byte streams
  setup               make the environment and stop
"""


class StepFailed(Exception):
    """An installation step failed; the words are what the user needs to see."""


def main(argv: Sequence[str]) -> int:
    command, *rest = argv or ["help"]
    if command in {"help", "-h", "--help"}:
        print(HELP, end="")
        return 0
    if command not in COMMANDS:
        print(f"dev.py has no command {command!r}\n\n{HELP}", end="", file=sys.stderr)
        return 2
    needs, run = COMMANDS[command]
    try:
        problem = lost_links(ROOT)
        if problem:
            raise StepFailed(problem)
        prepare(*needs)
    except StepFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; the next run goes on from here.", file=sys.stderr)
        return 130
    return run(rest)


# --- what the commands run -------------------------------------------------------------------------------------------


def triops(*arguments: str) -> list[str]:
    return [str(PYTHON), "-P", "-m", "triops.gateway.cli.main", *arguments]


def pytest(*arguments: str) -> list[str]:
    # -P: the checkout is not on the path, so that the tests import what a user imports.
    return [str(PYTHON), "-P", "-m", "pytest", "--hypothesis-seed=0", *arguments]


def checks(root: Path, python: Path) -> dict[str, list[str]]:
    """The tools of `check` but for the tests, as they run in `root`."""
    sources = [name for name in SOURCES if (root / name).exists()]
    files = [str(path.relative_to(root)) for name in sources for path in _python_files(root / name)]
    module = [str(python), "-m"]
    return {
        "ruff format": [*module, "ruff", "format", "--check", "."],
        "ruff": [*module, "ruff", "check", "."],
        # Files by name: given a folder it would follow the links and report everything twice. Not asked for: that every
        # async function waits (124, 9xx; a contract may be async for some), a list of startable functions (114).
        "flake8-async": [*module, "flake8", "--select=ASYNC", "--extend-ignore=ASYNC114,ASYNC124,ASYNC9", *files],
        "pyright": [*module, "pyright", "--pythonpath", str(python), *sources],
        "lint-imports": [str(python.with_name("lint-imports")), "--no-cache"],
    }


def check() -> int:
    """Run every tool, whatever the others said, and close with one line for each."""
    results: dict[str, tuple[int, float]] = {}
    for name, command in {**checks(ROOT, PYTHON), "pytest": pytest()}.items():
        print(f"--- {name}", flush=True)
        started = time.monotonic()
        results[name] = subprocess.call(command, cwd=ROOT), time.monotonic() - started
    print("---")
    for name, (status, seconds) in results.items():
        print(f"{'FAILED' if status else 'ok':<7}{name} ({seconds:.1f} s)")
    return 1 if any(status for status, _ in results.values()) else 0


def become(command: list[str]) -> int:
    """Turn into `command`, so that signals and the exit status are its own."""
    os.chdir(ROOT)
    if os.name != "nt":
        sys.stdout.flush()
        os.execv(command[0], command)
    with subprocess.Popen(command) as process:  # Windows' exec gives the prompt back at once
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue  # the child got it too and decides


def _python_files(path: Path) -> list[Path]:
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


# --- the environment -------------------------------------------------------------------------------------------------

TITLES = {
    "environment": "Making an environment",
    "triops": "Installing Triops and what it needs",
    "tools": "Installing the tools of the tests",
    "demo": "Installing the demonstration model, 130 MB",
}


def prepare(*names: str) -> None:
    """Install what is not there yet in its present form, showing each step.

    Raises:
        StepFailed: a step failed. The demonstration model may fail: a machine for which its engine is not built
            still runs everything else.
    """
    fresh = not _environment_is_ours()
    key = _key()
    done = {} if fresh else _stamps()
    steps = ["environment"] * fresh + [name for name in names if done.get(name) != key]
    for number, name in enumerate(steps, 1):
        try:
            _show(f"[{number}/{len(steps)}] {TITLES[name]}", _commands(name))
        except StepFailed as failure:
            if name != "demo":
                raise
            print(f"{failure}\nGoing on without the demonstration model.", file=sys.stderr)
        else:
            if name != "environment":
                done[name] = key
                STAMPS.write_text(json.dumps(done), encoding="utf-8")


def _environment_is_ours() -> bool:
    """Whether the environment is there and was made by this version of Python."""
    settings = VENV / "pyvenv.cfg"
    if not PYTHON.exists() or not settings.exists():
        return False
    lines = (line.partition("=") for line in settings.read_text(encoding="utf-8").splitlines())
    version = next((value.strip() for key, _, value in lines if key.strip() in {"version", "version_info"}), "")
    return version.split(".")[:3] == [str(part) for part in sys.version_info[:3]]


def _stamps() -> dict[str, str]:
    try:
        return json.loads(STAMPS.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _key() -> str:
    """Changes when what would be installed changes."""
    digest = hashlib.sha256(f"{sys.version} {ROOT}".encode())
    for name in ("pyproject.toml", "setup.py", "agents/providers/demo.py"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def _commands(step: str) -> list[list[str]]:
    uv = shutil.which("uv")
    if step == "environment":
        make = [uv, "venv", "--clear", "--python", sys.executable] if uv else [sys.executable, "-m", "venv", "--clear"]
        return [[*make, str(VENV)]]
    if step == "demo":
        return [[str(PYTHON), "-P", "-m", "triops.agents.providers.demo"]]
    prelude: list[list[str]] = []
    install = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    if uv:
        install = [uv, "pip", "install", "--python", str(PYTHON)]
    elif subprocess.call([*install[:3], "--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        prelude = [[str(PYTHON), "-m", "ensurepip"]]
    if step == "triops":
        return [*prelude, [*install, "--editable", str(ROOT)]]
    # Read here, because a pip as old as the interpreter does not know dependency groups.
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    return [*prelude, [*install, *groups["dev"]]]


def _show(title: str, commands: Sequence[Sequence[str]]) -> None:
    """Run `commands` under `title`; on a terminal their last line is shown while they run.

    Raises:
        StepFailed: one failed; the words hold its last lines.
    """
    live = sys.stdout.isatty() and os.name != "nt"  # an old Windows console shows the codes instead of obeying them
    wipe = "\r\033[K" if live else ""
    print(f"{title} …", end="" if live else "\n", flush=True)
    started = time.monotonic()
    for command in commands:
        last: deque[str] = deque(maxlen=15)
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            for raw in process.stdout or ():
                last.append(raw.decode(errors="replace").rstrip())
                if live:
                    width = shutil.get_terminal_size().columns - len(title) - 12
                    text = f"{time.monotonic() - started:4.0f} s  {last[-1].strip()[: max(width, 0)]}"
                    print(f"{wipe}{title} {text}", end="", flush=True)
        if process.returncode:
            raise StepFailed(
                "\n".join(["\r\033[K" * live + f"{title}: failed", *last, f"Command: {' '.join(command)}"])
            )
    print("\r\033[K" * live + f"{title}: {time.monotonic() - started:.1f} s")


EVERYTHING = ("triops", "tools", "demo")
COMMANDS: dict[str, tuple[Sequence[str], Callable[[list[str]], int]]] = {
    "chat": (("triops", "demo"), lambda rest: become(triops("chat", *(rest or [DEFAULT_QUESTION])))),
    "run": (("triops",), lambda rest: become(triops(*rest))),
    "bench": (("triops",), lambda rest: become(triops("bench", *rest))),
    "test": (EVERYTHING, lambda rest: become(pytest(*rest))),
    "soak": (EVERYTHING, lambda rest: become(pytest("-m", "soak", *rest))),
    "fuzz": (EVERYTHING, lambda rest: become([str(PYTHON), "-m", "tests.kit.fuzz", *rest])),
    "check": (EVERYTHING, lambda _: check()),
    "setup": (EVERYTHING, lambda _: print(f"Ready: {PYTHON}") or 0),
}
"""What each needs installed, and what it does."""


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console with few letters shows a question mark
    sys.exit(main(sys.argv[1:]))
