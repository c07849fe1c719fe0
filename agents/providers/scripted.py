"""A provider without a model: it plays a script, or obeys directives in the message. For tests, benchmarks and demos.

Deterministic: its waits are Trio's, so that a virtual clock passes them. Knows no network.
"""

import math
import re
from collections.abc import AsyncGenerator, Iterable, Sequence

import trio

from triops.agents.errors import ProviderError
from triops.agents.messages import SystemMessage, ToolResultMessage, UserBlock, UserMessage
from triops.agents.messages import Text as TextBlock
from triops.agents.model import (
    Done,
    ModelInfo,
    ModelRef,
    ModelRequest,
    ProviderEvent,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
)
from triops.agents.providers.draft import Draft, usage_of
from triops.agents.providers.faults import Faults
from triops.agents.providers.wire import Clock, EventStream, wall_clock

Step = Sequence[ProviderEvent | Exception | float]
"""What one request gets, in order: events (each a batch of its own), exceptions to raise, seconds to wait. Where no
`Done` is named, one is made of the deltas."""

_DIRECTIVE = re.compile(
    r"\b(?:SAY:(?P<say>.*)|CALL:(?P<tool>\S+)(?P<arguments>.*)|(?P<name>TOKENS|ITL|FAIL):(?P<number>\d+)|(?P<hang>HANG)\b)"
)
_FILLERS = ("quick", "brown", "fox", "over", "the", "lazy", "and", "runs", "away")


class ScriptedProvider:
    """Plays `script`, one step a request; without one it obeys the last message of the user or the system.

    `SAY:<rest of line>` is the reply. `CALL:<tool> <JSON object>` calls a tool, several lines several at once; after
    the results the reply is `tool said: <results> [end]`. `TOKENS:<n>` streams n words, `ITL:<ms>` waits before each
    but the first. `FAIL:<status>` fails as that HTTP status does, `HANG` never answers. Else: `You said: <text>`.
    """

    def __init__(self, script: Iterable[Step] | None = None, *, id: str = "scripted", now: Clock = wall_clock) -> None:
        self.requests: list[ModelRequest] = []
        """What was asked so far."""
        self._id = id
        self._script = None if script is None else iter(script)
        self._now = now

    @property
    def id(self) -> str:
        return self._id

    def stream(self, request: ModelRequest) -> EventStream:
        self.requests.append(request)
        if self._script is None:
            return _play(request, _obey(request), self._now)
        over = [ProviderError("unclassified", f"the script of {self._id} is over")]
        return _play(request, next(self._script, over), self._now)

    async def discover(self) -> Sequence[ModelInfo]:
        return [ModelInfo(ref=ModelRef(self._id, "echo"), name="Scripted echo", api="scripted")]

    async def resolve_dynamic(self, model_id: str) -> ModelInfo | None:
        return None

    async def warm(self, model: ModelInfo, system: str) -> None:
        """Nothing: it is always warm."""


@trio.as_safe_channel
async def _play(request: ModelRequest, step: Step, now: Clock) -> AsyncGenerator[Sequence[ProviderEvent], None]:
    draft = Draft(request.model, "scripted", Faults(str(request.model.ref)), now)
    said = 0
    request.sent()
    for item in step:
        if isinstance(item, Exception):
            raise item
        if isinstance(item, int | float):
            await trio.sleep(item)
            continue
        yield [item]
        match item:
            case Done():
                return
            case TextDelta():
                draft.add("text", [("text", item.text, "")])
                said += len(item.text.split())
            case ThinkingDelta():
                draft.thinking("thinking", item.text)
            case ToolCallDelta():
                if not draft.written(item.id):
                    draft.call(item.id, item.id, item.name)
                draft.arguments(item.id, item.fragment)
            case _:
                pass  # a notice of a retry is no part of the reply
    heard = len(request.system.split()) + sum(len(_text(message).split()) for message in request.messages)
    draft.usage = usage_of(request.model, input=heard, output=said)
    yield draft.done("stop")


def _obey(request: ModelRequest) -> Step:
    """The step that the last message asks for."""
    if request.messages and isinstance(request.messages[-1], ToolResultMessage):
        return [TextDelta(f"tool said: {_last_results(request)} [end]")]
    told = [message for message in request.messages if isinstance(message, UserMessage | SystemMessage)]
    text = _text(told[-1]) if told else ""
    step: list[ProviderEvent | Exception | float] = []
    tokens, pause, calls = 0, 0.0, 0
    for found in _DIRECTIVE.finditer(text):
        if found["say"] is not None:
            step.append(TextDelta(found["say"]))
        elif found["tool"]:
            id = f"call_{len(request.messages)}_{calls}"
            step.append(ToolCallDelta(id, found["tool"], found["arguments"].strip()))
            calls += 1
        elif found["hang"]:
            step.append(math.inf)
        elif found["name"] == "FAIL":
            step.append(Faults(str(request.model.ref)).answer(int(found["number"]), {}, b""))
        elif found["name"] == "TOKENS":
            tokens = int(found["number"])
        else:
            pause = int(found["number"]) / 1000
    for index in range(tokens):
        if pause and index:
            step.append(pause)
        step.append(TextDelta(_word(index)))
    return step or [TextDelta(f"You said: {text}")]


def _word(index: int) -> str:
    group, place = divmod(index, 4)
    return f"{_FILLERS[(group * 3 + place - 1) % len(_FILLERS)] if place else f'tok{index}'} "


def _last_results(request: ModelRequest) -> str:
    results: list[str] = []
    for message in reversed(request.messages):
        if not isinstance(message, ToolResultMessage):
            break
        results.insert(0, message.text)
    return "\n".join(results)


def _text(message: object) -> str:
    content: str | Sequence[UserBlock] = getattr(message, "content", "")
    return content if isinstance(content, str) else "".join(b.text for b in content if isinstance(b, TextBlock))
