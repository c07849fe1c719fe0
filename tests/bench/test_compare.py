import json
import math
import random
from pathlib import Path

import msgspec
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
    """Ten blocks of skewed latencies and, of `triops`, the floor's that took turns with them; seeded.

    A mood of the machine is in both of a pair, and resembles the mood before.
    """
    source, found, near = random.Random(seed), list[Block](), 0.0
    for _ in range(10):
        near = 0.8 * near + source.gauss(0, 0.1)
        for name, longer in ((subject, factor), ("floor", 0.5)) if subject == "triops" else ((subject, factor),):
            mood = math.exp(near + source.gauss(0, 0.02))
            latencies = [longer * mood * source.lognormvariate(1.4, 0.25) for _ in range(turns // 10)]
            made = [Record(name, "one session", turn(sent=1, final=2), {"total": x, "overhead": x}) for x in latencies]
            if name != "floor":
                made[0].turn.state = state
            found.append(Block(made, 100 * MS, cpu * MS))
    return found


def row(a: list[Block], b: list[Block]) -> Row:
    """The one that is judged."""
    sides = list[dict[Key, list[list[float]]]]()
    for side in (a, b):
        sides.append({})
        for block in side:
            key = ("one session", block.records[0].subject, "overhead")
            sides[-1].setdefault(key, []).append([record.metrics["overhead"] for record in block.records])
    return compare(*sides)[-1]


@pytest.mark.slow
def test_a_against_a_differs_in_at_most_five_of_a_hundred_runs_though_moods_outlast_a_block():
    rows = [row(synthetic(2 * n), synthetic(2 * n + 1)) for n in range(100)]
    assert {found.metric for found in rows} == {"overhead_in_floors"}
    assert sum(found.verdict != "within chance" for found in rows) <= 5


def test_what_is_in_milliseconds_has_no_verdict():
    sides = ({KEY: [[record.metrics["total"] for record in block.records] for block in synthetic(n)]} for n in (1, 2))
    (found,) = compare(*sides)
    assert found.interval is not None
    assert found.verdict == ""


def test_what_became_slower_is_found_with_its_ratio():
    found = row(synthetic(1, turns=600), synthetic(2, factor=1.3, turns=600))
    assert found.interval is not None
    assert 1.1 < found.interval.low < 1.3 < found.interval.high < 1.5
    assert found.verdict == "slower"
    assert row(synthetic(2, factor=1.3, turns=600), synthetic(1, turns=600)).verdict == "quicker"


def test_two_blocks_or_a_time_of_nothing_have_no_interval():
    assert row(synthetic(1)[:4], synthetic(2)).verdict == "cannot be told"
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
    assert "one session, triops: overhead_in_floors is" in told
    assert "all of it past 1.1" in told
    assert "total is" not in told, "the overhead in floors is what is judged unless another metric is named"
    assert bench("compare", a, b, "--threshold", "2.2") == 0, "the interval reaches below"
    capsys.readouterr()
    assert bench("compare", a, b, "--threshold", "1.1", "--metric", "total", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert [entry["metric"] for entry in found["rows"]] == ["total", "overhead"] * 2 + ["overhead_in_floors"]
    assert len(found["past"]) == 1
    assert bench("compare", b, a, "--threshold", "1.1") == 0


@pytest.mark.parametrize("threshold", ["nan", "inf", "0", "-1"])
def test_a_threshold_that_nothing_could_pass_is_refused(
    tmp_path: Path, threshold: str, capsys: pytest.CaptureFixture[str]
):
    a = str(written(tmp_path / "a", synthetic(1)))
    assert bench("compare", a, a, "--threshold", threshold) == 2
    assert "--threshold" in capsys.readouterr().err


def test_without_a_floor_only_a_metric_that_is_named_is_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sides = (synthetic(1, subject="gateway"), synthetic(2, factor=2, subject="gateway"))
    a, b = (str(written(tmp_path / name, blocks)) for name, blocks in zip("ab", sides, strict=True))
    assert bench("compare", a, b, "--threshold", "1.1") == 1, "a threshold that nothing could pass is no check"
    assert "nothing to judge: no floor took turns in both; --metric names one" in capsys.readouterr().err
    assert bench("compare", a, b, "--threshold", "1.1", "--metric", "total") == 1
    assert "gateway: total is" in capsys.readouterr().err


def test_what_slows_the_floor_too_is_the_machine_s_and_not_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def slow(blocks: list[Block]) -> list[Block]:
        for record in (record for block in blocks for record in block.records):
            record.metrics.update({name: 2 * value for name, value in record.metrics.items()})
        return blocks

    a, b = (str(written(tmp_path / n, blocks)) for n, blocks in (("a", synthetic(1)), ("b", slow(synthetic(2)))))
    assert bench("compare", a, b, "--threshold", "1.3") == 0
    assert bench("compare", a, b, "--threshold", "1.3", "--metric", "overhead") == 1


def test_what_cannot_be_judged_does_not_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    few = [*synthetic(2)[:4], *(replace_scenario(block) for block in synthetic(3))]
    a, b = (str(written(tmp_path / name, blocks)) for name, blocks in (("a", synthetic(1)), ("b", few)))
    assert bench("compare", a, b, "--threshold", "9") == 1
    told = capsys.readouterr().err
    assert "one session, triops: overhead_in_floors cannot be told: too few blocks" in told
    assert "two sessions, triops: only B has it" in told


def replace_scenario(block: Block) -> Block:
    records = [msgspec.structs.replace(record, scenario="two sessions") for record in block.records]
    return msgspec.structs.replace(block, records=records)


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
    assert "A has one session, triops; one session, floor; B has one session, gateway" in said(a, other)
    assert "no metric ttft in both; there are total, overhead" in said(a, a, "--threshold", "1", "--metric", "ttft")


def test_nothing_in_common_is_said_where_nothing_was_measured():
    with pytest.raises(BenchFailed, match="A has nothing; B has nothing"):
        compare({}, {})
