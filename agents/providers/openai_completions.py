"""`api: openai-completions`: the chat completions of OpenAI, and of nearly every local server, in their dialects.

Maps messages to a request and chunks to events; knows no connection. Endpoints differ in how they stream tool calls:
without ids, without indexes, with arguments as an object, several in one chunk, the same index for all. All are read.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from triops.agents.messages import (
    AssistantMessage,
    Image,
    Message,
    StopReason,
    SystemMessage,
    Text,
    ToolCall,
    ToolResultMessage,
    UserBlock,
    UserMessage,
)
from triops.agents.model import ModelInfo, ModelRequest, ProviderEvent
from triops.agents.providers.draft import INVALID_ARGUMENTS, Draft, openai_usage, parse_arguments
from triops.agents.providers.mapping import reply_limit, seen
from triops.agents.providers.memo import Memo
from triops.agents.providers.wire import Dialect, HttpProvider, with_version

_STOPS: dict[str, StopReason] = {"length": "length", "tool_calls": "toolUse", "function_call": "toolUse"}
_encode_json = msgspec.json.Encoder().encode


def encode_request(request: ModelRequest, base_url: str, memo: Memo) -> bytes:
    """The body of `POST /chat/completions`; `ModelInfo.params` are added to it, or replace what it says."""
    model = request.model
    compat = model.compat
    turns = memo.turns(request, _turns)
    if request.system:
        role = "developer" if compat.supports_developer_role else "system"
        turns.insert(0, {"role": role, "content": request.system})
    body: dict[str, Any] = {"model": model.ref.model, "messages": turns, "stream": True}
    if compat.supports_usage_in_streaming:
        body["stream_options"] = {"include_usage": True}
    if compat.supports_store:
        body["store"] = False
    body[compat.max_tokens_field] = reply_limit(request)
    if request.temperature is not None and compat.supports_temperature:
        body["temperature"] = request.temperature
    if request.tools and compat.supports_tools:
        body["tools"] = memo.tools(request, lambda tool: {"type": "function", "function": tool})
    return _encode_json({**body, **dict(model.params)})


def _turns(messages: Sequence[Message], model: ModelInfo) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    images: list[UserBlock] = []  # of tool results: they follow as a user's, once all results of a batch are there
    for message in messages:
        if images and not isinstance(message, ToolResultMessage):
            _say(turns, images)
            images = []
        match message:
            case UserMessage() | SystemMessage():
                _say(turns, seen(message, model))
            case AssistantMessage():
                text, calls = message.text, message.tool_calls
                if text or calls:
                    content = text or ("" if model.compat.requires_string_content else None)
                    turns.append({"role": "assistant", "content": content})
                if calls:
                    turns[-1]["tool_calls"] = [_call(call) for call in calls]
            case ToolResultMessage():
                blocks = seen(message, model)
                images += [block for block in blocks if isinstance(block, Image)]
                words = "".join(block.text for block in blocks if isinstance(block, Text))
                turns.append({"role": "tool", "tool_call_id": message.tool_call_id, "content": words or "(no output)"})
    if images:
        _say(turns, images)
    return [{**turn, "content": _user_content(turn["content"])} if turn["role"] == "user" else turn for turn in turns]


def _say(turns: list[dict[str, Any]], blocks: list[UserBlock]) -> None:
    """Add to the user's turn, or begin one: many chat templates refuse two in a row."""
    if turns and turns[-1]["role"] == "user":
        turns[-1]["content"] += blocks
    elif blocks:
        turns.append({"role": "user", "content": list(blocks)})


def _user_content(blocks: list[UserBlock]) -> str | list[dict[str, Any]]:
    if all(isinstance(block, Text) for block in blocks):
        return "\n\n".join(block.text for block in blocks if isinstance(block, Text))
    return [
        {"type": "text", "text": block.text}
        if isinstance(block, Text)
        else {"type": "image_url", "image_url": {"url": f"data:{block.mime_type};base64,{block.data}"}}
        for block in blocks
    ]


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": _encode_json(call.arguments).decode()}
    return {"id": call.id, "type": "function", "function": function}


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class _CallFragment(msgspec.Struct):
    index: int | None = None
    id: str | int | None = None
    function: _Function | None = None


