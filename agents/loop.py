"""The agent loop: ask the model, run the tools that it calls, and again, until it calls none, or one of its caller's.

This is the file to read first. It knows neither store nor clients: what happens is emitted, what must last is handed
to `save`, and what people said meanwhile comes out of `steer`.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal, assert_never

import msgspec

from triops.agents.compaction import cleared, refit
from triops.agents.errors import ContextOverflow, LimitReached, ProviderError
from triops.agents.events import MessageEnd, MessageStart, Steered, TextChunk, ThinkingChunk, TurnEvent, Waiting
from triops.agents.messages import AssistantMessage, Message, ToolCall, UserMessage
from triops.agents.model import (
    Done,
    ModelInfo,
    ModelRequest,
    Provider,
    ProviderEvent,
    RetryNotice,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolSchema,
    Wishes,
)
from triops.agents.tool import AnyTool
from triops.agents.toolbox import Toolbox, output_limit
from triops.agents.transcript import cut_short, fit, joined

MAX_ANSWER = 1 << 20
"""Characters of one answer: twice what models write. One that never stops would fill the memory."""


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """All that one turn needs to know, compiled before it starts."""

    run_id: str
    session_key: str
    session_id: str
    model: ModelInfo
    system: str
    messages: Sequence[Message]
    """The history, fitted and paired, with the new input last."""
    tools: Mapping[str, AnyTool]
    """What the model may call, by name."""
    schemas: tuple[ToolSchema, ...]
    """What the model is told of it."""
    wishes: Wishes = Wishes()
    max_steps: int = 64
    """Calls of the model."""
    has_other: bool = False
    """Another model answers when this one fails."""


async def run_turn(
    turn: Turn,
    provider: Provider,
    *,
    emit: Callable[[TurnEvent], None],
    save: Callable[[Sequence[Message]], Awaitable[None]],
    steer: Callable[[], Sequence[UserMessage]],
    allow: Callable[[], Awaitable[None]],
    compact: Callable[[ModelInfo, Sequence[Message], int], Awaitable[Sequence[Message]]],
    report: Callable[[ToolCall, Exception], None],
    mark: Callable[[Literal["first_token", "stream"]], None],
    now: Callable[[], int],
) -> AssistantMessage:
    """Play one turn; give back the reply that ends it, which the caller saves.

    `emit` is sync and neither waits nor raises. `save` returns once its messages are on disk; when it raises,
    `Cancelled` included, none of them is. A call is saved together with its result, and a message that `steer` (sync)
    handed over is saved before it is told as `Steered`. `allow` is asked before each call of the model, and raises
    `LimitReached` for no. `compact` gives back its messages with the older ones summarised, for a model and a number of
    tokens, or as they are. `report` (sync) hears of a tool's own fault, to log it; the
    model hears of it too. `mark` (sync) is told what is waited for: the first token, once the model has the request,
    then the rest of its stream. `now` is milliseconds since the epoch.

    A request that the model refuses as too long is made smaller once and sent again: what `compact` does not make
    small enough loses its oldest turns, then its oldest results of tools.

    On every way out each start has its end, and `transcript.settle` makes the messages that are not saved yet of
    what was emitted since the last save.

    Raises:
        ProviderError: the model failed; its `MessageEnd` (stop reason `error`) holds what had arrived.
        LimitReached: `max_steps` answers, and the last one still calls tools; those calls are not run. Or `allow`.
    """
    toolbox = Toolbox(
        tools=turn.tools,
        run_id=turn.run_id,
        session_key=turn.session_key,
        limit=output_limit(turn.model.context_window),
        emit=emit,
        report=report,
        now=now,
    )
    messages = tuple(turn.messages)
    taken: list[UserMessage] = []

    def interrupted() -> bool:
        taken.extend(steer())
        return bool(taken)

    callers = {tool.name for tool in turn.wishes.tools}
    step = 0
    refitted = False
    while True:
        step += 1
        while arrived := tuple(steer()):
            await save(arrived)
            messages += arrived
            emit(Steered(arrived))
        await allow()
        try:
            reply = await _ask(provider, turn, messages, step, emit, mark, now)
        except ContextOverflow as error:
            if refitted or error.spoke:
                raise
            model, budget = refit(turn.model, turn.system, turn.schemas, messages, error.window)
            shorter = await compact(model, messages, budget)  # noqa: ASYNC120  # a cancellation outweighs it
            smaller = cleared(fit(shorter, budget), budget)
            if (model.max_tokens, smaller) == (turn.model.max_tokens, messages):
                raise
            refitted = True
            words = f"{error}; asked again with {len(smaller)} of {len(messages)} messages"
            emit(RetryNotice(1, 1, words, 0, error.kind))
            turn, messages = msgspec.structs.replace(turn, model=model), smaller
            reply = await _ask(provider, turn, messages, step, emit, mark, now)
        if not reply.tool_calls or any(call.name in callers for call in reply.tool_calls):
            return reply
        if step >= turn.max_steps:
            raise LimitReached(
                f"stopped after {step} steps: the model still wanted to call tools."
                " What it did is kept; send a message to let it go on"
            )
        results = await toolbox.run(reply.tool_calls, interrupted)
        # In one save: what was taken in is gone from its queue, and a call must not be there without its result.
        news = (reply, *results, *taken)
        await save(news)
        messages += news
        if taken:
            emit(Steered(tuple(taken)))
            taken.clear()


async def _ask(
    provider: Provider,
    turn: Turn,
    messages: tuple[Message, ...],
    index: int,
    emit: Callable[[TurnEvent], None],
    mark: Callable[[Literal["first_token", "stream"]], None],
    now: Callable[[], int],
) -> AssistantMessage:
    """One call of the model, streamed. However it ends, its `MessageEnd` holds what arrived."""
    request = ModelRequest(
        model=turn.model,
        system=turn.system,
        messages=messages,
        tools=turn.schemas,
        max_tokens=turn.wishes.max_tokens,
        temperature=turn.wishes.temperature,
        session_id=turn.session_id,
        has_other=turn.has_other,
        sent=lambda: mark("first_token"),
        late=lambda words: emit(Waiting(words)),
    )
    received: list[ProviderEvent] = []
    message: AssistantMessage | None = None
    size = 0
    silent = True
    emit(MessageStart(index))
    try:
        async with provider.stream(request) as batches:
            async for batch in batches:
                if silent and not isinstance(batch[0], RetryNotice):
                    silent = False
                    mark("stream")
                for event in joined(batch):
                    received.append(event)
                    match event:
                        case TextDelta():
                            size += len(event.text)
                            emit(TextChunk(index, event.text))
                        case ThinkingDelta():
                            size += len(event.text)
                            emit(ThinkingChunk(index, event.text))
                        case ToolCallDelta():
                            size += len(event.fragment)
                        case RetryNotice():
                            emit(event)
                        case Done():
                            message = event.message
                        case _:
                            assert_never(event)
                if size > MAX_ANSWER:
                    words = f"{turn.model.ref} was stopped: its answer has more than {MAX_ANSWER:,} characters"
                    raise ProviderError("format", words)
        if message is None:
            raise ProviderError("empty_response", f"{turn.model.ref} ended its answer without finishing it")
    except BaseException as error:
        if isinstance(error, ContextOverflow):
            error.spoke = size > 0
        emit(MessageEnd(index, message or cut_short(received, turn.model, error, now())))
        raise
    emit(MessageEnd(index, message))
    return message
