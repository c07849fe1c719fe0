import msgspec

from triops.agents.compaction import CLEARED, COMPACTION, KEEP, LEAST, cleared, divide, refit, summary_request
from triops.agents.messages import (
    AssistantMessage,
    Message,
    SystemMessage,
    Text,
    ToolCall,
    ToolResultMessage,
    UserMessage,
)
from triops.agents.model import ModelInfo, ModelRef
from triops.agents.transcript import estimate, fit

MODEL = ModelInfo(ref=ModelRef("mock", "m"), context_window=128_000, max_tokens=8_192)


def turn(number: int) -> list[Message]:
    return [UserMessage(f"{number} " + "word " * 400, number), AssistantMessage((Text("aha " * 400),), number)]


def cost(messages: tuple[Message, ...]) -> int:
    return sum(map(estimate, messages))


def smaller(messages: tuple[Message, ...], window: int | None, system: str = "") -> tuple[Message, ...]:
    _, budget = refit(MODEL, system, (), messages, window)
    return cleared(fit(messages, budget), budget)


def test_the_window_that_the_provider_told_of_counts_from_now_on():
    messages = tuple(message for number in range(20) for message in turn(number))
    model, _ = refit(MODEL, "Be brief.", (), messages, 4_096)
    kept = smaller(messages, 4_096, "Be brief.")
    assert (model.context_window, model.max_tokens) == (4_096, 1_024)
    assert kept == messages[-len(kept) :] and 0 < cost(kept) < 4_096 - 1_024


def test_without_a_word_of_its_window_the_request_gets_smaller_all_the_same():
    messages = tuple(message for number in range(20) for message in turn(number))
    kept = smaller(messages, None, "Be brief.")
    assert kept == messages[-len(kept) :] and 0.4 < cost(kept) / cost(messages) < 0.65


def test_a_single_turn_loses_its_oldest_results_and_no_call_its_pair():
    calls = (ToolCall("a", "read", {}), ToolCall("b", "read", {}))
    results = tuple(ToolResultMessage(call.id, "read", (Text("x" * 8_000),), 3) for call in calls)
    messages = (UserMessage("Compare", 1), AssistantMessage(calls, 2), *results)
    kept = smaller(messages, 4_096)
    assert kept[:2] == messages[:2] and kept[3] == messages[3]
    assert kept[2] == ToolResultMessage("a", "read", CLEARED, 3)


def test_what_cannot_get_smaller_stays_as_it_is():
    messages = (UserMessage("x" * 100_000, 1),)
    assert smaller(messages, 4_096) == messages == cleared(messages, LEAST)


def test_what_is_kept_are_whole_turns_of_about_so_many_tokens_or_the_last_three():
    messages = tuple(message for number in range(200) for message in turn(number))
    at = divide(messages, 1_000_000, len(messages) - 2)
    assert isinstance(messages[at], UserMessage) and 0.95 * KEEP < cost(messages[at:]) <= KEEP
    large = tuple(
        msgspec.structs.replace(m, content="x" * 60_000) if isinstance(m, UserMessage) else m for m in messages
    )
    assert divide(large, 1_000_000, len(large) - 2) == len(large) - 6
    assert divide(large, 80_000, len(large) - 2) == len(large) - 4, "half of the room is for what comes"
    assert divide(large, 100, len(large) - 2) == len(large) - 2


def test_a_conversation_of_one_turn_has_nothing_to_summarise():
    summary = SystemMessage("They met.", 1, source=COMPACTION)
    assert divide((summary, *turn(1)), 100, 1) == 0 == divide(tuple(turn(1)), 100, 0)


def test_a_summary_is_made_of_the_one_before_it_and_the_newest_that_fits():
    call = ToolCall("a", "read", {"path": "notes.md"})
    result = ToolResultMessage("a", "read", (Text("y" * 9_000),), 3)
    old = (SystemMessage("They met.", 1, source=COMPACTION), *(m for number in range(200) for m in turn(number)))
    small = msgspec.structs.replace(MODEL, context_window=8_192)
    request = summary_request(small, (*old, AssistantMessage((call,), 2), result), 6_000)
    (message,) = request.messages
    assert isinstance(message.content, str) and message.content.startswith("They met.\n\n")
    assert "User: 199 word" in message.content and "User: 100 word" not in message.content
    assert '[called read with {"path":"notes.md"}]\n\nResult of read: yyy' in message.content
    assert request.max_tokens == 1_500 and estimate(message) + 1_500 < 8_192 and not request.tools
