import math
import random
from itertools import chain
from statistics import median

import pytest

from triops.bench.stats import Interval, median_interval, percentile, ratio, summarise


def noise(center: float, count: int = 50, seed: int = 1) -> list[float]:
    source = random.Random(seed)
    return [source.gauss(center, 0.5) for _ in range(count)]


def sure(ours: list[list[float]], base: list[list[float]]) -> Interval | None:
    """The interval of their ratio."""
    found = ratio(ours, base)
    return found and found[1]


@pytest.mark.parametrize(("percent", "value"), [(0, 1), (25, 2), (50, 3), (90, 4.6), (100, 5)])
def test_a_percentile_lies_linear_between_its_neighbours(percent: float, value: float):
    assert percentile([3, 1, 5, 2, 4], percent) == pytest.approx(value)


def test_no_samples_have_no_percentile():
    with pytest.raises(ValueError):
        percentile([], 50)


def test_a_summary_names_what_aiperf_names():
    found = summarise([1.0, 2.0, 3.0, 10.0])
    assert (found.unit, found.count, found.avg, found.min, found.max, found.p50) == ("ms", 4, 4.0, 1.0, 10.0, 2.5)


def test_one_sample_is_its_own_summary():
    found = summarise([7.0])
    assert (found.min, found.p50, found.p90, found.max, found.std) == (7.0, 7.0, 7.0, 7.0, 0.0)


def test_an_interval_holds_the_median_and_is_the_same_for_the_same_seed():
    blocks = [noise(5, seed=seed) for seed in range(8)]
    found = median_interval(blocks)
    assert 4.7 < found.low < 5 < found.high < 5.3
    assert median_interval(blocks) == found
    assert median_interval(blocks, seed=1) != found


def test_the_same_against_the_same_may_be_equal_and_twice_as_much_may_not():
    base = [noise(5, seed=seed) for seed in range(8)]
    same = sure([noise(5, seed=seed) for seed in range(10, 18)], base)
    double = sure([noise(10, seed=seed) for seed in range(10, 18)], base)
    assert same is not None
    assert double is not None
    assert not same.excludes(1)
    assert double.excludes(1)
    assert 1.8 < double.low < double.high < 2.2


def test_drift_between_blocks_widens_the_interval_of_the_median_but_not_of_the_ratio():
    def width(interval: Interval | None) -> float:
        assert interval is not None
        return interval.high - interval.low

    steady = [noise(5, seed=seed) for seed in range(8)]
    drifting = [noise(5 + seed, seed=seed) for seed in range(8)]
    assert width(median_interval(drifting)) > 5 * width(median_interval(steady))
    assert width(sure(drifting, drifting)) < 0.4


def test_few_pairs_of_blocks_tell_no_interval_and_a_median_of_nothing_no_ratio():
    assert ratio([[4.0], [1.0]], [[2.0], [2.0]]) == (pytest.approx(1.0), None)
    assert ratio([[0.0], [1.0]], [[1.0], [1.0]]) is None
    assert ratio([], []) is None


def test_the_ratio_lies_in_its_interval_whatever_the_blocks_are():
    source = random.Random(3)
    ours = [[source.lognormvariate(1, 1) for _ in range(9)] for _ in range(6)]
    found, sure = ratio(ours, ours[::-1]) or (0, None)
    assert sure is not None
    assert sure.low < found < sure.high


@pytest.mark.parametrize(("count", "p95", "p99"), [(19, False, False), (20, True, False), (100, True, True)])
def test_a_percentile_beyond_which_no_sample_lies_is_not_told(count: int, p95: bool, p99: bool):
    found = summarise(noise(5, count))
    assert [value is not None for value in (found.p5, found.p95)] == [p95, p95]
    assert [value is not None for value in (found.p1, found.p99)] == [p99, p99]
    assert found.p90 is not None


def a_against_a(shape: str, seed: int) -> tuple[list[list[float]], list[list[float]]]:
    """Ten pairs of blocks of one subject: the machine's mood by block, turns that resemble the turn before, tails."""
    source, mood, found = random.Random(seed), 0.0, ([], [])
    for number in range(10):
        mood = mood + source.gauss(0, 0.1) if shape != "steps" else source.choice([0, 0, 0.25, 0.6])
        for side in (0, 1) if number % 2 else (1, 0):
            own, near, block = source.gauss(0, 0.05), 0.0, list[float]()
            for _ in range(60):
                near = 0.8 * near + source.gauss(0, 0.1)
                late = 3 * source.paretovariate(1.2) if shape != "drift" and source.random() < 0.03 else 0
                block.append(4 * math.exp(mood + own + near) + late)
            found[side].append(block)
    return found


def differs_by_samples(blocks: list[list[float]], base: list[list[float]], seed: int) -> bool:
    """What not to do: each turn as an observation of its own."""
    source, ours, its = random.Random(seed), [*chain(*blocks)], [*chain(*base)]
    ratios = sorted(median(source.choices(ours, k=600)) / median(source.choices(its, k=600)) for _ in range(40))
    return not ratios[0] <= 1 <= ratios[-1]


@pytest.mark.parametrize("shape", ["drift", "tails", "steps"])
def test_a_against_a_differs_in_at_most_five_of_a_hundred_runs(shape: str):
    runs = [sure(*a_against_a(shape, seed)) for seed in range(100)]
    assert sum(run is None or run.excludes(1) for run in runs) <= 5


@pytest.mark.parametrize("shape", ["drift", "tails", "steps"])
def test_a_third_more_in_every_turn_is_seen_in_most_runs(shape: str):
    runs = [a_against_a(shape, seed) for seed in range(100)]
    found = [sure([[4 / 3 * value for value in block] for block in ours], base) for ours, base in runs]
    assert sum(run is not None and run.excludes(1) for run in found) > 50


def test_turns_taken_for_observations_of_their_own_fail_that():
    assert sum(differs_by_samples(*a_against_a("drift", seed), seed) for seed in range(30)) > 5
