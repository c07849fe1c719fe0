"""How many writes one actor may make, and how many requests may wait."""

from contextlib import ExitStack

import pytest

from triops.gateway.admission import LIMIT, MAX_ACTORS, MAX_PARKED, WINDOW, Parking, WriteLimiter
from triops.gateway.errors import WireError


class Now:
    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_past_the_limit_a_write_is_refused_until_the_first_is_out_of_the_window() -> None:
    now = Now()
    limiter = WriteLimiter(now)
    for _ in range(LIMIT):
        limiter.count("cron.add", "me")
        now.seconds += 1
    with pytest.raises(WireError, match=r"rate limit exceeded for cron\.add; retry after 30s") as refused:
        limiter.count("cron.add", "me")
    shape = refused.value.shape
    assert (shape.code, shape.retryable, shape.retry_after_ms) == ("UNAVAILABLE", True, 30_000)
    assert shape.details == {"method": "cron.add", "limit": "30 per 60s"}
    now.seconds += 30
    limiter.count("cron.add", "me")
    with pytest.raises(WireError):
        limiter.count("cron.add", "me")


def test_a_refused_write_does_not_count_and_others_are_not_held_up() -> None:
    now = Now()
    limiter = WriteLimiter(now)
    for _ in range(LIMIT):
        limiter.count("cron.add", "me")
    for _ in range(LIMIT):
        with pytest.raises(WireError):
            limiter.count("cron.add", "me")
        limiter.count("cron.add", "you")
    now.seconds += WINDOW
    limiter.count("cron.add", "me")


def test_actors_that_were_long_silent_are_forgotten() -> None:
    now = Now()
    limiter = WriteLimiter(now)
    for number in range(MAX_ACTORS):
        limiter.count("cron.add", str(number))
    now.seconds += WINDOW + 1
    limiter.count("cron.add", "new")
    assert len(limiter._writes) == 1  # pyright: ignore[reportPrivateUsage] - memory is what is promised


def test_places_to_wait_are_limited_in_all_and_given_back() -> None:
    parking = Parking()
    with parking.place():
        assert parking.taken == 0  # it has not said that it waits
    with ExitStack() as waiting:
        for _ in range(MAX_PARKED):
            park = waiting.enter_context(parking.place())
            park()
            park()
        with parking.place() as park, pytest.raises(WireError, match="wait already") as error:
            park()
        assert error.value.shape.retryable
        assert error.value.shape.retry_after_ms == 1000
        assert parking.taken == MAX_PARKED
    assert parking.taken == 0
