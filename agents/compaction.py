"""What of a conversation is kept when it has no room. Pure; nothing here changes a message or asks a model."""

from collections.abc import Sequence

import msgspec

from triops.agents.messages import Message, Text, ToolResultMessage
from triops.agents.model import ModelInfo, ToolSchema
from triops.agents.prompt import history_budget
from triops.agents.transcript import estimate, fit, text_tokens

CLEARED = (Text("[Old tool result content cleared]"),)
"""In place of a result that had no room, as OpenClaw says it."""
SHRINK = 0.9
"""Of what did not fit, the window to try when the provider does not say it: the reply and a margin come off that."""
LEAST = 256
"""Tokens of conversation below which nothing is worth sending."""


def refit(
    model: ModelInfo, system: str, schemas: Sequence[ToolSchema], messages: Sequence[Message], window: int | None
) -> tuple[ModelInfo, tuple[Message, ...]]:
    """A request that was too long, smaller: the model with the window it really has, and the messages to send.

    `window` is what the provider said, None if it did not: then the request's own size tells that the configured one
    is too large. What goes first are the oldest turns, then the oldest results of tools.
    """
    fixed = text_tokens(system) + len(msgspec.json.encode(schemas)) // 4
    if window is None:
        window = int((fixed + sum(map(estimate, messages))) * SHRINK)
    window = min(window, model.context_window)
    model = msgspec.structs.replace(model, context_window=window, max_tokens=min(model.max_tokens, window // 4))
    budget = max(LEAST, history_budget(model, system, schemas))
    return model, cleared(fit(messages, budget), budget)


def cleared(messages: Sequence[Message], budget: int) -> tuple[Message, ...]:
    """`messages` without the contents of the oldest tool results that `budget` tokens do not hold."""
    left = sum(map(estimate, messages)) - budget
    kept = list(messages)
    for at, message in enumerate(kept):
        if left <= 0:
            break
        if isinstance(message, ToolResultMessage):
            kept[at] = msgspec.structs.replace(message, content=CLEARED)
            left -= estimate(message) - estimate(kept[at])
    return tuple(kept)
