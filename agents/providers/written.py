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

_CALL_MARKS = {
    "<tool_call>": "</tool_call>",
    "<function=": "</function>",
    "[TOOL_CALLS]": "",
    "<|python_tag|>": "",
}
"""What begins a call, and what ends it; nothing: the end of the reply."""
_THINK = "<think>", "</think>"
_BARE = re.compile(r"(?:```(?:json)?\s*)?\{\s*\"(?:name|type|function)\"\s*:")
"""A whole reply that is a call without any mark, as small models write it."""
_BARE_BEGINNING = 40
_FUNCTION = re.compile(r"<function=([^>\s]+)>(.*?)(?:</function>|$)", re.S)
_PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?(?:</parameter>|(?=<parameter=)|$)", re.S)
_NAMED = re.compile(r"([\w.-]+)\s*(?:\[ARGS\])?\s*(\{.*)", re.S)

Kind = Literal["text", "thinking", "call"]
Part = tuple[Kind, str, str]
"""Text or thinking, and nothing; or `call`, the name of the tool and its arguments as JSON."""


class WrittenReader:
    """Text in, parts out. `tools` are the schemas of what may be called, by name: what names another is text."""

    def __init__(self, tools: Mapping[str, Mapping[str, Any]]) -> None:
        self._tools = tools
        self._marks = _CALL_MARKS if tools else {}
        self._held: str = ""
        self._end: str | None = None
        """What ends the call or the thinking that is being written; None in plain text."""
        self._thinking = False
        self._thought = False
        self._first = True

    def feed(self, text: str) -> list[Part]:
        """The parts that `text` completes; what may become another kind of part waits."""
        if self._end is None and not (self._first or self._held or "<" in text or "[" in text):
            return [("text", text, "")]
        self._held += text
        parts: list[Part] = []
        while self._held and self._step(parts):
            pass
        if len(self._held) > HELD:
            parts += self.end()
        return parts

    def end(self) -> list[Part]:
        """What is left when the reply is over."""
        held, self._held, bare = self._held, "", self._end is None
        thinking, self._end, self._thinking = self._thinking, None, False
        if thinking:
            return [("thinking", held, "")]
        calls = [] if bare and not _BARE.match(held.lstrip()) else self._calls(held)
        return calls or ([("text", held, "")] if held else [])

    def _step(self, parts: list[Part]) -> bool:
        """Take one part off what is held; False if there is nothing to take yet."""
        if self._end is not None:
            return self._within(parts, self._end)
        if self._first:
            start = self._held.lstrip()
            if self._thought:
                self._held = start
            if not start or _THINK[0].startswith(start):
                return False
            if start.startswith(_THINK[0]):
                self._first, self._thinking, self._end = False, True, _THINK[1]
                self._held = start.removeprefix(_THINK[0])
                return True
            if self._tools and start[0] in "{`" and (_BARE.match(start) or len(start) < _BARE_BEGINNING):
                return False
            self._first = False
        at, mark = min(((at, m) for m in self._marks if (at := self._held.find(m)) >= 0), default=(-1, ""))
        if mark:
            self._end = self._marks[mark]
        else:
            at = len(self._held) - max((_overlap(self._held, m) for m in self._marks), default=0)
        if at:
            parts.append(("text", self._held[:at], ""))
        self._held = self._held[at:]
        return bool(mark)

    def _within(self, parts: list[Part], end: str) -> bool:
        if self._thinking and not self._thought:
            self._held = self._held.lstrip()  # models that do not think say so with an empty thought
        at = self._held.find(end) if end else -1
        if at < 0:
            keep = _overlap(self._held, end)
            if self._thinking and len(self._held) > keep:
                parts.append(("thinking", self._held[: len(self._held) - keep], ""))
                self._held, self._thought = self._held[len(self._held) - keep :], True
            return False
        whole, self._held = self._held[: at + len(end)], self._held[at + len(end) :]
        if self._thinking:
            if thought := whole.removesuffix(end):
                parts.append(("thinking", thought, ""))
            self._first = self._thought = True  # what follows a thought begins as a reply does, without its blank lines
        else:
            parts += self._calls(whole) or [("text", whole, "")]
        self._end, self._thinking = None, False
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
        for name, body in _FUNCTION.findall(written):
            yield name, _PARAMETER.findall(body)
        return
    body = re.sub(r"</?tool_call>|\[TOOL_CALLS\]|<\|\w+\|>|```(?:json)?", "", written).strip()
    if (named := _NAMED.match(body)) and isinstance(values := _value(named[2]), dict):
        yield named[1], cast("Any", values)
        return
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
