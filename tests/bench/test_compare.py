import json
import random
from pathlib import Path

import pytest
from tests.bench.test_cli import bench
from tests.bench.test_output import written
from tests.bench.test_turns import MS, turn

from triops.bench.compare import Key, Row, compare
from triops.bench.errors import BenchFailed
from triops.bench.turns import Block, Record

KEY: Key = ("one session", "triops", "total")


def synthetic(
    seed: int, *, factor: float = 1.0, turns: int = 100, subject: str = "triops", cpu: int = 1, state: str = "final"
) -> list[Block]:
    """Ten blocks of skewed latencies with a mood of the machine in each; seeded."""
    source = random.Random(seed)
    found: list[Block] = []
    for _ in range(10):
        mood = source.gauss(1, 0.03)
        latencies = [factor * mood * source.lognormvariate(1.4, 0.25) for _ in range(turns // 10)]
        made = [Record(subject, "one session", turn(sent=1, final=2), {"total": x, "overhead": x}) for x in latencies]
        made[0].turn.state = state
        found.append(Block(made, 0, 100 * MS, cpu * MS))
    return found


def row(a: list[Block], b: list[Block]) -> Row:
    sides = ({KEY: [[record.metrics["total"] for record in block.records] for block in side]} for side in (a, b))
    return compare(*sides)[0]


@pytest.mark.slow
def test_a_against_a_differs_in_at_most_five_of_a_hundred_runs():
    rows = [row(synthetic(2 * n), synthetic(2 * n + 1)) for n in range(100)]
    assert sum(found.verdict != "within chance" for found in rows) <= 5


def test_what_became_slower_is_found_with_its_ratio():
    found = row(synthetic(1, turns=600), synthetic(2, factor=1.3, turns=600))
    assert found.interval is not None
    assert 1.1 < found.interval.low < 1.3 < found.interval.high < 1.5
    assert found.verdict == "slower"
    assert row(synthetic(2, factor=1.3, turns=600), synthetic(1, turns=600)).verdict == "quicker"


def test_two_blocks_or_a_time_of_nothing_have_no_interval():
    assert row(synthetic(1)[:2], synthetic(2)).verdict == "cannot be told"
    (found,) = compare({KEY: [[0.0]] * 3}, {KEY: [[1.0]] * 3})
    assert (found.ratio, found.interval) == (None, None)


def test_the_command_fails_where_the_whole_interval_is_past_the_threshold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    a, b = str(written(tmp_path / "a", synthetic(1))), str(written(tmp_path / "b", synthetic(2, factor=2)))
    assert bench("compare", a, b) == 0, "without a threshold nothing can be past it"
    assert "slower" in capsys.readouterr().out
    assert bench("compare", a, b, "--threshold", "1.1") == 1
    told = capsys.readouterr().err
    assert "one session, triops: overhead is 1.9" in told or "one session, triops: overhead is 2.0" in told
    assert "all of it past 1.1" in told
    assert "total is" not in told, "the overhead is what is judged unless another metric is named"
    assert bench("compare", a, b, "--threshold", "1.98") == 0, "the interval reaches below"
    capsys.readouterr()
    assert bench("compare", a, b, "--threshold", "1.1", "--metric", "total", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"][0]["metric"], len(found["rows"]), len(found["past"])) == ("total", 2, 1)
    assert bench("compare", b, a, "--threshold", "1.1") == 0


def test_the_floor_is_not_judged_but_its_change_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    floor, slower = synthetic(1, subject="floor"), synthetic(2, factor=2, subject="floor")
    a, b = (str(written(tmp_path / name, synthetic(1) + blocks)) for name, blocks in (("a", floor), ("b", slower)))
    assert bench("compare", a, b, "--threshold", "1.1", "--metric", "total") == 0
    assert "The floor differs: the machine has changed" in capsys.readouterr().out
    a, b = (str(written(tmp_path / name, blocks)) for name, blocks in (("c", floor), ("d", slower)))
    assert bench("compare", a, b, "--threshold", "1.1") == 1, "a threshold that nothing could pass is no check"
    assert "nothing to judge" in capsys.readouterr().err


def test_what_slows_the_floor_too_is_the_machine_s_and_not_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    a = str(written(tmp_path / "a", synthetic(1) + synthetic(3, subject="floor")))
    b = str(written(tmp_path / "b", synthetic(2, factor=2) + synthetic(4, factor=2, subject="floor")))
    assert bench("compare", a, b, "--threshold", "1.3") == 0
    assert "overhead_in_floors" in capsys.readouterr().out
    assert bench("compare", a, b, "--threshold", "1.3", "--metric", "overhead") == 1
    worse = str(written(tmp_path / "c", synthetic(2, factor=4) + synthetic(4, factor=2, subject="floor")))
    capsys.readouterr()
    assert bench("compare", a, worse, "--threshold", "1.3") == 1
    assert "one session, triops: overhead_in_floors is" in capsys.readouterr().err


def test_turns_that_fail_do_not_pass_a_threshold(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    a, b = str(written(tmp_path / "a", synthetic(1))), str(written(tmp_path / "b", synthetic(1, state="error")))
    assert bench("compare", a, b, "--threshold", "2") == 1
    assert "one session, triops: 10 turns failed, of A's 0" in capsys.readouterr().err


def test_what_cannot_be_compared_is_said_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def said(*arguments: str) -> str:
        assert bench("compare", *arguments) == 1
        return capsys.readouterr().err

    a, absent = str(written(tmp_path / "a", synthetic(1))), str(tmp_path / "absent")
    invalid = str(written(tmp_path / "b", synthetic(1, cpu=99)))
    other = str(written(tmp_path / "c", synthetic(1, subject="gateway")))
    assert "absent is no folder" in said(a, absent)
    assert "b: one session, triops is INVALID, the generator was the bottleneck (at work 99% of the time)" in said(
        a, invalid
    )
    assert "A has one session, triops; B has one session, gateway" in said(a, other)
    assert "no metric ttft in both; there are total, overhead" in said(a, a, "--threshold", "1", "--metric", "ttft")


def test_nothing_in_common_is_said_where_nothing_was_measured():
    with pytest.raises(BenchFailed, match="A has nothing; B has nothing"):
        compare({}, {})
