"""Numbers from samples: percentiles, and how sure one may be of a median or of a ratio of medians. Pure and seeded."""

import math
import random
from collections.abc import Callable, Sequence
from statistics import fmean, median, pstdev, stdev
from typing import Any, cast

import msgspec

RESAMPLES = 500
FEWEST_PAIRS = 5
T99 = (63.657, 9.925, 5.841, 4.604, 4.032, 3.707, 3.499, 3.355, 3.25)
"""Student's t for 99 %, by degrees of freedom from 1 on; for more, the last is a little wide."""
Samples = Sequence[float]


class Interval(msgspec.Struct, frozen=True):
    """How sure a number is: a median to 95 % (bootstrap), a ratio to 99 % (pairs of blocks)."""

    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Of a ratio and 1: the two differ, and not by chance."""
        return not self.low <= value <= self.high


class Summary(msgspec.Struct, frozen=True):
    """One metric of one subject; names as AIPerf's summary has them."""

    unit: str
    count: int
    avg: float
    std: float
    min: float
    max: float
    sum: float
    p1: float | None
    p5: float | None
    p10: float
    p25: float
    p50: float
    p75: float
    p90: float
    p95: float | None
    p99: float | None
    """None, as p1 and p5, where there are too few samples (20, 100) for one to lie beyond it."""


def percentile(values: Samples, percent: float) -> float:
    """The value below which `percent` of the samples lie, linear between neighbours.

    Raises:
        ValueError: there are no samples.
    """
    if not values:
        raise ValueError("no samples, no percentile")
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def summarise(values: Samples, unit: str = "ms") -> Summary:
    """Raises ValueError if there are no samples."""
    few = {n for n in (1, 5, 95, 99) if len(values) * min(n, 100 - n) < 100}
    spread = (None if n in few else percentile(values, n) for n in (1, 5, 10, 25, 50, 75, 90, 95, 99))
    whole = unit, len(values), fmean(values), pstdev(values), min(values), max(values), sum(values)
    return Summary(*whole, *cast("Any", spread))


def median_interval(blocks: Sequence[Samples], *, seed: int = 0) -> Interval:
    """How sure the median is. Samples of one block were taken together: they are less independent than blocks are."""
    return _bootstrap(len(blocks), lambda draw: median(draw(blocks)), seed)


def ratio(blocks: Sequence[Samples], base: Sequence[Samples]) -> tuple[float, Interval | None] | None:
    """Of the medians, and how sure it is; a block and the base's of the same place were measured side by side.

    A pair of blocks counts as one observation, for the turns in it share the machine's mood; 99 %, so that A against A
    differs in fewer than 5 of 100 runs. No interval under `FEWEST_PAIRS`; None if a median is not above 0.
    """
    pairs = [(median(ours), median(its)) for ours, its in zip(blocks, base, strict=True)]
    if not pairs or min(map(min, pairs)) <= 0:
        return None
    ratios = [math.log(ours / its) for ours, its in pairs]
    error = stdev(ratios) / math.sqrt(len(ratios)) if len(ratios) >= FEWEST_PAIRS else None
    return math.exp(fmean(ratios)), None if error is None else _around(fmean(ratios), error, len(ratios))


def unpaired_interval(values: Samples, base: Samples) -> Interval:
    """How sure a ratio is of what did not take turns: a value above 0 for each block, at least two on each side.

    99 %, with Student's t for the side that has fewer.
    """
    ours, its = [math.log(value) for value in values], [math.log(value) for value in base]
    error = math.hypot(stdev(ours) / math.sqrt(len(ours)), stdev(its) / math.sqrt(len(its)))
    return _around(fmean(ours) - fmean(its), error, min(len(ours), len(its)))


def _around(center: float, error: float, count: int) -> Interval:
    """99 % by Student's t, of logarithms."""
    width = T99[min(count - 1, len(T99)) - 1] * error
    return Interval(math.exp(center - width), math.exp(min(center + width, 700)))


def _bootstrap(count: int, statistic: Callable[[Callable[[Sequence[Samples]], Samples]], float], seed: int) -> Interval:
    """Draw blocks, then samples within each, with replacement: drift between blocks counts as what it is."""
    source = random.Random(seed)
    found: list[float] = []
    for _ in range(RESAMPLES):
        places = source.choices(range(count), k=count)

        def draw(blocks: Sequence[Samples], places: Sequence[int] = places) -> Samples:
            return [value for place in places for value in source.choices(blocks[place], k=len(blocks[place]))]

        found.append(statistic(draw))
    return Interval(percentile(found, 2.5), percentile(found, 97.5))
