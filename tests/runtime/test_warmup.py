"""How the warm-up finds providers, those too that come later than the process."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from triops.agents.errors import ProviderError
from triops.agents.model import ModelInfo, ModelRef, Prices
from triops.agents.providers.scripted import ScriptedProvider
from triops.runtime.bus import Bus
from triops.runtime.clock import trio_clock
from triops.runtime.logs import Log, Record
from triops.runtime.models import ModelCatalog, ProviderEntry, UnknownModel
from triops.runtime.warmup import DISCOVER_DEADLINE, DISCOVER_PAUSE, LOST_PAUSE, REFRESH_PAUSE, Warmup, open_warmup


class LateServer(ScriptedProvider):
    """A provider that nobody can reach until it is `up`."""

    up = False
    names: tuple[str, ...] = ("m", "n")
    asked = 0

    async def discover(self) -> Sequence[ModelInfo]:
        self.asked += 1
        await trio.sleep(0.1)
        if not self.up:
            raise OSError("nobody listens")
        return [ModelInfo(ref=ModelRef("late", name), api="scripted", context_window=9999) for name in self.names]

    async def resolve_dynamic(self, model_id: str) -> None:
        """None: it lists all it has."""

    async def warm(self, model: ModelInfo, system: str) -> None:
        """It is warm."""


@pytest.fixture
def server() -> LateServer:
    return LateServer(id="late")


@pytest.fixture
def catalog(server: LateServer) -> ModelCatalog:
    return ModelCatalog([ProviderEntry(provider=server, why="the test")], aliases={}, default=None)


@pytest.fixture
async def warmup(catalog: ModelCatalog, nursery: Any) -> AsyncGenerator[Warmup]:
    """A warm-up that has looked around and found nobody."""

    async def system_prompt(info: ModelInfo) -> str:
        return ""

    log = Log()
    with open_warmup(catalog, bus=Bus(log), clock=trio_clock(0), log=log, system_prompt=system_prompt) as warmup:
        nursery.start_soon(warmup.run)
        assert await warmup.default() is None
        yield warmup
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_a_server_that_starts_later_is_found_by_the_next_run_that_names_its_model(
    warmup: Warmup, catalog: ModelCatalog, server: LateServer, autojump_clock: Any
) -> None:
    await trio.sleep(DISCOVER_PAUSE)
    with pytest.raises(UnknownModel, match="because provider late failed: nobody listens"):
        await catalog.resolve("late/m")
    server.up = True
    await trio.sleep(DISCOVER_PAUSE)
    assert str((await catalog.resolve("late/m")).info.ref) == "late/m"
    state = catalog.state("late")
    assert state is not None and (state.state, state.reason, state.models) == ("ready", "", 2)


async def test_a_server_that_starts_later_gives_the_model_for_who_names_none(
    warmup: Warmup, server: LateServer, autojump_clock: Any
) -> None:
    server.up = True
    await trio.sleep(DISCOVER_PAUSE)
    assert await warmup.default() == "late/m"


async def test_runs_at_once_ask_a_failed_server_once_and_the_next_only_after_a_pause(
    warmup: Warmup, catalog: ModelCatalog, server: LateServer, autojump_clock: Any
) -> None:
    async def fail(name: str) -> None:
        with pytest.raises(UnknownModel):
            await catalog.resolve(name)

    assert server.asked == 1
    await fail("late/m")
    assert server.asked == 1
    await trio.sleep(DISCOVER_PAUSE)
    async with trio.open_nursery() as nursery:
        for name in ("late/m", "late/m", "late/n"):
            nursery.start_soon(fail, name)
        nursery.start_soon(warmup.default)
    assert server.asked == 2


async def test_a_model_that_a_server_gets_later_is_found_by_the_first_run_that_names_it_after_a_pause(
    warmup: Warmup, catalog: ModelCatalog, server: LateServer, autojump_clock: Any
) -> None:
    server.up = True
    await trio.sleep(DISCOVER_PAUSE)
    await catalog.resolve("late/m")
    server.names += ("other",)
    await trio.sleep(REFRESH_PAUSE - 0.1)
    with pytest.raises(UnknownModel, match=r"is ready and does not have it .looked for among its 2 and by its hook"):
        await catalog.resolve("late/other")
    assert server.asked == 2
    await trio.sleep(0.1)
    assert str((await catalog.resolve("late/other")).info.ref) == "late/other"
    assert server.asked == 3


# -- a warm-up of several providers ------------------------------------------------------------------------------------


class Stage:
    """A warm-up that runs, and what it told."""

    def __init__(self, catalog: ModelCatalog, warmup: Warmup, log: list[Record], events: list[object]) -> None:
        self.catalog = catalog
        self.warmup = warmup
        self.log = log
        self.events = events

    def states(self) -> dict[str, str]:
        return {state.provider: state.state for state in self.catalog.states()}

    def reason(self, provider: str) -> str:
        state = self.catalog.state(provider)
        assert state is not None
        return state.reason


@asynccontextmanager
async def open_stage(*providers: Any, default: str | None = None, named: Sequence[str] = ()) -> AsyncGenerator[Stage]:
    log: list[Record] = []
    events: list[object] = []

    async def system_prompt(info: ModelInfo) -> str:
        return "the prompt"

    entries = [ProviderEntry(provider=provider, why="the test") for provider in providers]
    catalog = ModelCatalog(entries, aliases={}, default=default, named=named)
    logger = Log(log.append)
    bus = Bus(logger)
    with (
        bus.subscribe(events.append),
        open_warmup(catalog, bus=bus, clock=trio_clock(0), log=logger, system_prompt=system_prompt) as warmup,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(warmup.run)
            yield Stage(catalog, warmup, log, events)
            nursery.cancel_scope.cancel(reason="the test is over")


class Shelf(ScriptedProvider):
    """A provider that lists `listed`, makes up whatever begins with `made-`, and remembers what it warmed."""

    def __init__(self, id: str, *listed: Any) -> None:
        super().__init__(id=id)
        self.listed: Any = listed
        self.warmed: list[tuple[str, str]] = []
        self.failure: Exception | None = None

    async def discover(self) -> Any:
        return [info(self.id, name) if isinstance(name, str) else name for name in self.listed]

    async def resolve_dynamic(self, model_id: str) -> ModelInfo | None:
        return info(self.id, model_id) if model_id.startswith("made-") else None

    async def warm(self, model: ModelInfo, system: str) -> None:
        if self.failure is not None:
            raise self.failure
        self.warmed.append((model.ref.model, system))


def info(provider: str, model: str, **more: Any) -> ModelInfo:
    return ModelInfo(ref=ModelRef(provider, model), api="scripted", **more)


class Hung(Shelf):
    async def discover(self) -> Any:
        await trio.sleep_forever()


class Crashing(Shelf):
    async def discover(self) -> Any:
        raise ZeroDivisionError("its own fault")

    async def resolve_dynamic(self, model_id: str) -> ModelInfo | None:
        raise ZeroDivisionError("again")


async def test_models_that_only_a_hook_knows_are_resolved_and_warmed_before_the_first_message(
    autojump_clock: Any,
) -> None:
    shelf = Shelf("lab")
    async with open_stage(shelf, default="lab/made-a/b", named=("lab/made-a/b", "lab/made-c")) as stage:
        await trio.testing.wait_all_tasks_blocked()
        assert shelf.warmed == [("made-a/b", "the prompt")]
        assert [str(found.ref) for found in stage.catalog.models()] == ["lab/made-a/b", "lab/made-c"]
        assert stage.states() == {"lab": "ready"}
        assert not [record for record in stage.log if "nknown" in record.message or record.level == "warn"]


async def test_a_model_of_the_configuration_that_nobody_has_is_said_at_the_start(autojump_clock: Any) -> None:
    async with open_stage(Shelf("lab", "a"), default="lab/a", named=("lab/b",)) as stage:
        await trio.testing.wait_all_tasks_blocked()
        (told,) = [record for record in stage.log if record.level == "warn"]
        assert told.fields["model"] == "lab/b" and "provider lab is ready and does not have it" in told.fields["reason"]


async def test_a_default_model_that_nobody_has_is_said_once_and_shown_until_it_is_there(autojump_clock: Any) -> None:
    shelf = Shelf("lab", "a")
    async with open_stage(shelf, default="lab/b", named=("lab/b",)) as stage:
        await trio.testing.wait_all_tasks_blocked()
        (told,) = [record for record in stage.log if record.level == "warn"]
        assert told.fields["model"] == "lab/b" and stage.catalog.default_fault == told.fields["reason"]
        assert "provider lab is ready and does not have it" in stage.catalog.default_fault
        shelf.listed = ("a", "b")
        await trio.sleep(REFRESH_PAUSE)
        await stage.warmup.scan()
        assert stage.catalog.default_fault == ""


async def test_dead_slow_lying_and_crashing_providers_cost_the_others_nothing(autojump_clock: Any) -> None:
    dead, good = LateServer(id="late"), Shelf("good", "m")
    liar = Shelf("liar", info("good", "stolen"), info("liar", "odd", context_window=-1, cost=Prices(input=-2)))
    fool = Shelf("fool", 42)
    async with open_stage(Hung("hung"), Crashing("crash"), fool, liar, dead, good, default="good/m") as stage:
        await trio.testing.wait_all_tasks_blocked()
        assert good.warmed == [("m", "the prompt")]
        assert stage.states() | {"late": ""} == {
            "hung": "warming",
            "crash": "failed",
            "fool": "failed",
            "liar": "ready",
            "good": "ready",
            "late": "",
        }
        await trio.sleep(DISCOVER_DEADLINE)
        await trio.testing.wait_all_tasks_blocked()
        assert stage.reason("hung") == "no answer within 5 s"
        assert stage.reason("fool") == "its hook gave int where a ModelInfo belongs"
        odd = stage.catalog.find("liar/odd")
        assert odd is not None and (odd.info.context_window, odd.info.cost) == (128_000, Prices())
        assert stage.catalog.find("good/stolen") is None
        said = [record.fields["reason"] for record in stage.log if record.message == "a provider says what cannot be"]
        assert len(said) == 3 and "it is another provider's, and not taken" in said
        with pytest.raises(UnknownModel, match="because provider crash failed: again"):
            await stage.catalog.resolve("crash/m")


async def test_a_server_that_was_away_is_found_though_nobody_asks_and_its_model_warmed(autojump_clock: Any) -> None:
    away = LateServer(id="late")
    async with open_stage(away, Crashing("crash"), default="late/m") as stage:
        await trio.sleep(1)
        assert stage.states() == {"late": "failed", "crash": "failed"}
        asked, told = away.asked, len(stage.events)
        await trio.sleep(LOST_PAUSE)
        assert away.asked == asked + 1 and len(stage.events) == told
        away.up = True
        await trio.sleep(LOST_PAUSE)
        assert stage.states() == {"late": "ready", "crash": "failed"}
        assert len(stage.events) > told


async def test_a_default_model_that_could_not_be_warmed_is_warmed_when_its_server_is_back(autojump_clock: Any) -> None:
    shelf = Shelf("lab", "m")
    shelf.failure = ProviderError("connection", "nobody listens", retryable=True)
    async with open_stage(shelf, default="lab/m") as stage:
        await trio.sleep(1)
        assert (stage.states(), stage.reason("lab")) == ({"lab": "failed"}, "nobody listens")
        shelf.failure = None
        await trio.sleep(LOST_PAUSE)
        assert (stage.states(), shelf.warmed) == ({"lab": "ready"}, [("m", "the prompt")])


async def test_a_refused_key_is_not_tried_again_by_itself(autojump_clock: Any) -> None:
    shelf = Shelf("lab", "m")
    shelf.failure = ProviderError("auth", "the key is wrong")
    async with open_stage(shelf, default="lab/m") as stage:
        await trio.sleep(1)
        shelf.failure = None
        await trio.sleep(10 * LOST_PAUSE)
        assert (stage.states(), stage.reason("lab")) == ({"lab": "failed"}, "the key is wrong")


async def test_a_scan_takes_in_what_is_new_and_forgets_what_is_gone(autojump_clock: Any) -> None:
    better, last = Shelf("better"), Shelf("last", "a", "b")
    async with open_stage(better, last) as stage:
        await trio.testing.wait_all_tasks_blocked()
        assert stage.catalog.default == "last/a"
        last.listed, better.listed = ("b", "c"), ("m",)
        await stage.warmup.scan()
        assert {str(found.ref) for found in stage.catalog.models()} == {"last/b", "last/c", "better/m"}
        await trio.testing.wait_all_tasks_blocked()
        assert stage.catalog.default == "better/m" and better.warmed == [("m", "the prompt")]


async def test_a_bare_id_that_two_providers_have_is_answered_with_both(autojump_clock: Any) -> None:
    async with open_stage(Shelf("one", "m"), Shelf("two", "m")) as stage:
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(UnknownModel, match="'m' is not one model: write one/m or two/m"):
            await stage.catalog.resolve("m")


async def test_a_credential_is_made_ready_before_the_first_message_and_its_lack_is_the_state(
    autojump_clock: Any,
) -> None:
    class Account(Shelf):
        async def prepare_auth(self) -> int:
            if self.id == "out":
                raise ProviderError("auth", "nobody is logged in; run: lab login")
            return 1_900_000_000_000

    async with open_stage(Account("in", "m"), Account("out", "m")) as stage:
        await trio.testing.wait_all_tasks_blocked()
        assert stage.states() == {"in": "ready", "out": "failed"}
        assert stage.reason("out") == "nobody is logged in; run: lab login"
        state = stage.catalog.state("in")
        assert state is not None and state.expires == 1_900_000_000_000


async def test_a_provider_that_answers_a_run_is_not_called_failed_any_more(autojump_clock: Any) -> None:
    shelf = Shelf("lab", "m")
    shelf.failure = ProviderError("auth", "nobody is logged in")
    async with open_stage(shelf, default="lab/m") as stage:
        await trio.sleep(1)
        assert stage.states() == {"lab": "failed"}
        told = len(stage.events)
        stage.warmup.answered("lab")
        assert (stage.states(), stage.reason("lab"), len(stage.events)) == ({"lab": "ready"}, "", told + 1)


async def test_a_model_that_was_unloaded_is_cold_until_it_is_loaded_again(autojump_clock: Any) -> None:
    class Sleepy(Shelf):
        rest = ""

    sleepy = Sleepy("lab", "m")
    async with open_stage(sleepy, default="lab/m") as stage:
        await trio.sleep(1)
        assert stage.states() == {"lab": "ready"}
        sleepy.rest = "unloaded; the next message loads it"
        assert (stage.states(), stage.reason("lab")) == ({"lab": "cold"}, sleepy.rest)
        sleepy.rest = ""
        assert (stage.states(), stage.reason("lab")) == ({"lab": "ready"}, "")


async def test_a_question_that_a_change_of_the_configuration_cuts_off_is_asked_of_the_new_one(
    autojump_clock: Any,
) -> None:
    class Slow(Shelf):
        async def discover(self) -> Any:
            await trio.sleep(4)
            return await super().discover()

    async with open_stage(Shelf("other"), Slow("lab")) as stage, trio.open_nursery() as nursery:
        found: list[str] = []

        async def ask() -> None:
            found.append(str((await stage.catalog.resolve("lab/made-x")).info.ref))

        nursery.start_soon(ask)
        await trio.sleep(1)
        changed = Shelf("lab")
        entries = [ProviderEntry(provider=changed, why="the test")]
        await stage.warmup.reconfigure(ModelCatalog(entries, aliases={}, default="lab/made-y"))
        await trio.testing.wait_all_tasks_blocked()
        assert found == ["lab/made-x"] and trio.current_time() < 4
        assert changed.warmed == [("made-y", "the prompt")] and stage.states() == {"lab": "ready"}


async def test_a_question_about_a_provider_that_a_change_of_the_configuration_drops_is_answered_with_no(
    autojump_clock: Any,
) -> None:
    class Slow(Shelf):
        async def discover(self) -> Any:
            await trio.sleep(4)
            return await super().discover()

    async with open_stage(Shelf("other"), Slow("lab")) as stage, trio.open_nursery() as nursery:
        said: list[str] = []

        async def ask() -> None:
            with pytest.raises(UnknownModel) as caught:
                await stage.catalog.resolve("lab/made-x")
            said.append(str(caught.value))

        nursery.start_soon(ask)
        await trio.sleep(1)
        entries = [ProviderEntry(provider=Shelf("other"), why="the test")]
        await stage.warmup.reconfigure(ModelCatalog(entries, aliases={}, default=None))
        await trio.testing.wait_all_tasks_blocked()
        assert said and "no provider of that name (known: other)" in said[0] and trio.current_time() < 4
