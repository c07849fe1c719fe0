"""The conversation as a wire format says it, and what was said before encoded only once. Knows no format."""

from collections.abc import Callable, Sequence
from operator import is_
from typing import Any, cast

import msgspec

from triops.agents.kept import Kept
from triops.agents.messages import AssistantMessage, Message
from triops.agents.model import ModelInfo, ModelRequest, ToolSchema

LIMIT = 4 << 20
"""Bytes of JSON that a provider's memo holds."""

Encode = Callable[[Sequence[Message], ModelInfo], list[Any]]
"""Messages to what stands for them in a request; neighbours of one role may become one."""

_encode_json = msgspec.json.Encoder().encode


class _Said(msgspec.Struct, frozen=True):
    messages: Sequence[Message]
    model: ModelInfo
    turns: bytes
    """Their JSON, with commas between: one piece, so that it costs a request the same however many they are."""
    role: Any
    """Of the last turn, where the format has roles."""


class Memo:
    """By session, what the last request said up to its last reply. A turn adds a few messages to hundreds."""

    def __init__(self) -> None:
        self._kept = Kept[_Said](LIMIT)
        self._tools: tuple[tuple[ToolSchema, ...], msgspec.Raw] = ((), msgspec.Raw(b"[]"))

    def tools(self, request: ModelRequest, say: Callable[[ToolSchema], dict[str, Any]]) -> msgspec.Raw:
        """The request's tools in the words of the format; those of one plan are the same from turn to turn."""
        if request.tools is not self._tools[0]:
            self._tools = request.tools, msgspec.Raw(_encode_json([say(tool) for tool in request.tools]))
        return self._tools[1]

    def turns(self, request: ModelRequest, encode: Encode) -> list[Any]:
        """What is the same as `encode(request.messages, request.model)` when it is encoded."""
        messages, model = request.messages, request.model
        before = self._kept.get(request.session_id)
        if (
            before is None
            or before.model is not model
            or len(before.messages) >= len(messages)
            or not all(map(is_, before.messages, messages))
        ):
            before = _Said((), model, b"", None)
        start = len(before.messages)
        last = next((at for at in range(len(messages) - 1, start, -1) if _is_reply(messages[at])), start)
        new, rest = encode(messages[start:last], model), encode(messages[last:], model)
        ends = [before.role, *(_role(turn) for turns in (new, rest) if turns for turn in (turns[0], turns[-1]))]
        if not rest or any(end == begin is not None for end, begin in zip(ends[::2], ends[1::2], strict=False)):
            return encode(messages, model)  # two that stand side by side would have become one
        said = before.turns
        if new and request.session_id:
            said = b",".join([*([said] if said else ()), *map(_encode_json, new)])
            self._kept.keep(request.session_id, _Said(messages[:last], model, said, _role(new[-1])), len(said))
            new = []
        return [*([msgspec.Raw(said)] if said else ()), *new, *rest]


def _is_reply(message: Message) -> bool:
    return isinstance(message, AssistantMessage)


def _role(turn: Any) -> Any:
    return cast("dict[str, Any]", turn).get("role") if isinstance(turn, dict) else None
