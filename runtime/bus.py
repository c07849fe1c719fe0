"""Fan-out inside the process: publishing is sync, never waits and never fails. Knows no client and no wire."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec

from triops.runtime.boundaries import contain
from triops.runtime.events import RuntimeEvent
from triops.runtime.logs import Log

E = TypeVar("E", bound=RuntimeEvent)


class BusStatistics(msgspec.Struct, frozen=True):
    subscribers: int
    published: int


class Bus:
    """Who listens, in the order of their subscription.

    A listener is a sync callable that returns at once; one that needs to wait puts the event into its own bounded
    buffer and rings its own bell. A loop that only publishes must checkpoint by itself.
    """

    def __init__(self, log: Log) -> None:
        self._contained = contain(log, "a bus listener failed")
        self._listeners: list[tuple[Callable[[Any], None], tuple[type, ...]]] = []
        self._of_kind: dict[type, tuple[Callable[[Any], None], ...]] = {}
        """Made of the listeners when the first event of a kind comes, and anew when they change."""
        self._published = 0

    @contextmanager
    def subscribe(self, deliver: Callable[[E], None], *kinds: type[E]) -> Generator[None]:
        """Hear every event published inside the block, or those of `kinds`.

        A listener that raises is logged and goes on listening.
        """
        listener = deliver, kinds
        self._listeners.append(listener)
        self._of_kind.clear()
        try:
            yield
        finally:
            self._listeners.remove(listener)
            self._of_kind.clear()

    def publish(self, event: RuntimeEvent) -> None:
        """Tell everybody, now."""
        self._published += 1
        kind = type(event)
        hearing = self._of_kind.get(kind)
        if hearing is None:
            hearing = tuple(deliver for deliver, kinds in self._listeners if not kinds or kind in kinds)
            self._of_kind[kind] = hearing
        for deliver in hearing:
            with self._contained:
                deliver(event)

    def statistics(self) -> BusStatistics:
        return BusStatistics(subscribers=len(self._listeners), published=self._published)
