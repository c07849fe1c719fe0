"""Providers that are opened when they are first asked: those of other packages, those whose key a command gives.

Whatever such a one does wrong by its own fault is a `ProviderError` here, so that it costs nobody else anything. It
cannot be helped if it blocks the loop.
"""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, cast, get_args

import trio

from triops.agents.errors import ProviderError
from triops.agents.model import Authenticating, ModelInfo, ModelRequest, Provider, ProviderEvent
from triops.agents.providers import plugins

OPEN_DEADLINE = 15.0  # seconds
_HOOKS = ("stream", "discover", "resolve_dynamic", "warm")


class LateProvider:
    """The `Provider` that `open` gives, which may wait and is asked again after it failed, or its key was refused."""

    def __init__(self, id: str, open: Callable[[], Awaitable[Provider]]) -> None:
        self.id = id
        self._open = open
        self._opening = trio.Lock()
        self._provider: Provider | None = None

    @asynccontextmanager
    async def stream(self, request: ModelRequest) -> AsyncGenerator[AsyncIterable[Sequence[ProviderEvent]]]:
        provider = await self._opened()
        callers: list[Exception] = []
        with self.own_faults(callers):
            async with provider.stream(request) as batches:
                try:
                    yield _Batches(batches, self)
                except Exception as error:
                    callers.append(error)
                    raise

    async def prepare_auth(self) -> int | None:
        provider = await self._opened()
        return await provider.prepare_auth() if isinstance(provider, Authenticating) else None

    async def discover(self) -> Sequence[ModelInfo]:
        with self.own_faults():
            return await (await self._opened()).discover()

    async def resolve_dynamic(self, model_id: str) -> ModelInfo | None:
        with self.own_faults():
            return await (await self._opened()).resolve_dynamic(model_id)

    async def warm(self, model: ModelInfo, system: str) -> None:
        with self.own_faults():
            await (await self._opened()).warm(model, system)

    async def _opened(self) -> Provider:
        with self.own_faults(), trio.fail_after(OPEN_DEADLINE):
            async with self._opening:
                if self._provider is None:
                    self._provider = await self._open()
                return self._provider

    @contextmanager
    def own_faults(self, callers: Sequence[Exception] = ()) -> Generator[None]:
        """Make a `ProviderError` of whatever fails inside, but of the caller's errors."""
        try:
            yield
        except ProviderError as error:
            if error.kind == "auth":
                self._provider = None
            raise
        except trio.TooSlowError as error:
            if any(error is each for each in callers):
                raise
            raise ProviderError("timeout", f"{self.id} did not open in time", retryable=True) from None
        except StopAsyncIteration:
            raise
        except Exception as error:
            if any(error is each for each in callers):
                raise
            raise ProviderError("unclassified", f"{self.id} failed by its own fault: {error!r}") from error


class _Batches:
    """The batches of a provider that may fail, or give what is no batch."""

    def __init__(self, batches: AsyncIterable[Sequence[ProviderEvent]], owner: LateProvider) -> None:
        self._batches = aiter(batches)
        self._owner = owner

    def __aiter__(self) -> AsyncIterator[Sequence[ProviderEvent]]:
        return self

    async def __anext__(self) -> Sequence[ProviderEvent]:
        with self._owner.own_faults():
            batch: object = await anext(self._batches)
            if not isinstance(batch, (list, tuple)) or not all(
                isinstance(each, get_args(ProviderEvent)) for each in batch
            ):
                raise TypeError("a batch is a list of events")
            return cast("Sequence[ProviderEvent]", batch)


def open_plugin(api: str, settings: dict[str, Any]) -> LateProvider:
    """The provider of another package that speaks `api`; imported in a thread when it is first asked."""
    point, limiter, id = plugins()[api], trio.CapacityLimiter(1), str(settings["id"])

    def load() -> Any:
        try:
            return point.load()
        except SystemExit as error:
            raise ImportError(f"it ended itself: {error}") from error

    async def open() -> Provider:
        try:
            # A thread that was given up on holds the limiter: there is never a second one.
            make = await trio.to_thread.run_sync(load, abandon_on_cancel=True, limiter=limiter)
            provider = make(**settings)
        except Exception as error:
            words = f"the plugin {point.value!r} for {api!r} cannot be opened: {error!r}; update or uninstall it"
            raise ProviderError("unclassified", words) from error
        lacking = [hook for hook in _HOOKS if not callable(getattr(provider, hook, None))]
        if lacking or provider.id != id:
            fault = f"has no {', '.join(lacking)}" if lacking else f"calls itself {provider.id!r} instead of {id!r}"
            raise ProviderError("format", f"the plugin {point.value!r} for {api!r} {fault}")
        return cast("Provider", provider)

    return LateProvider(id, open)
