"""For tests of tools, providers and host programs: a runtime on a virtual clock, a recorder of its events, a disk and a
provider that fail when told to, a driver that cuts a scenario off at each of its steps. ARCHITECTURE.md shows how.
"""

import math
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import msgspec
import trio
import trio.testing

from triops.agents.errors import ErrorKind, ProviderError
from triops.agents.model import ModelInfo, ModelRequest, Provider, ProviderEvent
from triops.agents.providers.scripted import ScriptedProvider
from triops.runtime.models import ProviderEntry
from triops.runtime.testing import (
    EventRecorder,
    FaultyStore,
    InlineStore,
    TestRuntime,
    copy_state,
    open_inline_store,
    open_test_runtime,
)

__all__ = [
    "EventRecorder",
    "Fault",
    "FaultyProvider",
    "FaultyStore",
    "InlineStore",
    "ProviderEntry",
    "ScriptedProvider",
    "TestRuntime",
    "Trigger",
    "chaos",
    "copy_state",
    "cut_everywhere",
    "open_inline_store",
    "open_test_runtime",
]


class Fault(msgspec.Struct, frozen=True):
    """What happens to an answer when `after` of its batches have passed: an exception, silence, or an end too soon."""

    after: int
    then: Exception | Literal["hang", "end"]


class FaultyProvider:
    """A provider whose answers fail where they are told to.

    `faults` has an entry an answer: None lets it pass, and so does the end of the list; `chaos` makes an endless one.
    """

    def __init__(self, provider: Provider, faults: Iterable[Fault | None]) -> None:
        self.id = provider.id
        self._provider = provider
        self._faults = iter(faults)

    @trio.as_safe_channel
    async def stream(self, request: ModelRequest) -> AsyncGenerator[Sequence[ProviderEvent], None]:
        fault = next(self._faults, None)
        passed = 0
        async with self._provider.stream(request) as batches:
            async for batch in batches:
                if fault is not None and passed == fault.after:
                    if isinstance(fault.then, Exception):
                        raise fault.then
                    if fault.then == "hang":
                        await trio.sleep_forever()
                    return
                passed += 1
                yield batch  # noqa: ASYNC119, RUF100  as_safe_channel closes this generator where it runs

    async def discover(self) -> Sequence[ModelInfo]:
        return await self._provider.discover()

    async def resolve_dynamic(self, model_id: str) -> ModelInfo | None:
        return await self._provider.resolve_dynamic(model_id)

    async def warm(self, model: ModelInfo, system: str) -> None:
        await self._provider.warm(model, system)


def chaos(seed: int, *, batches: int = 8) -> Iterator[Fault | None]:
    """Faults without end, the same for the same seed: each answer passes, or fails within its first `batches`."""
    dice = random.Random(seed)  # noqa: S311 - not a secret
    kinds: tuple[ErrorKind, ...] = ("auth", "rate_limit", "server_error", "timeout", "connection", "context_overflow")
    while True:
        kind = dice.choice(kinds)
        after = dice.randrange(batches)
        yield dice.choice([None, Fault(after, "hang"), Fault(after, "end"), Fault(after, ProviderError(kind, kind))])


class Trigger(trio.abc.Instrument):
    """Calls something before the `place`th step that tasks take while it is armed."""

    def __init__(self, place: float = math.inf) -> None:
        self.place = place
        self.steps = 0
        """Taken so far."""
        self._pull: Callable[[], object] = lambda: None

    @contextmanager
    def armed(self, pull: Callable[[], object]) -> Generator[None]:
        """`pull` (sync) is what cuts: a scope's `cancel`, an abort, a copy of the state."""
        self._pull = pull
        trio.lowlevel.add_instrument(self)
        try:
            yield
        finally:
            trio.lowlevel.remove_instrument(self)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1
        if self.steps == self.place:
            self._pull()


def cut_everywhere(play: Callable[[Trigger], Awaitable[None]], *, stride: int = 1, first: int = 1) -> int:
    """Play a scenario once to its end, and then again for every `stride`th of its steps from the `first` on, each time
    in a Trio run of its own on a mock clock; gives back the number of steps.

    `play` opens what it needs in a folder of its own (`trigger.place` tells them apart), arms the trigger around what
    may be cut off, and asserts what must hold wherever that was.
    """

    def run(place: float) -> int:
        trigger = Trigger(place)
        trio.run(play, trigger, clock=trio.testing.MockClock(autojump_threshold=0))
        return trigger.steps

    steps = run(math.inf)
    for place in range(first, steps + 2, stride):
        run(place)
    return steps
