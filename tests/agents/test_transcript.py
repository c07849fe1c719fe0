from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triops.agents.events import MessageEnd, Steered, TextChunk, ToolEnd, ToolStart, TurnEvent
from triops.agents.messages import (
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
from triops.agents.model import ModelInfo, ModelRef, TextDelta, ThinkingDelta, ToolCallDelta
from triops.agents.transcript import (
    ABORTED,
    IMAGE_TOKENS,
    NO_RESULT,
    cut_short,
    estimate,
    fit,
    joined,
    pair,
    settle,
    text_tokens,
)

IDS = st.sampled_from(["c1", "c2", "c3"])
CALLS = IDS.map(lambda id: ToolCall(id, "look", {"at": "x"}))
USERS = st.text(max_size=40).map(lambda text: UserMessage(text, 1))
SYSTEMS = st.text(max_size=40).map(lambda text: SystemMessage(text, 1))
ASSISTANTS = st.lists(CALLS | st.text(max_size=40).map(Text), max_size=4).map(
    lambda content: AssistantMessage(tuple(content), 2)
)
RESULTS = st.builds(lambda id, text: ToolResultMessage(id, "look", (Text(text),), 3), IDS, st.text(max_size=40))
HISTORIES = st.lists(USERS | SYSTEMS | ASSISTANTS | RESULTS, max_size=12)


def assistant(*ids: str, text: str = "") -> AssistantMessage:
    words = (Text(text),) if text else ()
    return AssistantMessage((*words, *(ToolCall(id, "look", {}) for id in ids)), 2)


def result(id: str, text: str = "seen") -> ToolResultMessage:
    return ToolResultMessage(id, "look", (Text(text),), 3)


def is_paired(messages: Sequence[Message]) -> bool:
    """Each call is followed by its result, and no result stands elsewhere."""
    due: list[str] = []
    for message in messages:
        if isinstance(message, ToolResultMessage):
            if not due or message.tool_call_id != due.pop(0):
                return False
            continue
        if due:
            return False
        if isinstance(message, AssistantMessage):
            due = [call.id for call in message.tool_calls]
    return not due


@pytest.mark.slow
@given(HISTORIES)
def test_pairing_gives_each_call_its_result_and_loses_nothing_else(messages: list[Message]):
    paired = pair(messages)
    assert is_paired(paired)
    assert pair(paired) == paired

    def others(of: Sequence[Message]) -> list[Message]:
        return [message for message in of if not isinstance(message, ToolResultMessage)]

    def inputs(of: Sequence[Message]) -> list[Message]:
        return [message for message in of if isinstance(message, UserMessage | SystemMessage)]

    assert sorted(map(id, others(paired))) == sorted(map(id, others(messages)))
    assert inputs(paired) == inputs(messages), "what people said stays in order"
    kept = [m for m in paired if isinstance(m, ToolResultMessage) and m.text != NO_RESULT]
    assert all(any(m is other for other in messages) for m in kept), "no result is made up but those that say so"


def test_a_call_without_a_result_gets_an_error_result():
    (question, missing) = pair([assistant("c1")])
    assert question == assistant("c1")
    assert isinstance(missing, ToolResultMessage)
    assert (missing.tool_call_id, missing.tool_name, missing.text, missing.is_error) == ("c1", "look", NO_RESULT, True)


def test_results_come_in_the_order_of_their_calls_and_before_what_was_said_in_between():
    user = UserMessage("and?", 4)
    assert pair([assistant("c1", "c2"), result("c2"), user, result("c1")]) == (
        assistant("c1", "c2"),
        result("c1"),
        result("c2"),
        user,
    )


def test_an_id_that_is_used_again_pairs_with_the_nearest_call_before_it():
    history = [assistant("c1"), result("c1", "one"), assistant("c1"), result("c1", "two")]
    assert pair(history) == tuple(history)
    twice = [assistant("c1", "c1"), result("c1", "one"), result("c1", "two")]
    assert pair(twice) == tuple(twice)


def test_results_without_a_call_are_dropped():
    assert pair([result("c1"), UserMessage("hi", 1), assistant(text="yes"), result("c2")]) == (
        UserMessage("hi", 1),
        assistant(text="yes"),
    )


@pytest.mark.slow
@given(HISTORIES, st.integers(0, 200))
def test_fitting_drops_whole_old_turns_only(messages: list[Message], budget: int):
    history = pair(messages)
    kept = fit(history, budget)
    assert kept == history[len(history) - len(kept) :], "the newest part, unchanged"
    assert is_paired(kept)
    inputs = [message for message in history if isinstance(message, UserMessage | SystemMessage)]
    if inputs:
        assert any(message is inputs[-1] for message in kept)
    if len(kept) < len(history):
        assert isinstance(kept[0], UserMessage | SystemMessage)
    if sum(map(estimate, history)) <= budget:
        assert kept == history


@pytest.mark.slow
@given(HISTORIES, st.integers(0, 200), st.integers(0, 200))
def test_a_larger_budget_never_keeps_less(messages: list[Message], budget: int, more: int):
    assert len(fit(messages, budget + more)) >= len(fit(messages, budget))


def test_a_turn_that_does_not_fit_is_dropped_with_all_that_came_before():
    old = [UserMessage("a" * 40, 1), assistant(text="b" * 40)]
    large = [UserMessage("c" * 400, 1), assistant("c1"), result("c1", "d" * 400)]
    new = [UserMessage("e" * 40, 1)]
    assert fit([*old, *large, *new], 100) == tuple(new)
    assert fit([*old, *large, *new], 1000) == (*old, *large, *new)
    assert fit([*old, *large], 10) == tuple(large), "the last turn stays, whatever it costs"


def test_inputs_in_a_row_are_one_turn():
    told = [SystemMessage("a" * 40, 1), UserMessage("b" * 40, 1)]
    assert fit([UserMessage("old", 1), assistant(text="yes"), *told], 0) == tuple(told)


def test_nothing_fits_into_nothing():
    assert fit([], 0) == ()


def test_estimates_count_letters_images_and_arguments():
    assert text_tokens("") == 0
    assert text_tokens("a" * 400) == 100
    assert text_tokens("語" * 400) == 300
    assert text_tokens("\ud800") == 1, "half a surrogate is counted, not refused"
    image = UserMessage((Text("abcd"), Image("A" * 90_000, "image/png")), 1)
    assert estimate(image) - estimate(UserMessage("abcd", 1)) == IMAGE_TOKENS
    wordy = AssistantMessage((ToolCall("c", "write", {"content": "x" * 4000}),), 1)
    assert estimate(wordy) > 1000
    assert estimate(AssistantMessage((Thinking("x" * 4000),), 1)) > 1000


def test_what_a_turn_left_becomes_a_message_and_all_its_results():
    asked = assistant("c1", "c2", "c3", text="Looking.")
    calls = asked.tool_calls
    events: list[TurnEvent] = [
        TextChunk(1, "Looking."),
        MessageEnd(1, asked),
        ToolStart(calls[0]),
        ToolStart(calls[1]),
        ToolEnd(calls[1], result("c2")),
        ToolEnd(calls[0], result("c1")),
    ]
    answer, *results = settle(events)
    assert answer == asked
    assert results[:2] == [result("c1"), result("c2")]
    assert isinstance(results[2], ToolResultMessage)
    assert (results[2].text, results[2].is_error) == (ABORTED, True)


def test_a_message_of_which_nothing_arrived_is_not_settled_nor_is_what_was_steered():
    empty = AssistantMessage((), 1, stop_reason="aborted")
    assert settle([Steered((UserMessage("hi", 1),)), MessageEnd(1, empty)]) == ()


def test_a_message_cut_short_has_its_blocks_but_no_unfinished_call():
    received = [
        ThinkingDelta("a"),
        ThinkingDelta("b"),
        TextDelta("c"),
        ToolCallDelta("c1", "look", "{"),
        TextDelta("d"),
    ]
    model = ModelInfo(ref=ModelRef("p", "m"), api="anthropic-messages")
    message = cut_short(received, model, BaseException(), 9)
    assert message.content == (Thinking("ab"), Text("cd"))
    assert (message.stop_reason, message.error_message, message.timestamp) == ("aborted", "", 9)
    assert cut_short((), model, ValueError("why"), 9).error_message == "why"


# -- batches -----------------------------------------------------------------------------------------------------------


def test_neighbouring_deltas_of_a_batch_are_one_event_and_the_others_stay():
    call = ToolCallDelta("c", "read", "{")
    batch = [TextDelta("a"), TextDelta("b"), ThinkingDelta("c"), TextDelta("d"), call, call]
    assert list(joined(batch)) == [TextDelta("ab"), ThinkingDelta("c"), TextDelta("d"), call, call]
