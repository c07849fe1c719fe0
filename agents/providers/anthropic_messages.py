"""`api: anthropic-messages`: Anthropic's Messages API, and the servers that speak it.

Maps messages to a request and events to events; knows no connection. Anthropic's own endpoint gets cache marks on the
system prompt and on the last turn; others may refuse them.
"""

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from triops.agents.messages import (
    AssistantMessage,
    Message,
    StopReason,
    SystemMessage,
    Text,
    Thinking,
    ToolResultMessage,
    UserBlock,
    UserMessage,
)
from triops.agents.model import ModelInfo, ModelRequest, ProviderEvent, ToolSchema
from triops.agents.providers.draft import Draft, members, usage_of
from triops.agents.providers.mapping import reply_limit, seen
from triops.agents.providers.memo import Memo
from triops.agents.providers.wire import Dialect, HttpProvider, with_version

_STOPS: dict[str, StopReason] = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "toolUse",
}
_CACHE = {"type": "ephemeral"}
_encode_json = msgspec.json.Encoder().encode
_Blocks = list[dict[str, Any]]


def encode_request(request: ModelRequest, base_url: str, memo: Memo) -> bytes:
    """The body of `POST /v1/messages`; `ModelInfo.params` are added to it, or replace what it says."""
    model = request.model
    turns = memo.turns(request, _turns)
    system: str | _Blocks = request.system
    if urlsplit(base_url).hostname == "api.anthropic.com":
        if turns:
            turns[-1]["content"][-1]["cache_control"] = _CACHE
        system = [{"type": "text", "text": request.system, "cache_control": _CACHE}] if request.system else ""
    body: dict[str, Any] = {"model": model.ref.model, "max_tokens": reply_limit(request), "stream": True}
    if system:
        body["system"] = system
    body["messages"] = turns
    if request.temperature is not None and model.compat.supports_temperature:
        body["temperature"] = request.temperature
    if request.tools and model.compat.supports_tools:
        body["tools"] = memo.tools(request, _tool)
    return _encode_json({**body, **dict(model.params)})


def _tool(tool: ToolSchema) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "input_schema": tool.parameters}


def _turns(messages: Sequence[Message], model: ModelInfo) -> list[dict[str, Any]]:
    """Roles alternate: what the user, the system and tools say between two replies is one turn, results first."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        match message:
            case UserMessage() | SystemMessage():
                role, blocks = "user", _content(seen(message, model))
            case AssistantMessage():
                role, blocks = "assistant", _assistant(message, model.ref.provider)
            case ToolResultMessage():
                role, blocks = "user", [_result(message, model)]
        if blocks and turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    return turns


def _content(blocks: list[UserBlock]) -> _Blocks:
    return [
        {"type": "text", "text": block.text}
        if isinstance(block, Text)
        else {"type": "image", "source": {"type": "base64", "media_type": block.mime_type, "data": block.data}}
        for block in blocks
    ]


def _result(message: ToolResultMessage, model: ModelInfo) -> dict[str, Any]:
    content = _content(seen(message, model)) or [{"type": "text", "text": "(no output)"}]
    result = {"type": "tool_result", "tool_use_id": _id(message.tool_call_id), "content": content}
    return {**result, "is_error": True} if message.is_error else result


def _assistant(message: AssistantMessage, provider: str) -> _Blocks:
    blocks: _Blocks = []
    for block in message.content:
        if isinstance(block, Text):
            if block.text.strip():  # white space alone is refused
                blocks.append({"type": "text", "text": block.text})
        elif isinstance(block, Thinking):
            if block.signature and message.provider == provider:
                blocks.append({"type": "thinking", "thinking": block.thinking, "signature": block.signature})
        else:
            blocks.append({"type": "tool_use", "id": _id(block.id), "name": block.name, "input": block.arguments})
    return blocks


def _id(id: str) -> str:
    """Other providers' call ids may hold characters that are refused here."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", id)


class _Block(msgspec.Struct):
    type: str
    id: str | None = ""
    name: str = ""
    text: str = ""
    thinking: str = ""
    input: dict[str, Any] | None = None


class _Delta(msgspec.Struct):
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None


class _Start(msgspec.Struct):
    id: str = ""
    usage: Any = None


class _Event(msgspec.Struct):
    type: str
    index: int = 0
    message: _Start | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: Any = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Event)


class MessagesParser:
    """Events in, events out; `message_stop` ends the reply."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._stop: str | None = None
        self._usage: dict[str, Any] = {}

    def feed(self, data: bytes) -> list[ProviderEvent]:
        said = self._draft.decode(_decoder, data)
        match said.type:
            case "message_start" if said.message:
                self._draft.response_id = said.message.id
                self._count(said.message.usage)
            case "content_block_start" if said.content_block:
                return self._begin(said.index, said.content_block)
            case "content_block_delta" if said.delta:
                return self._grow(said.index, said.delta)
            case "message_delta":
                self._stop = (said.delta and said.delta.stop_reason) or self._stop
                self._count(said.usage)
            case "message_stop":
                return self._done()
            case "error":
                raise self._draft.faults.event(said.error)
            case _:
                pass  # a ping, the end of a block, or what the API has learnt since: it asks clients to pass over those
        return []

    def end(self) -> list[ProviderEvent]:
        if self._stop is None:
            raise self._draft.faults.cut()
        return self._done()

    def _begin(self, index: int, block: _Block) -> list[ProviderEvent]:
        draft = self._draft
        match block.type:
            case "tool_use":
                begun = draft.call(index, block.id or "", block.name)
                return begun + (draft.arguments(index, block.input) if block.input else [])
            case "thinking":
                return draft.thinking(index, block.thinking)
            case _:
                return draft.text(index, block.text)

    def _grow(self, index: int, delta: _Delta) -> list[ProviderEvent]:
        draft = self._draft
        if delta.signature:
            draft.sign(index, delta.signature)
        if delta.partial_json:
            return draft.arguments(index, delta.partial_json)
        return draft.thinking(index, delta.thinking or "") + draft.text(index, delta.text or "")

    def _count(self, usage: object) -> None:
        """Counts are cumulative, and each event names only some of them."""
        self._usage.update({name: number for name, number in members(usage).items() if number is not None})
        named = self._usage.get
        self._draft.usage = usage_of(
            self._draft.model,
            input=named("input_tokens"),
            output=named("output_tokens"),
            cache_read=named("cache_read_input_tokens"),
            cache_write=named("cache_creation_input_tokens"),
        )

    def _done(self) -> list[ProviderEvent]:
        self._draft.refused = self._stop == "refusal"
        return self._draft.done(_STOPS.get(self._stop or "", "stop"))


MESSAGES = Dialect(
    api="anthropic-messages",
    chat_url=lambda base: f"{with_version(base)}/messages",
    models_url=lambda base: f"{with_version(base)}/models",
    encode=encode_request,
    parser=MessagesParser,
    key_header="x-api-key",
    headers=(("anthropic-version", "2023-06-01"),),
)


class AnthropicMessagesProvider(HttpProvider):
    """Any server of the Messages API; `base_url` may end in `/v1` or not."""

    dialect = MESSAGES
