"""A short campaign of what `dev.py fuzz` does."""

import pytest
import trio.testing
from tests.kit.fuzz import TARGETS, campaign
from tests.kit.fuzz_streams import streams


def test_nothing_damaged_escapes_or_gets_in(capsys: pytest.CaptureFixture[str]) -> None:
    campaign(3000, seed=0)
    assert capsys.readouterr().out.count("1000 inputs") == len(TARGETS)


async def test_no_stream_of_bytes_is_our_fault_or_gets_in(autojump_clock: trio.testing.MockClock) -> None:
    await streams(150, seed=0)
