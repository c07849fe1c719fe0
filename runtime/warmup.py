"""The model warm-up: a service with one inbox that runs the providers' hooks and tells the catalogue.

It starts with the process and delays nothing: the port opens meanwhile. Each provider has its own task and deadline,
so that a dead one costs the others nothing. It uses the same hooks as a run that names an unknown model, because
that run asks here.
"""

from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from math import inf

import msgspec
import trio

from triops.agents.model import ModelInfo, ModelRef
from triops.runtime.bus import Bus
from triops.runtime.clock import Clock
from triops.runtime.events import ModelsChanged
from triops.runtime.logs import Log
from triops.runtime.models import ModelCatalog, ProviderEntry, SilentProvider

INBOX_CAPACITY = 16  # questions of runs; requests for one model merge, so that this is the number of models in doubt
DISCOVER_DEADLINE = 5.0  # seconds for a provider to list its models
DISCOVER_PAUSE = 1.0  # seconds after which a provider that failed to list them may be asked again
REFRESH_PAUSE = 10.0  # the same for one that gave its list, and has another model now perhaps
WARM_DEADLINE = 60.0  # seconds for the default model to be ready; a local one may load weights
ASK_DEADLINE = 15.0  # seconds that a run waits for a provider's hook

SystemPrompt = Callable[[ModelInfo], Awaitable[str]]
"""The system prompt that a turn of this model would send."""


class _Question(msgspec.Struct, eq=False):
    ref: ModelRef
    settled: trio.Event = msgspec.field(default_factory=trio.Event)
    answered: bool = False
    info: ModelInfo | None = None


class WarmupStatistics(msgspec.Struct, frozen=True):
    inbox: int
    inbox_capacity: int
    asking: int


