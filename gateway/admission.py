"""How many writes to the control plane one actor may make, and how many requests may wait. Pure but for the clock."""

from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager

from triops.gateway.errors import WireError

LIMIT = 30
WINDOW = 60.0  # seconds
MAX_ACTORS = 10_000
MAX_PARKED = 256


class WriteLimiter:
    """A sliding window per actor (protocol §2.3); memory is bounded by `MAX_ACTORS`."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._writes: dict[str, deque[float]] = {}

    def count(self, method: str, actor: str) -> None:
        """Note one write.

        Raises:
            WireError: too many; with `retryAfterMs`.
        """
        now = self._now()
        if len(self._writes) >= MAX_ACTORS:
            self._writes = {who: times for who, times in self._writes.items() if times[-1] > now - WINDOW}
        times = self._writes.setdefault(actor, deque())
        while times and times[0] <= now - WINDOW:
            times.popleft()
        if len(times) >= LIMIT:
            wait = times[0] + WINDOW - now
            raise WireError(
                "UNAVAILABLE",
                f"rate limit exceeded for {method}; retry after {wait:.0f}s",
                details={"method": method, "limit": f"{LIMIT} per {WINDOW:.0f}s"},
                retryable=True,
                retry_after_ms=round(wait * 1000),
            )
        times.append(now)


class Parking:
    """The places of requests that only wait: `MAX_PARKED` in all."""

    def __init__(self) -> None:
        self.taken = 0

    @contextmanager
    def place(self) -> Generator[Callable[[], None]]:
        """One request's `park`, which takes a place or raises `WireError`; the end of the block gives it back."""
        mine = 0

        def park() -> None:
            nonlocal mine
            if mine == 0 and self.taken == MAX_PARKED:
                words = f"{MAX_PARKED} requests wait already; try again when some are over"
                raise WireError("UNAVAILABLE", words, retryable=True, retry_after_ms=1000)
            self.taken += 1 - mine
            mine = 1

        try:
            yield park
        finally:
            self.taken -= mine
