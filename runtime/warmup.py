"""The model warm-up: a service with one inbox that runs the providers' hooks and tells the catalogue.

It starts with the process and delays nothing: the port opens meanwhile. Each provider has its own task and deadline,
so that a dead one costs the others nothing. It uses the same hooks as a run that names an unknown model, because
that run asks here.
"""

from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from math import inf
from typing import Literal, NoReturn, cast

import msgspec
import trio

from triops.agents.errors import ProviderError
from triops.agents.model import Authenticating, ModelInfo, ModelRef, possible
from triops.runtime.bus import Bus
from triops.runtime.clock import Clock
from triops.runtime.events import ModelsChanged
from triops.runtime.logs import Log
from triops.runtime.models import ModelCatalog, ProviderEntry, SilentProvider

INBOX_CAPACITY = 16  # questions of runs; requests for one model merge, so that this is the number of models in doubt
DISCOVER_DEADLINE = 5.0  # seconds for a provider to list its models
DISCOVER_PAUSE = 1.0  # seconds after which a provider that failed to list them may be asked again
REFRESH_PAUSE = 10.0  # the same for one that gave its list, and has another model now perhaps
LOST_PAUSE = 30.0  # seconds after which one that was away is asked again though nobody needs it
WARM_DEADLINE = 60.0  # seconds for the default model to be ready; a local one may load weights
ASK_DEADLINE = 15.0  # seconds that a run waits for a provider's hook

SystemPrompt = Callable[[ModelInfo], Awaitable[str]]
"""The system prompt that a turn of this model would send."""


_Asked = ModelRef | Literal["any", "all"]
"""`any`: look around, as far as there was no answer lately; `all`: for all there is, and choose anew."""


class _Question(msgspec.Struct, eq=False):
    ref: "_Asked"
    settled: trio.Event = msgspec.field(default_factory=trio.Event)
    begun: bool = False
    answered: bool = False
    info: ModelInfo | None = None