class Warmup:
    """See the module; made by `open_warmup`. `run` is the service; the rest is asked by others."""

    def __init__(
        self,
        catalog: ModelCatalog,
        *,
        bus: Bus,
        clock: Clock,
        log: Log,
        system_prompt: SystemPrompt,
        inbox: tuple[trio.MemorySendChannel[_Question], trio.MemoryReceiveChannel[_Question]],
    ) -> None:
        self._catalog = catalog
        self._bus = bus
        self._clock = clock
        self._log = log
        self._system_prompt = system_prompt
        self._send, self._receive = inbox
        self._asking: dict[ModelRef, _Question] = {}
        self._listing = {entry.provider.id: trio.Lock() for entry in catalog.entries()}
        self._due = dict.fromkeys(self._listing, -inf)  # when each may be asked for its list
        catalog.served_by(self.ask)

    # -- asked by runs -------------------------------------------------------------------------------------------------

    async def ask(self, ref: ModelRef) -> ModelInfo | None:
        """What the provider's hooks say of a model that no list holds; None when it is not theirs.

        Raises:
            SilentProvider: it did not say in time, or there are too many questions.
        """
        question = self._asking.get(ref)
        if question is None:
            question = self._asking[ref] = _Question(ref)
            try:
                self._send.send_nowait(question)
            except trio.WouldBlock:
                del self._asking[ref]
                raise SilentProvider("too many models are being looked up; try again", retry_after=1.0) from None
        with trio.move_on_after(ASK_DEADLINE):
            await question.settled.wait()
        if not question.answered:
            raise SilentProvider(f"provider {ref.provider} did not say in time whether it has {ref.model}")
        return question.info

    async def default(self) -> str | None:
        """The model for who names none; looks around while there is none. None: there is no model at all."""
        if self._catalog.default is None:
            with trio.move_on_after(ASK_DEADLINE):
                await self._look_around()
        return self._catalog.default

    def statistics(self) -> WarmupStatistics:
        inbox = self._send.statistics()
        return WarmupStatistics(
            inbox=inbox.current_buffer_used, inbox_capacity=int(inbox.max_buffer_size), asking=len(self._asking)
        )

    # -- the service ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Warm every provider, then answer questions, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._begin, name="look around")
            while True:
                question = await self._receive.receive()
                nursery.start_soon(self._answer, question, name=f"ask for {question.ref}")

    async def _begin(self) -> None:
        await self._look_around()
        await self._warm_default()
        self._bus.publish(ModelsChanged(self._clock()))

    async def _look_around(self) -> None:
        async with trio.open_nursery() as nursery:
            for entry in self._catalog.entries():
                nursery.start_soon(self._discover, entry, name=f"discover {entry.provider.id}")
        if self._catalog.default is None:
            self._decide()

    async def _discover(self, entry: ProviderEntry) -> None:
        """Ask one provider for its models, now and then; its failure is its state, nobody else's.

        Who comes while it is asked waits for that answer. A server that starts later, or gets another model, is found
        by the next run that misses it.
        """
        id = entry.provider.id
        async with self._listing[id]:
            start = trio.current_time()
            if start < self._due[id]:
                return
            again = self._due[id] != -inf
            if not again:
                self._catalog.report(id, "warming")
            try:
                with trio.fail_after(DISCOVER_DEADLINE):
                    found = await entry.provider.discover()
                self._catalog.learn([info for info in found if info.ref.provider == id])
                self._catalog.report(id, "ready", ms=_since(start))
                self._due[id] = trio.current_time() + REFRESH_PAUSE
            except Exception as error:  # noqa: BLE001 - the plugin boundary
                slow = isinstance(error, trio.TooSlowError)
                reason = f"no answer within {DISCOVER_DEADLINE:.0f} s" if slow else str(error) or type(error).__name__
                self._catalog.report(id, "failed", reason=reason, ms=_since(start))
                self._log.info("a provider is not there", provider=id, reason=reason)
                self._due[id] = trio.current_time() + DISCOVER_PAUSE
            else:
                if again:
                    self._bus.publish(ModelsChanged(self._clock()))

    def _decide(self) -> None:
        """The best of what was found: providers are listed in the order of preference, those that failed come last."""
        known = self._catalog.models()
        failed = {state.provider for state in self._catalog.states() if state.state == "failed"}
        for entry in sorted(self._catalog.entries(), key=lambda entry: entry.provider.id in failed):
            mine = [info for info in known if info.ref.provider == entry.provider.id]
            if mine:
                self._catalog.choose_default(str(_preferred(mine).ref), entry.why)
                return

    async def _warm_default(self) -> None:
        """Make the first turn of the default model cost what a later one costs."""
        name = self._catalog.default
        if name is None:
            return
        start = trio.current_time()
        id = None
        try:
            with trio.fail_after(WARM_DEADLINE):
                resolved = await self._catalog.resolve(name)
                id = resolved.info.ref.provider
                self._catalog.report(id, "warming")
                await resolved.provider.warm(resolved.info, await self._system_prompt(resolved.info))
            self._catalog.report(id, "ready", ms=_since(start))
        except Exception as error:  # noqa: BLE001 - the plugin boundary
            slow = isinstance(error, trio.TooSlowError)
            reason = f"not warm within {WARM_DEADLINE:.0f} s" if slow else str(error) or type(error).__name__
            if id is not None:
                self._catalog.report(id, "failed", reason=reason, ms=_since(start))
            self._log.warning("the default model could not be warmed", model=name, reason=reason)

    async def _answer(self, question: _Question) -> None:
        """Let the provider's list arrive, then ask its hook. A hook that fails says that it does not have the model."""
        ref = question.ref
        entry = next(entry for entry in self._catalog.entries() if entry.provider.id == ref.provider)
        try:
            with trio.move_on_after(ASK_DEADLINE):
                await self._discover(entry)
                question.info = await self._look_up(entry, ref)
                question.answered = True
        except Exception as error:  # noqa: BLE001 - the plugin boundary
            question.answered = True
            self._catalog.report(ref.provider, "failed", reason=str(error) or type(error).__name__)
            self._log.warning("a provider's hook failed", provider=ref.provider, model=ref.model, error=error)
        finally:
            del self._asking[ref]
            question.settled.set()

    async def _look_up(self, entry: ProviderEntry, ref: ModelRef) -> ModelInfo | None:
        known = self._catalog.find(str(ref))
        if known is not None:
            return known.info
        info = await entry.provider.resolve_dynamic(ref.model)
        if info is None or info.ref != ref:  # another model is not the one that was asked for
            return None
        self._catalog.learn([info])
        self._catalog.report(ref.provider, "ready")
        return info


@contextmanager
def open_warmup(
    catalog: ModelCatalog, *, bus: Bus, clock: Clock, log: Log, system_prompt: SystemPrompt
) -> Generator[Warmup]:
    """The warm-up and its inbox, until the block ends; `run` is its service."""
    send, receive = trio.open_memory_channel[_Question](INBOX_CAPACITY)
    with send, receive:
        yield Warmup(catalog, bus=bus, clock=clock, log=log, system_prompt=system_prompt, inbox=(send, receive))


def _preferred(models: Sequence[ModelInfo]) -> ModelInfo:
    """Of a provider's models, the one to begin with: the first that its list does not call an embedding model."""
    return next((info for info in models if "embed" not in info.ref.model.lower()), models[0])


def _since(start: float) -> int:
    return round((trio.current_time() - start) * 1000)
