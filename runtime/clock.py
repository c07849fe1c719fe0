"""The wall clock, behind a callable: the one place that asks the system for the time of day. And where work that blocks
is done, which a mock clock must not jump over."""

import time
from collections.abc import Callable
from typing import Protocol, TypeVar

import trio

T = TypeVar("T")

Clock = Callable[[], int]
"""Milliseconds since the epoch. Deadlines use `trio.current_time`, never this: the wall clock jumps."""


class InThread(Protocol):
    """Runs what blocks where it does no harm: `trio.to_thread.run_sync`, unless the clock is a mock."""

    async def __call__(self, work: Callable[[], T], /) -> T: ...


def system_clock() -> int:
    """The machine's time of day."""
    return time.time_ns() // 1_000_000


def trio_clock(epoch_ms: int) -> Clock:
    """A clock that follows Trio's, from `epoch_ms` on: with a mock clock, virtual days pass in no time."""
    start = trio.current_time()
    return lambda: epoch_ms + round((trio.current_time() - start) * 1000)
