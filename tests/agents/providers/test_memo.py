from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from triops.agents.model import ModelInfo, ModelRef, ModelRequest, ToolSchema
from triops.agents.providers.anthropic_messages import MESSAGES as ANTHROPIC
from triops.agents.providers.memo import Memo
from triops.agents.providers.openai_completions import COMPLETIONS
from triops.agents.providers.openai_responses import RESPONSES
from triops.agents.providers.wire import Dialect

INFO = ModelInfo(ref=ModelRef("p", "m"), input=("text", "image"))
SAID = st.one_of(
    st.just(UserMessage("hello", 1)),
    st.just(UserMessage("", 1)),
    st.just(SystemMessage("ding", 1)),
    st.just(AssistantMessage((), 2)),
    st.just(AssistantMessage((Text("so"),), 2)),
    st.just(
        AssistantMessage((Thinking("hm", '{"type":"reasoning"}'), ToolCall("a", "read", {"b": 1})), 2, provider="p")
    ),
    st.just(ToolResultMessage("a", "read", (Text("it"), Image("QUJD", "image/png")), 3)),
)


@pytest.mark.parametrize("dialect", [COMPLETIONS, ANTHROPIC, RESPONSES], ids=lambda dialect: dialect.api)
@given(data=st.data())
def test_what_was_said_before_is_encoded_as_it_would_be_anew(dialect: Dialect, data: st.DataObject) -> None:
    memo, messages = Memo(), list[Message]()
    for _ in range(data.draw(st.integers(1, 4))):
        drop = data.draw(st.integers(0, 2)) if data.draw(st.booleans()) else 0
        messages = [*messages[drop:], *data.draw(st.lists(SAID, min_size=1, max_size=4))]
        request = ModelRequest(model=INFO, system="", messages=tuple(messages), session_id="s")
        for base_url in ("http://x", "https://api.anthropic.com"):
            assert dialect.encode(request, base_url, memo) == dialect.encode(request, base_url, Memo())


def test_what_follows_otherwise_than_it_did_may_become_one_with_what_was_said() -> None:
    memo, hello, so = Memo(), UserMessage("hello", 1), AssistantMessage((Text("so"),), 2)
    for messages in ([hello, so, hello], [hello, hello], [hello, AssistantMessage((), 2)]):
        found = ANTHROPIC.encode(request(messages), "http://x", memo)
        assert found == ANTHROPIC.encode(request(messages), "http://x", Memo())


def counting() -> tuple[list[int], Callable[[Sequence[Message], ModelInfo], list[Any]]]:
    counts: list[int] = []

    def encode(messages: Sequence[Message], model: ModelInfo) -> list[Any]:
        counts.append(len(messages))
        return [{"role": type(message).__name__} for message in messages]

    return counts, encode


def request(messages: Sequence[Message], *, session: str = "s", model: ModelInfo = INFO) -> ModelRequest:
    return ModelRequest(model=model, system="", messages=tuple(messages), session_id=session)


def test_a_turn_encodes_what_is_new() -> None:
    counts, encode = counting()
    memo, said = Memo(), list[Message]()
    for _ in range(50):
        said = [*said, AssistantMessage((Text("so"),), 2), UserMessage("hello", 1)]
        counts.clear()
        memo.turns(request(said), encode)
    assert sum(counts) == 4
    assert len(memo.turns(request(said), encode)) == 3, (
        "what was said before is one piece, the last reply and its answer follow"
    )


@pytest.mark.parametrize("other", [{"session": "t"}, {"model": msgspec.structs.replace(INFO)}, {"session": ""}])
def test_another_session_or_model_begins_with_nothing(other: dict[str, Any]) -> None:
    counts, encode = counting()
    memo = Memo()
    said = [UserMessage("hello", 1), AssistantMessage((Text("so"),), 2), UserMessage("hello", 1)]
    memo.turns(request(said), encode)
    counts.clear()
    memo.turns(request(said, **other), encode)
    assert sum(counts) == 3


def test_tools_are_said_once_for_a_plan() -> None:
    said: list[str] = []

    def say(tool: ToolSchema) -> dict[str, Any]:
        said.append(tool.name)
        return {"name": tool.name}

    memo, tools = Memo(), (ToolSchema("a", "", {}), ToolSchema("b", "", {}))
    for wanted in (tools, tools, tools[:1], tools):
        asked = ModelRequest(model=INFO, system="", messages=(), tools=wanted)
        assert msgspec.json.decode(memo.tools(asked, say)) == [{"name": tool.name} for tool in wanted]
    assert said == ["a", "b", "a", "a", "b"]
