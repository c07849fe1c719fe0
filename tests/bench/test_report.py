from triops.bench.report import chat_table, machine, machine_line, table
from triops.bench.stats import Interval, summarise
from triops.bench.turns import Result


def result(
    subject: str, *, failed: int = 0, invalid: str = "", ratio: float | None = None, overhead: bool = True
) -> Result:
    metrics = {"ack": summarise([1.0]), **({"overhead": summarise([4.0])} if overhead else {})}
    interval = Interval(1.4, 1.6) if ratio else None
    return Result(subject, "one session", failed, 250.0, 0.5, 0.3, metrics, None, ratio, interval, invalid)


def test_cells_stand_in_columns():
    assert table([["a", "long name", "1"], ["bb", "x", "10.5"]]) == ["a   long name     1", "bb  x          10.5"]


def test_the_table_shows_medians_ratio_and_what_is_not_known():
    lines = chat_table(machine(), [result("triops", ratio=1.5), result("floor")]).splitlines()
    ours = next(line for line in lines if "triops" in line).split()
    assert ours == [
        "one",
        "session",
        "triops",
        "1.00",
        "–",
        "–",
        "–",
        "–",
        "4.00",
        "4.00",
        "250",
        "1.50",
        "(1.40–1.60)",
        "0.50",
    ]
    assert next(line for line in lines if line.split()[:1] == ["floor"]), "the scenario is named once"
    assert lines[0] == machine_line(machine()) or lines[0].startswith("date ")


def test_doubts_are_said_below_the_table():
    text = chat_table(
        machine(), [result("triops", failed=3), result("floor", invalid="too slow"), result("other", overhead=False)]
    )
    assert "one session, triops: 3 turns did not end in a final" in text
    assert "one session, floor: INVALID, too slow." in text
    assert "--model" in text


def test_nothing_is_doubted_without_a_cause():
    text = chat_table(machine(), [result("triops")])
    assert not [word for word in ("INVALID", "did not end", "--model") if word in text]
