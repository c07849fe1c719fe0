"""What all wire formats share: ask over HTTP, feed the parser, retry where people can see it, build the reply.

Knows no format: a format is a `Dialect` of pure functions, and `HttpProvider` is the provider that speaks it.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from typing import Any, ClassVar, Literal, Protocol, cast

import msgspec
import trio

from triops.agents.errors import ErrorKind, ProviderError
from triops.agents.model import Done, ModelInfo, ModelRef, ModelRequest, ProviderEvent, RetryNotice
from triops.agents.providers.draft import Draft
from triops.agents.providers.faults import NOT_JSON, Faults
from triops.agents.providers.http import CLOUD_IDLE, LOCAL_IDLE, HttpClient, Response, is_local
from triops.agents.providers.memo import Memo
from triops.agents.providers.sse import SseParser

RETRY_PAUSES = (0.5, 2.0)
"""Seconds before each further attempt, where the provider names none."""
RETRY_AFTER_LIMIT = 8.0
"""Seconds; a provider that wants more is not waited for here: the caller decides."""
LIFE_LIMIT = 600.0
"""Seconds in which a stream may give mere signs of life: comments, halves of events."""
COOLING: dict[ErrorKind, float] = {"auth": 60.0, "billing": 600.0, "rate_limit": 30.0}
"""Seconds in which a credential that failed so, or a model that is busy for it, is not asked again while another model
can answer."""
COOLING_LIMIT = 300.0
"""Seconds that a provider may lengthen that to."""
GATHER = 0.01
"""Seconds in which what a quick stream sends is gathered: to wake for each of its chunks costs more than to read it."""
QUICK, QUICK_READS = 0.0025, 8
"""A stream is quick while reads wait for less than these seconds, once so many in a row did."""
DRAIN_LIMIT = 0.2
"""Seconds to wait, after the reply, for the end of the body that lets the connection be kept."""
ERROR_BODY = 1 << 16

PARSED = ("https://api.openai.com", "https://api.anthropic.com", "https://chatgpt.com")
"""Whose models call tools by no text: what looks like a call in it is a quotation."""

Clock = Callable[[], int]
ApiKey = Callable[[], str | None] | str | None
Login = Callable[[], Awaitable[dict[str, str]]]
"""The headers that say who asks, made anew for each request."""


def wall_clock() -> int:
    """Milliseconds since the epoch, for who does not bring a clock."""
    return time.time_ns() // 1_000_000


class Parser(Protocol):
    """One stream of one format, without IO."""

    def feed(self, data: bytes) -> Sequence[ProviderEvent]:
        """What an event with this `data` says; `Done` ends the reply. Raises `ProviderError`."""
        ...

    def end(self) -> list[ProviderEvent]:
        """The reply's end, if a stream that just ended was complete without saying so. Raises `ProviderError`."""
        ...


class Dialect(msgspec.Struct, frozen=True):
    """A wire format: where to ask, how to say it, how to read the answer. All pure."""

    api: str
    chat_url: Callable[[str], str]
    models_url: Callable[[str], str]
    encode: Callable[[ModelRequest, str, Memo], bytes]
    """The body; the base URL is given because one vendor's own endpoint can do more than its dialect."""
    parser: Callable[[Draft], Parser]
    key_header: Literal["authorization", "x-api-key"] = "authorization"
    headers: tuple[tuple[str, str], ...] = ()


def with_version(base_url: str) -> str:
    """`base_url` with the `/v1` that people leave out."""
    return f"{base_url.rstrip('/').removesuffix('/v1')}/v1"


