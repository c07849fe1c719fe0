from collections.abc import Callable, Sequence
from typing import Annotated, Any

import msgspec
import pytest
import trio
from trio.testing import MockClock, Sequencer

from triops.agents.errors import ToolError
from triops.agents.events import ToolEnd, ToolStart, ToolUpdate, TurnEvent
from triops.agents.messages import Image, Text, ToolCall, ToolResultMessage
from triops.agents.tool import AnyTool, Tool, ToolContext, ToolResult, text_result
from triops.agents.toolbox import Toolbox, output_limit


class Args(msgspec.Struct):
    text: str = ""
    count: Annotated[int, msgspec.Meta(ge=1)] = 1
    loud: bool = False


class Strict(msgspec.Struct):
    path: str
    lines: list[int] = []


class Desk:
    """A toolbox and what it told."""

    def __init__(self, *tools: AnyTool, limit: int = 16_000) -> None:
        self.events: list[TurnEvent] = []
        self.reported: list[tuple[str, Exception]] = []
        self.toolbox = Toolbox(
            tools={tool.name: tool for tool in tools},
            run_id="r",
            session_key="agent:main:main",
            limit=limit,
            emit=self.events.append,
            report=lambda call, error: self.reported.append((call.id, error)),
            now=lambda: 7,
        )

    async def run(
        self, *calls: ToolCall, interrupted: Callable[[], bool] = lambda: False
    ) -> Sequence[ToolResultMessage]:
        return await self.toolbox.run(calls, interrupted)


def tool(name: str, run: Callable[[Any, ToolContext], Any], **options: Any) -> AnyTool:
    return Tool(name, name, options.pop("args", Args), run, **options)


async def echo(args: Args, context: ToolContext) -> ToolResult:
    await trio.lowlevel.checkpoint()
    return text_result(f"{args.text} {args.count} {args.loud} {context.call_id} {context.run_id}")


async def test_results_stand_in_the_order_of_the_calls_whatever_ends_first(autojump_clock: MockClock):
    order = Sequencer()
    finished: list[str] = []

    async def wait(args: Args, context: ToolContext) -> ToolResult:
        async with order(1 - int(args.text)):
            finished.append(context.call_id)
        return text_result(args.text, details={"n": args.text})

    desk = Desk(tool("wait", wait))
    results = await desk.run(ToolCall("a", "wait", {"text": "0"}), ToolCall("b", "wait", {"text": "1"}))
    assert finished == ["b", "a"]
    assert [(m.tool_call_id, m.tool_name, m.text, m.details) for m in results] == [
        ("a", "wait", "0", {"n": "0"}),
        ("b", "wait", "1", {"n": "1"}),
    ]
    assert [m.timestamp for m in results] == [7, 7]


async def test_sequential_calls_are_barriers_for_their_neighbours(autojump_clock: MockClock):
    log: list[str] = []

    async def note(args: Args, context: ToolContext) -> ToolResult:
        log.append(f"+{context.call_id}")
        await trio.sleep(1)
        log.append(f"-{context.call_id}")
        return text_result("")

    desk = Desk(tool("look", note), tool("change", note, parallel=False))
    names = {"a": "look", "b": "look", "c": "change", "d": "change", "e": "look"}
    await desk.run(*(ToolCall(id, name, {}) for id, name in names.items()))
    assert sorted(log[:2]) == ["+a", "+b"]
    assert log[4:] == ["+c", "-c", "+d", "-d", "+e", "-e"]


async def test_it_asks_for_interruptions_once_a_batch_and_before_each_single_call():
    asked: list[int] = []
    desk = Desk(tool("look", echo), tool("change", echo, parallel=False))

    def interrupted() -> bool:
        asked.append(len(desk.events))
        return len(asked) == 3

    names = ["look", "look", "change", "change", "look"]
    results = await desk.run(*(ToolCall(str(i), name, {}) for i, name in enumerate(names)), interrupted=interrupted)
    assert asked == [0, 4, 6]
    assert [m.is_error for m in results] == [False, False, False, True, True]
    assert results[3].text == "Skipped to process an incoming message."


async def test_numbers_and_booleans_written_as_text_are_understood():
    desk = Desk(tool("echo", echo))
    (result,) = await desk.run(ToolCall("a", "echo", {"text": "x", "count": "3", "loud": "true"}))
    assert result.text == "x 3 True a r"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "missing required field `path`"),
        ({"path": 5}, "$.path"),
        ({"path": "a", "lines": [1, "x"]}, "$.lines[1]"),
        ({"invalid_json": '{"path": '}, "missing required field `path`"),
    ],
)
async def test_arguments_at_fault_are_named_with_their_path(arguments: dict[str, Any], words: str):
    desk = Desk(tool("read", echo, args=Strict))
    (result,) = await desk.run(ToolCall("a", "read", arguments))
    assert result.is_error
    assert result.text.startswith('Validation failed for tool "read":\n  - ')
    assert words in result.text
    assert "Received arguments:\n{" in result.text


