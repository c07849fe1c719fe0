"""`triops bench compare A B`: what became slower or quicker from one result to another, and how sure that is."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from statistics import median

import msgspec

from triops.bench.errors import BenchFailed
from triops.bench.output import Report, read_lines, read_summary
from triops.bench.report import machine_line, table
from triops.bench.stats import Interval, Samples, unpaired_interval

FEWEST_BLOCKS = 3
IN_FLOORS = "overhead_in_floors"
"""The overhead in medians of the floor that took turns with the subject: what the machine did to both is not in it.

What a threshold is for, unless a metric is named. The machine's moods outlast a block, so that in ms A differs from A
more often than an interval says.
"""
Key = tuple[str, str, str]
"""Scenario, subject, metric."""
Side = tuple[Sequence[Samples], Sequence[Samples]]
"""Blocks, and those of the floor in which they are counted; none of these: they are counted in ms."""


class Row(msgspec.Struct, frozen=True):
    """The medians of one metric in ms (or in floors), and B's in parts of A's."""

    scenario: str
    subject: str
    metric: str
    a: float
    b: float
    ratio: float | None
    """None where A has nothing above 0."""
    interval: Interval | None
    """99 %; None where one side has too few blocks for one."""

    @property
    def verdict(self) -> str:
        if self.metric != IN_FLOORS:
            return ""
        if self.interval is None:
            return "cannot be told"
        return "slower" if self.interval.low > 1 else "quicker" if self.interval.high < 1 else "within chance"


class Comparison(msgspec.Struct, frozen=True):
    """What `--json` prints."""

    a: dict[str, str]
    b: dict[str, str]
    rows: list[Row]
    past: list[str]
    """What is past the threshold."""


def samples(folder: Path) -> tuple[Report, dict[Key, list[list[float]]]]:
    """Of the turns that ended as they should, by block; of nothing that is invalid.

    Raises:
        BenchFailed: there is no result, or it is damaged, or nothing in it is valid.
    """
    report = read_summary(folder)
    valid = {(entry.scenario, entry.subject) for entry in report.results if not entry.invalid}
    if report.results and not valid:
        first = report.results[0]
        raise BenchFailed(f"{folder}: {first.scenario}, {first.subject} is INVALID, {first.invalid}; measure again")
    found: dict[Key, dict[int, list[float]]] = {}
    for line in read_lines(folder):
        for metric, value in line.metrics.items() if line.good and (line.scenario, line.subject) in valid else ():
            found.setdefault((line.scenario, line.subject, metric), {}).setdefault(line.block, []).append(value)
    return report, {key: list(blocks.values()) for key, blocks in found.items()}


def compare(a: dict[Key, list[list[float]]], b: dict[Key, list[list[float]]]) -> list[Row]:
    """What both have, in the order of `a`.

    Raises:
        BenchFailed: they have nothing in common.
    """
    rows = [_row(key, (a[key], ()), (b[key], ())) for key in a if key in b]
    for scenario, subject, metric in a:
        ours, floor = (scenario, subject, metric), (scenario, "floor", metric)
        if (
            metric == "overhead"
            and subject != "floor"
            and ours in b
            and _paired(a, ours, floor)
            and _paired(b, ours, floor)
        ):
            rows.append(_row((scenario, subject, IN_FLOORS), (a[ours], a[floor]), (b[ours], b[floor])))
    if rows:
        return rows
    sides = ("; ".join(dict.fromkeys(f"{key[0]}, {key[1]}" for key in side)) or "nothing" for side in (a, b))
    raise BenchFailed("nothing to compare: A has {}; B has {}".format(*sides))


def _paired(side: dict[Key, list[list[float]]], ours: Key, floor: Key) -> bool:
    return len(side[ours]) == len(side.get(floor, ()))


def _row(key: Key, a: Side, b: Side) -> Row:
    if min(chain(*chain(*a, *b))) <= 0:
        before, after = median(chain(*a[0])), median(chain(*b[0]))
        return Row(*key, before, after, after / before if before > 0 else None, None)
    before, after = _middle(a), _middle(b)
    return Row(*key, before, after, after / before, ratio_of_runs(a, b))


def _middle(side: Side) -> float:
    blocks, floor = side
    return median(chain(*blocks)) / (median(chain(*floor)) if floor else 1)


def ratio_of_runs(a: Side, b: Side) -> Interval | None:
    """How sure the ratio of the medians is of two runs that did not take turns; None for too few blocks."""
    if min(len(a[0]), len(b[0])) < FEWEST_BLOCKS:
        return None
    return unpaired_interval(_by_block(b), _by_block(a))


def _by_block(side: Side) -> list[float]:
    blocks, floor = side
    base = map(median, floor) if floor else [1.0] * len(blocks)
    return [ours / its for ours, its in zip(map(median, blocks), base, strict=True)]


def judge(a: Report, b: Report, rows: Sequence[Row], threshold: float, metric: str | None) -> list[str]:
    """What speaks against B: a median whose whole interval is past `threshold`, one that has no interval, a subject
    that is in one result only, or more turns that failed.

    The floor is no subject: it tells how the machine has changed.

    Raises:
        BenchFailed: there is no such metric, or nothing that could pass the threshold.
    """
    if metric and metric not in (known := dict.fromkeys(row.metric for row in rows)):
        raise BenchFailed(f"no metric {metric} in both; there are {', '.join(known)}")
    judged = [row for row in rows if row.subject != "floor" and row.metric == (metric or IN_FLOORS)]
    if not judged:
        raise BenchFailed("nothing to judge: no floor took turns in both; --metric names one to be judged in ms")
    found: list[str] = []
    for r in judged:
        what = f"{r.scenario}, {r.subject}: {r.metric}"
        if r.interval is None:
            found.append(f"{what} cannot be told: too few blocks, or a time of 0; take more turns")
        elif r.interval.low > threshold:
            sure = f"(99 %: {r.interval.low:.2f}–{r.interval.high:.2f})"
            found.append(f"{what} is {r.ratio:.2f} × A's {sure}, all of it past {threshold:g}")
    sides = [{(entry.scenario, entry.subject): entry for entry in report.results} for report in (a, b)]
    for (scenario, subject), one in {**sides[0], **sides[1]}.items():
        before, after = (side.get((scenario, subject)) for side in sides)
        if before is None or after is None:
            found.append(f"{scenario}, {subject}: only {'B' if before is None else 'A'} has it")
        elif invalid := before.invalid or after.invalid:
            found.append(f"{scenario}, {subject} is INVALID, {invalid}; measure again")
        elif after.failed > before.failed:
            found.append(f"{scenario}, {subject}: {one.failed} turns failed, of A's {before.failed}")
    return found


def comparison_text(found: Comparison) -> str:
    lines = [["", "subject", "metric", "A", "B", "B/A", "99 %", ""]]
    for r in found.rows:
        ratio = "–" if r.ratio is None else f"{r.ratio:.2f}"
        spread = f"{r.interval.low:.2f}–{r.interval.high:.2f}" if r.interval else "–"
        lines.append([r.scenario, r.subject, r.metric, f"{r.a:.2f}", f"{r.b:.2f}", ratio, spread, r.verdict])
    said = [f"A: {machine_line(found.a)}", f"B: {machine_line(found.b)}"]
    said += ["Medians, in ms where the metric names no other unit", "", *table(lines), ""]
    if any(row.interval is None for row in found.rows):
        said.append(f"No interval where a side has a time of 0 or fewer than {FEWEST_BLOCKS} blocks: take more turns.")
    said.append(f"What is in ms is not judged: the machine's moods are in it. {IN_FLOORS} leaves them out.")
    return "\n".join(said).rstrip()


def run(a: Path, b: Path, *, threshold: float | None, metric: str | None, as_json: bool) -> None:
    """Print the comparison.

    Raises:
        BenchFailed: a result cannot be read or is invalid, or `threshold` is passed.
    """
    (before, old), (after, new) = samples(a), samples(b)
    rows = compare(old, new)
    past = [] if threshold is None else judge(before, after, rows, threshold, metric)
    found = Comparison(before.machine, after.machine, rows, past)
    print(msgspec.json.encode(found).decode() if as_json else comparison_text(found))
    if past:
        raise BenchFailed("B is past the threshold\n" + "\n".join(past))
