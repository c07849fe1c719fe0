import math
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from triops.agents.errors import ContextOverflow, LimitReached, ProviderError
from triops.agents.events import (
    MessageEnd,
    MessageStart,
    Steered,
    TextChunk,
    ThinkingChunk,
    ToolEnd,
    ToolStart,
    ToolUpdate,
    TurnEvent,
)
from triops.agents.loop import Turn, run_turn
from triops.agents.messages import AssistantMessage, Message, Text, Thinking, ToolCall, ToolResultMessage, UserMessage
from triops.agents.model import (
    Done,
    ModelInfo,
    ModelRef,
    ProviderEvent,
    RetryNotice,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolSchema,
    Wishes,
)
from triops.agents.providers.scripted import ScriptedProvider, Step
from triops.agents.tool import Tool, ToolContext, ToolResult, text_result
from triops.agents.toolbox import SKIPPED
from triops.agents.transcript import ABORTED, pair, settle

MODEL = ModelInfo(ref=ModelRef("scripted", "echo"), api="scripted")
QUESTION = UserMessage("hello", 1)


class NoArgs(msgspec.Struct):
    pass


class Stage:
    """A turn with everything around it recorded."""

    def __init__(self, *script: Step, max_steps: int = 64) -> None:
        self.provider = ScriptedProvider(script, now=self.now)
        self.events: list[TurnEvent] = []
        self.unsaved: list[TurnEvent] = []
        self.saves: list[list[Message]] = []
        self.marks: list[str] = []
        self.arrived: list[UserMessage] = []
        self.faults: list[Exception] = []
        self.started: list[str] = []
        self.tools: dict[str, Tool[Any]] = {}
        self.max_steps = max_steps
        self.wishes = Wishes()
        self.saving = 0.0
        self.allowed = math.inf
        for name, parallel in {"look": True, "change": False}.items():
            self.add(name, self.quick, parallel=parallel)

    def add(self, name: str, run: Callable[[NoArgs, ToolContext], Any], *, parallel: bool = True) -> None:
        self.tools[name] = Tool(name, name, NoArgs, run, 1800, parallel)

    def now(self) -> int:
        return 7

    def emit(self, event: TurnEvent) -> None:
        if isinstance(event, Steered):
            assert self.saves[-1][-len(event.messages) :] == list(event.messages), "told before it was saved"
        self.events.append(event)
        self.unsaved.append(event)

    async def save(self, messages: Sequence[Message]) -> None:
        await trio.sleep(self.saving)
        self.saves.append(list(messages))
        self.unsaved.clear()

    def steer(self) -> list[UserMessage]:
        arrived, self.arrived = self.arrived, []
        return arrived

    async def allow(self) -> None:
        if self.allowed <= len(self.provider.requests):
            raise LimitReached("enough")

    async def quick(self, args: NoArgs, context: ToolContext) -> ToolResult:
        self.started.append(context.call_id)
        await trio.lowlevel.checkpoint()
        return text_result(f"did {context.call_id}")

    async def long(self, context: ToolContext) -> ToolResult:
        self.started.append(context.call_id)
        return text_result("x" * 20_000)

    async def play(self) -> AssistantMessage:
        turn = Turn(
            run_id="r",
            session_key="agent:main:main",
            session_id="s",
            model=MODEL,
            system="be good",
            messages=[QUESTION],
            tools=self.tools,
            schemas=tuple(tool.schema for tool in self.tools.values()),
            wishes=self.wishes,
            max_steps=self.max_steps,
        )
        return await run_turn(
            turn,
            self.provider,
            emit=self.emit,
            save=self.save,
            steer=self.steer,
            allow=self.allow,
            compact=self.compact,
            report=lambda call, error: self.faults.append(error),
            mark=self.marks.append,
            now=self.now,
        )

    async def compact(self, model: ModelInfo, messages: Sequence[Message], budget: int) -> Sequence[Message]:
        return messages

    @property
    def asked(self) -> list[Sequence[Message]]:
        return [request.messages for request in self.provider.requests]


def call(id: str, name: str = "look") -> ToolCallDelta:
    return ToolCallDelta(id, name, "{}")


def said(*words: str) -> Step:
    return [TextDelta(word) for word in words]


async def test_a_call_of_the_callers_own_tool_ends_the_turn_and_nothing_is_run():
    stage = Stage([call("1"), call("2", "weather")], said("never asked"))
    stage.wishes = Wishes(tools=(ToolSchema("weather", "", {}),), max_tokens=7, temperature=0.5)
    reply = await stage.play()
    assert [asked.name for asked in reply.tool_calls] == ["look", "weather"]
    assert (stage.started, stage.saves) == ([], [])
    (request,) = stage.provider.requests
    assert (request.max_tokens, request.temperature) == (7, 0.5)