async def test_the_echo_of_huge_arguments_is_cut():
    (result,) = await Desk(tool("read", echo, args=Strict)).run(ToolCall("a", "read", {"x": "y" * 10_000}))
    assert len(result.text) < 3_000


async def test_an_unknown_tool_is_answered_with_the_known_ones():
    desk = Desk(tool("write", echo), tool("read", echo))
    (result,) = await desk.run(ToolCall("a", "raed", {}))
    assert (result.text, result.is_error) == ("Tool raed not found. Known tools: read, write", True)
    assert [type(event) for event in desk.events] == [ToolStart, ToolEnd]


async def test_a_tool_past_its_deadline_is_stopped_and_says_so(autojump_clock: MockClock):
    async def hang(args: Args, context: ToolContext) -> ToolResult:
        return await trio.sleep_forever()

    desk = Desk(tool("hang", hang, deadline=2.5), tool("echo", echo))
    results = await desk.run(ToolCall("a", "hang", {}), ToolCall("b", "echo", {}))
    assert trio.current_time() == pytest.approx(2.5)
    assert [(m.text.split(" 1 ")[0], m.is_error) for m in results] == [
        ("hang timed out after 2.5 s", True),
        ("", False),
    ]


async def test_the_words_of_a_tool_error_are_the_result_and_nothing_is_reported():
    async def refuse(args: Args, context: ToolContext) -> ToolResult:
        await trio.lowlevel.checkpoint()
        raise ToolError("not today")

    desk = Desk(tool("refuse", refuse))
    (result,) = await desk.run(ToolCall("a", "refuse", {}))
    assert (result.text, result.is_error, desk.reported) == ("not today", True, [])


async def test_any_other_exception_groups_included_is_a_result_and_is_reported():
    async def fall(args: Args, context: ToolContext) -> ToolResult:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise ZeroDivisionError

    desk = Desk(tool("fall", fall), tool("echo", echo))
    results = await desk.run(ToolCall("a", "fall", {}), ToolCall("b", "echo", {}))
    assert [m.is_error for m in results] == [True, False]
    assert results[0].text.startswith("fall failed: ExceptionGroup")
    ((id, error),) = desk.reported
    assert id == "a"
    assert isinstance(error, ExceptionGroup)


async def test_a_tool_that_gives_back_no_result_is_at_fault_itself():
    async def nothing(args: Args, context: ToolContext) -> None:
        await trio.lowlevel.checkpoint()

    desk = Desk(tool("nothing", nothing))
    (result,) = await desk.run(ToolCall("a", "nothing", {}))
    assert result.is_error
    assert len(desk.reported) == 1


async def test_progress_is_told_between_start_and_end():
    async def work(args: Args, context: ToolContext) -> ToolResult:
        context.update("half")
        await trio.lowlevel.checkpoint()
        return text_result("whole")

    desk = Desk(tool("work", work))
    asked = ToolCall("a", "work", {})
    (result,) = await desk.run(asked)
    assert desk.events == [ToolStart(asked), ToolUpdate(asked, "half"), ToolEnd(asked, result)]


async def test_cancelling_ends_each_started_call_and_goes_on_up(autojump_clock: MockClock):
    async def hang(args: Args, context: ToolContext) -> ToolResult:
        return await trio.sleep_forever()

    desk = Desk(tool("hang", hang), tool("change", hang, parallel=False))
    with trio.move_on_after(1) as scope:
        await desk.run(ToolCall("a", "hang", {}), ToolCall("b", "hang", {}), ToolCall("c", "change", {}))
    assert scope.cancelled_caught
    ended = {event.call.id: event.result for event in desk.events if isinstance(event, ToolEnd)}
    assert sorted(ended) == ["a", "b"]
    assert all(m.text == "Aborted" and m.is_error for m in ended.values())


async def test_long_output_is_cut_for_the_model_and_says_so():
    async def shout(args: Args, context: ToolContext) -> ToolResult:
        await trio.lowlevel.checkpoint()
        picture = Image("aGk=", "image/png")
        return ToolResult((Text("a" * 80), picture, Text("b" * 80), Text("c" * 80)), details={"all": "kept"})

    (result,) = await Desk(tool("shout", shout), limit=100).run(ToolCall("a", "shout", {}))
    first, picture, second = result.content
    assert first == Text("a" * 80)
    assert isinstance(picture, Image)
    assert second == Text("b" * 20 + "\n[cut: 20 of 80 characters shown]")
    assert result.details == {"all": "kept"}


@pytest.mark.parametrize(
    ("window", "limit"), [(8_000, 16_000), (99_999, 16_000), (100_000, 32_000), (199_999, 32_000), (200_000, 64_000)]
)
def test_a_larger_window_takes_longer_results(window: int, limit: int):
    assert output_limit(window) == limit
