"""A limit of what models may cost ends a run with words, counts over a restart, and begins anew at midnight."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from triops.agents.messages import AssistantMessage, SystemMessage
from triops.agents.model import ModelInfo, ModelRef, Prices, TextDelta, ToolCallDelta
from triops.agents.providers.scripted import ScriptedProvider
from triops.runtime.models import ProviderEntry
from triops.runtime.runs.state import RunState
from triops.runtime.store.spend import since
from triops.runtime.testing import EPOCH, TestRuntime, open_test_runtime


def limited(**spend: Any) -> dict[str, Any]:
    defaults = {"model": {"primary": "scripted/echo"}, "userTimezone": "UTC"}
    return {"models": {"spend": spend}, "agents": {"defaults": defaults}}


def priced(script: Any = None) -> tuple[ProviderEntry, ...]:
    info = ModelInfo(ref=ModelRef("scripted", "echo"), api="scripted", cost=Prices(output=1_000_000))
    return (ProviderEntry(provider=ScriptedProvider(script, now=lambda: EPOCH), why="the test", models=(info,)),)


async def words(host: TestRuntime, text: str = "SAY:one two three") -> str:
    terminal = await host.ask(text)
    return terminal.text if terminal.state is RunState.FINAL else terminal.error_message or ""


async def test_a_run_ends_clearly_and_keeps_what_it_did(tmp_path: Path, autojump_clock: MockClock) -> None:
    script = [[TextDelta("one two"), ToolCallDelta("a", "sessions_list", "{}")], [TextDelta("never")]]
    async with open_test_runtime(tmp_path, config=limited(perRun={"usd": 2}), providers=priced(script)) as host:
        assert await words(host) == (
            "the spend limit is reached: this run used $2.00 of $2.00 (models.spend.perRun.usd);"
            " what it did is kept; send a message to let it go on, or raise the limit"
        )
        kinds = [type(message).__name__ for message in await host.transcript()]
        assert kinds == ["UserMessage", "AssistantMessage", "ToolResultMessage", "AssistantMessage"]
        await host.check_quiet()


async def test_a_day_is_counted_over_a_restart_and_anew_after_midnight(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    config = limited(perDay={"usd": 6})
    async with open_test_runtime(tmp_path, config=config, providers=priced()) as host:
        assert await words(host) == "one two three"
    async with open_test_runtime(tmp_path, config=config, providers=priced()) as host:
        assert await words(host) == "one two three"
        assert "today used $6.00 of $6.00 (models.spend.perDay.usd)" in await words(host)
        await trio.sleep(86_400)
        assert await words(host) == "one two three"


async def test_what_a_summary_cost_is_counted_over_a_restart_too(tmp_path: Path, autojump_clock: MockClock) -> None:
    config = limited(perDay={"tokens": 1_000_000})
    small = ModelInfo(ref=ModelRef("scripted", "echo"), api="scripted", context_window=12_000, max_tokens=500)
    providers = (ProviderEntry(provider=ScriptedProvider(now=lambda: EPOCH), why="the test", models=(small,)),)
    async with open_test_runtime(tmp_path, config=config, providers=providers) as host:
        for _ in range(7):
            await words(host, "word " * 1_200)
        paid = [message for message in await host.transcript() if isinstance(message, AssistantMessage | SystemMessage)]
        by_type = {type(message): message.usage for message in paid}
        assert by_type[SystemMessage] is not None
        assert (
            sum(message.usage.total_tokens for message in paid if message.usage)
            == (await host.store.read(partial(since, start=EPOCH)))[0]
        )


@pytest.mark.parametrize("most", [1, None])
async def test_tokens_are_counted_where_nothing_is_paid(
    tmp_path: Path, autojump_clock: MockClock, most: int | None
) -> None:
    async with open_test_runtime(tmp_path, config=limited(perDay={"tokens": most})) as host:
        assert await words(host) == "one two three"
        assert ("models.spend.perDay.tokens" in await words(host)) == (most is not None)
