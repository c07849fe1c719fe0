"""Numbers from samples: percentiles, and how sure one may be of a median or of a ratio of medians. Pure and seeded."""

import math
import random
from collections.abc import Callable, Sequence
from statistics import fmean, median, pstdev, stdev

import msgspec

RESAMPLES = 500
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
    p1: float
    p5: float
    p10: float
    p25: float
    p50: float
    p75: float
    p90: float
    p95: float
    p99: float


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
    spread = (percentile(values, percent) for percent in (1, 5, 10, 25, 50, 75, 90, 95, 99))
    return Summary(unit, len(values), fmean(values), pstdev(values), min(values), max(values), sum(values), *spread)


def median_interval(blocks: Sequence[Samples], *, seed: int = 0) -> Interval:
    """How sure the median is. Samples of one block were taken together: they are less independent than blocks are."""
    return _bootstrap(len(blocks), lambda draw: median(draw(blocks)), seed)


def ratio_interval(blocks: Sequence[Samples], base: Sequence[Samples]) -> Interval | None:
    """How sure the ratio of the medians is; a block and the base's of the same place were measured side by side.

    A pair of blocks counts as one observation, for the turns in it share the machine's mood; 99 %, so that A against A
    differs in fewer than 5 of 100 runs. None if there are fewer than two pairs, or a median is not above 0.
    """
    pairs = [(median(ours), median(its)) for ours, its in zip(blocks, base, strict=True)]
    if len(pairs) < 2 or min(map(min, pairs)) <= 0:
        return None
    ratios = [math.log(ours / its) for ours, its in pairs]
    center, width = fmean(ratios), T99[min(len(ratios) - 1, len(T99)) - 1] * stdev(ratios) / math.sqrt(len(ratios))
    return Interval(math.exp(center - width), math.exp(min(center + width, 700)))


def unpaired_interval(values: Samples, base: Samples) -> Interval:
    """How sure a ratio is of what did not take turns: a value above 0 for each block, at least two on each side.

    99 %, with Student's t for the side that has fewer.
    """
    ours, its = [math.log(value) for value in values], [math.log(value) for value in base]
    center = fmean(ours) - fmean(its)
    error = math.hypot(stdev(ours) / math.sqrt(len(ours)), stdev(its) / math.sqrt(len(its)))
    width = T99[min(len(ours), len(its), len(T99) + 1) - 2] * error
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
