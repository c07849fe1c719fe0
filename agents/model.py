"""What a model is, what is asked of it, and the contract of those who serve one.

A *provider* speaks to one endpoint. What it gives back while it streams are the events below, in lists: one list is
what one network read held, so that a burst of fragments costs one hand-over.
"""

from collections.abc import AsyncIterable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec

from triops.agents.messages import AssistantMessage, Message

InputKind = Literal["text", "image"]


class ModelRef(msgspec.Struct, frozen=True, order=True):
    """`provider/model`, split at the first slash: the model's id may hold more of them."""

    provider: str
    model: str

    @classmethod
    def parse(cls, text: str) -> "ModelRef":
        """Split `provider/model`.

        Raises:
            ValueError: one of the halves is empty.
        """
        provider, _, model = text.strip().partition("/")
        if not provider or not model:
            raise ValueError(f"{text!r} is not a model reference; write provider/model")
        return cls(provider, model)

    def __str__(self) -> str:
        return f"{self.provider}/{self.model}"


class Prices(msgspec.Struct, frozen=True, rename="camel"):
    """USD per million tokens."""

    input: float = 0
    output: float = 0
    cache_read: float = 0
    cache_write: float = 0


class Compat(msgspec.Struct, frozen=True, rename="camel"):
    """Where an endpoint differs from its dialect's reference; keys are OpenClaw's `compat` keys."""

    supports_tools: bool = True
    supports_developer_role: bool = False
    supports_usage_in_streaming: bool = True
    supports_temperature: bool = True
    supports_store: bool = False
    requires_string_content: bool = False
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the runtime knows of one model; immutable, so that a plan compiled from it stays true."""

    ref: ModelRef
    name: str = ""
    api: str = "openai-completions"
    context_window: int = 128_000
    """Tokens, prompt and reply together."""
    max_tokens: int = 8_192
    """Tokens of one reply; never above `context_window`."""
    input: tuple[InputKind, ...] = ("text",)
    reasoning: bool = False
    cost: Prices = Prices()
    compat: Compat = Compat()
    demo: bool = False
    """A demonstration model: gets a short prompt and no tools, and its replies say so."""
    params: tuple[tuple[str, Any], ...] = ()


def possible(info: ModelInfo) -> tuple[ModelInfo, list[str]]:
    """The model without numbers that cannot be, and what was wrong, in words; `max_tokens` is cut at the window."""
    usual, said = ModelInfo(ref=info.ref), list[str]()
    window, most, cost = info.context_window, info.max_tokens, info.cost
    if window < 1:
        said.append(f"a contextWindow of {window} cannot be; {usual.context_window} is used")
        window = usual.context_window
    if most < 1:
        said.append(f"a maxTokens of {most} cannot be; {min(usual.max_tokens, window)} is used")
        most = min(usual.max_tokens, window)
    if min(msgspec.structs.astuple(cost)) < 0:
        said.append("a price below 0 cannot be; 0 is used")
        cost = Prices(*(max(0, price) for price in msgspec.structs.astuple(cost)))
    return msgspec.structs.replace(info, context_window=window, max_tokens=min(most, window), cost=cost), said


class ToolSchema(msgspec.Struct, frozen=True):
    """A tool as the model sees it; `parameters` is a JSON Schema of an object."""

    name: str
    description: str
    parameters: dict[str, Any]


class Wishes(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a caller of one turn wants of the model, beside its words."""

    tools: tuple[ToolSchema, ...] = ()
    """The caller's own tools: a reply that calls one ends the turn, and the caller runs it."""
    only_those: bool = False
    """The model gets no others."""
    max_tokens: int | None = None
    temperature: float | None = None
    params: dict[str, Any] = {}
    """In the words of OpenAI's chat completions; endpoints of another dialect are not sent them."""


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a model. `messages` are in order, each tool call followed by its result."""

    model: ModelInfo
    system: str
    messages: Sequence[Message]
    tools: tuple[ToolSchema, ...] = ()
    max_tokens: int | None = None
    temperature: float | None = None
    session_id: str = ""
    """Stable per conversation; providers may use it as a cache key."""
    has_other: bool = False
    """Another model answers when this one fails, so that a credential which just failed need not be asked again."""
    sent: Callable[[], None] = lambda: None
    """To be called (sync) each time the request is with the endpoint, so that it is known who was waited for."""
    late: Callable[[str], None] = lambda words: None
    """To be called (sync) with words for people when the endpoint has been silent for long."""


class TextDelta(msgspec.Struct, frozen=True):
    text: str


class ThinkingDelta(msgspec.Struct, frozen=True):
    text: str


class ToolCallDelta(msgspec.Struct, frozen=True):
    """A fragment of a call, for live views; the whole call stands in `Done.message`."""

    id: str
    name: str
    fragment: str


class RetryNotice(msgspec.Struct, frozen=True):
    """The provider failed in a way that passes and is asked again after `delay` seconds; nothing was streamed yet."""

    attempt: int
    max_attempts: int
    reason: str
    delay: float
    kind: str = ""
    """Of the failure: an `ErrorKind`."""


class Done(msgspec.Struct, frozen=True):
    """The last event of a stream that ended well: the whole message, with usage and stop reason."""

    message: AssistantMessage


ProviderEvent = TextDelta | ThinkingDelta | ToolCallDelta | RetryNotice | Done


class Provider(Protocol):
    """One endpoint that serves models.

    Every method may be called by several tasks at once. Nothing here catches `Cancelled`; a cancelled stream closes
    its connection and leaves the provider usable.
    """

    @property
    def id(self) -> str:
        """The provider's name in a `ModelRef`."""
        ...

    def stream(self, request: ModelRequest) -> AbstractAsyncContextManager[AsyncIterable[Sequence[ProviderEvent]]]:
        """Ask, and receive what comes.

        `async with provider.stream(request) as batches: async for batch in batches: …`. The last event of the last
        batch is `Done`. Leaving the block early stops the model.

        Raises:
            ProviderError: on entering, or between batches; a stream that ended without `Done` raises too.
            ContextOverflow: the request does not fit.
        """
        ...

    async def discover(self) -> Sequence[ModelInfo]:
        """The models that this endpoint says it has, beyond the configured ones.

        Called by the warm-up under a deadline. Returns nothing when there is nothing to discover; may raise
        `ProviderError`, which is shown as the provider's state and costs nobody else anything.
        """
        ...

    async def resolve_dynamic(self, model_id: str) -> ModelInfo | None:
        """The model of that id, if this provider knows how to make it up (a hook for models that no list holds).

        Called when neither the configuration nor `discover` named the model. Returns None for "not mine". The answer
        is kept until the next warm-up.
        """
        ...

    async def warm(self, model: ModelInfo, system: str) -> None:
        """Make the first turn of `model` cost what a later one costs (load weights, open a connection, prefill).

        `system` is the system prompt that a turn would send. Called under a deadline; may raise `ProviderError`.
        """
        ...


@runtime_checkable
class Authenticating(Protocol):
    """What a provider has besides whose credential must be fetched or refreshed before it can be used."""

    async def prepare_auth(self) -> int | None:
        """Make the credential ready, so that the first message does not wait for it; when it expires, in epoch
        milliseconds, or None if that is not known.

        Called by the warm-up under a deadline, before `discover`. Raises `ProviderError` of kind `auth` when there is
        none; the words, which become the provider's state, say how to get one.
        """
        ...


@runtime_checkable
class Resting(Protocol):
    """What a provider has besides that unloads what it has not been asked for long."""

    @property
    def rest(self) -> str:
        """Why a model that was loaded is not any more, until the next message; "" while one is, or before the first."""
        ...