async def test_a_reply_without_tools_is_given_back_and_not_saved():
    stage = Stage([ThinkingDelta("hm"), *said("Hel", "lo")])
    reply = await stage.play()
    assert reply.text == "Hello"
    assert stage.saves == []
    assert stage.marks == ["first_token", "stream"]
    assert stage.events == [
        MessageStart(1),
        ThinkingChunk(1, "hm"),
        TextChunk(1, "Hel"),
        TextChunk(1, "lo"),
        MessageEnd(1, reply),
    ]
    (request,) = stage.provider.requests
    assert (request.system, request.session_id, len(request.tools)) == ("be good", "s", 2)


async def test_calls_are_saved_with_their_results_in_one_save_before_the_next_step():
    stage = Stage([*said("Let me look. "), call("a"), call("b")], said("Done."))
    reply = await stage.play()
    assert reply.text == "Done."
    (step,) = stage.saves
    assert isinstance(step[0], AssistantMessage)
    assert step[0].stop_reason == "toolUse"
    assert [m.tool_call_id for m in step[1:] if isinstance(m, ToolResultMessage)] == ["a", "b"]
    assert stage.asked == [(QUESTION,), (QUESTION, *step)]
    kinds = [type(event) for event in stage.events]
    assert kinds.count(ToolStart) == kinds.count(ToolEnd) == 2


async def test_a_message_that_arrives_during_the_tools_is_in_the_next_request():
    stage = Stage([call("a")], said("Done."))
    steered = UserMessage("and hurry", 5)

    async def look(args: NoArgs, context: ToolContext) -> ToolResult:
        stage.arrived.append(steered)
        await trio.lowlevel.checkpoint()
        return text_result("seen")

    stage.add("look", look)
    await stage.play()
    assert stage.saves[1:] == [[steered]]
    assert stage.asked[1][-1] == steered
    assert Steered((steered,)) in stage.events


async def test_a_message_that_arrives_while_the_model_speaks_skips_a_parallel_batch():
    stage = Stage()
    steered = UserMessage("wait", 5)
    stage.provider = Arriving(stage, steered)
    await stage.play()
    (step,) = stage.saves
    assert [m.text for m in step if isinstance(m, ToolResultMessage)] == [SKIPPED, SKIPPED]
    assert step[-1] == steered, "it is saved with what it interrupted"
    assert stage.started == []
    assert not any(isinstance(event, ToolStart | ToolEnd) for event in stage.events)
    assert Steered((steered,)) in stage.events


class Arriving(ScriptedProvider):
    """A message arrives while the first answer is streamed."""

    def __init__(self, stage: Stage, message: UserMessage) -> None:
        super().__init__([[call("a"), call("b")], said("Yes?")])
        self._stage = stage
        self._message = message

    def stream(self, request: Any) -> Any:
        if not self.requests:
            self._stage.arrived.append(self._message)
        return super().stream(request)


async def test_a_message_that_arrives_between_sequential_calls_skips_the_rest():
    stage = Stage([call("a", "change"), call("b", "change"), call("c")], [call("d")], said("Yes?"))

    async def change(args: NoArgs, context: ToolContext) -> ToolResult:
        stage.arrived.append(UserMessage("wait", 5))
        await trio.lowlevel.checkpoint()
        return text_result("changed")

    stage.add("change", change, parallel=False)
    await stage.play()
    results = [m.text for m in stage.saves[0] if isinstance(m, ToolResultMessage)]
    assert results == ["changed", SKIPPED, SKIPPED]
    assert len(stage.saves[1]) == 2, "the message is taken in once"
    assert sum(isinstance(event, Steered) for event in stage.events) == 1


async def test_the_limit_of_steps_ends_a_turn_that_never_stops_calling():
    stage = Stage([call("a")], [call("b")], [call("c")], max_steps=2)
    with pytest.raises(LimitReached, match="after 2 steps"):
        await stage.play()
    assert stage.started == ["a"], "the calls of the last answer are not run"
    assert [len(save) for save in stage.saves] == [2]
    answer, result = settle(stage.unsaved)
    assert isinstance(answer, AssistantMessage)
    assert isinstance(result, ToolResultMessage)
    assert (result.tool_call_id, result.text) == ("b", ABORTED)


async def test_a_provider_that_fails_in_the_middle_leaves_what_had_arrived():
    fault = ProviderError("server_error", "the model broke", status=500)
    stage = Stage([ThinkingDelta("let "), ThinkingDelta("me"), *said("The ans", "wer"), fault])
    with pytest.raises(ProviderError) as caught:
        await stage.play()
    assert caught.value is fault
    (partial,) = settle(stage.unsaved)
    assert isinstance(partial, AssistantMessage)
    assert partial.content == (Thinking("let me"), Text("The answer"))
    assert (partial.stop_reason, partial.error_message) == ("error", "the model broke")
    assert (partial.provider, partial.model, partial.api) == ("scripted", "echo", "scripted")
    assert isinstance(stage.events[-1], MessageEnd)


