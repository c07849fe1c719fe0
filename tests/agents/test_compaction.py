from triops.agents.compaction import CLEARED, LEAST, cleared, refit
from triops.agents.messages import AssistantMessage, Message, Text, ToolCall, ToolResultMessage, UserMessage
from triops.agents.model import ModelInfo, ModelRef
from triops.agents.transcript import estimate

MODEL = ModelInfo(ref=ModelRef("mock", "m"), context_window=128_000, max_tokens=8_192)


def turn(number: int) -> list[Message]:
    return [UserMessage(f"{number} " + "word " * 400, number), AssistantMessage((Text("aha " * 400),), number)]


def cost(messages: tuple[Message, ...]) -> int:
    return sum(map(estimate, messages))


def test_the_window_that_the_provider_told_of_counts_from_now_on():
    messages = tuple(message for number in range(20) for message in turn(number))
    model, kept = refit(MODEL, "Be brief.", (), messages, 4_096)
    assert (model.context_window, model.max_tokens) == (4_096, 1_024)
    assert kept == messages[-len(kept) :] and 0 < cost(kept) < 4_096 - 1_024


def test_without_a_word_of_its_window_the_request_gets_smaller_all_the_same():
    messages = tuple(message for number in range(20) for message in turn(number))
    _, kept = refit(MODEL, "Be brief.", (), messages, None)
    assert kept == messages[-len(kept) :] and 0.4 < cost(kept) / cost(messages) < 0.65


def test_a_single_turn_loses_its_oldest_results_and_no_call_its_pair():
    calls = (ToolCall("a", "read", {}), ToolCall("b", "read", {}))
    results = tuple(ToolResultMessage(call.id, "read", (Text("x" * 8_000),), 3) for call in calls)
    messages = (UserMessage("Compare", 1), AssistantMessage(calls, 2), *results)
    _, kept = refit(MODEL, "", (), messages, 4_096)
    assert kept[:2] == messages[:2] and kept[3] == messages[3]
    assert kept[2] == ToolResultMessage("a", "read", CLEARED, 3)


def test_what_cannot_get_smaller_stays_as_it_is():
    messages = (UserMessage("x" * 100_000, 1),)
    assert refit(MODEL, "", (), messages, 4_096)[1] == messages == cleared(messages, LEAST)
