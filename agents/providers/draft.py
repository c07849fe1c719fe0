"""The reply while it grows: fragments in, one whole `Done` out. Pure; knows no wire format."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, cast

import msgspec

from triops.agents.messages import AssistantBlock, AssistantMessage, Cost, StopReason, Text, Thinking, ToolCall, Usage
from triops.agents.model import Done, ModelInfo, ProviderEvent, TextDelta, ThinkingDelta, ToolCallDelta
from triops.agents.providers.faults import NOT_JSON, Faults
from triops.agents.providers.written import Part, WrittenReader

INVALID_ARGUMENTS = "invalid_json"
"""Key of a tool call's arguments that were no JSON object; its value is what the model wrote."""

T = TypeVar("T")


class _Piece(msgspec.Struct):
    kind: Literal["text", "thinking", "call"]
    parts: list[str]
    id: str = ""
    name: str = ""
    signature: str = ""


class Draft:
    """The reply while it grows: blocks by kind and a key of the format's choice, in the order in which they began."""

    def __init__(self, model: ModelInfo, api: str, faults: Faults, now: Callable[[], int]) -> None:
        self.model = model
        self.faults = faults
        self._api = api
        self._now = now
        self._pieces: dict[tuple[str, object], _Piece] = {}
        self.response_id = ""
        self.usage: Usage | None = None
        self.refused = False
        """The provider says that the model, or a filter, would not answer."""
        self.tools: Mapping[str, Mapping[str, Any]] = {}
        """The schemas, by name, of what may be called by writing it as text."""
        self._readers: dict[object, WrittenReader] = {}

    def decode(self, decoder: "msgspec.json.Decoder[T]", data: bytes) -> T:
        try:
            return decoder.decode(data)
        except NOT_JSON as error:
            raise self.faults.garbled("an event that is not of its format", data) from error

    def text(self, key: object, delta: str) -> list[ProviderEvent]:
        """Words, or what the model wrote among them that is none: its thoughts, calls of tools."""
        if not delta:
            return []
        reader = self._readers.get(key)
        if reader is None:
            reader = self._readers[key] = WrittenReader(self.tools)
        return self.add(key, reader.feed(delta))

    def add(self, key: object, parts: list[Part]) -> list[ProviderEvent]:
        """Parts that somebody has read."""
        events: list[ProviderEvent] = []
        for kind, text, arguments in parts:
            if kind == "text":
                self._piece(key, "text").parts.append(text)
                events.append(TextDelta(text))
            elif kind == "thinking":
                events += self.thinking(key, text)
            else:
                call = ("written", len(self._pieces))
                events += self.call(call, "", text) + self.arguments(call, arguments)
        return events

    def thinking(self, key: object, delta: str) -> list[ProviderEvent]:
        if delta:
            self._piece(key, "thinking").parts.append(delta)
        return [ThinkingDelta(delta)] if delta else []

    def sign(self, key: object, signature: str) -> None:
        """Keep what the provider wants back with its thinking."""
        self._piece(key, "thinking").signature += signature

    def call(self, key: object, id: str, name: str) -> list[ProviderEvent]:
        """A tool call begins."""
        self._pieces["call", key] = _Piece("call", [], id or f"call_{self._now()}_{len(self._pieces)}", name)
        return self.arguments(key, "")

    def arguments(self, key: object, fragment: str | dict[str, Any]) -> list[ProviderEvent]:
        """More of a call's arguments, or, from some servers, all of them as an object."""
        if isinstance(fragment, dict):
            fragment = msgspec.json.encode(fragment).decode()
        piece = self._pieces.get(("call", key))
        if piece is None:
            return []  # of a call that never began, or of a kind of block that is not ours
        piece.parts.append(fragment)
        return [ToolCallDelta(piece.id, piece.name, fragment)]

    def written(self, key: object) -> str:
        """The arguments of call `key` so far; empty if there is none."""
        piece = self._pieces.get(("call", key))
        return "".join(piece.parts) if piece else ""

    def done(self, stop: StopReason) -> list[ProviderEvent]:
        """What was held back of the text, and the whole reply. One that was cut by its limit loses the tool call that
        it did not finish.

        Raises:
            ProviderError: there is nothing in it.
        """
        events = [event for key, reader in self._readers.items() for event in self.add(key, reader.end())]
        blocks = [self._block(piece) for piece in self._pieces.values()]
        if stop == "length":
            blocks = [b for b in blocks if not (isinstance(b, ToolCall) and INVALID_ARGUMENTS in b.arguments)]
        content = tuple(block for block in blocks if block not in (Text(""), Thinking("")))
        if not content:
            raise self.faults.refused() if self.refused else self.faults.empty(retryable=stop != "length")
        if stop in ("stop", "toolUse"):  # some servers say "stop" after a call, others "tool_calls" without one
            stop = "toolUse" if any(isinstance(block, ToolCall) for block in content) else "stop"
        ref = self.model.ref
        message = AssistantMessage(
            content,
            self._now(),
            api=self._api,
            provider=ref.provider,
            model=ref.model,
            usage=self.usage,
            stop_reason=stop,
            response_id=self.response_id,
        )
        return [*events, Done(message)]

    def _piece(self, key: object, kind: Literal["text", "thinking"]) -> _Piece:
        return self._pieces.setdefault((kind, key), _Piece(kind, []))

    def _block(self, piece: _Piece) -> AssistantBlock:
        whole = "".join(piece.parts)
        if piece.kind == "call":
            return ToolCall(piece.id, piece.name, parse_arguments(whole))
        return Text(whole) if piece.kind == "text" else Thinking(whole, piece.signature)


def parse_arguments(written: str) -> dict[str, Any]:
    """A tool call's arguments; what is no JSON object becomes `{INVALID_ARGUMENTS: written}`, for the model to see."""
    if not written.strip():
        return {}
    value: Any = written
    for _ in range(2):  # twice: some servers wrap the object in a string
        if isinstance(value, str):
            try:
                value = msgspec.json.decode(value)
            except NOT_JSON:
                break
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {INVALID_ARGUMENTS: written}


def count(value: object) -> int:
    """A number of tokens as it can be: servers send null, negative and absurd ones."""
    return min(int(value), 1 << 53) if isinstance(value, int | float) and 0 < value < float("inf") else 0


def members(value: object) -> dict[str, Any]:
    """What a JSON object holds; nothing, where a server sends something else."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def openai_usage(model: ModelInfo, said: object, prompt: str, reply: str) -> Usage:
    """Usage where the prompt's tokens include the cached ones, and `<prompt>_details` says how many those were, or a
    name of DeepSeek's."""
    usage = members(said)
    whole = count(usage.get(prompt))
    cached = members(usage.get(f"{prompt}_details")).get("cached_tokens") or usage.get("prompt_cache_hit_tokens")
    cached = min(whole, count(cached))
    return usage_of(model, input=whole - cached, output=usage.get(reply), cache_read=cached)


def usage_of(
    model: ModelInfo, *, input: object, output: object, cache_read: object = 0, cache_write: object = 0
) -> Usage:
    """Usage with its cost; `input` is without the cached tokens."""
    numbers = (count(input), count(output), count(cache_read), count(cache_write))
    prices = (model.cost.input, model.cost.output, model.cost.cache_read, model.cost.cache_write)
    costs = [number * price / 1e6 for number, price in zip(numbers, prices, strict=True)]
    return Usage(*numbers, total_tokens=sum(numbers), cost=Cost(*costs, total=sum(costs)))
