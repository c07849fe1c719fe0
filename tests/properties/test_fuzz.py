"""A short campaign of what `dev.py fuzz` does."""

import pytest
from tests.kit.fuzz import TARGETS, campaign


def test_nothing_damaged_escapes_or_gets_in(capsys: pytest.CaptureFixture[str]) -> None:
    campaign(3000, seed=0)
    assert capsys.readouterr().out.count("1000 inputs") == len(TARGETS)