class HttpProvider:
    """A `Provider` that speaks one dialect to one endpoint; a format's own class only names its dialect.

    `idle` is in seconds; None takes the default for where `base_url` lies. `bearer` sends the key as a bearer token
    where the dialect has a header of its own. With `discover` it asks the endpoint for its models. `key_hint` tells
    who is refused what to do about the key. `login` replaces the key. `http` stays its owner's. Holds the way to what
    is secret, never shows it.
    """

    dialect: ClassVar[Dialect]

    def __init__(
        self,
        *,
        id: str,
        base_url: str,
        http: HttpClient,
        api_key: ApiKey = None,
        login: Login | None = None,
        headers: Mapping[str, str] | None = None,
        idle: float | None = None,
        bearer: bool = False,
        discover: bool = False,
        key_hint: str = "",
        now: Clock = wall_clock,
    ) -> None:
        key_header = "authorization" if bearer else self.dialect.key_header
        every = {**dict(self.dialect.headers), **(headers or {})}

        async def secrets() -> dict[str, str]:
            if login:
                return {**every, **await login()}
            key = ((api_key() if callable(api_key) else api_key) or "").strip()
            return {**every, key_header: f"Bearer {key}" if key_header == "authorization" else key} if key else every

        self.id = id
        self.base_url = base_url.rstrip("/")
        self.http = http
        self.local = is_local(base_url)
        self.idle = (LOCAL_IDLE if self.local else CLOUD_IDLE) if idle is None else idle
        self.cooling: dict[tuple[int, str], tuple[float, ProviderError]] = {}
        """What is not to be asked: what stands for a credential, and the model, "" for all; until when, and why."""
        self.now = now
        self.memo = Memo()
        self._secrets = secrets
        self._discover = discover
        self._key_hint = key_hint

    async def sign(self, asked: str) -> tuple[dict[str, str], Faults]:
        """The headers of one request, and the maker of its errors, which knows what is secret among them."""
        headers = await self._secrets()
        hidden = [secret for value in headers.values() if len(secret := value.removeprefix("Bearer ")) > 3]
        return {"user-agent": "triops", **headers}, Faults(asked, hidden, self._key_hint, local=self.local)

    async def check_cool(self, request: ModelRequest) -> None:
        """Raises what the credential or its model failed with before, if that cools and another model can answer."""
        if request.has_other and self.cooling:
            ref, now = request.model.ref, trio.current_time()
            self.cooling = {key: found for key, found in self.cooling.items() if now < found[0]}
            credential = _stand_in((await self.sign(str(ref)))[0])
            for model in ("", ref.model):
                if found := self.cooling.get((credential, model)):
                    until, why = found
                    raise ProviderError(
                        why.kind,
                        f"{ref} was not asked, which it is again in {max(1, until - now):.0f} s: {why}",
                        status=why.status,
                        detail=why.detail,
                    )

    def stream(self, request: ModelRequest) -> "EventStream":
        # In the caller's own task: a second one with a channel costs three more task steps a read.
        return aclosing(_reply(self, request))

    async def discover(self) -> Sequence[ModelInfo]:
        if not self._discover:
            return ()
        return listed_models(await self._list_models(), self.id, self.dialect.api)

    async def resolve_dynamic(self, model_id: str) -> ModelInfo | None:
        return None

    async def warm(self, model: ModelInfo, system: str) -> None:
        """Ask for the list of models, which opens the connection and shows a refused key before a message needs it."""
        try:
            await self._list_models()
        except ProviderError as error:
            if error.kind in ("auth", "connection", "timeout", "tls_certificate"):
                raise  # any other one comes from an endpoint without such a list: its connection stands all the same

    async def _list_models(self) -> Any:
        headers, faults = await self.sign(f"{self.id}'s list of models")
        return await self.http.get_json(self.dialect.models_url(self.base_url), headers, faults, idle=self.idle)


def _stand_in(headers: Mapping[str, str]) -> int:
    """What tells credentials apart and gives none of them away."""
    return hash(frozenset(headers.items()))


EventStream = AbstractAsyncContextManager[AsyncIterable[Sequence[ProviderEvent]]]


async def _reply(provider: HttpProvider, request: ModelRequest) -> AsyncGenerator[Sequence[ProviderEvent]]:
    """Ask, and hand over what comes, one list per network read.

    A failure that may pass and that came before anything was streamed is announced by a `RetryNotice` and tried
    again, at most twice and within the client's patience; every other one is raised.
    """
    await provider.check_cool(request)
    body = provider.dialect.encode(request, provider.base_url, provider.memo)
    last_start = trio.current_time() + provider.http.patience
    for retry, pause in enumerate((*RETRY_PAUSES, None), start=1):
        streamed = False
        try:
            async with _ask(provider, request, body) as batches:
                async for batch in batches:
                    streamed = True
                    yield batch  # noqa: ASYNC119, RUF100  `stream` closes this generator where it runs
            return
        except ProviderError as error:
            delay = None if streamed or pause is None else _delay(error, pause)
            if delay is None or trio.current_time() + delay > last_start:
                raise
            reason, kind = str(error), error.kind
        yield [RetryNotice(retry, len(RETRY_PAUSES), reason, delay, kind)]
        await trio.sleep(delay)


def _delay(error: ProviderError, pause: float) -> float | None:
    wait = pause if error.retry_after is None else error.retry_after
    return wait if error.retryable and wait <= RETRY_AFTER_LIMIT else None


