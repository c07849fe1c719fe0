"""What a turn emits while it runs: brackets (message ⊃ delta, tool start ⊃ tool end) and what lies between.

Every start has its end on every way out, cancellation included.
"""

import msgspec

from triops.agents.messages import AssistantMessage, ToolCall, ToolResultMessage, UserMessage
from triops.agents.model import RetryNotice


class MessageStart(msgspec.Struct, frozen=True):
    """A model call begins; `index` counts the assistant messages of this turn from 1."""

    index: int


class TextChunk(msgspec.Struct, frozen=True):
    """`delta` was appended to the text of message `index`."""

    index: int
    delta: str


class ThinkingChunk(msgspec.Struct, frozen=True):
    index: int
    delta: str


class MessageEnd(msgspec.Struct, frozen=True):
    """The model call is over. `message` holds what arrived, also when the call was cut (`stopReason: aborted`)."""

    index: int
    message: AssistantMessage


class Waiting(msgspec.Struct, frozen=True):
    """The model has been silent for long; `reason` says how long it is waited for."""

    reason: str


class ToolStart(msgspec.Struct, frozen=True):
    call: ToolCall


class ToolUpdate(msgspec.Struct, frozen=True):
    call: ToolCall
    text: str


class ToolEnd(msgspec.Struct, frozen=True):
    call: ToolCall
    result: ToolResultMessage


class Steered(msgspec.Struct, frozen=True):
    """Messages that arrived while the turn ran and are now part of it."""

    messages: tuple[UserMessage, ...]


TurnEvent = (
    MessageStart
    | TextChunk
    | ThinkingChunk
    | MessageEnd
    | RetryNotice
    | Waiting
    | ToolStart
    | ToolUpdate
    | ToolEnd
    | Steered
)
