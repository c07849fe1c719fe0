"""What clients see while models fail: each step of it is told, and the end says what happened."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from trio.testing import MockClock

from triops.agents.errors import ContextOverflow, ProviderError
from triops.agents.messages import Message, SystemMessage, UserMessage
from triops.agents.model import ModelInfo, ModelRef, ModelRequest, RetryNotice, TextDelta, ToolCallDelta
from triops.agents.providers.scripted import ScriptedProvider, Step
from triops.agents.providers.wire import EventStream
from triops.runtime.events import RunCompaction, RunModel, RunStatus
from triops.runtime.models import ProviderEntry
from triops.runtime.store import sessions as stored
from triops.runtime.testing import TestRuntime, open_test_runtime

CHOICE = {"agents": {"defaults": {"model": {"primary": "first/m", "fallbacks": ["second/m"]}}}}


def entry(id: str, *script: Step) -> ProviderEntry:
    info = ModelInfo(ref=ModelRef(id, "m"), api="scripted")
    return ProviderEntry(provider=ScriptedProvider(script, id=id), why="the test", models=(info,))


def told_by(host: TestRuntime, run_id: str) -> list[str]:
    """The reasons that a run gave for making people wait."""
    events = host.events.of(run_id)
    return [event.retry["reason"] for event in events if isinstance(event, RunStatus) and event.retry]


async def test_a_fallback_is_told_of_and_holds_for_its_turn_only(tmp_path: Path, autojump_clock: MockClock) -> None:
    refused = ProviderError("auth", "first/m request failed (not authorised); set FIRST_API_KEY")
    providers = entry("first", [refused], [TextDelta("first")]), entry("second", [TextDelta("second")])
    async with open_test_runtime(tmp_path, config=CHOICE, providers=providers) as host:
        assert (await host.ask("hi", run_id="a")).text == "second"
        assert told_by(host, "a") == [f"{refused}; second/m is asked now"]
        assert [event.provider for event in host.events.of("a") if isinstance(event, RunModel)] == ["first", "second"]
        assert (await host.ask("hi", run_id="b")).text == "first" and told_by(host, "b") == []


async def test_an_explicit_choice_is_strict(tmp_path: Path, autojump_clock: MockClock) -> None:
    providers = entry("first", [ProviderError("billing", "no credit")]), entry("second")
    async with open_test_runtime(tmp_path, config=CHOICE, providers=providers) as host:
        terminal = await host.ask("hi", run_id="a", model="first/m")
    assert terminal.error_message == "no credit" and terminal.error_detail is not None
    assert terminal.error_detail["failoverReason"] == "billing" and told_by(host, "a") == []


async def test_a_retry_and_a_request_made_smaller_are_told_as_what_they_are(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    limited = RetryNotice(1, 2, "too many requests", 1.0, "rate_limit")
    script: list[Step] = [[limited, ContextOverflow("too long", window=2_000)], [TextDelta("now")]]
    async with open_test_runtime(tmp_path, config=CHOICE, providers=(entry("first", *script), entry("second"))) as host:
        assert (await host.ask("hi", run_id="a")).text == "now"
        statuses = [event for event in host.events.of("a") if isinstance(event, RunStatus)]
    assert [(status.phase, status.retry["kind"]) for status in statuses if status.retry] == [
        ("starting_model", "rate_limit"),
        ("preparing_context", "context_overflow"),
    ]


async def test_the_error_of_the_last_model_names_those_of_the_models_before_it(
    tmp_path: Path, autojump_clock: object
) -> None:
    config = {"agents": {"defaults": {"model": {"primary": "scripted/echo", "fallbacks": ["nowhere/m"]}}}}
    async with open_test_runtime(tmp_path, script=[[ProviderError("auth", "the key is old")]], config=config) as host:
        ended = await host.ask("hi")
        assert ended.error_message is not None
        assert ended.error_message.startswith("unknown model 'nowhere/m'")
        assert ended.error_message.endswith("; before it, the key is old")


# -- a conversation that has no room -----------------------------------------------------------------------------------

SMALL = ModelInfo(ref=ModelRef("first", "m"), api="scripted", context_window=12_000, max_tokens=500)
ONLY = {"agents": {"defaults": {"model": "first/m"}}}
LONG = "word " * 1_200  # 1,500 tokens
SUMMARY = "The conversation so far, in short:\nThey counted."


def author(
    summary: Step, *steps: Step, provider: type[ScriptedProvider] = ScriptedProvider
) -> tuple[ScriptedProvider, tuple[ProviderEntry, ...]]:
    """A provider that answers with `steps`, then for ever "ok", and is asked for summaries, too."""
    others = iter(steps)

    def play() -> Iterator[Step]:
        while True:
            asked = made.requests[-1].system.startswith("You summarise")
            yield summary if asked else next(others, [TextDelta("ok")])

    made = provider(play(), id="first")
    return made, (ProviderEntry(provider=made, why="the test", models=(SMALL,)),)


def compactions(host: TestRuntime, run_id: str) -> list[tuple[str, bool, bool]]:
    events = host.events.of(run_id)
    return [(event.phase, event.completed, event.retry) for event in events if isinstance(event, RunCompaction)]


def spoken(messages: Sequence[Message]) -> list[str]:
    """What people said, without `LONG`, and summaries."""
    inputs = (message for message in messages if isinstance(message, UserMessage | SystemMessage))
    return [str(message.content).removesuffix(LONG).strip() for message in inputs]


async def test_a_history_that_has_no_room_is_summarised_once_and_later_turns_and_a_restart_keep_it(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    model, providers = author([TextDelta("They counted.")])
    async with open_test_runtime(tmp_path, config=ONLY, providers=providers) as host:
        for number in range(7):
            await host.ask(f"{number} {LONG}", run_id=f"r{number}")
        told = {run_id: found for number in range(7) if (found := compactions(host, run_id := f"r{number}"))}
        assert list(told.values()) == [[("start", False, False), ("end", True, False)]]
        (at,) = (int(run_id[1:]) for run_id in told)
        first = int(spoken(model.requests[-1].messages)[1])
        assert spoken(model.requests[-1].messages) == [SUMMARY, *map(str, range(first, 7))] and 0 < first <= at
        summarised = next(r for r in model.requests if r.system.startswith("You summarise")).messages[0]
        assert f"User: {first - 1} word" in str(summarised.content) and f"User: {first} " not in str(summarised.content)
        assert spoken(await host.transcript()) == [*map(str, range(at + 1)), SUMMARY, *map(str, range(at + 1, 7))]
        await host.check_quiet()
    model, providers = author([TextDelta("again")])
    async with open_test_runtime(tmp_path, config=ONLY, providers=providers) as host:
        await host.ask("after")
        assert spoken(model.requests[-1].messages) == [SUMMARY, *map(str, range(first, 7)), "after"]
        for number in range(8, 12):
            await host.ask(f"{number} {LONG}")
        assert spoken(model.requests[-1].messages)[0].endswith("again")
        older = [r.messages[0] for r in model.requests if r.system.startswith("You summarise")]
        assert len(older) == 1 and str(older[0].content).startswith(SUMMARY)


async def test_a_reset_forgets_the_summary_too(tmp_path: Path, autojump_clock: MockClock) -> None:
    model, providers = author([TextDelta("They counted.")])
    async with open_test_runtime(tmp_path, config=ONLY, providers=providers) as host:
        for number in range(7):
            await host.ask(f"{number} {LONG}")
        await host.store.write(lambda db: stored.reset(db, "agent:main:main", host.runtime.clock()))
        await host.ask("afresh")
        assert spoken(model.requests[-1].messages) == ["afresh"]


async def test_a_request_that_is_refused_as_too_long_goes_again_with_a_summary_and_runs_no_tool_twice(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    call = [ToolCallDelta("c", "sessions_list", "{}")]
    steps = [[TextDelta("ok")]] * 3
    model, providers = author([TextDelta("They counted.")], *steps, call, [ContextOverflow("too long", window=8_000)])
    async with open_test_runtime(tmp_path, config=ONLY, providers=providers) as host:
        for number in range(3):
            await host.ask(f"{number} {LONG}")
        assert (await host.ask("look", run_id="r")).text == "ok"
        assert compactions(host, "r") == [("start", False, False), ("end", True, True)]
        assert spoken(model.requests[-1].messages)[0] == SUMMARY and spoken(model.requests[-1].messages)[-1] == "look"
        roles = [type(message).__name__ for message in model.requests[-1].messages]
        assert roles[-2:] == ["AssistantMessage", "ToolResultMessage"] and roles.count("ToolResultMessage") == 1
        await host.ask("and now")
        assert spoken(model.requests[-1].messages)[0] == SUMMARY
        await host.check_quiet()


@pytest.mark.parametrize("step", [[ProviderError("server_error", "no")], [TextDelta(" ")], [1_000.0]])
async def test_when_the_summary_fails_the_oldest_turns_are_left_out_and_the_answer_comes(
    tmp_path: Path, autojump_clock: MockClock, step: Step
) -> None:
    model, providers = author(step)
    async with open_test_runtime(tmp_path, config=ONLY, providers=providers) as host:
        for number in range(7):
            assert (await host.ask(f"{number} {LONG}", run_id=f"r{number}")).text == "ok"
        told = [found for number in range(7) if (found := compactions(host, f"r{number}"))]
        assert {*map(tuple, told)} == {(("start", False, False), ("end", False, False))}
        assert len(told) == (1 if step == [1_000.0] else 2), "people wait for a silent model once"
        last = spoken(model.requests[-1].messages)
        assert last == list(map(str, range(7)))[-len(last) :] and len(last) > 2
        assert [r for r in host.log if "was not summarised" in r.message] and not host.faults()
        why = {"no", "first/m said nothing", "first/m gave no summary within 180 s"}
        reasons = {reason for number in range(7) for reason in told_by(host, f"r{number}")}
        assert len(reasons) == 1 and reasons < {f"{words}; the oldest messages are left out" for words in why}


async def test_who_waits_for_a_summary_is_told_of_its_server_s_troubles(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    class Late(ScriptedProvider):
        def stream(self, request: ModelRequest) -> EventStream:
            if request.system.startswith("You summarise"):
                request.late("no answer for 20 s")
            return super().stream(request)

    limited = RetryNotice(1, 2, "too many requests", 1.0, "rate_limit")
    _, providers = author([limited, TextDelta("They counted.")], provider=Late)
    async with open_test_runtime(tmp_path, config=ONLY, providers=providers) as host:
        for number in range(7):
            await host.ask(f"{number} {LONG}", run_id=f"r{number}")
        reasons = [reason for number in range(7) for reason in told_by(host, f"r{number}")]
    assert reasons == ["no answer for 20 s", "too many requests"]
