"""What one client still gets: a bounded queue of frames, and the bell that wakes its writer.

Putting is sync and never waits. A slow client's text deltas merge while they wait; finals and responses never drop.
Past the limit the client is given up (`overflowed`), its runs are not.
"""

from collections import deque
from collections.abc import Callable
from math import inf

import msgspec
import trio

from triops.gateway.frames import EncodedEvent, encode_event
from triops.gateway.schema.events import AgentEvent, ChatEvent

MAX_FRAMES = 1024
SLOW = 1.0  # seconds of one write, from which on what piles up behind it is counted: a burst is no slow client
MAX_BYTES = 8 * 1024 * 1024
BATCH_BYTES = 256 * 1024  # frames are joined up to this into one write


class Delta(msgspec.Struct, frozen=True):
    """Text of a run, for `agent` or `chat`; two that follow each other make one."""

    name: str
    payload: AgentEvent | ChatEvent
    encoded: EncodedEvent

    @property
    def key(self) -> tuple[str, str]:
        return self.name, self.payload.run_id

    def merged(self, later: "Delta") -> "Delta":
        """Both in one: what is new in either, the whole text as of the later."""
        payload = later.payload.after(self.payload)
        return Delta(self.name, payload, encode_event(self.name, payload))


class OutboxStatistics(msgspec.Struct, frozen=True):
    frames: int
    bytes: int
    merged: int


class Outbox:
    """Frames for one client, in order. Event frames get their `seq` when they are taken, so that it has no gaps."""

    def __init__(self, now: Callable[[], float] = trio.current_time) -> None:
        self._now = now
        self._queue: deque[bytes | EncodedEvent | Delta] = deque()
        self._bytes = 0
        self._merged = 0
        self._seq = 0
        self._waiting: dict[tuple[str, str], int] = {}
        """Where the newest waiting delta of each run stands, counted from the first frame ever queued."""
        self._taken = 0
        self._writing = inf
        """When the writer took what it writes now."""
        self._bell = trio.lowlevel.ParkingLot()
        self.overflowed = False

    def put(self, frame: bytes) -> None:
        """A response, or another frame without a sequence number."""
        self._append(frame, len(frame))

    def put_event(self, event: EncodedEvent, *, run_id: str | None = None, urgent: bool = True) -> None:
        """An event; one that belongs to a run ends the merging of the deltas before it.

        One that is not urgent goes out with the next that is, which must be sure to come.
        """
        if run_id is not None and self._waiting:
            self._waiting.pop(("agent", run_id), None)
            self._waiting.pop(("chat", run_id), None)
        self._append(event, len(event.prefix), ring=urgent)

    def put_delta(self, delta: Delta, *, urgent: bool = True) -> None:
        """Text of a run; joins the delta of that run that is still waiting, if there is one."""
        place = self._waiting.get(delta.key)
        if place is not None and place >= self._taken:
            index = place - self._taken
            before = self._queue[index]
            assert isinstance(before, Delta)
            joined = before.merged(delta)
            self._queue[index] = joined
            self._bytes += len(joined.encoded.prefix) - len(before.encoded.prefix)
            self._merged += 1
            return
        if not self.overflowed:
            self._waiting[delta.key] = self._taken + len(self._queue)
            self._append(delta, len(delta.encoded.prefix), ring=urgent)

    def _append(self, item: bytes | EncodedEvent | Delta, size: int, *, ring: bool = True) -> None:
        if self.overflowed:
            return  # given up: until its writer has noticed, which a full socket delays, nothing more piles up
        self._queue.append(item)
        self._bytes += size
        too_many = len(self._queue) > MAX_FRAMES and self._now() - self._writing > SLOW
        if too_many or self._bytes > MAX_BYTES:
            self.overflowed = True
        if ring or self.overflowed:
            self.ring()

    def ring(self) -> None:
        """Wake the writer, if it waits."""
        if self._bell:
            self._bell.unpark_all()

    async def wait(self) -> None:
        """Until something waits, or somebody rings."""
        if not self._queue and not self.overflowed:
            await self._bell.park()
            # One step more: what is told in the same breath (ack, start, model) goes out in one write.
            await trio.lowlevel.checkpoint()

    def take(self) -> list[bytes]:
        """The next frames, together about `BATCH_BYTES`; sync."""
        frames: list[bytes] = []
        size = 0
        while self._queue and size < BATCH_BYTES:
            item = self._queue.popleft()
            self._taken += 1
            if isinstance(item, bytes):
                frame = item
                self._bytes -= len(item)
            else:
                if isinstance(item, Delta):
                    if self._waiting.get(item.key, -1) < self._taken:
                        self._waiting.pop(item.key, None)
                    item = item.encoded
                self._bytes -= len(item.prefix)
                self._seq += 1
                frame = item.frame(self._seq)
            size += len(frame)
            frames.append(frame)
        self._writing = self._now() if frames else inf
        return frames

    def statistics(self) -> OutboxStatistics:
        return OutboxStatistics(frames=len(self._queue), bytes=self._bytes, merged=self._merged)
