"""Where the time of a turn went: stamps taken where it passes anyway, and how many turns took how long.

`queue` until its start, `plan` until the model is asked, `connect` until the request is sent, `first_token` until
something comes, `stream` until the reply is whole, `tools`, `commit` until it is on disk, `emit` until its end is told.
A turn may be in one several times. Together they are the time from its acceptance to its terminal.
"""

from bisect import bisect_left
from typing import Literal, get_args

import trio

from triops.runtime.runs.state import RunState

Phase = Literal["queue", "plan", "connect", "first_token", "stream", "tools", "commit", "emit"]
PHASES: tuple[Phase, ...] = get_args(Phase)
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds in seconds: the budgets are milliseconds, a turn with tools may take minutes."""


class Phases:
    """The stamps of one run, on Trio's clock; it is in `queue` from the start."""

    __slots__ = ("over", "stamps")

    def __init__(self) -> None:
        self.stamps: list[tuple[Phase, float]] = [("queue", trio.current_time())]
        """Each phase that was entered, and when."""
        self.over: float | None = None

    def enter(self, phase: Phase) -> None:
        if self.stamps[-1][0] != phase:
            self.stamps.append((phase, trio.current_time()))

    def end(self) -> None:
        """Its terminal is told now."""
        self.over = trio.current_time()

    def spans(self) -> list[tuple[Phase, float, float]]:
        """Each stay in a phase, in order: its start and its end. To be asked after the end."""
        assert self.over is not None
        ends = [*(at for _, at in self.stamps[1:]), self.over]
        return [(phase, start, end) for (phase, start), end in zip(self.stamps, ends, strict=True)]

    def spent(self) -> dict[Phase, float]:
        """Seconds in each phase; all are there."""
        assert self.over is not None
        spent = dict.fromkeys(PHASES, 0.0)
        last, since = self.stamps[0]
        for phase, at in self.stamps:
            spent[last] += at - since
            last, since = phase, at
        spent[last] += self.over - since
        return spent


class Histogram:
    """How many durations lie within each of `BUCKETS` (one more for what lies above), and their sum in seconds."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.sum += seconds


class TurnTimes:
    """The turns since the start of the process: their phases, and the whole by how they ended."""

    def __init__(self) -> None:
        self.phases = {phase: Histogram() for phase in PHASES}
        self.turns: dict[str, Histogram] = {
            state: Histogram() for state in (RunState.FINAL, RunState.ERROR, RunState.ABORTED)
        }

    def add(self, phases: Phases, state: RunState) -> None:
        spent = phases.spent()
        for phase, seconds in spent.items():
            self.phases[phase].add(seconds)
        self.turns[state].add(sum(spent.values()))
