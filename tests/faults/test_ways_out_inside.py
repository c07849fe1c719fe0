"""Every way out of a run from inside: a tool or a model that fails, hangs or lies, a disk that refuses or hangs at any
write, a session that is reset. Each run ends once, and what is told is what a later start finds."""

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing
from tests.kit.host import open_test_gateway

from triops.agents.errors import ToolError
from triops.agents.messages import ToolResultMessage
from triops.agents.model import TextDelta, ThinkingDelta, ToolCallDelta
from triops.agents.tool import Tool, ToolContext, ToolResult, text_result
from triops.runtime.errors import Unavailable
from triops.runtime.events import RunTool
from triops.runtime.progress import MAX_LIVE_TEXT
from triops.runtime.runs.state import RunState
from triops.testing import TestRuntime, copy_state, open_test_runtime

Clock = trio.testing.MockClock


class NoArgs(msgspec.Struct, frozen=True):
    pass


# -- tools -------------------------------------------------------------------------------------------------------------


async def refuses(args: NoArgs, context: ToolContext) -> ToolResult:
    raise ToolError("not today")


async def breaks(args: NoArgs, context: ToolContext) -> ToolResult:
    raise ZeroDivisionError("a fault of its own")


async def breaks_in_a_nursery(args: NoArgs, context: ToolContext) -> ToolResult:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(breaks, args, context)
        await trio.sleep_forever()
    raise AssertionError


async def hangs(args: NoArgs, context: ToolContext) -> ToolResult:
    await trio.sleep_forever()
    raise AssertionError


async def leaves_slowly(args: NoArgs, context: ToolContext) -> ToolResult:
    try:
        await trio.sleep_forever()
    finally:
        with trio.move_on_after(3, shield=True):
            await trio.sleep(2)
    raise AssertionError


async def breaks_when_stopped(args: NoArgs, context: ToolContext) -> ToolResult:
    try:
        await trio.sleep_forever()
    finally:
        raise ZeroDivisionError("on its way out")


async def gives_nothing(args: NoArgs, context: ToolContext) -> ToolResult:
    return None  # type: ignore[return-value] # what an author forgets


async def gives_what_is_no_text(args: NoArgs, context: ToolContext) -> ToolResult:
    return text_result("a name with \udcff in it", details={"name": "\udcff"})


async def gives_what_is_no_json(args: NoArgs, context: ToolContext) -> ToolResult:
    return text_result("fine", details=object())


async def shows_what_is_no_text(args: NoArgs, context: ToolContext) -> ToolResult:
    context.update("\udcff")
    return text_result("fine")


async def is_cancelled(args: NoArgs, context: ToolContext) -> ToolResult:
    with trio.CancelScope() as scope:
        scope.cancel()
        await trio.lowlevel.checkpoint()
    return text_result("fine")


Run = Callable[[NoArgs, ToolContext], Awaitable[ToolResult]]
TOOLS: list[tuple[Run, str]] = [
    (refuses, "not today"),
    (breaks, "breaks failed: ZeroDivisionError"),
    (breaks_in_a_nursery, "breaks_in_a_nursery failed"),
    (hangs, "hangs timed out after 60 s"),
    (leaves_slowly, "leaves_slowly timed out after 60 s"),
    (breaks_when_stopped, "breaks_when_stopped failed: ZeroDivisionError"),
    (gives_nothing, "gives_nothing failed"),
    (gives_what_is_no_text, "gives_what_is_no_text failed: UnicodeEncodeError"),
    (gives_what_is_no_json, "gives_what_is_no_json failed: TypeError"),
    (shows_what_is_no_text, "fine"),
    (is_cancelled, "fine"),
]


def tool(run: Run) -> Tool[NoArgs]:
    return Tool(run.__name__, "For the test.", NoArgs, run, deadline=60)


@pytest.mark.parametrize(("run", "words"), TOOLS, ids=[run.__name__ for run, _ in TOOLS])
async def test_whatever_a_tool_does_the_model_reads_it_and_goes_on(
    tmp_path: Path, autojump_clock: Clock, run: Run, words: str
) -> None:
    async with open_test_gateway(tmp_path, virtual=True, faulty=True, tools=(tool(run),)) as host:
        async with host.client(caps=("tool-events",)) as client:
            await client.say(f"CALL:{run.__name__} {{}}\nCALL:sessions_list {{}}", key="r1")
            final = await client.terminal("r1")
            assert final["state"] == "final"
            assert words in final["message"]["content"][0]["text"]
            history = await client.request("chat.history", {"sessionKey": "main"})
            assert [message["role"] for message in history["messages"]] == [
                *("user", "assistant", "toolResult", "toolResult", "assistant")
            ]
            told = [p["data"] for p in client.events("agent", "r1") if p["stream"] == "tool"]
            assert [data["phase"] for data in told].count("result") == 2, told


