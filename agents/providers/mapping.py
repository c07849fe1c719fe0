"""What the request mappings of all wire formats share. Pure; knows none of them."""

import time
from collections.abc import Sequence

from triops.agents.messages import SystemMessage, Text, ToolResultMessage, UserBlock, UserMessage
from triops.agents.model import ModelInfo, ModelRequest


def reply_limit(request: ModelRequest) -> int:
    """Tokens to allow for the reply. Unasked, at most half of the window: servers refuse prompt + reply beyond it."""
    if request.max_tokens is not None:
        return min(request.max_tokens, request.model.context_window)
    return max(1, min(request.model.max_tokens, request.model.context_window // 2))


def told(message: SystemMessage) -> str:
    """A system event as a model reads it: `System: [time] text`, each further line prefixed too (agent-loop.md §9)."""
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(message.timestamp / 1000))
    first, *rest = message.content.splitlines() or [""]
    return "\n".join([f"System: [{when}] {first}", *(f"System: {line}" for line in rest)])


def seen(message: UserMessage | SystemMessage | ToolResultMessage, model: ModelInfo) -> list[UserBlock]:
    """Blocks that `model` can take: an image that it cannot becomes words, an empty text nothing."""
    content = told(message) if isinstance(message, SystemMessage) else message.content
    blocks: Sequence[UserBlock] = (Text(content),) if isinstance(content, str) else content
    if "image" not in model.input:
        blocks = [b if isinstance(b, Text) else Text("[an image was left out: this model takes none]") for b in blocks]
    return [block for block in blocks if block != Text("")]