async def test_a_provider_that_fails_at_once_leaves_no_message():
    stage = Stage([ProviderError("auth", "no key")])
    with pytest.raises(ProviderError):
        await stage.play()
    assert settle(stage.unsaved) == ()
    assert any(isinstance(event, MessageEnd) for event in stage.events)


async def test_a_stream_that_ends_without_a_whole_message_is_the_providers_fault():
    class Silent(ScriptedProvider):
        @trio.as_safe_channel
        async def stream(self, request: object) -> AsyncGenerator[Sequence[ProviderEvent], None]:
            await trio.lowlevel.checkpoint()
            yield [TextDelta("Hm")]

    stage = Stage()
    stage.provider = Silent()
    with pytest.raises(ProviderError) as caught:
        await stage.play()
    assert caught.value.kind == "empty_response"
    (partial,) = settle(stage.unsaved)
    assert isinstance(partial, AssistantMessage)
    assert partial.text == "Hm"


async def test_a_whole_message_is_kept_whole_when_its_stream_fails_to_close():
    whole = AssistantMessage((Text("All of it"), ToolCall("a", "look", {})), 7, stop_reason="toolUse")

    class Slamming(ScriptedProvider):
        @trio.as_safe_channel
        async def stream(self, request: object) -> AsyncGenerator[Sequence[ProviderEvent], None]:
            await trio.lowlevel.checkpoint()
            yield [TextDelta("All of it"), Done(whole)]
            raise ProviderError("connection", "hung up")

    stage = Stage()
    stage.provider = Slamming()
    with pytest.raises(ProviderError, match="hung up"):
        await stage.play()
    assert settle(stage.unsaved)[0] is whole
    assert stage.started == []


async def test_retries_of_the_provider_are_told():
    stage = Stage([RetryNotice(1, 3, "overloaded", 0.5), *said("Hi")])
    await stage.play()
    assert RetryNotice(1, 3, "overloaded", 0.5) in stage.events
    assert stage.marks == ["first_token", "stream"]


async def test_cancelling_while_the_model_speaks_keeps_the_partial_text(autojump_clock: MockClock):
    stage = Stage([*said("Once ", "upon"), math.inf])
    with trio.move_on_after(1) as scope:
        await stage.play()
    assert scope.cancelled_caught
    (partial,) = settle(stage.unsaved)
    assert isinstance(partial, AssistantMessage)
    assert (partial.text, partial.stop_reason, partial.error_message) == ("Once upon", "aborted", "")


async def test_cancelling_while_tools_run_closes_each_and_leaves_a_whole_transcript(autojump_clock: MockClock):
    stage = Stage([*said("Both."), call("a"), call("b", "hang"), call("c", "change")])

    async def hang(args: NoArgs, context: ToolContext) -> ToolResult:
        context.update("half way")
        return await trio.sleep_forever()

    stage.add("hang", hang)
    with trio.move_on_after(1) as scope:
        await stage.play()
    assert scope.cancelled_caught
    assert stage.saves == []
    assert ToolUpdate(ToolCall("b", "hang", {}), "half way") in stage.events
    ended = {event.call.id: event.result.text for event in stage.events if isinstance(event, ToolEnd)}
    assert ended == {"a": "did a", "b": ABORTED}
    answer, *results = settle(stage.unsaved)
    assert isinstance(answer, AssistantMessage)
    assert [m.text for m in results if isinstance(m, ToolResultMessage)] == ["did a", ABORTED, ABORTED]


async def test_a_tools_own_fault_is_reported_and_the_turn_goes_on():
    stage = Stage([call("a", "broken")], said("Sorry."))

    async def broken(args: NoArgs, context: ToolContext) -> ToolResult:
        await trio.lowlevel.checkpoint()
        raise KeyError("x")

    stage.add("broken", broken)
    assert (await stage.play()).text == "Sorry."
    assert [type(fault) for fault in stage.faults] == [KeyError]


async def test_an_error_while_saving_goes_up_and_leaves_the_step_to_settle():
    stage = Stage([call("a")])

    async def save(messages: Sequence[Message]) -> None:
        await trio.lowlevel.checkpoint()
        raise OSError("disk full")

    stage.save = save
    with pytest.raises(OSError, match="disk full"):
        await stage.play()
    assert [type(message) for message in settle(stage.unsaved)] == [AssistantMessage, ToolResultMessage]


