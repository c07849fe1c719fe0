"""Content blocks and messages: what a transcript is made of, in memory, on disk and on the wire alike.

The JSON form is the protocol's (`role`, `toolCallId`, `stopReason` …), so that a stored message is sent as it lies on
disk. Every type is frozen: messages cross tasks.
"""

from typing import Any, Literal

import msgspec


class Text(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    text: str


class Thinking(msgspec.Struct, frozen=True, tag_field="type", tag="thinking", omit_defaults=True):
    thinking: str
    signature: str = msgspec.field(default="", name="thinkingSignature")
    """Opaque; must be sent back unchanged to the provider that made it."""


class Image(msgspec.Struct, frozen=True, tag_field="type", tag="image", rename="camel"):
    data: str
    """Base64."""
    mime_type: str


class ToolCall(msgspec.Struct, frozen=True, tag_field="type", tag="toolCall"):
    id: str
    name: str
    arguments: dict[str, Any]


UserBlock = Text | Image
AssistantBlock = Text | Thinking | ToolCall
StopReason = Literal["stop", "length", "toolUse", "error", "aborted"]


class Cost(msgspec.Struct, frozen=True, rename="camel"):
    """Money in USD."""

    input: float = 0
    output: float = 0
    cache_read: float = 0
    cache_write: float = 0
    total: float = 0


class Usage(msgspec.Struct, frozen=True, rename="camel"):
    """Tokens of one model call, as the provider counted them; `input` is without the cached ones."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    total_tokens: int = 0
    cost: Cost = Cost()


class UserMessage(msgspec.Struct, frozen=True, tag_field="role", tag="user", rename="camel", omit_defaults=True):
    content: str | tuple[UserBlock, ...]
    timestamp: int
    """Milliseconds since the epoch, as everywhere in this module."""
    idempotency_key: str = ""


class SystemMessage(msgspec.Struct, frozen=True, tag_field="role", tag="system", rename="camel", omit_defaults=True):
    """Something that happened (a cron event, a wake, a finished sub-agent); shown to people and told to the model."""

    content: str
    timestamp: int
    source: str = ""
    """What said it: `cron:<jobId>`, `wake`, `subagent:<key>`, `compaction`."""
    usage: Usage | None = None
    """Of the model that wrote it, if one did."""


class AssistantMessage(
    msgspec.Struct, frozen=True, tag_field="role", tag="assistant", rename="camel", omit_defaults=True
):
    content: tuple[AssistantBlock, ...]
    timestamp: int
    api: str = ""
    provider: str = ""
    model: str = ""
    usage: Usage | None = None
    stop_reason: StopReason = msgspec.field(default_factory=lambda: "stop")  # a factory, so that it is always written
    error_message: str = ""
    response_id: str = ""

    @property
    def text(self) -> str:
        """The visible words, blocks joined."""
        return "".join(block.text for block in self.content if isinstance(block, Text))

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return tuple(block for block in self.content if isinstance(block, ToolCall))


class ToolResultMessage(
    msgspec.Struct, frozen=True, tag_field="role", tag="toolResult", rename="camel", omit_defaults=True
):
    tool_call_id: str
    tool_name: str
    content: tuple[UserBlock, ...]
    timestamp: int
    is_error: bool = msgspec.field(default_factory=lambda: False)
    details: Any = None

    @property
    def text(self) -> str:
        return "".join(block.text for block in self.content if isinstance(block, Text))


Message = UserMessage | SystemMessage | AssistantMessage | ToolResultMessage

encode_message = msgspec.json.Encoder().encode
decode_message = msgspec.json.Decoder(Message).decode