class _Change(msgspec.Struct, eq=False):
    catalog: ModelCatalog
    taken_up: trio.Event = msgspec.field(default_factory=trio.Event)


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
        inbox: tuple[trio.MemorySendChannel[_Question | _Change], trio.MemoryReceiveChannel[_Question | _Change]],
    ) -> None:
        self._catalog = catalog
        self._bus = bus
        self._clock = clock
        self._log = log
        self._system_prompt = system_prompt
        self._send, self._receive = inbox
        self._asking: dict[_Asked, _Question] = {}
        self._listing = {entry.provider.id: trio.Lock() for entry in catalog.entries()}
        self._due = dict.fromkeys(self._listing, -inf)  # when each may be asked for its list
        self._warming: str | None = None
        """The provider whose default model is being warmed."""
        self._unwarmed: str | None = None
        """The one whose default model could not be warmed; "" if that model was not found."""
        self._lost = trio.Event()
        """Somebody failed in a way that passes."""
        catalog.served_by(self.ask)

    # -- asked by runs -------------------------------------------------------------------------------------------------

    async def ask(self, ref: ModelRef) -> ModelInfo | None:
        """What the provider's hooks say of a model that no list holds; None when it is not theirs.

        Raises:
            SilentProvider: it did not say in time, or there are too many questions.
        """
        question = await self._put(ref)
        if not question.answered:
            raise SilentProvider(f"provider {ref.provider} did not say in time whether it has {ref.model}")
        return question.info

    async def scan(self) -> None:
        """Have every provider asked for its models now, and a default that nobody configured chosen anew.

        Raises:
            SilentProvider: there are too many questions.
        """
        await self._put("all")

    async def reconfigure(self, catalog: ModelCatalog) -> None:
        """Have the catalogue become this one, and what is new in it warmed; returns when it has."""
        change = _Change(catalog)
        await self._send.send(change)
        await change.taken_up.wait()

    async def _put(self, ref: _Asked) -> _Question:
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
        return question

    def answered(self, id: str) -> None:
        """A run got its answer from a provider, whatever that said of itself before; sync."""
        state = self._catalog.state(id)
        if state is not None and state.state == "failed":
            self._settle(id, trio.current_time())

    async def default(self) -> str | None:
        """The model for who names none; has all looked around for while there is none. None: there is no model at all.

        Raises:
            SilentProvider: there are too many questions.
        """
        if self._catalog.default is None:
            await self._put("any")
        return self._catalog.default

    def statistics(self) -> WarmupStatistics:
        inbox = self._send.statistics()
        return WarmupStatistics(
            inbox=inbox.current_buffer_used, inbox_capacity=int(inbox.max_buffer_size), asking=len(self._asking)
        )

    # -- the service ---------------------------------------------------------------------------------------------------

    async def run(self) -> NoReturn:
        """Warm every provider, then answer questions, until cancelled; anew with each change of the configuration."""
        try:
            while True:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._begin, name="look around")
                    for question in self._asking.values():
                        if question.begun:  # and was cut off by a change
                            nursery.start_soon(self._answer, question)
                    change = await self._take(nursery)
                    nursery.cancel_scope.cancel(reason="the configuration changed")
                self._take_up(change)
        finally:
            for question in self._asking.values():
                question.settled.set()
            self._asking.clear()

    async def _take(self, nursery: trio.Nursery) -> _Change:
        """Start to answer questions, until the configuration changes."""
        while not isinstance(question := await self._receive.receive(), _Change):
            question.begun = True
            nursery.start_soon(self._answer, question, name=f"ask for {question.ref}")
        return question

    def _take_up(self, change: _Change) -> None:
        due, self._unwarmed, self._lost = self._due, None, trio.Event()
        self._catalog.become(change.catalog)
        ready = {state.provider for state in self._catalog.states() if state.state == "ready"}
        self._listing = {entry.provider.id: trio.Lock() for entry in self._catalog.entries()}
        self._due = {id: due[id] if id in ready else -inf for id in self._listing}
        change.taken_up.set()
        self._bus.publish(ModelsChanged(self._clock()))

    async def _begin(self) -> None:
        chosen = self._catalog.default is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_around)
            if chosen:  # nobody else's silence delays it
                nursery.start_soon(self._warm_default)
        if not chosen:
            await self._warm_default()
        for name in self._catalog.named:
            if name == self._catalog.default:
                continue
            try:
                await self._catalog.resolve(name)
            except Exception as error:  # noqa: BLE001 - the plugin boundary
                self._log.warning("a model of the configuration is not there", model=name, reason=str(error))
        await self._await_lost()

    async def _await_lost(self) -> NoReturn:
        """Ask those again that were away, until they answer."""
        while True:
            await self._lost.wait()
            await trio.sleep(LOST_PAUSE)
            self._lost = trio.Event()
            lost = [state.provider for state in self._catalog.states() if state.state == "failed" and state.transient]
            for id in lost:
                if id == self._unwarmed:
                    await self._warm_default()
                else:
                    await self._discover(self._entry(id))
            found = any(state.provider in lost and state.state == "ready" for state in self._catalog.states())
            if found and self._unwarmed == "":
                await self._warm_default()

    async def _scan(self, question: _Question) -> None:
        self._due = {id: min(due, trio.current_time()) for id, due in self._due.items()}
        before = self._catalog.default
        await self._look_around()
        if self._catalog.default_why != "configured":
            self._decide()
        self._settled(question)
        if self._catalog.default != before or self._unwarmed is not None:
            await self._warm_default()

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
        id, provider = entry.provider.id, entry.provider
        async with self._listing[id]:
            start = trio.current_time()
            if start < self._due[id]:
                return
            if self._due[id] == -inf:
                self._catalog.report(id, "warming")
            pause = DISCOVER_PAUSE
            try:
                with trio.fail_after(DISCOVER_DEADLINE):
                    expires = await provider.prepare_auth() if isinstance(provider, Authenticating) else None
                    found = await provider.discover()
                self._catalog.learn(self._believed(id, found), list_of=id)
                if self._warming != id:
                    self._settle(id, start, expires=expires)
                pause = REFRESH_PAUSE
            except Exception as error:  # noqa: BLE001 - the plugin boundary
                self._settle(id, start, error, f"no answer within {DISCOVER_DEADLINE:.0f} s")
            self._due[id] = trio.current_time() + pause

    def _believed(self, provider: str, found: object) -> list[ModelInfo]:
        """What a hook said of models, without numbers that cannot be and models of others. Raises what is no model."""
        models: list[ModelInfo] = []
        for given in cast("Sequence[object]", found):
            if not isinstance(given, ModelInfo):
                raise ProviderError("format", f"its hook gave {type(given).__name__} where a ModelInfo belongs")
            info, said = possible(msgspec.convert(msgspec.to_builtins(given), ModelInfo))
            if info.ref.provider != provider:
                said.append("it is another provider's, and not taken")
            else:
                models.append(info)
            for words in said:
                self._log.warning("a provider says what cannot be", provider=provider, model=info.ref, reason=words)
        return models

    def _settle(
        self, id: str, start: float, error: Exception | None = None, slow: str = "", expires: int | None = None
    ) -> None:
        """Tell how asking a provider ended: the catalogue, the log, and, if that is news, the clients."""
        before = self._catalog.state(id)
        if error is None:
            self._catalog.report(id, "ready", ms=_since(start), expires=expires)
        else:
            late = isinstance(error, trio.TooSlowError)
            transient = late or isinstance(error, OSError) or (isinstance(error, ProviderError) and error.retryable)
            reason = slow if late else str(error) or type(error).__name__
            kind = error.kind if isinstance(error, ProviderError) else "unclassified"
            self._catalog.report(id, "failed", reason=reason, ms=_since(start), kind=kind, transient=transient)
            if transient:
                self._lost.set()
        now = self._catalog.state(id)
        assert before is not None and now is not None
        if (before.state, before.reason, before.models) != (now.state, now.reason, now.models):
            words = "a provider is not there" if error else "a provider is ready"
            told = {"reason": now.reason} if error else {"models": now.models}
            self._log.info(words, provider=id, **told, ms=now.ms)
            self._bus.publish(ModelsChanged(self._clock()))

    def _entry(self, id: str) -> ProviderEntry:
        return next(entry for entry in self._catalog.entries() if entry.provider.id == id)

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
        try:
            with trio.fail_after(WARM_DEADLINE):
                resolved = await self._catalog.resolve(name)
                self._warming = id = resolved.info.ref.provider
                await self._discover(self._entry(id))
                self._catalog.report(id, "warming")
                await resolved.provider.warm(resolved.info, await self._system_prompt(resolved.info))
            self._settle(id, start)
            self._unwarmed = None
        except Exception as error:  # noqa: BLE001 - the plugin boundary
            slow = f"not warm within {WARM_DEADLINE:.0f} s"
            reason = slow if isinstance(error, trio.TooSlowError) else str(error) or type(error).__name__
            if self._warming is not None:
                self._settle(self._warming, start, error, slow)
            else:
                self._catalog.miss_default(reason)
                self._bus.publish(ModelsChanged(self._clock()))
            if self._unwarmed is None:
                self._log.warning("the default model could not be warmed", model=name, reason=reason)
            self._unwarmed = self._warming or ""
        finally:
            self._warming = None

    def _settled(self, question: _Question) -> None:
        del self._asking[question.ref]
        question.settled.set()

    async def _answer(self, question: _Question) -> None:
        if isinstance(question.ref, ModelRef):
            await self._find(question, question.ref)
        elif question.ref == "all":
            await self._scan(question)
        else:
            await self._look_around()
            self._settled(question)

    async def _find(self, question: _Question, ref: ModelRef) -> None:
        """Let the provider's list arrive, then ask its hook. A hook that fails says that it does not have the model."""
        if self._catalog.state(ref.provider) is None:  # a change of the configuration dropped it meanwhile
            question.answered = True
            self._settled(question)
            return
        start = trio.current_time()
        try:
            with trio.move_on_after(ASK_DEADLINE):
                await self._discover(self._entry(ref.provider))
                question.info = await self._look_up(ref, start)
                question.answered = True
        except Exception as error:  # noqa: BLE001 - the plugin boundary
            question.answered = True
            self._settle(ref.provider, start, error)
            self._log.warning("a provider's hook failed", provider=ref.provider, model=ref.model, error=error)
        self._settled(question)

    async def _look_up(self, ref: ModelRef, start: float) -> ModelInfo | None:
        known = self._catalog.find(str(ref))
        if known is not None:
            return known.info
        info = await self._entry(ref.provider).provider.resolve_dynamic(ref.model)
        if info is None:
            return None
        for believed in self._believed(ref.provider, (info,)):
            if believed.ref == ref:  # another model is not the one that was asked for
                self._catalog.learn((believed,))
                if self._warming != ref.provider:
                    self._settle(ref.provider, start)
                return believed
        return None


@contextmanager
def open_warmup(
    catalog: ModelCatalog, *, bus: Bus, clock: Clock, log: Log, system_prompt: SystemPrompt
) -> Generator[Warmup]:
    """The warm-up and its inbox, until the block ends; `run` is its service."""
    send, receive = trio.open_memory_channel[_Question | _Change](INBOX_CAPACITY)
    with send, receive:
        yield Warmup(catalog, bus=bus, clock=clock, log=log, system_prompt=system_prompt, inbox=(send, receive))


def _preferred(models: Sequence[ModelInfo]) -> ModelInfo:
    """Of a provider's models, the one to begin with: the first that its list does not call an embedding model."""
    return next((info for info in models if "embed" not in info.ref.model.lower()), models[0])


def _since(start: float) -> int:
    return round((trio.current_time() - start) * 1000)
