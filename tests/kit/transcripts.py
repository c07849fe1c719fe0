"""What every transcript must be, whatever happened to its runs."""

from collections.abc import Sequence

from triops.agents.messages import AssistantMessage, Message, ToolResultMessage


def check_pairs(messages: Sequence[Message]) -> None:
    """Each call is followed by its result, and each result has its call."""
    waiting: list[str] = []
    for message in messages:
        if isinstance(message, ToolResultMessage):
            assert waiting, "a result without its call"
            assert waiting.pop(0) == message.tool_call_id
        else:
            assert waiting == [], "a call without its result"
            waiting = [call.id for call in message.tool_calls] if isinstance(message, AssistantMessage) else []
    assert waiting == [], "a call without its result"