@pytest.mark.parametrize("end", ["abort", "deadline", "stop"])
@pytest.mark.parametrize("run", [hangs, leaves_slowly, breaks_when_stopped], ids=lambda run: run.__name__)
async def test_a_run_that_is_cut_off_in_a_tool_ends_when_the_tool_has(
    tmp_path: Path, autojump_clock: Clock, run: Run, end: str
) -> None:
    async with open_test_runtime(tmp_path, tools=(tool(run),)) as host:
        deadline = 5.0 if end == "deadline" else None
        await host.send(f"CALL:{run.__name__} {{}}\nCALL:sessions_list {{}}", run_id="r1", deadline=deadline)
        await host.events.wait_for(lambda event: isinstance(event, RunTool))
        if end == "abort":
            (open_run,) = host.runtime.runs.open_runs()
            host.runtime.runs.abort(open_run, "rpc")
        if end == "stop":
            await host.runtime.runs.drain(0)
        terminal = await host.events.terminal("r1")
        expected = {"abort": ("aborted", "rpc"), "deadline": ("error", "timeout"), "stop": ("aborted", "restart")}
        assert (terminal.state, terminal.stop_reason) == expected[end]
        await trio.testing.wait_all_tasks_blocked()
        if end != "stop":
            await host.check_quiet()
        results = [message for message in await host.transcript() if isinstance(message, ToolResultMessage)]
        assert len(results) == 2 and results[0].is_error


# -- models ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step",
    [
        [TextDelta("Hel\udcff")],
        [TextDelta("Hel"), ThinkingDelta("\ud800")],
        [ToolCallDelta("c1", "sessions_list", "{}"), ToolCallDelta("c1", "sessions_list", "")],
        [ToolCallDelta("\udcff", "\udcff", "{}")],
        [TextDelta("Hel"), ZeroDivisionError("a provider's own fault")],
        [TextDelta("Hel"), ZeroDivisionError("words with \udcff")],
        [TextDelta("Hel\x00lo")],
        [TextDelta("x" * 3_000_000)],
        [*[TextDelta("y" * 10_000)] * 300],
    ],
    ids=[
        *("no text", "no text in thoughts", "a call twice", "a name that is no text", "breaks", "breaks badly", "NUL"),
        *("one huge delta", "many large deltas"),
    ],
)
async def test_whatever_a_provider_of_ones_own_says_clients_get_one_end(
    tmp_path: Path, autojump_clock: Clock, step: list[object]
) -> None:
    script = [step, [TextDelta("Done.")], [TextDelta("And again.")]]
    async with open_test_gateway(tmp_path, virtual=True, faulty=True, script=script) as host:  # type: ignore[arg-type] # a Step, of any items
        async with host.client(caps=("tool-events",)) as client:
            await client.say("hi", key="r1")
            end = await client.terminal("r1")
            assert end["state"] in ("final", "error")
            waited = await client.request("agent.wait", {"runId": "r1", "timeoutMs": 0})
            assert waited["status"] == {"final": "ok", "error": "error"}[end["state"]]
            await client.request("chat.history", {"sessionKey": "main"})
            await client.say("and now?", key="r2")
            assert (await client.terminal("r2"))["state"] == "final", "its session is none the worse"
            assert len([p for p in client.events("chat", "r1") if p["state"] in ("final", "error")]) == 1


