from hypothesis import given
from hypothesis import strategies as st

from triops.agents.messages import (
    AssistantMessage,
    Message,
    Text,
    ToolCall,
    ToolResultMessage,
    UserMessage,
    encode_message,
)
from triops.agents.transcript import estimate, pair
from triops.runtime.history import Past, window

CALLS = st.lists(st.sampled_from("abc"), max_size=2, unique=True)
MESSAGES = st.one_of(
    st.just(UserMessage("hello", 1)),
    CALLS.map(lambda ids: AssistantMessage((Text("so"), *(ToolCall(id, "read", {}) for id in ids)), 2)),
    st.sampled_from("abc").map(lambda id: ToolResultMessage(id, "read", (Text("it"),), 3)),
)


@given(steps=st.lists(st.lists(MESSAGES, max_size=4), max_size=5))
def test_a_past_that_grew_is_the_same_as_one_read_at_once(steps: list[list[Message]]) -> None:
    past, end = Past(session_id="s", start=0, end=0), 0
    for step in steps:
        end += len(step)
        past = past.grown(end, [encode_message(message).decode() for message in step])
    every = pair([*(message for step in steps for message in step), UserMessage("now", 9)])
    assert past.followed_by([UserMessage("now", 9)]) == (every, sum(map(estimate, every)))
    assert past.end == end


def test_the_window_holds_300_to_400_messages_and_nothing_before_a_reset() -> None:
    starts = [window(before, 0) for before in (1, 301, 400, 401, 500, 501)]
    assert starts == [0, 0, 0, 100, 100, 200]
    assert window(501, 350) == 350