class _Part(msgspec.Struct):
    """Of content that comes as a list, as Mistral streams it."""

    type: str = ""
    text: str = ""
    thinking: list["_Part"] = []


class _Delta(msgspec.Struct):
    content: str | list[_Part] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_CallFragment] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    id: str | None = None
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Chunk)


class CompletionsParser:
    """Chunks in, events out. The reply ends with `[DONE]`, or with a stream that named its reason and then ended."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._finish: str | None = None
        self._at: dict[int, int] = {}
        self._calls: list[str] = []

    def feed(self, data: bytes) -> list[ProviderEvent]:
        if data.strip() == b"[DONE]":
            return self._done()
        chunk = self._draft.decode(_decoder, data)
        if chunk.error:
            raise self._draft.faults.event(chunk.error)
        if chunk.id:
            self._draft.response_id = chunk.id
        if chunk.usage:
            self._draft.usage = openai_usage(self._draft.model, chunk.usage, "prompt_tokens", "completion_tokens")
        events: list[ProviderEvent] = []
        for choice in (chunk.choices or ())[:1]:
            if choice.delta:
                events += self._grow(choice.delta)
            self._finish = choice.finish_reason or self._finish
        return events

    def end(self) -> list[ProviderEvent]:
        if self._finish is None:
            raise self._draft.faults.cut()
        return self._done()

    def _done(self) -> list[ProviderEvent]:
        self._draft.refused = self._finish == "content_filter"
        return self._draft.done(_STOPS.get(self._finish or "", "stop"))

    def _grow(self, delta: _Delta) -> list[ProviderEvent]:
        draft = self._draft
        events = draft.thinking("", delta.reasoning_content or delta.reasoning or "")
        content = delta.content or delta.refusal or ""
        for part in content if isinstance(content, list) else (_Part(text=content),):
            events += draft.thinking("", "".join(inner.text for inner in part.thinking))
            events += draft.text("", part.text)
        for fragment in delta.tool_calls or ():
            events += self._grow_call(fragment)
        return events

    def _grow_call(self, fragment: _CallFragment) -> list[ProviderEvent]:
        function, id = fragment.function or _Function(), str(fragment.id or "")
        number = self._call_of(fragment, function, id)
        if number is None:
            number = len(self._calls)
            self._calls.append(id)
            self._draft.call(number, id, function.name or "")
        if fragment.index is not None:
            self._at[fragment.index] = number
        return self._draft.arguments(number, function.arguments or "")

    def _call_of(self, fragment: _CallFragment, function: _Function, id: str) -> int | None:
        """The call that `fragment` goes on with; None if it begins one."""
        if fragment.index is not None:
            number = self._at.get(fragment.index)
        elif id and id in self._calls:
            number = self._calls.index(id)
        else:
            number = len(self._calls) - 1 if self._calls and not function.name else None
        if number is None:
            return None
        if id and self._calls[number] and id != self._calls[number]:
            return None  # the index is the same for all, the ids are not
        written = self._draft.written(number)
        if function.name and function.arguments and written and INVALID_ARGUMENTS not in parse_arguments(written):
            return None  # neither tells them apart, but the one before is complete
        return number


COMPLETIONS = Dialect(
    api="openai-completions",
    chat_url=lambda base: f"{base}/chat/completions",
    models_url=lambda base: f"{base}/models",
    encode=encode_request,
    parser=CompletionsParser,
)


class OpenAICompletionsProvider(HttpProvider):
    """Any server of chat completions; `base_url` is used as it is given, with or without its `/v1`."""

    dialect = COMPLETIONS


class OllamaProvider(HttpProvider):
    """Ollama through its chat completions; `base_url` may end in `/v1` or, as for its own format, not."""

    dialect = COMPLETIONS

    def __init__(self, *, base_url: str, **settings: Any) -> None:
        super().__init__(base_url=with_version(base_url), **settings)
