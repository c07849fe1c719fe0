"""Fan-out inside the process: publishing is sync, never waits and never fails. Knows no client and no wire."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

import msgspec

from triops.runtime.boundaries import contain
from triops.runtime.events import RuntimeEvent
from triops.runtime.logs import Log

Deliver = Callable[[RuntimeEvent], None]


class BusStatistics(msgspec.Struct, frozen=True):
    subscribers: int
    published: int


class Bus:
    """Who listens, in the order of their subscription.

    A listener is a sync callable that returns at once; one that needs to wait puts the event into its own bounded
    buffer and rings its own bell. A loop that only publishes must checkpoint by itself.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._listeners: list[Deliver] = []
        self._published = 0

    @contextmanager
    def subscribe(self, deliver: Deliver) -> Generator[None]:
        """Hear every event published inside the block. A listener that raises is logged and goes on listening."""
        self._listeners.append(deliver)
        try:
            yield
        finally:
            self._listeners.remove(deliver)

    def publish(self, event: RuntimeEvent) -> None:
        """Tell everybody, now."""
        self._published += 1
        for deliver in tuple(self._listeners):
            with contain(self._log, "a bus listener failed"):
                deliver(event)

    def statistics(self) -> BusStatistics:
        return BusStatistics(subscribers=len(self._listeners), published=self._published)
