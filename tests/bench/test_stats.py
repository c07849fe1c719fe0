import random

import pytest

from triops.bench.stats import Interval, median_interval, percentile, ratio_interval, summarise


def noise(center: float, count: int = 50, seed: int = 1) -> list[float]:
    source = random.Random(seed)
    return [source.gauss(center, 0.5) for _ in range(count)]


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
    assert (found.min, found.p50, found.p99, found.max, found.std) == (7.0, 7.0, 7.0, 7.0, 0.0)


def test_an_interval_holds_the_median_and_is_the_same_for_the_same_seed():
    blocks = [noise(5, seed=seed) for seed in range(8)]
    found = median_interval(blocks)
    assert 4.7 < found.low < 5 < found.high < 5.3
    assert median_interval(blocks) == found
    assert median_interval(blocks, seed=1) != found


def test_the_same_against_the_same_may_be_equal_and_twice_as_much_may_not():
    base = [noise(5, seed=seed) for seed in range(8)]
    same = ratio_interval([noise(5, seed=seed) for seed in range(10, 18)], base)
    double = ratio_interval([noise(10, seed=seed) for seed in range(10, 18)], base)
    assert same.low < 1 < same.high
    assert 1.8 < double.low < double.high < 2.2


def test_drift_between_blocks_widens_the_interval_of_the_median_but_not_of_the_ratio():
    def width(interval: Interval) -> float:
        return interval.high - interval.low

    steady = [noise(5, seed=seed) for seed in range(8)]
    drifting = [noise(5 + seed, seed=seed) for seed in range(8)]
    assert width(median_interval(drifting)) > 5 * width(median_interval(steady))
    assert width(ratio_interval(drifting, drifting)) < 0.4
