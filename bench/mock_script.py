"""What the mock model says, and how the two wire formats spell it: pure. Knows no socket and no clock.

Directives stand anywhere in the last user message that has text: `RUN:id` (the key of the marks), `TOKENS:n`,
`SAY:word`, `ITL:ms` (a pause between tokens), `FIRST:ms` and `LAST:ms` (one before the first byte, one before the end),
`CALL:tool {json}` (once each; after the tool's result the text follows), `FAIL:status`, `DROP:n` (the connection ends
after n tokens). Without any, the reply is `ok`.
"""

import json
import re
import zlib
from collections.abc import Sequence
from typing import Any, cast

import msgspec

WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs", "far", "away", "tonight")
ITEM = re.compile(r"\b(RUN|TOKENS|SAY|ITL|FIRST|LAST|FAIL|DROP):(\S+)")
CALL = re.compile(r"\bCALL:([\w.-]+)\s*")
encode = msgspec.json.encode


class Message(msgspec.Struct, frozen=True):
    role: str
    content: msgspec.Raw = msgspec.Raw(b"null")
    """Left undecoded: of a long history only the end is read."""


class Ask(msgspec.Struct, frozen=True):
    """The part of a request that both wire formats share, and all that the mock looks at."""

    messages: list[Message]
    model: str = "mock-1"
    stream: bool = False


class Script(msgspec.Struct, frozen=True):
    """What one request gets."""

    run: str = ""
    tokens: tuple[str, ...] = ()
    calls: tuple[tuple[str, str, bytes], ...] = ()
    """Id, tool name and the JSON of the arguments."""
    itl: float = 0.0
    """Seconds between two tokens."""
    first: float = 0.0
    last: float = 0.0
    """Seconds before the first byte, and between the last token and the end."""
    fail: int = 0
    """An HTTP status to answer with, or 0."""
    drop: int | None = None


class Reply(msgspec.Struct, frozen=True):
    """The event stream, cut where a slow model pauses; `head` goes out with the first piece, `tail` with the last."""

    head: bytes
    pieces: list[bytes]
    tail: bytes

    def writes(self, script: Script) -> list[bytes]:
        """The writes: one a token if the model is paced, else one in all; no tail if the connection is to drop."""
        steps = self.pieces[: script.drop] or [b""]
        steps[0] = self.head + steps[0]
        if not script.itl:
            steps = [b"".join(steps)]
        if script.drop is None:
            steps[-1:] = [steps[-1], self.tail] if script.last else [steps[-1] + self.tail]
        return steps


def read_script(ask: Ask, seed: int) -> Script:
    """Find the directives.

    Raises:
        ValueError: a directive's value, or the JSON after `CALL:`, does not parse.
    """
    text = next((text for m in reversed(ask.messages) if m.role == "user" and (text := _text(m))), "")
    found = dict(ITEM.findall(text))
    return Script(
        run=found.get("RUN", ""),
        tokens=tuple(_tokens(text, int(found.get("TOKENS", 0)), seed)) or (found.get("SAY", "ok"),),
        calls=() if _follows_tool(ask.messages) else tuple(_calls(text)),
        itl=float(found.get("ITL", 0)) / 1000,
        first=float(found.get("FIRST", 0)) / 1000,
        last=float(found.get("LAST", 0)) / 1000,
        fail=int(found.get("FAIL", 0)),
        drop=int(found["DROP"]) if "DROP" in found else None,
    )


