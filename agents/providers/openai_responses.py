"""`api: openai-responses`: OpenAI's Responses API.

Maps messages to a request and events to events; knows no connection. Nothing is stored at the provider: each request
holds the whole conversation, encrypted reasoning included.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from triops.agents.messages import (
    AssistantMessage,
    Message,
    SystemMessage,
    Text,
    Thinking,
    ToolResultMessage,
    UserBlock,
    UserMessage,
)
from triops.agents.model import ModelInfo, ModelRequest, ProviderEvent, ToolSchema
from triops.agents.providers.draft import Draft, openai_usage
from triops.agents.providers.mapping import reply_limit, seen
from triops.agents.providers.memo import Memo
from triops.agents.providers.wire import Dialect, HttpProvider

_encode_json = msgspec.json.Encoder().encode


def encode_request(request: ModelRequest, base_url: str, memo: Memo) -> bytes:
    """The body of `POST /responses`; `ModelInfo.params` are added to it, or replace what it says."""
    body = {**request_fields(request, memo), "max_output_tokens": reply_limit(request)}
    if request.temperature is not None and request.model.compat.supports_temperature:
        body["temperature"] = request.temperature
    return _encode_json({**body, **dict(request.model.params)})


def request_fields(request: ModelRequest, memo: Memo) -> dict[str, Any]:
    """What every endpoint of the format takes: the request without its limits."""
    items = memo.turns(request, _items)
    body: dict[str, Any] = {"model": request.model.ref.model, "input": items, "stream": True, "store": False}
    if request.system:
        body["instructions"] = request.system
    if request.model.reasoning:
        body["include"] = ["reasoning.encrypted_content"]
    if request.session_id:
        body["prompt_cache_key"] = request.session_id[:64]  # longer ones are refused
    if request.tools and request.model.compat.supports_tools:
        body["tools"] = memo.tools(request, _tool)
    return body


def _tool(tool: ToolSchema) -> dict[str, Any]:
    about = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", **about, "strict": False}


def _items(messages: Sequence[Message], model: ModelInfo) -> list[Any]:
    items: list[Any] = []
    for message in messages:
        match message:
            case UserMessage() | SystemMessage():
                items.append({"role": "user", "content": _content(seen(message, model))})
            case AssistantMessage():
                items += _assistant(message, model.ref.provider)
            case ToolResultMessage():
                blocks = seen(message, model)
                words = all(isinstance(block, Text) for block in blocks)
                output = (message.text or "(no output)") if words else _content(blocks)
                items.append({"type": "function_call_output", "call_id": message.tool_call_id, "output": output})
    return items


def _content(blocks: list[UserBlock]) -> list[dict[str, Any]]:
    return [
        {"type": "input_text", "text": block.text}
        if isinstance(block, Text)
        else {"type": "input_image", "image_url": f"data:{block.mime_type};base64,{block.data}"}
        for block in blocks
    ]


def _assistant(message: AssistantMessage, provider: str) -> list[Any]:
    items: list[Any] = []
    for block in message.content:
        if isinstance(block, Text):
            content = [{"type": "output_text", "text": block.text}]
            items.append({"type": "message", "role": "assistant", "content": content})
        elif isinstance(block, Thinking):
            if block.signature.startswith("{") and message.provider == provider:
                items.append(msgspec.Raw(block.signature.encode()))  # the reasoning item itself, as it came
        else:
            arguments = _encode_json(block.arguments).decode()
            items.append({"type": "function_call", "call_id": block.id, "name": block.name, "arguments": arguments})
    return items


class _Item(msgspec.Struct):
    type: str = ""
    call_id: str | None = ""
    name: str = ""
    arguments: str | dict[str, Any] = ""


class _Response(msgspec.Struct):
    id: str = ""
    usage: Any = None
    error: Any = None
    incomplete_details: dict[str, Any] | None = None


class _Event(msgspec.Struct):
    type: str
    output_index: int = 0
    delta: Any = None
    item: msgspec.Raw = msgspec.Raw(b"{}")
    response: _Response | None = None
    code: Any = None
    message: Any = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Event)
_item_decoder = msgspec.json.Decoder(_Item)


class ResponsesParser:
    """Events in, events out; `response.completed`, `.incomplete` or `.failed` ends the reply."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    def feed(self, data: bytes) -> list[ProviderEvent]:
        if data.strip() == b"[DONE]":
            return []  # some servers say it after `response.completed`
        said = self._draft.decode(_decoder, data)
        response = said.response or _Response()
        self._draft.response_id = response.id or self._draft.response_id
        delta = said.delta if isinstance(said.delta, str) else ""
        match said.type:
            case "response.output_text.delta" | "response.refusal.delta":
                return self._draft.text(said.output_index, delta)
            case "response.reasoning_summary_text.delta" | "response.reasoning_text.delta":
                return self._draft.thinking(said.output_index, delta)
            case "response.function_call_arguments.delta":
                return self._draft.arguments(said.output_index, delta)
            case "response.output_item.added":
                return self._begin(said.output_index, bytes(said.item))
            case "response.output_item.done":
                return self._complete(said.output_index, bytes(said.item))
            case "response.completed" | "response.incomplete":
                return self._done(response)
            case "response.failed":
                raise self._draft.faults.event(response.error)
            case "error":
                raise self._draft.faults.event(said.error or {"code": said.code, "message": said.message})
            case _:
                return []

    def end(self) -> list[ProviderEvent]:
        raise self._draft.faults.cut()

    def _begin(self, index: int, data: bytes) -> list[ProviderEvent]:
        item = self._draft.decode(_item_decoder, data)
        return self._draft.call(index, item.call_id or "", item.name) if item.type == "function_call" else []

    def _complete(self, index: int, data: bytes) -> list[ProviderEvent]:
        item = self._draft.decode(_item_decoder, data)
        if item.type == "reasoning":
            self._draft.sign(index, data.decode())
        if item.type == "function_call" and not self._draft.written(index):  # it came whole, not in fragments
            begun = self._draft.call(index, item.call_id or "", item.name)
            return begun + self._draft.arguments(index, item.arguments)
        return []

    def _done(self, response: _Response) -> list[ProviderEvent]:
        self._draft.usage = openai_usage(self._draft.model, response.usage, "input_tokens", "output_tokens")
        reason = (response.incomplete_details or {}).get("reason")
        self._draft.refused = reason == "content_filter"
        return self._draft.done("length" if reason == "max_output_tokens" else "stop")


RESPONSES = Dialect(
    api="openai-responses",
    chat_url=lambda base: f"{base}/responses",
    models_url=lambda base: f"{base}/models",
    encode=encode_request,
    parser=ResponsesParser,
)


class OpenAIResponsesProvider(HttpProvider):
    """OpenAI, or another server of the Responses API."""

    dialect = RESPONSES
