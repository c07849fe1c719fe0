import msgspec
import pytest
import trio

from triops.agents.errors import ProviderError
from triops.agents.messages import (
    AssistantMessage,
    SystemMessage,
    Text,
    Thinking,
    ToolCall,
    ToolResultMessage,
    UserMessage,
)
from triops.agents.model import Done, RetryNotice, TextDelta, ThinkingDelta, ToolCallDelta
from triops.agents.providers.scripted import ScriptedProvider


async def test_a_script_is_played_in_order_and_requests_are_kept(ask, collect):
    done = Done(AssistantMessage((Text("as given"),), 1))
    provider = ScriptedProvider(
        [
            [
                RetryNotice(1, 2, "r", 0.5),
                ThinkingDelta("hm"),
                TextDelta("a b "),
                ToolCallDelta("c", "read", '{"n"'),
                ToolCallDelta("c", "read", ":1}"),
            ],
            [TextDelta("as"), done],
            [TextDelta("half"), ProviderError("connection", "cut")],
        ],
        id="mine",
        now=lambda: 42,
    )
    events = await collect(provider, ask("one"))
    message = events[-1].message
    assert message.content == (Thinking("hm"), Text("a b "), ToolCall("c", "read", {"n": 1}))
    assert (message.stop_reason, message.timestamp, message.usage.output) == ("toolUse", 42, 2)
    assert await collect(provider, ask("two")) == [TextDelta("as"), done]
    heard = []
    with pytest.raises(ProviderError, match="cut"):
        async with provider.stream(ask("three")) as batches:
            async for batch in batches:
                heard += batch
    assert heard == [TextDelta("half")]
    with pytest.raises(ProviderError, match="script of mine is over"):
        await collect(provider, ask())
    assert [request.messages[0].content for request in provider.requests[:3]] == ["one", "two", "three"]


async def test_a_script_waits_in_virtual_time(ask, collect, autojump_clock):
    provider = ScriptedProvider([[TextDelta("a"), 60, TextDelta("b")]])
    assert (await collect(provider, ask()))[-1].message.text == "ab"
    assert trio.current_time() == 60


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("hello", "You said: hello"),
        ("SAY:pong", "pong"),
        ("[note] SAY: CALL:nothing HANG", " CALL:nothing HANG"),
        ("SAY:a \nand SAY:b", "a b"),
        ("ESSAY:x HANGING FAIL:x", "You said: ESSAY:x HANGING FAIL:x"),
        ("TOKENS:13", "tok0 quick brown fox tok4 over the lazy tok8 and runs away tok12 "),
    ],
)
async def test_it_obeys_the_last_message(ask, collect, text, reply):
    *deltas, done = await collect(ScriptedProvider(), ask(text))
    assert done.message.text == reply == "".join(delta.text for delta in deltas)
    assert done.message.stop_reason == "stop" and done.message.usage.output == len(reply.split())
    assert done.message.usage.input == len(text.split()) + 2  # and the system prompt


async def test_a_system_message_is_obeyed_too(ask, collect):
    messages = [UserMessage("SAY:old", 1), SystemMessage("SAY:new", 2)]
    assert (await collect(ScriptedProvider(), ask(messages=messages)))[-1].message.text == "new"


async def test_words_come_at_their_pace(ask, collect, autojump_clock):
    done = (await collect(ScriptedProvider(), ask("TOKENS:11 ITL:100")))[-1]
    assert trio.current_time() == pytest.approx(1.0) and done.message.usage.output == 11


async def test_calls_are_made_and_their_results_told(ask, collect):
    provider = ScriptedProvider()
    text = 'CALL:read {"path": "SAY:x"}\nCALL:list'
    first = (await collect(provider, ask(text)))[-1].message
    assert [(call.name, call.arguments) for call in first.tool_calls] == [("read", {"path": "SAY:x"}), ("list", {})]
    assert first.stop_reason == "toolUse" and len({call.id for call in first.tool_calls}) == 2
    results = [
        ToolResultMessage(call.id, call.name, (Text(said),), 2)
        for call, said in zip(first.tool_calls, "ab", strict=True)
    ]
    messages = [UserMessage(text, 1), first, *results]
    assert (await collect(provider, ask(messages=messages)))[-1].message.text == "tool said: a\nb [end]"
    again = (await collect(provider, ask(messages=[*messages, UserMessage(text, 3)])))[-1].message
    assert not {call.id for call in again.tool_calls} & {call.id for call in first.tool_calls}


@pytest.mark.parametrize(("status", "kind"), [(401, "auth"), (429, "rate_limit"), (500, "server_error")])
async def test_it_fails_as_told(ask, collect, status, kind):
    with pytest.raises(ProviderError, match=f"mock/mock-1 .*HTTP {status}") as caught:
        await collect(ScriptedProvider(), ask(f"FAIL:{status}"))
    assert caught.value.kind == kind


async def test_it_hangs_until_cancelled(ask, collect, autojump_clock):
    with trio.move_on_after(3600) as scope:
        async with ScriptedProvider().stream(ask("HANG")) as batches:
            async for _ in batches:
                pass
    assert scope.cancelled_caught


async def test_it_names_one_model(ask, collect):
    (model,) = await ScriptedProvider(id="fake").discover()
    assert str(model.ref) == "fake/echo" and await ScriptedProvider().resolve_dynamic("echo") is None
    request = msgspec.structs.replace(ask(), model=model)
    assert (await collect(ScriptedProvider(), request))[-1].message.provider == "fake"
