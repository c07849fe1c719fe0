"""Numbers from samples: percentiles, and how sure one may be of a median or of a ratio of medians. Pure and seeded."""

import random
from collections.abc import Callable, Sequence
from statistics import fmean, median, pstdev

import msgspec

RESAMPLES = 500
Samples = Sequence[float]


class Interval(msgspec.Struct, frozen=True):
    """A 95 % bootstrap confidence interval."""

    low: float
    high: float


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


def summarise(values: Samples) -> Summary:
    """Of times in ms. Raises ValueError if there are no samples."""
    spread = (percentile(values, percent) for percent in (1, 5, 10, 25, 50, 75, 90, 95, 99))
    return Summary("ms", len(values), fmean(values), pstdev(values), min(values), max(values), sum(values), *spread)


def median_interval(blocks: Sequence[Samples], *, seed: int = 0) -> Interval:
    """How sure the median is. Samples of one block were taken together: they are less independent than blocks are."""
    return _bootstrap(len(blocks), lambda draw: median(draw(blocks)), seed)


def ratio_interval(blocks: Sequence[Samples], base: Sequence[Samples], *, seed: int = 0) -> Interval:
    """How sure the ratio of the medians is; a block and the base's of the same place were measured side by side."""
    assert len(blocks) == len(base)
    return _bootstrap(len(blocks), lambda draw: median(draw(blocks)) / median(draw(base)), seed)


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
