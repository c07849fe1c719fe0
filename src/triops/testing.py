"""For tests of tools, providers and host programs: a runtime on a virtual clock, a recorder of its events, a disk and a
provider that fail when told to, a driver that cuts a scenario off at each of its steps. ARCHITECTURE.md shows how.
"""

import math
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import msgspec
import trio
import trio.testing

from triops.agents.errors import ErrorKind, ProviderError
from triops.agents.messages import UserMessage
from triops.agents.model import (
    Authenticating,
    Done,
    ModelInfo,
    ModelRequest,
    Provider,
    ProviderEvent,
    TextDelta,
    possible,
)
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
    "check_provider",
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


async def check_provider(provider: Provider, model: ModelInfo | None = None) -> None:
    """Assert what the runtime relies on of a provider; each failure says which part of its contract it breaks.

    `model` is one that it serves, by default the first that it lists. It is asked some short questions, two of them at
    once, one that is left early and one that is cancelled. The caller sets the deadline.
    """
    id = provider.id
    assert id and "/" not in id, f"id: {id!r} cannot stand before the slash of a model reference"
    listed: list[Any] = list(await provider.discover())
    for info in listed:
        assert isinstance(info, ModelInfo), f"discover: {info!r} is no ModelInfo"
        assert info.ref.provider == id, f"discover: {info.ref} is another provider's"
        assert not (said := possible(info)[1]), f"discover: {info.ref}: {', '.join(said)}"
    assert len({info.ref for info in listed}) == len(listed), "discover: a model is listed twice"
    try:
        assert await provider.resolve_dynamic("no-model-has-this-id") is None, "resolve_dynamic: it has every model"
    except ProviderError:
        pass
    asked: ModelInfo | None = model or next(iter(listed), None)
    assert asked is not None, "discover: nothing is listed; say which model to ask"
    found = await provider.resolve_dynamic(asked.ref.model)
    assert found is None or found.ref == asked.ref, f"resolve_dynamic: it gave {found} for {asked.ref}"
    if isinstance(provider, Authenticating):
        expires: object = await provider.prepare_auth()
        assert expires is None or isinstance(expires, int), f"prepare_auth: {expires!r} is no time"
    await provider.warm(asked, "Be brief.")
    async with trio.open_nursery() as nursery:
        for words in ("SAY:one", "SAY:two"):
            nursery.start_soon(_check_answer, provider, asked, words)
    async with provider.stream(_question(asked, "SAY:left early")) as batches:
        async for _ in batches:
            break
    with trio.CancelScope() as scope:
        async with provider.stream(_question(asked, "SAY:cancelled")) as batches:
            async for _ in batches:
                scope.cancel(reason="the check")
                await trio.lowlevel.checkpoint()
    await _check_answer(provider, asked, "SAY:still usable")


def _question(model: ModelInfo, words: str) -> ModelRequest:
    message = UserMessage(words, timestamp=0)
    return ModelRequest(model=model, system="Be brief.", messages=(message,), max_tokens=min(64, model.max_tokens))


async def _check_answer(provider: Provider, model: ModelInfo, words: str) -> None:
    events: list[object] = []
    async with provider.stream(_question(model, words)) as batches:
        async for batch in batches:
            assert isinstance(batch, (list, tuple)), f"stream: {batch!r} is no list of events"
            events += batch
    assert all(isinstance(event, ProviderEvent) for event in events), f"stream: not all are events: {events}"
    ends = [event for event in events if isinstance(event, Done)]
    assert len(ends) == 1 and events[-1] is ends[0], f"stream: Done came {len(ends)} times, or not as the last event"
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    assert text == ends[0].message.text, f"stream: its deltas say {text!r}, its message {ends[0].message.text!r}"


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
