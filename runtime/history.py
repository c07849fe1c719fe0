"""What the model is shown of a session's past, kept between its turns. Pure.

Messages are append-only: what has its place never changes. So a turn reads, decodes and pairs only what is new since
the last one; a reset, or a window that moved, begins with nothing.
"""

from collections.abc import Iterable, Sequence

import msgspec

from triops.agents.compaction import COMPACTION
from triops.agents.messages import AssistantMessage, Message, SystemMessage, UserMessage, decode_message
from triops.agents.transcript import estimate, pair

WINDOW, STEP = 300, 100
"""Messages that a turn may look back, at least, and how far the window's start moves at once: a start that moved with
every message would make providers read the whole prompt anew each time."""
KEPT = 8 << 20
"""Bytes of all pasts that are kept, about."""
OVERHEAD = 600
"""Bytes of a message beside its text."""


def window(before: int, reset_seq: int) -> int:
    """The seq after which the window of a turn begins, whose message has the place `before`."""
    return max(reset_seq, (before - 1 - WINDOW) // STEP * STEP, 0)


class Past(msgspec.Struct, frozen=True, kw_only=True):
    """The messages of one session in the window, after seq `start` up to seq `end`."""

    session_id: str
    start: int
    end: int
    closed: tuple[Message, ...] = ()
    """Up to the last reply, each call with its result; nothing that follows changes these."""
    open: tuple[Message, ...] = ()
    """From the last reply on."""
    tokens: int = 0
    """What `closed` costs, estimated."""
    size: int = 0
    summary_seq: int = 0
    """Of the summary that it begins with, if it does."""
    inputs: tuple[int, ...] = ()
    """The seqs of what people and the system said, oldest first."""

    def grown(self, end: int, bodies: Sequence[str]) -> "Past":
        """With the stored JSON of what followed, up to seq `end`."""
        read = [
            (seq, message)
            for seq, message in enumerate(map(decode_message, bodies), self.end + 1)
            if not (isinstance(message, SystemMessage) and message.source == COMPACTION)
        ]
        new = (*self.open, *(message for _, message in read))
        last = max((at for at, message in enumerate(new) if isinstance(message, AssistantMessage)), default=0)
        closed = pair(new[:last])
        return msgspec.structs.replace(
            self,
            end=end,
            closed=(*self.closed, *closed),
            open=new[last:],
            tokens=self.tokens + sum(map(estimate, closed)),
            size=self.size + sum(map(len, bodies)) + OVERHEAD * len(bodies),
            inputs=(*self.inputs, *(seq for seq, m in read if isinstance(m, UserMessage | SystemMessage))),
        )

    def followed_by(self, said: Iterable[Message]) -> tuple[tuple[Message, ...], int]:
        """The whole conversation, paired, and its cost in tokens."""
        rest = pair((*self.open, *said))
        return (*self.closed, *rest), self.tokens + sum(map(estimate, rest))