WAIT = st.sampled_from([0.5, 1.0, 3.0])
CALL = st.sampled_from(["look", "change", "slow", "slow change", "broken", "unknown"])
ITEM = WAIT | st.just(TextDelta("x")) | st.just(ThinkingDelta("y")) | CALL
FAULT = st.builds(ProviderError, st.just("overloaded"), st.just("busy"))


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(
    script=st.lists(st.lists(ITEM, max_size=6), min_size=1, max_size=4),
    fault=st.none() | FAULT,
    arrivals=st.lists(st.floats(0, 12), max_size=3),
    cancel_at=st.floats(0, 15) | st.just(math.inf),
)
def test_each_start_has_its_end_and_the_transcript_is_whole_on_every_way_out(
    script: list[list[Any]], fault: ProviderError | None, arrivals: list[float], cancel_at: float
):
    ids = iter(range(1000))
    steps = [
        [ToolCallDelta(f"c{next(ids)}", item, "{}") if isinstance(item, str) else item for item in step]
        for step in script
    ]
    stage = Stage(*steps, *([[fault]] if fault else [said("end")]), max_steps=3)
    stage.saving = 0.25

    async def slow(args: NoArgs, context: ToolContext) -> ToolResult:
        await trio.sleep(2)
        return text_result("slowly")

    async def broken(args: NoArgs, context: ToolContext) -> ToolResult:
        await trio.sleep(0.5)
        raise ValueError("broken")

    async def arrive() -> None:
        for index, at in enumerate(sorted(arrivals)):
            await trio.sleep_until(at)
            stage.arrived.append(UserMessage(f"arrival {index}", 5))

    replies: list[AssistantMessage] = []

    async def main() -> None:
        stage.add("slow", slow)
        stage.add("slow change", slow, parallel=False)
        stage.add("broken", broken)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(arrive)
            with trio.CancelScope(deadline=cancel_at):
                try:
                    replies.append(await stage.play())
                except (ProviderError, LimitReached):
                    pass
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))

    message_open: int | None = None
    tools_open: list[ToolCall] = []
    for event in stage.events:
        match event:
            case MessageStart(index=index):
                assert message_open is None and not tools_open
                message_open = index
            case TextChunk(index=index) | ThinkingChunk(index=index):
                assert index == message_open
            case MessageEnd(index=index):
                assert index == message_open
                message_open = None
            case ToolStart(call=started):
                assert message_open is None
                tools_open.append(started)
            case ToolEnd(call=ended):
                tools_open.remove(ended)
            case _:
                pass
    assert message_open is None and not tools_open

    for saved in stage.saves:
        assert tuple(saved) == pair(saved), "a save never holds a call without its result"
    whole = [message for saved in stage.saves for message in saved] + list(settle(stage.unsaved))
    assert tuple(whole) == pair(whole)
    if replies and replies[0].text:
        assert settle(stage.unsaved) == tuple(replies), "all but the reply is saved"


async def test_a_request_that_is_too_long_is_sent_smaller_once_and_said_so_and_no_tool_runs_again():
    too_long = ContextOverflow("too long", window=1_000)
    stage = Stage([*said("I look."), call("a")], [too_long], said("It fits."))
    stage.add("look", lambda args, context: stage.long(context))
    assert (await stage.play()).text == "It fits."
    assert stage.started == ["a"] and [len(messages) for messages in stage.asked] == [1, 3, 3]
    (notice,) = [event for event in stage.events if isinstance(event, RetryNotice)]
    assert notice == RetryNotice(1, 1, "too long; asked again with 3 of 3 messages", 0, "context_overflow")
    assert [request.model.context_window for request in stage.provider.requests] == [128_000, 128_000, 1_000]
    texts = [message.text for asked in stage.asked for message in asked if isinstance(message, ToolResultMessage)]
    assert texts[0].startswith("xxx") and texts[1] == "[Old tool result content cleared]"
    assert [type(event) for event in stage.events].count(MessageStart) == 3
    assert [type(event) for event in stage.events].count(MessageEnd) == 3


async def test_a_request_that_stays_too_long_fails_as_that():
    stage = Stage([ContextOverflow("too long", window=1_000)], [ContextOverflow("still too long", window=1_000)])
    with pytest.raises(ContextOverflow, match="still too long"):
        await stage.play()
    assert len(stage.asked) == 2


async def test_a_call_of_the_model_that_is_not_allowed_is_not_made_and_what_was_done_is_saved():
    stage = Stage([call("a")], said("never"))
    stage.allowed = 1
    with pytest.raises(LimitReached, match="enough"):
        await stage.play()
    assert len(stage.asked) == 1 and [len(saved) for saved in stage.saves] == [2]


async def test_a_reply_that_outgrew_the_window_is_kept_and_not_begun_again():
    stage = Stage([*said("Once upon"), ContextOverflow("full", window=1_000)], said("never"))
    with pytest.raises(ContextOverflow, match="full"):
        await stage.play()
    end = stage.events[-1]
    assert isinstance(end, MessageEnd) and end.message.text == "Once upon" and len(stage.asked) == 1
