"""Lanes: one queue a session, worked off one run at a time, under limits that all sessions share.

A lane exists while it has something to do. Its queue is the only order there is: what steers a running turn is taken
from its head, what does not stays and gets a turn of its own. No IO here; the supervisor moves the runs.
"""

from collections import deque

import msgspec
import trio

from triops.agents.messages import UserMessage
from triops.runtime.runs.registry import Run
from triops.runtime.runs.state import Source


class LaneStatistics(msgspec.Struct, frozen=True):
    lanes: int
    queued: int
    limits: dict[str, str]
    """Slots in use of each class of runs, as `used/total`."""


class Lane:
    """One session's queue. `active` is the run whose turn it is; `places` are held for runs that are being stored."""

    __slots__ = ("active", "key", "places", "queue", "starting")

    def __init__(self, key: str) -> None:
        self.key = key
        self.queue: deque[Run] = deque()
        self.active: Run | None = None
        self.starting = False
        """A run is being stored that will be the active one."""
        self.places = 0

    @property
    def idle(self) -> bool:
        return self.active is None and not self.starting and not self.queue and not self.places

    def take_steering(self) -> list[Run]:
        """The waiting runs that the active turn may take in now: people's words at the head that want to steer."""
        taken: list[Run] = []
        while self.queue and _steers(self.queue[0]):
            taken.append(self.queue.popleft())
        return taken

    def take_collected(self, head: Run) -> list[Run]:
        """The waiting runs behind `head` that want to share its turn."""
        taken: list[Run] = []
        if head.submission.queue_mode == "collect":
            while self.queue and self.queue[0].submission.queue_mode == "collect":
                taken.append(self.queue.popleft())
        return taken


def _steers(run: Run) -> bool:
    submission = run.submission
    return submission.queue_mode == "steer" and isinstance(submission.message, UserMessage) and run.stop_reason is None


class Lanes:
    """All lanes with something to do, and the limits across them."""

    def __init__(self, *, cap: int, main: int) -> None:
        self._cap = cap
        self._lanes: dict[str, Lane] = {}
        # Runs that others wait for have slots of their own: a parent that holds one can always be answered.
        self._limits = {
            "main": trio.CapacityLimiter(main),
            "cron": trio.CapacityLimiter(8),
            "spawn": trio.CapacityLimiter(8),
            "tool": trio.CapacityLimiter(8),
        }

    def limiter(self, source: Source) -> trio.CapacityLimiter:
        """The slots that runs of this source share."""
        if source in ("heartbeat", "wake"):
            return self._limits["cron"]
        return self._limits.get(source, self._limits["main"])

    def get(self, key: str) -> Lane | None:
        return self._lanes.get(key)

    def reserve(self, key: str) -> Lane | None:
        """A place in the session's lane, before anything is written; None when it is full."""
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(key)
        if len(lane.queue) + lane.places >= self._cap:
            return None
        return lane

    def forget(self, lane: Lane) -> None:
        """Drop a lane that has nothing to do."""
        if lane.idle:
            self._lanes.pop(lane.key, None)

    def statistics(self) -> LaneStatistics:
        return LaneStatistics(
            lanes=len(self._lanes),
            queued=sum(len(lane.queue) for lane in self._lanes.values()),
            limits={name: f"{slots.borrowed_tokens}/{slots.total_tokens}" for name, slots in self._limits.items()},
        )
