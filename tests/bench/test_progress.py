import sys

import pytest
import trio
from tests.bench.test_turns import block

from triops.bench.progress import live, told


async def measure() -> None:
    for total in (4.0, 5.0):
        assert told(block("triops", [total])).records[0].subject == "triops", "a block goes through as it is"
        await trio.lowlevel.checkpoint()


def test_a_terminal_sees_each_thing_measured_with_its_blocks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with live():
        trio.run(measure)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "one session, triops" in shown.err
    last = shown.err.rpartition("measuring")[2]
    assert "5.00 ms" in last
    assert " 2 " in last


def test_elsewhere_nothing_is_shown(capsys: pytest.CaptureFixture[str]):
    with live():
        trio.run(measure)
    assert capsys.readouterr().err == ""
