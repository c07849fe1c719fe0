"""`triops bench compare A B`: what became slower or quicker from one result to another, and how sure that is."""

import random
from collections.abc import Sequence
from itertools import chain
from math import exp, hypot, sqrt
from pathlib import Path
from statistics import NormalDist, median, pstdev

import msgspec

from triops.bench.errors import BenchFailed
from triops.bench.output import Report, read_lines, read_summary
from triops.bench.report import machine_line, table
from triops.bench.stats import RESAMPLES, Interval, Samples

FEWEST_BLOCKS = 3
MAIN = ("overhead", "total")
"""The metric that a threshold is for, unless one is named: the first of these that there is, else all."""
Key = tuple[str, str, str]
"""Scenario, subject, metric."""


class Row(msgspec.Struct, frozen=True):
    """The medians of one metric in ms, and B's in parts of A's."""

    scenario: str
    subject: str
    metric: str
    a: float
    b: float
    ratio: float | None
    """None where A has nothing above 0."""
    interval: Interval | None
    """95 %; None where one side has too few blocks for one."""

    @property
    def verdict(self) -> str:
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
    """Of the turns that ended as they should, by block.

    Raises:
        BenchFailed: there is no result, it is damaged, or it is invalid.
    """
    report = read_summary(folder)
    for entry in report.results:
        if entry.invalid:
            raise BenchFailed(f"{folder}: {entry.scenario}, {entry.subject} is INVALID, {entry.invalid}; measure again")
    found: dict[Key, dict[int, list[float]]] = {}
    for line in read_lines(folder):
        for metric, value in line.metrics.items() if line.good else ():
            found.setdefault((line.scenario, line.subject, metric), {}).setdefault(line.block, []).append(value)
    return report, {key: list(blocks.values()) for key, blocks in found.items()}


def compare(a: dict[Key, list[list[float]]], b: dict[Key, list[list[float]]]) -> list[Row]:
    """What both have, in the order of `a`.

    Raises:
        BenchFailed: they have nothing in common.
    """
    if rows := [_row(key, a[key], b[key]) for key in a if key in b]:
        return rows
    sides = ("; ".join(dict.fromkeys(f"{key[0]}, {key[1]}" for key in side)) or "nothing" for side in (a, b))
    raise BenchFailed("nothing to compare: A has {}; B has {}".format(*sides))


def _row(key: Key, a: Sequence[Samples], b: Sequence[Samples]) -> Row:
    before, after = median(chain(*a)), median(chain(*b))
    if min(chain(*a, *b)) <= 0:
        return Row(*key, before, after, after / before if before > 0 else None, None)
    return Row(*key, before, after, after / before, ratio_of_runs(a, b))


def ratio_of_runs(a: Sequence[Samples], b: Sequence[Samples], *, seed: int = 0) -> Interval | None:
    """How sure the ratio of the medians is of two runs that did not take turns; None for too few blocks.

    Each side's standard error by bootstrap over its blocks, and Student's t for the few that it rests on.
    """
    if min(len(a), len(b)) < FEWEST_BLOCKS:
        return None
    source, errors = random.Random(seed), list[float]()
    for blocks in (a, b):
        found: list[float] = []
        for _ in range(RESAMPLES):
            drawn = source.choices(blocks, k=len(blocks))
            found.append(median(value for block in drawn for value in source.choices(block, k=len(block))))
        errors.append(pstdev(found) / median(chain(*blocks)) * sqrt(len(blocks) / (len(blocks) - 1)))
    ratio, margin = median(chain(*b)) / median(chain(*a)), exp(_student(min(len(a), len(b)) - 1) * hypot(*errors))
    return Interval(ratio / margin, ratio * margin)


def _student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, by Cornish and Fisher's expansion; from 2 degrees of freedom on."""
    z = NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def judge(a: Report, b: Report, rows: Sequence[Row], threshold: float, metric: str | None) -> list[str]:
    """What speaks against B: a median whose whole interval is past `threshold`, or more turns that failed.

    The floor is no subject: it tells how the machine has changed.

    Raises:
        BenchFailed: there is no such metric, or nothing that could pass the threshold.
    """
    if metric and metric not in (known := dict.fromkeys(row.metric for row in rows)):
        raise BenchFailed(f"no metric {metric} in both; there are {', '.join(known)}")
    main = metric or next((name for name in MAIN if any(row.metric == name for row in rows)), "")
    judged = [(r, r.interval) for r in rows if r.interval and r.subject != "floor" and main in ("", r.metric)]
    if not judged:
        raise BenchFailed("nothing to judge: both need the same scenario and subject, not the floor, and an interval")
    found = [
        f"{r.scenario}, {r.subject}: {r.metric} is {r.ratio:.2f} × A's (95 %: {interval.low:.2f}–{interval.high:.2f}), "
        f"all of it past {threshold:g}"
        for r, interval in judged
        if interval.low > threshold
    ]
    before = {(entry.scenario, entry.subject): entry for entry in a.results}
    for entry in b.results:
        if (old := before.get((entry.scenario, entry.subject))) and entry.failed > old.failed:
            found.append(f"{entry.scenario}, {entry.subject}: {entry.failed} turns failed, of A's {old.failed}")
    return found


def comparison_text(found: Comparison) -> str:
    lines = [["", "subject", "metric", "A ms", "B ms", "B/A", "95 %", ""]]
    for r in found.rows:
        ratio = "–" if r.ratio is None else f"{r.ratio:.2f}"
        spread = f"{r.interval.low:.2f}–{r.interval.high:.2f}" if r.interval else "–"
        lines.append([r.scenario, r.subject, r.metric, f"{r.a:.2f}", f"{r.b:.2f}", ratio, spread, r.verdict])
    said = [f"A: {machine_line(found.a)}", f"B: {machine_line(found.b)}", "", *table(lines), ""]
    if any(row.interval is None for row in found.rows):
        said.append(f"No interval where a side has a time of 0 or fewer than {FEWEST_BLOCKS} blocks: take more turns.")
    floor = [row for row in found.rows if row.subject == "floor" and row.metric in MAIN]
    if any(row.verdict in ("slower", "quicker") for row in floor):
        said.append("The floor differs: the machine has changed, and its share is no fault or merit of a subject.")
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
