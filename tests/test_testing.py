"""What `triops.testing` gives, used as its users do: from that face alone."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing
from tests.kit.model_server import ACCOUNT_TOKEN, ModelServer, open_model_server

from triops.agents.errors import ProviderError, ToolError
from triops.agents.model import Done, ModelInfo, ModelRef, ModelRequest, ProviderEvent, TextDelta
from triops.agents.providers import open_provider
from triops.agents.providers.http import HttpClient
from triops.agents.tool import Tool, ToolContext, ToolResult, text_result
from triops.runtime.plugins import LateProvider
from triops.testing import (
    Fault,
    FaultyProvider,
    ProviderEntry,
    ScriptedProvider,
    TestRuntime,
    Trigger,
    chaos,
    check_provider,
    copy_state,
    cut_everywhere,
    open_test_runtime,
)

Clock = trio.testing.MockClock


class Words(msgspec.Struct, frozen=True):
    words: str = ""


async def shout(args: Words, context: ToolContext) -> ToolResult:
    if not args.words:
        raise ToolError("nothing to shout")
    await trio.sleep(1)
    return text_result(args.words.upper())


SHOUT = Tool("shout", "Say it louder.", Words, shout)


def faulty(*faults: Fault | None) -> tuple[ProviderEntry, ...]:
    return (ProviderEntry(provider=FaultyProvider(ScriptedProvider(), faults), why="the test"),)


async def test_a_tool_of_ones_own_is_called_and_its_refusal_is_what_the_model_reads(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with open_test_runtime(tmp_path, tools=(SHOUT,)) as host:
        began = trio.current_time()
        assert (await host.ask('CALL:shout {"words": "hi"}')).text == "tool said: HI [end]"
        assert trio.current_time() - began == 1
        assert (await host.ask("CALL:shout {}")).text == "tool said: nothing to shout [end]"
        await host.check_quiet()
        assert host.faults() == []


async def test_a_provider_fails_where_it_is_told_to_and_what_had_passed_is_kept(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    refusal = Fault(0, ProviderError("auth", "not with that key"))
    providers = faulty(refusal, Fault(2, ProviderError("connection", "cut")), Fault(1, "end"), Fault(1, "hang"), None)
    async with open_test_runtime(tmp_path, providers=providers) as host:
        ends = [await host.ask("TOKENS:3", deadline=60.0) for _ in range(5)]
        assert [(str(end.state), end.error_kind, len(end.text.split())) for end in ends] == [
            ("error", "unknown", 0),
            ("error", "unknown", 2),
            ("error", "unknown", 1),
            ("error", "timeout", 1),
            ("final", None, 3),
        ]
        assert ends[0].error_message == "not with that key"
        assert (await host.ask("TOKENS:3")).text == ends[4].text, "past its faults it is as good as any"
        await host.check_quiet()


@pytest.mark.parametrize("seed", range(4))
async def test_chaos_is_the_same_for_the_same_seed_and_leaves_no_run_without_its_end(
    tmp_path: Path, autojump_clock: Clock, seed: int
) -> None:
    async def life(folder: str) -> list[tuple[str, str]]:
        provider = FaultyProvider(ScriptedProvider(), chaos(seed))
        entry = ProviderEntry(provider=provider, why="the test")
        async with open_test_runtime(tmp_path / folder, providers=(entry,), tools=(SHOUT,)) as host:
            words = ["TOKENS:6", 'CALL:shout {"words": "hi"}'] * 6
            ends = [await host.ask(said, run_id=f"r{place}", deadline=60.0) for place, said in enumerate(words)]
            await host.check_quiet()
            assert host.faults() == []
            return [(str(end.state), end.text) for end in ends]

    ends = await life("once")
    assert ends == await life("again")
    assert len({state for state, _ in ends}) > 1, "some fail, some do not"


async def test_a_disk_that_refuses_is_told_and_what_was_told_is_what_a_later_start_finds(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with open_test_runtime(tmp_path / "state") as host:
        host.store.refuse(2)  # the first is the acceptance
        end = await host.ask("hello", run_id="r1")
        assert (str(end.state), end.error_kind) == ("error", "not_stored")
        await trio.sleep(2)  # it is tried again each second
        await host.check_quiet()
        copy_state(tmp_path / "state", tmp_path / "killed")
    async with open_test_runtime(tmp_path / "killed") as after:
        assert await after.runtime.runs.wait("r1") == end
        await after.check_quiet()


def test_a_scenario_is_played_once_whole_and_then_cut_off_at_each_of_its_steps(tmp_path: Path) -> None:
    places: list[float] = []
    finished: list[float] = []

    async def play(trigger: Trigger) -> None:
        places.append(trigger.place)
        async with open_test_runtime(tmp_path / str(trigger.place), script=[[TextDelta("Hello")]]) as host:
            with trio.CancelScope() as scope, trigger.armed(scope.cancel):
                await host.send("hi", run_id="r1")
            while run := host.runtime.runs.open_run("r1"):
                await run.ended.wait()
            await trio.testing.wait_all_tasks_blocked()
            if not scope.cancelled_caught:
                finished.append(trigger.place)
            await host.check_quiet()

    steps = cut_everywhere(play)
    assert places[1:] == list(range(1, steps + 2))
    assert finished[0] == float("inf") and len(finished) < len(places)


Break = Callable[[TestRuntime], object]


@pytest.mark.parametrize(
    "damage",
    [
        lambda host: host.events.events.pop(),
        lambda host: host.events.events.append(host.events.events[-1]),
        lambda host: host.store._store.db.execute("DELETE FROM messages WHERE seq = 3"),
        lambda host: host.store._store.db.execute("UPDATE runs SET state = 'running'"),
    ],
    ids=["no end", "two ends", "no result", "not over on disk"],
)
async def test_the_check_sees_what_is_wrong(tmp_path: Path, autojump_clock: Clock, damage: Break) -> None:
    async with open_test_runtime(tmp_path, tools=(SHOUT,)) as host:
        await host.ask('CALL:shout {"words": "hi"}')
        await trio.testing.wait_all_tasks_blocked()
        await host.check_quiet()
        while "Ended" not in type(host.events.events[-1]).__name__:  # the session's change is told after it
            host.events.events.pop()
        damage(host)
        with pytest.raises(AssertionError):
            await host.check_quiet()


# -- providers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
async def server() -> AsyncGenerator[ModelServer]:
    async with open_model_server() as server:
        yield server


@pytest.fixture
async def http() -> AsyncGenerator[HttpClient]:
    with closing(HttpClient()) as http:
        yield http


@pytest.mark.parametrize("api", ["openai-completions", "openai-responses", "anthropic-messages", "ollama"])
async def test_our_formats_keep_the_contract(server: ModelServer, http: HttpClient, api: str) -> None:
    await check_provider(open_provider(api, id="p", base_url=f"{server.url}/v1", http=http, discover=True))


async def test_our_other_providers_keep_it(server: ModelServer, http: HttpClient, tmp_path: Path) -> None:
    login = tmp_path / "auth.json"
    login.write_text(f'{{"tokens": {{"access_token": "{ACCOUNT_TOKEN}"}}}}')
    codex = open_provider("codex", base_url=f"{server.url}/codex", http=http, login_file=login)
    await check_provider(codex, await codex.resolve_dynamic("gpt-5.4"))
    scripted = ScriptedProvider()
    await check_provider(scripted)
    await check_provider(FaultyProvider(scripted, ()))

    async def open() -> ScriptedProvider:
        return scripted

    await check_provider(LateProvider(scripted.id, open))


class Wrong(ScriptedProvider):
    def __init__(self, part: str) -> None:
        super().__init__(id="wrong")
        self.part = part

    async def discover(self) -> Sequence[ModelInfo]:
        ref = ModelRef("other" if self.part == "another" else self.id, "m")
        return [ModelInfo(ref=ref, api="scripted", context_window=0 if self.part == "cannot be" else 9000)]

    async def resolve_dynamic(self, model_id: str) -> ModelInfo | None:
        known = model_id == "m" or self.part == "every model"
        return ModelInfo(ref=ModelRef(self.id, model_id), api="scripted") if known else None

    @trio.as_safe_channel
    async def stream(self, request: ModelRequest) -> AsyncGenerator[Sequence[ProviderEvent], None]:
        async with super().stream(request) as batches:
            async for batch in batches:
                if self.part != "Done" or not isinstance(batch[-1], Done):
                    yield batch  # noqa: ASYNC119, RUF100  as_safe_channel closes this generator where it runs
                if self.part == "its deltas say" and isinstance(batch[-1], TextDelta):
                    yield batch  # noqa: ASYNC119, RUF100  as_safe_channel closes this generator where it runs


@pytest.mark.parametrize("part", ["another", "cannot be", "every model", "Done", "its deltas say"])
async def test_a_provider_that_breaks_its_contract_is_told_which_part(part: str) -> None:
    said = ""
    try:
        await check_provider(Wrong(part))
    except* AssertionError as group:
        said = str(_first(group))
    assert part in said


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
