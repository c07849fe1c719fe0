from triops.bench.report import machine, machine_line, markdown, table, text
from triops.bench.stats import Interval, summarise
from triops.bench.turns import Result


def result(
    subject: str, *, failed: int = 0, invalid: str = "", ratio: float | None = None, overhead: bool = True
) -> Result:
    metrics = {name: summarise([value]) for name, value in (("ack", 1.0), ("total", 5.0), ("overhead", 4.0))}
    if not overhead:
        del metrics["overhead"]
    interval = Interval(1.4, 1.6) if ratio else None
    return Result(subject, "one session", failed, 250.0, 0.5, 0.3, metrics, None, ratio, interval, invalid)


def test_cells_stand_in_columns():
    assert table([["a", "long name", "1"], ["bb", "x", "10.5"]]) == ["a   long name     1", "bb  x          10.5"]


def test_the_table_shows_medians_ratio_and_what_is_not_known():
    lines = text(machine(), [result("triops", ratio=1.5), result("floor")]).splitlines()
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
        "–",
        "250",
        "1.50",
        "(1.40–1.60)",
        "0.50",
    ]
    assert next(line for line in lines if line.split()[:1] == ["floor"]), "the scenario is named once"
    assert lines[0] == machine_line(machine()) or lines[0].startswith("date ")


def test_doubts_are_said_below_the_table():
    said = text(
        machine(), [result("triops", failed=3), result("floor", invalid="too slow"), result("other", overhead=False)]
    )
    assert "one session, triops: 3 turns did not end as they should" in said
    assert "one session, floor: INVALID, too slow; not plotted." in said
    assert "--model" in said
    assert "floor INVALID  " in said, "in its row, too"


def test_turns_without_marks_are_counted_where_others_have_them():
    few = result("triops")
    few.metrics["total"] = summarise([5.0] * 4)
    assert "one session, triops: of 3 turns the model left no marks" in text(machine(), [few])


def test_nothing_is_doubted_without_a_cause():
    said = text(machine(), [result("triops")])
    assert not [word for word in ("INVALID", "did not end", "--model") if word in said]


def test_what_is_no_turn_is_shown_with_every_metric():
    stopped = Result("gateway", "abort", 0, 1.0, 0.5, 0.3, {"terminal": summarise([2.0])}, None, None, None)
    assert text({"date": "today"}, [stopped]).splitlines() == [
        "date today",
        "",
        "                ms         p50  p95  p99   max  count",
        "abort, gateway  terminal  2.00    –    –  2.00      1",
    ]


def test_a_readme_gets_the_same_table_with_its_command():
    lines = markdown("triops bench chat", {"date": "today"}, [result("triops", ratio=1.5)]).splitlines()
    assert lines[0] == "`triops bench chat` (date today)"
    assert lines[2:5] == [
        "|  | subject | ack | model req | 1st delta | byte→delta | last→final | overhead | p99 | turns/s | × floor "
        "| gen ms |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        "| one session | triops | 1.00 | – | – | – | – | 4.00 | – | 250 | 1.50 (1.40–1.60) | 0.50 |",
    ]
