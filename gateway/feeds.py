"""What single runs told, kept for those that follow one run: an HTTP stream reads it at its own pace, and again from
where it was cut off. A run shows 500,000 characters at most, so that a feed needs no other bound."""

from collections.abc import Generator
from contextlib import contextmanager

import trio

from triops.gateway.errors import WireError
from triops.runtime.events import RunDelta, RunEnded, RunTool

MAX_KEPT = 64  # feeds that outlive their request; past it the oldest that is over goes

Told = RunDelta | RunTool | RunEnded


class Feed:
    """One run's events so far. Belongs to the Trio thread."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self.followers = 0
        self._bell = trio.Event()

    @property
    def over(self) -> bool:
        return bool(self.told) and isinstance(self.told[-1], RunEnded)

    def put(self, event: Told) -> None:
        self.told.append(event)
        self._bell.set()
        self._bell = trio.Event()

    async def after(self, place: int) -> list[Told]:
        """What was told after the first `place` events; waits until there is something."""
        while len(self.told) <= place:
            await self._bell.wait()
        return self.told[place:]


class Feeds:
    """The feeds of the runs that are followed."""

    def __init__(self) -> None:
        self._feeds: dict[str, Feed] = {}
        self._kept: list[str] = []

    def hear(self, event: Told) -> None:
        """A listener of the bus."""
        if feed := self._feeds.get(event.run.run_id):
            feed.put(event)

    def get(self, run_id: str) -> Feed | None:
        return self._feeds.get(run_id)

    @contextmanager
    def follow(self, run_id: str) -> Generator[Feed]:
        """The run's feed, which begins here if it is not there yet and goes with its last follower."""
        feed = self._feeds.setdefault(run_id, Feed())
        feed.followers += 1
        try:
            yield feed
        finally:
            self._leave(run_id, feed)

    def _leave(self, run_id: str, feed: Feed) -> None:
        feed.followers -= 1
        if not feed.followers:
            del self._feeds[run_id]

    def keep(self, run_id: str) -> bool:
        """Keep the run's feed, while it is followed, for who asks later. False: it is kept already.

        Raises:
            WireError: `MAX_KEPT` runs that are not over are kept already.
        """
        if run_id in self._kept:
            return False
        if len(self._kept) >= MAX_KEPT:
            over = next((id for id in self._kept if self._feeds[id].over), None)
            if over is None:
                words = f"{MAX_KEPT} runs are followed already; try again when one is over"
                raise WireError("UNAVAILABLE", words, retryable=True, retry_after_ms=1000)
            self.drop(over)
        self._kept.append(run_id)
        self._feeds[run_id].followers += 1
        return True

    def drop(self, run_id: str) -> None:
        """Forget a kept feed."""
        self._kept.remove(run_id)
        self._leave(run_id, self._feeds[run_id])
