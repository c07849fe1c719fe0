from types import ModuleType
from typing import Any

import pytest


def test_arguments_and_exit_code_pass_through(run: Any, monkeypatch: pytest.MonkeyPatch):
    given: list[list[str]] = []
    stand_in = ModuleType("triops.bench.cli")
    stand_in.main = lambda argv: given.append(argv) or 3  # type: ignore[attr-defined]  # a stand-in for the real one
    monkeypatch.setitem(__import__("sys").modules, "triops.bench.cli", stand_in)
    assert run("bench", "chat", "--sessions", "4", "--help").code == 3
    assert given == [["chat", "--sessions", "4", "--help"]]