def openai(script: Script, model: str) -> Reply:
    """As `chat/completions` streams it, with a last usage chunk."""
    start = b'data: {"id":"chatcmpl-mock","object":"chat.completion.chunk","created":0,"model":' + encode(model)
    usage = {"prompt_tokens": 1, "completion_tokens": len(script.tokens), "total_tokens": 1 + len(script.tokens)}

    def chunk(delta: bytes, finish: bytes = b"null") -> bytes:
        return b'%b,"choices":[{"index":0,"delta":%b,"finish_reason":%b}]}\n\n' % (start, delta, finish)

    def call(index: int, id: str, name: str, arguments: bytes) -> bytes:
        function = {"name": name, "arguments": arguments.decode()}
        entry = {"index": index, "id": id, "type": "function", "function": function}
        return chunk(encode({"tool_calls": [entry]}))

    return Reply(
        head=chunk(b'{"role":"assistant","content":""}'),
        pieces=[call(i, *c) for i, c in enumerate(script.calls)]
        or [chunk(b'{"content":%b}' % encode(token)) for token in script.tokens],
        tail=chunk(b"{}", b'"tool_calls"' if script.calls else b'"stop"')
        + b'%b,"choices":[],"usage":%b}\n\ndata: [DONE]\n\n' % (start, encode(usage)),
    )


def anthropic(script: Script, model: str) -> Reply:
    """As `messages` streams it: named events, a block for the text or one for each call."""
    message: dict[str, Any] = {"id": "msg_mock", "type": "message", "role": "assistant", "model": model, "content": []}
    message |= {"stop_reason": None, "usage": {"input_tokens": 1, "output_tokens": 0}}

    def event(name: str, rest: bytes) -> bytes:
        return b'event: %b\ndata: {"type":"%b"%b}\n\n' % (name.encode(), name.encode(), rest)

    def opened(index: int, block: dict[str, Any]) -> bytes:
        return event("content_block_start", b',"index":%d,"content_block":%b' % (index, encode(block)))

    def delta(index: int, kind: str, key: str, value: str) -> bytes:
        return event("content_block_delta", b',"index":%d,"delta":%b' % (index, encode({"type": kind, key: value})))

    def closed(index: int) -> bytes:
        return event("content_block_stop", b',"index":%d' % index)

    def call(index: int, id: str, name: str, arguments: bytes) -> bytes:
        block: dict[str, Any] = {"type": "tool_use", "id": id, "name": name, "input": {}}
        return (
            opened(index, block) + delta(index, "input_json_delta", "partial_json", arguments.decode()) + closed(index)
        )

    ending = {"stop_reason": "tool_use" if script.calls else "end_turn", "stop_sequence": None}
    end = b',"delta":%b,"usage":{"output_tokens":%d}' % (encode(ending), len(script.tokens))
    text = not script.calls
    return Reply(
        head=event("message_start", b',"message":' + encode(message))
        + (opened(0, {"type": "text", "text": ""}) if text else b""),
        pieces=[call(i, *c) for i, c in enumerate(script.calls)]
        or [delta(0, "text_delta", "text", token) for token in script.tokens],
        tail=(closed(0) if text else b"") + event("message_delta", end) + event("message_stop", b""),
    )


def _text(message: Message) -> str:
    content = cast("object", msgspec.json.decode(message.content))
    if isinstance(content, str):
        return content
    return "\n".join(str(part.get("text", "")) for part in _parts(content) if part.get("type") == "text")


def _parts(content: object) -> list[dict[str, object]]:
    return cast("list[dict[str, object]]", content) if isinstance(content, list) else []


def _follows_tool(messages: Sequence[Message]) -> bool:
    last = messages[-1] if messages else Message("user")
    parts = _parts(msgspec.json.decode(last.content))
    return last.role == "tool" or any(part.get("type") == "tool_result" for part in parts)


def _tokens(text: str, count: int, seed: int) -> list[str]:
    """The same message and seed give the same words, in whatever order the requests come."""
    start = zlib.crc32(text.encode(), seed)
    return [WORDS[(start + 7 * n) % len(WORDS)] + " " for n in range(count)]


def _calls(text: str) -> list[tuple[str, str, bytes]]:
    found: list[tuple[str, str, bytes]] = []
    for match in CALL.finditer(text):
        arguments = "{}"
        if text.startswith("{", match.end()):
            arguments = text[match.end() : json.JSONDecoder().raw_decode(text, match.end())[1]]
        found.append((f"call_{zlib.crc32(text.encode()):08x}_{len(found)}", match[1], arguments.encode()))
    return found
