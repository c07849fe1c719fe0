"""How the warm-up finds providers, those too that come later than the process."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest
import trio

from triops.agents.model import ModelInfo, ModelRef
from triops.agents.providers.scripted import ScriptedProvider
from triops.runtime.bus import Bus
from triops.runtime.clock import trio_clock
from triops.runtime.logs import Log
from triops.runtime.models import ModelCatalog, ProviderEntry, UnknownModel
from triops.runtime.warmup import DISCOVER_PAUSE, REFRESH_PAUSE, Warmup, open_warmup


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
async def warmup(catalog: ModelCatalog, autojump_clock: Any, nursery: Any) -> AsyncGenerator[Warmup]:
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
    warmup: Warmup, catalog: ModelCatalog, server: LateServer
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
    warmup: Warmup, server: LateServer
) -> None:
    server.up = True
    await trio.sleep(DISCOVER_PAUSE)
    assert await warmup.default() == "late/m"


async def test_runs_at_once_ask_a_failed_server_once_and_the_next_only_after_a_pause(
    warmup: Warmup, catalog: ModelCatalog, server: LateServer
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
    warmup: Warmup, catalog: ModelCatalog, server: LateServer
) -> None:
    server.up = True
    await trio.sleep(DISCOVER_PAUSE)
    await catalog.resolve("late/m")
    server.names += ("other",)
    await trio.sleep(REFRESH_PAUSE - 0.1)
    with pytest.raises(UnknownModel, match="is ready and does not have it"):
        await catalog.resolve("late/other")
    assert server.asked == 2
    await trio.sleep(0.1)
    assert str((await catalog.resolve("late/other")).info.ref) == "late/other"
    assert server.asked == 3
