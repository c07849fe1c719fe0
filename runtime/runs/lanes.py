"""Lanes: one queue a session, worked off one run at a time, under limits that all sessions share.

A lane exists while it has something to do. Its queue is the only order there is: what steers a running turn is taken
from its head, what does not stays and gets a turn of its own. No IO here; supervisor and worker move the runs.
"""

from collections import deque

import msgspec
import trio

from triops.agents.messages import UserMessage
from triops.agents.model import Wishes
from triops.runtime.runs.registry import Run
from triops.runtime.runs.state import QueueMode, Submission
from triops.runtime.sessions import MAX_SPAWN_DEPTH

SERVICE_SLOTS = 8  # runs at once of each class that nobody at a keyboard waits for


class LaneStatistics(msgspec.Struct, frozen=True):
    lanes: int
    queued: int
    limits: dict[str, str]
    """Slots in use of each class of runs, as `used/total`."""


class Lane:
    """One session's queue. `active` is the run whose turn it is; `places` are held for runs that are being stored.

    It holds at most one slot: that of its active run, or of the one that will be.
    """

    __slots__ = ("_slots", "active", "key", "places", "queue", "starting")

    def __init__(self, key: str) -> None:
        self.key = key
        self.queue: deque[Run] = deque()
        self.active: Run | None = None
        self.starting = False
        """A run is being stored that will be the active one."""
        self.places = 0
        self._slots: trio.CapacityLimiter | None = None

    @property
    def idle(self) -> bool:
        return self.active is None and not self.starting and not self.queue and not self.places

    # The lane is the borrower, not the run: an id may come again, for another session even, while its run waits.

    def take_slot_nowait(self, slots: trio.CapacityLimiter) -> bool:
        """Take a slot if one is free."""
        try:
            slots.acquire_on_behalf_of_nowait(self)
        except trio.WouldBlock:
            return False
        self._slots = slots
        return True

    async def take_slot(self, slots: trio.CapacityLimiter) -> None:
        """Wait for a slot, first come, first served. Cancelled: there is none."""
        await slots.acquire_on_behalf_of(self)
        self._slots = slots

    def free_slot(self) -> None:
        """Give the slot back, if there is one."""
        if self._slots is not None:
            self._slots.release_on_behalf_of(self)
            self._slots = None

    def take_steering(self) -> list[Run]:
        """The waiting runs that the active turn may take in now: people's words at the head that want to steer."""
        return self._take("steer")

    def take_collected(self, head: Run) -> list[Run]:
        """The waiting runs behind `head` that want to share its turn."""
        return self._take("collect") if _joins(head, "collect") else []

    def _take(self, mode: QueueMode) -> list[Run]:
        taken: list[Run] = []
        while self.queue and _joins(self.queue[0], mode):
            taken.append(self.queue.popleft())
            taken[-1].taken = True
        return taken

    def put_first(self, run: Run) -> list[Run]:
        """Let `run` be the next; gives back those that waited with the same wish: it replaces them."""
        replaced = [other for other in self.queue if other.submission.queue_mode == "interrupt"]
        self.queue.appendleft(run)
        return replaced

    def give_back(self, runs: list[Run]) -> None:
        """What was taken waits again, where it was."""
        for run in runs:
            run.taken = False
        self.queue.extendleft(reversed(runs))


def _joins(run: Run, mode: QueueMode) -> bool:
    """Whether a run may be part of another one's turn: it wants to, and asks for nothing that the other lacks."""
    asked = run.submission
    plain = asked.model is None and not asked.extra_system and asked.wishes == Wishes()
    plain = plain and isinstance(asked.message, UserMessage)
    return asked.queue_mode == mode and plain and run.stop_reason is None


class Lanes:
    """All lanes with something to do, and the limits across them."""

    def __init__(self, *, cap: int, main: int) -> None:
        self._cap = cap
        self._lanes: dict[str, Lane] = {}
        self.closed = False
        """No lane gives another run its turn: what waits, waits for the next start."""
        self.stopping = False
        """What has its turn is being stopped, and so is what comes to it by now."""
        # Runs that others wait for have slots of their own, those of sub-agents by their depth: who holds a slot while
        # it waits for a child can never hold the slot that the child needs. (A `tool` run is waited for with a limit.)
        self._limits = {
            "main": trio.CapacityLimiter(main),
            "cron": trio.CapacityLimiter(SERVICE_SLOTS),
            "tool": trio.CapacityLimiter(SERVICE_SLOTS),
            **{f"spawn{depth}": trio.CapacityLimiter(SERVICE_SLOTS) for depth in range(1, MAX_SPAWN_DEPTH + 1)},
        }

    def slots_for(self, submission: Submission) -> trio.CapacityLimiter:
        """The slots that runs of this class share."""
        match submission.source:
            case "chat" | "agent" | "command":  # the last one only when its key comes again
                return self._limits["main"]
            case "cron" | "heartbeat" | "wake":
                return self._limits["cron"]
            case "tool":
                return self._limits["tool"]
            case "spawn":
                return self._limits.get(f"spawn{submission.spawn_depth}", self._limits["spawn1"])

    def get(self, key: str) -> Lane | None:
        return self._lanes.get(key)

    def all(self) -> list[Lane]:
        return list(self._lanes.values())

    def open(self, key: str) -> Lane:
        """The session's lane, made if need be."""
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(key)
        return lane

    def reserve(self, key: str) -> Lane | None:
        """The session's lane if it has a place for one more, before anything is written; None when it is full."""
        lane = self.open(key)
        return lane if len(lane.queue) + lane.places < self._cap else None

    def advance(self, lane: Lane) -> Run | None:
        """Give the next run its turn; None when there is none to give. A lane with nothing to do is forgotten."""
        ready = lane.queue and not lane.starting and not self.closed
        lane.active = lane.queue.popleft() if ready else None
        if lane.idle:
            self._lanes.pop(lane.key, None)
        return lane.active

    def statistics(self) -> LaneStatistics:
        return LaneStatistics(
            lanes=len(self._lanes),
            queued=sum(len(lane.queue) for lane in self._lanes.values()),
            limits={name: f"{slots.borrowed_tokens}/{slots.total_tokens}" for name, slots in self._limits.items()},
        )
