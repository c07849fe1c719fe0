"""Transcripts, pure: fold what was streamed into messages, keep calls and results paired, fit a history to a budget.

Knows no store and no provider. Nothing here changes a message; functions give back new sequences.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import msgspec

from triops.agents.events import MessageEnd, ToolEnd, TurnEvent
from triops.agents.messages import (
    AssistantBlock,
    AssistantMessage,
    Image,
    Message,
    SystemMessage,
    Text,
    Thinking,
    ToolCall,
    ToolResultMessage,
    UserMessage,
)
from triops.agents.model import ModelInfo, ProviderEvent, TextDelta, ThinkingDelta

ABORTED = "Aborted"
NO_RESULT = "No result: the run ended before this call did."
IMAGE_TOKENS = 1_600
"""What providers count for a large image, whatever its bytes."""
MESSAGE_TOKENS = 4
"""Role and separators of one message."""


def cut_short(received: Iterable[ProviderEvent], model: ModelInfo, error: BaseException, now: int) -> AssistantMessage:
    """The message of a model call that `error` ended: what had arrived, and why there is no more.

    Fragments of tool calls are left out; a call that was not written to its end must not run or be replayed.
    """
    deltas = (event for event in received if isinstance(event, TextDelta | ThinkingDelta))
    content: list[AssistantBlock] = []
    for kind, run in groupby(deltas, type):
        text = "".join(delta.text for delta in run)
        content.append(Text(text) if kind is TextDelta else Thinking(text))
    failed = isinstance(error, Exception)  # what cancels a task is none
    return AssistantMessage(
        tuple(content),
        now,
        api=model.api,
        provider=model.ref.provider,
        model=model.ref.model,
        stop_reason="error" if failed else "aborted",
        error_message=str(error) if failed else "",
    )


def joined(batch: Iterable[ProviderEvent]) -> Iterator[ProviderEvent]:
    """Neighbouring deltas of one kind as one: who listens pays for each event, and a network read may hold hundreds."""
    for kind, run in groupby(batch, type):
        if kind is TextDelta or kind is ThinkingDelta:
            yield kind("".join(delta.text for delta in run if isinstance(delta, TextDelta | ThinkingDelta)))
        else:
            yield from run


def settle(events: Iterable[TurnEvent]) -> tuple[Message, ...]:
    """The messages that a turn left behind, from the events that it emitted since its last save.

    For a turn that was cancelled, failed or reached a limit: its assistant message (if anything of it arrived), and a
    result for each of its calls, `Aborted` for those that gave none. A transcript that gets these stays consistent.
    Messages in `Steered` are not among them: they were saved before they were told.
    """
    left: list[Message] = []
    for event in events:
        match event:
            case MessageEnd(message=message) if message.content:
                left.append(message)
            case ToolEnd(result=result):
                left.append(result)
            case _:
                pass
    return pair(left, missing=ABORTED)


def pair(messages: Iterable[Message], *, missing: str = NO_RESULT) -> tuple[Message, ...]:
    """`messages` with each tool call followed by its one result, as every provider demands.

    A call without a result gets an error result that says `missing`; a result without a call is dropped. An id pairs
    only up to the next assistant message: local servers count their calls from 1 in every reply.
    """
    paired: list[Message] = []
    asked: AssistantMessage | None = None
    results: list[ToolResultMessage] = []
    others: list[Message] = []

    def close() -> None:
        if asked is not None and asked.tool_calls:
            paired.extend(_answers(asked, results, missing))
        paired.extend(others)
        results.clear()
        others.clear()

    for message in messages:
        if isinstance(message, ToolResultMessage):
            results.append(message)
        elif isinstance(message, AssistantMessage):
            close()
            asked = message
            paired.append(message)
        else:
            others.append(message)
    close()
    return tuple(paired)


def _answers(asked: AssistantMessage, results: Iterable[ToolResultMessage], missing: str) -> Iterator[Message]:
    waiting = list(results)
    for call in asked.tool_calls:
        for index, result in enumerate(waiting):
            if result.tool_call_id == call.id:
                yield waiting.pop(index)
                break
        else:
            yield error_result(call, missing, asked.timestamp)


def error_result(call: ToolCall, words: str, now: int) -> ToolResultMessage:
    """The result of a call that did not run to its end."""
    return ToolResultMessage(call.id, call.name, (Text(words),), now, is_error=True)


def fit(messages: Sequence[Message], budget: int) -> tuple[Message, ...]:
    """The newest whole turns of `messages` that `budget` tokens hold; the last turn always, whatever it costs.

    A turn is what people or the system said, and all that followed; so no call loses its result, and the newest input
    is never dropped.
    """
    start = end = len(messages)
    left = budget
    for index in range(len(messages) - 1, -1, -1):
        if index and not opens_turn(messages, index):
            continue
        left -= sum(estimate(message) for message in messages[index:end])
        if left < 0 and start < len(messages):
            break
        start = end = index
    return tuple(messages[start:])


def opens_turn(messages: Sequence[Message], index: int) -> bool:
    """Whether what people or the system say begins there, after something else."""
    inputs = UserMessage | SystemMessage
    return isinstance(messages[index], inputs) and not isinstance(messages[index - 1], inputs)


def estimate(message: Message) -> int:
    """About how many tokens a message costs; good to a quarter, and never asks a tokenizer."""
    content = message.content
    if isinstance(content, str):
        return MESSAGE_TOKENS + text_tokens(content)
    return MESSAGE_TOKENS + sum(_block_tokens(block) for block in content)


def text_tokens(text: str) -> int:
    """A token for each four bytes: four letters of English, or a little more than one ideograph."""
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return -(-size // 4)


def _block_tokens(block: Text | Thinking | Image | ToolCall) -> int:
    match block:
        case Text(text=text) | Thinking(thinking=text):
            return text_tokens(text)
        case Image():
            return IMAGE_TOKENS
        case ToolCall():
            return text_tokens(block.name) + len(msgspec.json.encode(block.arguments)) // 4
