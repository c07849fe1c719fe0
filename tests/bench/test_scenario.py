from pathlib import Path

import pytest
import trio
from tests.bench.test_turns import block

from triops.bench.driver import Frame, now, open_driver
from triops.bench.errors import BenchFailed
from triops.bench.load import new_session
from triops.bench.output import read_lines
from triops.bench.progress import told
from triops.bench.scenario import Scenario, run, run_block
from triops.bench.turns import Block, Result, results


def slow(frame: Frame, stamp: int) -> None:
    """A generator that works 20 ms on each frame."""
    until = now() + 20_000_000
    while now() < until:
        pass


async def measured(floor_url: str, model_url: str, *, held: bool) -> Result:
    """Turns of a model that pauses for 40 ms between two tokens."""
    scenario = Scenario("paced", message="TOKENS:4 ITL:40 RUN:")
    with trio.fail_after(30):
        async with open_driver(floor_url, "") as driver:
            if held:
                driver.listener = slow
                scenario = Scenario("instant")
            block = await run_block("floor", driver, scenario, model_url, 3, [new_session()])
    return results([block])[0]


@pytest.mark.slow  # two short measurements
async def test_a_generator_that_works_all_the_time_is_marked_and_one_that_waits_is_not(floor_url: str, model_url: str):
    held, free = [await measured(floor_url, model_url, held=held) for held in (True, False)]
    assert "the generator was the bottleneck" in held.invalid
    assert free.invalid == ""


def test_a_table_is_printed_before_it_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    async def measure() -> list[Block]:
        return [block("triops", [4.0])]

    (tmp_path / "summary.json").mkdir()
    with pytest.raises(BenchFailed, match=r"--out: .*summary\.json cannot be written: Is a directory"):
        run(measure, "triops bench chat", out=tmp_path, as_json=False)
    assert "one session" in capsys.readouterr().out


def test_what_was_found_before_a_gateway_died_is_printed_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    async def measure() -> list[Block]:
        told(block("triops", [4.0]))
        raise BenchFailed("the gateway closed the connection")

    with pytest.raises(BenchFailed, match="closed"):
        run(measure, "triops bench chat", out=tmp_path, as_json=False)
    assert "unfinished it was cut short" in capsys.readouterr().out
    assert [line.subject for line in read_lines(tmp_path)] == ["triops"]
