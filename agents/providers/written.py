"""What models write into their text that is none: their thinking, and calls of tools, in the ways seen in the wild.

Servers without a parser for a model's template pass these on as words. Pure; sees one reply, cut anywhere.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast

import msgspec

HELD = 1 << 18
"""Characters held back at most while they may become a call."""

_THINK, _THOUGHT = "<think>", "</think>"
_CALL_MARKS = {"<tool_call>": "</tool_call>", "<function=": "</function>", "[TOOL_CALLS]": "", "<|python_tag|>": ""}
"""What begins a call, and what ends it; nothing: the end of the reply."""
_BARE = re.compile(r"(?:```(?:json)?\s*)?\{\s*\"(?:name|type|function)\"\s*:")
"""A whole reply that is a call without any mark, as small models write it."""
_BARE_BEGINNING = 40
_FUNCTION = re.compile(r"<function=([^>\s]+)>(.*?)(?:</function>|$)", re.S)
_PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?(?:</parameter>|(?=<parameter=)|$)", re.S)
_NAMED = re.compile(r"([\w.-]+)\s*(?:\[ARGS\])?\s*(\{.*)", re.S)
_FRAME = re.compile(r"</?tool_call>|\[TOOL_CALLS\]|<\|\w+\|>|```(?:json)?")

Part = tuple[Literal["text", "thinking", "call"], str, str]
"""Text or thinking, and nothing; or `call`, the name of the tool and its arguments as JSON."""


class WrittenReader:
    """Text in, parts out. `tools` are the schemas of what may be called, by name: what names another is text."""

    def __init__(self, tools: Mapping[str, Mapping[str, Any]]) -> None:
        self._tools = tools
        self._marks = _CALL_MARKS if tools else {}
        self._held: str = ""
        self._at: Literal["start", "thinking", "answer", "text", "call"] = "start"
        """`answer` is the start of what follows a thought."""
        self._end = ""
        """What ends the call that is being written."""

    def feed(self, text: str) -> list[Part]:
        """The parts that `text` completes; what may become another kind of part waits."""
        if self._at == "text" and not (self._held or "<" in text or "[" in text):
            return [("text", text, "")]
        self._held += text
        parts: list[Part] = []
        while self._held and self._step(parts):
            pass
        if len(self._held) > HELD:
            parts += self.end()
        return [part for part in parts if part[1]]

    def end(self) -> list[Part]:
        """What is left when the reply is over."""
        held, at, self._held, self._at = self._held, self._at, "", "text"
        if at == "thinking":
            return [("thinking", held.rstrip(), "")]
        calls = self._calls(held) if at == "call" or _BARE.match(held.lstrip()) else []
        return calls or ([("text", held, "")] if held else [])

    def _step(self, parts: list[Part]) -> bool:
        """Take off what is held what is sure; False if more has to come first."""
        match self._at:
            case "thinking":
                return self._think(parts)
            case "call":
                return self._call(parts)
            case "start" | "answer":
                return self._begin()
            case "text":
                return self._find(parts)

    def _begin(self) -> bool:
        """Whether the reply begins with a thought, or is nothing but a call."""
        start = self._held.lstrip()
        if self._at == "answer":
            self._held = start
        if start.startswith(_THINK):
            self._held, self._at = start.removeprefix(_THINK), "thinking"
            return True
        bare = self._tools and start[:1] in ("{", "`") and (_BARE.match(start) or len(start) < _BARE_BEGINNING)
        if _THINK.startswith(start) or bare:
            return False
        self._at = "text"
        return True

    def _think(self, parts: list[Part]) -> bool:
        thought, mark, rest = self._held.partition(_THOUGHT)
        if mark:
            self._at = "answer"
        said = thought[: len(thought) - (0 if mark else _overlap(thought, _THOUGHT))].rstrip()
        parts.append(("thinking", said, ""))  # an empty one, as of models that do not think, is none
        self._held = rest if mark else thought[len(said) :]
        return bool(mark)

    def _find(self, parts: list[Part]) -> bool:
        at, mark = min(((at, m) for m in self._marks if (at := self._held.find(m)) >= 0), default=(-1, ""))
        if mark:
            self._at, self._end = "call", self._marks[mark]
        else:
            at = len(self._held) - max((_overlap(self._held, m) for m in self._marks), default=0)
        parts.append(("text", self._held[:at], ""))
        self._held = self._held[at:]
        return bool(mark)

    def _call(self, parts: list[Part]) -> bool:
        at = self._held.find(self._end) if self._end else -1
        if at < 0:
            return False
        whole, self._held = self._held[: at + len(self._end)], self._held[at + len(self._end) :]
        parts += self._calls(whole) or [("text", whole, "")]
        self._at = "text"
        return True

    def _calls(self, written: str) -> list[Part]:
        """The calls in what one mark began, or nothing if it is none of a known tool."""
        found = [(name, values) for name, values in _read(written) if name in self._tools]
        return [("call", name, msgspec.json.encode(self._typed(name, values)).decode()) for name, values in found]

    def _typed(self, name: str, values: Any) -> Any:
        """Arguments written between tags are all text; the schema says which of them are."""
        if not isinstance(values, list):
            return values
        kinds = self._tools[name].get("properties", {})
        pairs = cast("list[tuple[str, str]]", values)
        return {key: text if kinds.get(key, {}).get("type") == "string" else _value(text) for key, text in pairs}


def _read(written: str) -> Iterator[tuple[str, Any]]:
    """Names and arguments of what may be calls."""
    if "<function=" in written:
        yield from ((name, _PARAMETER.findall(body)) for name, body in _FUNCTION.findall(written))
        return
    body = _FRAME.sub("", written).strip()
    if (named := _NAMED.match(body)) and isinstance(values := _value(named[2]), dict):
        yield named[1], cast("Any", values)
    while body[:1] in ("{", "["):
        try:
            value, end = json.JSONDecoder().raw_decode(body)
        except (ValueError, RecursionError):
            return
        for call in cast("list[Any]", value if isinstance(value, list) else [value]):
            if isinstance(call, dict):
                fields = cast("dict[str, Any]", call)
                fields = fields["function"] if isinstance(fields.get("function"), dict) else fields
                values = fields.get("arguments", fields.get("parameters", {}))
                yield str(fields.get("name")), _value(values) if isinstance(values, str) else values
        body = body[end:].lstrip(" \n;,")


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _overlap(text: str, mark: str) -> int:
    """How many characters at the end of `text` may begin `mark`."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if mark.startswith(text[-n:])), 0)
