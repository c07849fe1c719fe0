"""What clients see while models fail: each step of it is told, and the end says what happened."""

from pathlib import Path

from trio.testing import MockClock

from triops.agents.errors import ContextOverflow, ProviderError
from triops.agents.model import ModelInfo, ModelRef, RetryNotice, TextDelta
from triops.agents.providers.scripted import ScriptedProvider, Step
from triops.runtime.events import RunModel, RunStatus
from triops.runtime.models import ProviderEntry
from triops.runtime.testing import TestRuntime, open_test_runtime

CHOICE = {"agents": {"defaults": {"model": {"primary": "first/m", "fallbacks": ["second/m"]}}}}


def entry(id: str, *script: Step) -> ProviderEntry:
    info = ModelInfo(ref=ModelRef(id, "m"), api="scripted")
    return ProviderEntry(provider=ScriptedProvider(script, id=id), why="the test", models=(info,))


def told(host: TestRuntime, run_id: str) -> list[str]:
    """The reasons that a run gave for making people wait."""
    events = host.events.of(run_id)
    return [event.retry["reason"] for event in events if isinstance(event, RunStatus) and event.retry]


async def test_a_fallback_is_told_of_and_holds_for_its_turn_only(tmp_path: Path, autojump_clock: MockClock) -> None:
    refused = ProviderError("auth", "first/m request failed (not authorised); set FIRST_API_KEY")
    providers = entry("first", [refused], [TextDelta("first")]), entry("second", [TextDelta("second")])
    async with open_test_runtime(tmp_path, config=CHOICE, providers=providers) as host:
        assert (await host.ask("hi", run_id="a")).text == "second"
        assert told(host, "a") == [f"{refused}; second/m is asked now"]
        assert [event.provider for event in host.events.of("a") if isinstance(event, RunModel)] == ["first", "second"]
        assert (await host.ask("hi", run_id="b")).text == "first" and told(host, "b") == []


async def test_an_explicit_choice_is_strict(tmp_path: Path, autojump_clock: MockClock) -> None:
    providers = entry("first", [ProviderError("billing", "no credit")]), entry("second")
    async with open_test_runtime(tmp_path, config=CHOICE, providers=providers) as host:
        terminal = await host.ask("hi", run_id="a", model="first/m")
    assert terminal.error_message == "no credit" and terminal.error_detail is not None
    assert terminal.error_detail["failoverReason"] == "billing" and told(host, "a") == []


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
