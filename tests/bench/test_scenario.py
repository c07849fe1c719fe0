from pathlib import Path

import pytest
import trio
import trio.testing
from tests.bench.test_turns import block

from triops.bench.driver import Driver, Frame, Turn, now, open_driver
from triops.bench.errors import BenchFailed
from triops.bench.load import new_session
from triops.bench.output import read_lines
from triops.bench.progress import told
from triops.bench.scenario import WARM_UP, Scenario, run, run_block, run_scenario
from triops.bench.subjects import Subject
from triops.bench.turns import Block, Result, results


def slow(frame: Frame, stamp: int) -> None:
    """A generator that works 2 ms on each frame."""
    until = now() + 2_000_000
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


class Scripted(Driver):
    """Turns whose n-th takes n ms; `played` has the subject of each, in their order over all subjects."""

    def __init__(self, name: str, played: list[str]) -> None:
        super().__init__(trio.testing.memory_stream_pair()[0])
        self._name = name
        self._played = played
        self._turns_played = 0

    async def chat(self, turn: Turn, message: str) -> None:
        await trio.lowlevel.checkpoint()
        self._played.append(self._name)
        self._turns_played += 1
        turn.sent = now()
        turn.final, turn.state = turn.sent + self._turns_played * 1_000_000, "final"


async def scripted(turns: int, scenario: Scenario) -> tuple[list[str], list[Block]]:
    played = list[str]()
    subjects = [(Subject(name, "", ""), Scripted(name, played)) for name in ("a", "b")]
    return played, await run_scenario(scenario, subjects, "", turns)


@pytest.fixture
def no_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triops.bench.scenario.take_marks", lambda model: {})


async def test_each_block_warms_up_first_and_the_order_of_the_subjects_changes(no_marks: None):
    played, blocks = await scripted(20, Scenario("one session"))
    assert [block.records[0].subject for block in blocks] == ["a", "b", "b", "a"] * 5
    first = [record.metrics["total"] for record in blocks[0].records]
    assert first == [WARM_UP + 1, WARM_UP + 2], "what warmed up is in no record"
    assert len(played) == 2 * (10 * WARM_UP + 20)


async def test_where_many_are_at_once_each_session_has_four_turns_in_a_block(no_marks: None):
    _, blocks = await scripted(20, Scenario("8 at once", 8, plotted=True))
    assert len(blocks) == 20
    assert {(block.played, block.at_once) for block in blocks} == {(32, 8)}


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