async def test_an_answer_without_an_end_is_stopped_and_its_clients_are_not(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    def endless() -> Iterator[TextDelta]:
        while True:
            yield TextDelta("\u4e00" * 100_000)

    script = [endless(), [TextDelta("Done.")]]
    async with open_test_gateway(tmp_path, virtual=True, script=script) as host, host.client() as client:  # type: ignore[arg-type] # a Step, without its end
        await client.say("hi", key="r1")
        end = await client.terminal("r1")
        assert end["state"] == "error"
        assert "was stopped" in end["errorMessage"]
        heard = "".join(p["deltaText"] for p in client.events("chat", "r1") if p["state"] == "delta")
        assert heard == "\u4e00" * MAX_LIVE_TEXT


# -- the session -------------------------------------------------------------------------------------------------------


async def test_a_reset_ends_what_runs_and_what_waits_and_the_model_forgets_both(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with open_test_gateway(tmp_path, virtual=True) as host, host.client() as client:
        await client.say("TOKENS:5 ITL:1000", key="r1")
        await client.say("waiting", key="r2", queueMode="followup")
        await client.event("chat", runId="r1", state="delta")
        await client.request("sessions.reset", {"key": "main"})
        for key in ("r1", "r2"):
            end = await client.ended(key)
            assert (end["state"], end["stopReason"]) == ("aborted", "reset")
        await client.say("SAY:afresh", key="r3")
        assert (await client.terminal("r3"))["state"] == "final"
        assert [getattr(message, "content", None) for message in host.model.requests[-1].messages] == ["SAY:afresh"]
        history = await client.request("chat.history", {"sessionKey": "main"})
        assert sorted(message["role"] for message in history["messages"]) == ["assistant", "system", "user"]
        ends = [p["runId"] for p in client.events("chat") if p["state"] in ("final", "aborted", "error")]
        assert sorted(ends) == ["r1", "r2", "r3"]


# -- the disk ----------------------------------------------------------------------------------------------------------

CALLS = "TOKENS:2\nCALL:sessions_list {}\nCALL:nothing {}"


async def play(host: TestRuntime) -> list[str]:
    """A run with tools, one that steers it and one that waits; the ids of those that were accepted."""
    accepted: list[str] = []
    for run_id, words, mode in (("r1", CALLS, "steer"), ("r2", "SAY:and this", "steer"), ("r3", "SAY:x", "followup")):
        try:
            await host.send(words, run_id=run_id, queue_mode=mode)
        except Unavailable:
            continue
        accepted.append(run_id)
    with trio.fail_after(600):
        for run_id in accepted:
            await host.runtime.runs.wait(run_id)
    await trio.sleep(10)  # what the disk refused is written late
    return accepted


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("place", range(1, 8))
async def test_whichever_write_the_disk_refuses_nothing_accepted_is_lost(
    tmp_path: Path, autojump_clock: Clock, place: int, count: int
) -> None:
    async with open_test_runtime(tmp_path / "state") as host:
        host.store.refuse(*range(place, place + count))
        accepted = await play(host)
        await host.check_quiet()
        host.events.check(accepted)
        host.store.heal()
        if accepted:
            last = await host.ask("SAY:still here", run_id="last")
            assert (last.state, last.text) == (RunState.FINAL, "still here")
        ends = host.events.terminals()
        copy_state(tmp_path / "state", tmp_path / "killed")
    async with open_test_runtime(tmp_path / "killed") as after:
        for run_id, end in ends.items():
            assert await after.runtime.runs.wait(run_id) == end
        await after.check_quiet()


@pytest.mark.parametrize("end", ["goes on", "abort", "kill"])
@pytest.mark.parametrize("place", range(1, 8))
async def test_whenever_the_disk_hangs_a_run_waits_for_it_and_ends_once(
    tmp_path: Path, autojump_clock: Clock, place: int, end: str
) -> None:
    async with open_test_runtime(tmp_path / "state") as host, trio.open_nursery() as nursery:
        done = trio.Event()

        async def all_of_it() -> None:
            await play(host)
            done.set()

        before = host.store.writes
        nursery.start_soon(all_of_it)
        for _ in range(1000):  # steps: more than all of it takes
            if host.store.writes >= before + place:
                break
            await trio.lowlevel.checkpoint()
        with host.store.held():
            await trio.sleep(30)
            told = dict(host.events.terminals())
            if end == "abort":
                for run in host.runtime.runs.open_runs():
                    host.runtime.runs.abort(run, "rpc")
                await trio.sleep(30)
                assert host.events.terminals() == told, "nothing is told that is not on disk"
            copy_state(tmp_path / "state", tmp_path / "killed")
        await done.wait()
        await host.check_quiet()
        if end != "abort":
            assert {str(terminal.state) for terminal in host.events.terminals().values()} <= {"final", "merged"}
    if end == "kill":
        async with open_test_runtime(tmp_path / "killed") as after:
            while runs := after.runtime.runs.open_runs():
                await runs[0].ended.wait()
            await after.check_quiet()
            for run_id, terminal in told.items():
                assert await after.runtime.runs.wait(run_id) == terminal