@asynccontextmanager
async def _ask(
    provider: HttpProvider, request: ModelRequest, body: bytes
) -> AsyncGenerator[AsyncIterable[list[ProviderEvent]]]:
    headers, faults = await provider.sign(str(request.model.ref))
    credential = _stand_in(headers)
    headers["content-type"] = "application/json"
    draft = Draft(request.model, provider.dialect.api, faults, provider.now)
    if not provider.base_url.startswith(PARSED):
        draft.tools = {tool.name: tool.parameters for tool in request.tools}
    url = provider.dialect.chat_url(provider.base_url)
    async with provider.http.stream(
        "POST", url, headers, body, idle=provider.idle, sent=request.sent, late=request.late
    ) as response:
        if response.status != 200 or _document_type(response):
            failure = await _refusal(response, faults)
            if failure.kind in COOLING:
                wait = max(COOLING[failure.kind], min(failure.retry_after or 0, COOLING_LIMIT))
                what = request.model.ref.model if failure.kind == "rate_limit" else ""
                provider.cooling[credential, what] = trio.current_time() + wait, failure
            raise failure
        if provider.cooling:
            for model in ("", request.model.ref.model):
                provider.cooling.pop((credential, model), None)
        parser, life = provider.dialect.parser(draft), max(LIFE_LIMIT, provider.idle)
        async with aclosing(_batches(response, parser, faults, life)) as batches:
            yield batches


async def _batches(
    response: Response, parser: Parser, faults: Faults, life: float
) -> AsyncGenerator[list[ProviderEvent]]:
    """The events of each read that holds some. What follows `Done` is read to the body's end for a moment, so that the
    connection can be kept."""
    sse, quick, heard, fresh = SseParser(), 0, trio.current_time(), True
    while True:
        if quick >= QUICK_READS:
            await trio.sleep(GATHER)
        begun = trio.current_time()
        data = await response.read()
        quick = quick + 1 if trio.current_time() - begun < QUICK else 0
        if not data:
            yield parser.end()
            return
        if fresh and data.lstrip()[:1] in (b"{", b"<"):
            raise _no_stream(data + await response.body(ERROR_BODY), "a document", faults)
        fresh = False
        batch: list[ProviderEvent] = []
        try:
            for event in sse.feed(data):
                batch += parser.feed(event)
                if batch and isinstance(batch[-1], Done):
                    break
        except ProviderError:
            if batch:
                yield batch  # what came before the failure is not lost
            raise
        if batch:
            yield batch
            if isinstance(batch[-1], Done):
                break
            heard = trio.current_time()
        elif trio.current_time() - heard > life:
            raise faults.stuck(life)
    with trio.move_on_after(DRAIN_LIMIT), suppress(ProviderError):  # failing at that takes nothing from the reply
        while await response.read():  # noqa: ASYNC110 - it waits for the body's end
            await trio.lowlevel.checkpoint()  # a read makes none where there is always more


def _document_type(response: Response) -> str:
    """The type of an answer that cannot be an event stream; servers that stream under a wrong type exist."""
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind if kind in ("application/json", "text/html") else ""


async def _refusal(response: Response, faults: Faults) -> ProviderError:
    """What an answer means that is no event stream."""
    body = await response.body(ERROR_BODY)
    if response.status != 200:
        return faults.answer(response.status, response.headers, body)
    return _no_stream(body, _document_type(response), faults)


def _no_stream(body: bytes, kind: str, faults: Faults) -> ProviderError:
    try:
        error = msgspec.json.decode(body, type=dict[str, Any]).get("error")
    except NOT_JSON:
        error = None
    return faults.event(error) if error else faults.garbled(f"{kind} instead of an event stream", body)


class _Listed(msgspec.Struct):
    id: str
    display_name: str | None = None
    max_model_len: int | None = None
    context_length: int | None = None
    context_window: int | None = None


def listed_models(answer: Any, provider: str, api: str) -> list[ModelInfo]:
    """The chat models of a `{"data": [{"id": …}]}` list; entries of another shape are passed over."""
    models: list[ModelInfo] = []
    entries = cast("dict[str, Any]", answer).get("data") if isinstance(answer, dict) else None
    for entry in cast("list[Any]", entries) if isinstance(entries, list) else []:
        try:
            listed = msgspec.convert(entry, _Listed)
        except msgspec.ValidationError:
            continue
        if "embed" in listed.id.lower():
            continue
        window = listed.max_model_len or listed.context_length or listed.context_window or 0
        info = ModelInfo(ref=ModelRef(provider, listed.id), name=listed.display_name or listed.id, api=api)
        if window > 0:
            info = msgspec.structs.replace(info, context_window=window, max_tokens=min(info.max_tokens, window))
        models.append(info)
    return models
