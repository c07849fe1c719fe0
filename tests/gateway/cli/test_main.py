import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from triops import __version__
from triops.gateway.cli.main import COMMANDS, root


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["cron", "list"], ["chat", "--help"]])
def test_what_needs_no_loop_loads_none(arguments: list[str], tmp_path: Path):
    code = (
        "import sys\nfrom triops.gateway.cli.main import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        "print([m for m in ('trio', 'anyio', 'asyncio', 'wsproto', 'pyjson5', 'cryptography') if m in sys.modules])"
    )
    environ = {**os.environ, "TRIOPS_STATE_DIR": str(tmp_path)}
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ)
    assert shown.stdout.splitlines()[-1] == "[]", shown


def test_version(run: Any):
    assert run("--version") == (0, f"triops {__version__}\n", "")


def test_help_names_every_command_without_loading_it(run: Any):
    code, out, _ = run("--help")
    assert code == 0
    assert [name for name in COMMANDS if f"\n  {name} " not in out] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there_and_has_help(name: str, run: Any):
    command = root.commands.get(name) or root.get_command(None, name)  # type: ignore[arg-type]  # it needs no context
    assert command is not None
    assert run(name, "--help").code == 0
    assert run(name, "-h").code == 0


@pytest.mark.parametrize("arguments", [[], ["cron"]])
def test_a_group_alone_shows_its_help(run: Any, arguments: list[str]):
    code, _, err = run(*arguments)
    assert (code, err.startswith("Usage: triops"), "Commands:" in err) == (2, True, True)


def test_usage_errors_exit_2_and_name_the_help(run: Any):
    ran = run("cron", "rm")
    assert ran.code == 2
    assert "Missing argument 'JOB_ID'" in ran.err
    assert "triops cron rm --help" in ran.err
    assert run("nonsense").code == 2


@pytest.mark.parametrize(
    ("arguments", "near"), [(("chatt",), "chat"), (("sesions", "list"), "sessions"), (("cron", "lst"), "list")]
)
def test_a_mistyped_command_is_answered_with_the_nearest_one(run: Any, arguments: tuple[str, ...], near: str):
    code, _, err = run(*arguments)
    assert (code, f"Did you mean {near!r}?" in err) == (2, True), err


class Full(io.RawIOBase):
    """A file on a disk without room, as long as that is not freed."""

    freed = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if not self.freed:
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(data)


@pytest.mark.parametrize("arguments", [("--version",), ("models", "--help"), ("sessions", "list")])
def test_output_that_cannot_be_written_is_said_in_a_line(
    run: Any, gateway: Any, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
):
    gateway.answers["sessions.list"] = {"sessions": []}
    file = Full()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(file)))
    code, _, err = run(*arguments)
    file.freed = True  # the stream is flushed once more when it goes
    assert (code, err.splitlines()[0]) == (1, "triops: cannot write the output: No space left on device")


def test_usage_errors_are_json_when_asked_for(run: Any):
    ran = run("cron", "list", "--nonsense", "--json")
    assert ran.code == 2
    error = json.loads(ran.err)["error"]
    assert (error["code"], "--nonsense" in error["message"]) == ("USAGE", True)
