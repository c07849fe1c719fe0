"""The one door out for HTTP: kept-alive connections, limits on silence, typed failures.

Knows no provider and no wire format. Plain HTTP is h11 on a Trio socket, because that hands over what one network read
held in one piece and costs about half the CPU per request; HTTPS is httpcore2, imported at the first such request.
"""

import ipaddress
import re
import ssl
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import h11
import msgspec
import trio

from triops.agents.errors import ProviderError
from triops.agents.providers.faults import NOT_JSON, Faults

if TYPE_CHECKING:
    import httpcore2

CONNECT_LIMIT = 10.0
"""Seconds, for a TCP connection and for its TLS handshake each."""
CLOUD_IDLE = 120.0
LOCAL_IDLE = 300.0
"""Seconds of silence before an answer or within one; a model on the user's own machine may have to be loaded first."""
KEEP_ALIVE = 60.0
"""Seconds that an unused connection is kept."""
MAX_KEPT = 64
"""Unused connections kept per origin; more are closed."""
BODY_LIMIT = 8 << 20
"""Bytes of a JSON document; catalogues of aggregators come near 1 MiB."""
READ_SIZE = 1 << 16
CLOSE_LIMIT = 2.0

_TOKEN = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+")
_TEXT = re.compile(r"[ -~]*")
_HOST = re.compile(r"[\w.:-]+")


def default_idle(url: str) -> float:
    """How long to bear silence from `url`, where nobody said: `LOCAL_IDLE` for a private address, else `CLOUD_IDLE`."""
    host = urlsplit(url).hostname or ""
    try:
        local = ipaddress.ip_address(host).is_private
    except ValueError:
        local = "." not in host or host.endswith((".local", ".lan", ".internal"))
    return LOCAL_IDLE if local else CLOUD_IDLE


class Response:
    """An answer whose body is still to be read, within its `stream` block."""

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], read: Callable[[], Awaitable[bytes]]) -> None:
        self.status = status
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}
        """Names in lower case."""
        self.read = read
        """Wait for more of the body: what one network read held, `b""` at the end. Raises `ProviderError`."""

    async def body(self, limit: int = BODY_LIMIT) -> bytes:
        """The rest of the body, cut at `limit` bytes.

        Raises:
            ProviderError: the connection broke or fell silent.
        """
        held = bytearray(await self.read())
        while held and len(held) < limit and (data := await self.read()):
            held += data
        return bytes(held[:limit])


class HttpClient:
    """Sends requests over kept-alive connections. May be shared by providers and tasks.

    With `uds` every request goes to that Unix socket, whatever host its URL names. `tls` replaces the context that
    trusts the system's certificates. Opens nothing before the first request; `aclose` closes what is kept.
    """

    def __init__(
        self, *, uds: str | None = None, connect: float = CONNECT_LIMIT, tls: ssl.SSLContext | None = None
    ) -> None:
        self._uds = uds
        self._connect_limit = connect
        self._tls = tls
        self._kept: dict[str, list[_Connection]] = {}
        self._closed = False
        self._pool: httpcore2.AsyncConnectionPool | None = None
        self._pool_lock = trio.Lock()

    def stream(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes = b"", *, idle: float = CLOUD_IDLE
    ) -> AbstractAsyncContextManager[Response]:
        """Send a request; the block gets its answer as soon as the head is there.

        `idle` is the silence, in seconds, after which the peer counts as hung: while it takes the request, before the
        head and between reads. A block that is left before the body's end, or cancelled, closes its connection and
        nothing else. Redirects are not followed.

        Raises:
            ProviderError: `connection`, `timeout`, `tls_certificate`, or `format` for what is not HTTP.
        """
        target = _target(url)
        send = self._secure if target.secure and not self._uds else self._plain
        return send(method, target, headers, body, idle)

    async def get_json(self, url: str, headers: Mapping[str, str], *, idle: float = CLOUD_IDLE) -> Any:
        """GET a JSON document.

        Raises:
            ProviderError: no connection, a status other than 2xx, or a body that is not JSON.
        """
        return await self._json("GET", url, headers, b"", idle)

    async def post_json(self, url: str, headers: Mapping[str, str], value: Any, *, idle: float = CLOUD_IDLE) -> Any:
        """POST `value` as JSON; answers and raises as `get_json`."""
        headers = {**headers, "content-type": "application/json"}
        return await self._json("POST", url, headers, msgspec.json.encode(value), idle)

    async def aclose(self) -> None:
        """Close unused connections. One that is still in use is closed by its own block."""
        self._closed = True
        for connections in self._kept.values():
            for connection in connections:
                connection.close()
        self._kept.clear()
        if self._pool is not None:
            await self._pool.aclose()

    async def _json(self, method: str, url: str, headers: Mapping[str, str], body: bytes, idle: float) -> Any:
        faults = Faults(f"{_target(url).name}'s", [value.removeprefix("Bearer ") for value in headers.values()])
        async with self.stream(method, url, headers, body, idle=idle) as response:
            answer = await response.body()
            if not 200 <= response.status < 300:
                raise faults.answer(response.status, response.headers, answer)
        try:
            return msgspec.json.decode(answer)
        except NOT_JSON as error:
            raise faults.garbled("something that is not JSON", answer) from error

    @asynccontextmanager
    async def _plain(
        self, method: str, target: "_Target", headers: Mapping[str, str], body: bytes, idle: float
    ) -> AsyncGenerator[Response]:
        connection = self._take(target) or await self._connect(target)
        try:
            head = await connection.ask(method, target, headers, body, idle)
            yield Response(head.status_code, list(head.headers), partial(connection.read, idle))
        finally:
            self._put_back(connection)

    def _take(self, target: "_Target") -> "_Connection | None":
        kept = self._kept.get(target.name, [])
        while kept:
            connection = kept.pop()
            if connection.is_usable():
                return connection
            connection.close()
        return None

    def _put_back(self, connection: "_Connection") -> None:
        kept = self._kept.setdefault(connection.name, [])
        while kept and kept[0].expires < trio.current_time():
            kept.pop(0).close()
        if connection.is_finished() and not self._closed and len(kept) < MAX_KEPT:
            kept.append(connection)
        else:
            connection.close()

    async def _connect(self, target: "_Target") -> "_Connection":
        try:
            with trio.fail_after(self._connect_limit):
                if self._uds:
                    stream = await trio.open_unix_socket(self._uds)
                else:
                    stream = await trio.open_tcp_stream(target.host, target.port)
        except trio.TooSlowError:
            raise _unreachable(target.name, "timeout", "no answer") from None
        except OSError as error:
            raise _unreachable(target.name, "connection", "refused or no route") from error
        return _Connection(stream, target.name)

    @asynccontextmanager
    async def _secure(
        self, method: str, target: "_Target", headers: Mapping[str, str], body: bytes, idle: float
    ) -> AsyncGenerator[Response]:
        async with self._pool_lock:
            if self._pool is None:  # in a thread: importing it and reading the certificates takes over 100 ms
                self._pool = await trio.to_thread.run_sync(_open_pool, self._tls)
        limits = {"connect": self._connect_limit, "read": idle, "write": idle}
        lines = target.head(headers, body)
        with _secure_failures(target.name, idle):
            raw = await self._pool.handle_async_request(_secure_request(method, target, lines, body, limits))
        try:
            async with aclosing(raw.aiter_stream()) as chunks:

                async def read() -> bytes:
                    with _secure_failures(target.name, idle):
                        return await anext(chunks, b"")

                yield Response(raw.status, raw.headers, read)
        finally:
            with trio.move_on_after(CLOSE_LIMIT, shield=True):
                await raw.aclose()


class _Target(msgspec.Struct, frozen=True):
    secure: bool
    host: str
    port: int
    name: str
    """`host:port`: what errors may say of a URL, whose user and query may be secret."""
    path: str

    def head(self, headers: Mapping[str, str], body: bytes) -> list[tuple[bytes, bytes]]:
        """The header lines to send; what cannot be sent is refused without repeating it, for it may be a key."""
        lines = {"host": self.name, **{name.lower(): value.strip() for name, value in headers.items()}}
        lines["content-length"] = str(len(body))
        if not all(_TOKEN.fullmatch(name) and _TEXT.fullmatch(value) for name, value in lines.items()):
            raise ProviderError("format", "a header or the API key holds characters that HTTP does not allow")
        return [(name.encode(), value.encode()) for name, value in lines.items()]


@lru_cache(maxsize=256)
def _target(url: str) -> _Target:
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").encode("idna").decode()
    except ValueError:  # what IDNA cannot encode raises a kind of it
        parts, port, host = urlsplit(""), None, ""
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(host) or not _TEXT.fullmatch(path) or " " in path:
        raise ProviderError("connection", "baseUrl is no http(s) address; write it like http://127.0.0.1:11434/v1")
    secure = parts.scheme == "https"
    name = (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
    return _Target(secure, host, port or (443 if secure else 80), name, path)


class _Connection:
    """One plain connection and where its HTTP conversation stands. All but the two waiting methods are sync."""

    def __init__(self, stream: trio.SocketStream, name: str) -> None:
        self.name = name
        self.expires = 0.0
        self._stream = stream
        self._wire = h11.Connection(h11.CLIENT)
        self._ended = False

    def is_usable(self) -> bool:
        """Kept not too long, and the peer did not hang up: an unused connection has nothing to read but that."""
        return trio.current_time() < self.expires and not self._stream.socket.is_readable()

    def is_finished(self) -> bool:
        """Ready for another request; if the last one ended halfway, it is not."""
        if self._wire.our_state is not h11.DONE or self._wire.their_state is not h11.DONE:
            return False
        self._wire.start_next_cycle()
        self.expires = trio.current_time() + KEEP_ALIVE
        return True

    def close(self) -> None:
        self._stream.socket.close()

    async def ask(
        self, method: str, target: _Target, headers: Mapping[str, str], body: bytes, idle: float
    ) -> h11.Response:
        send = self._wire.send
        request = send(h11.Request(method=method, target=target.path, headers=target.head(headers, body))) or b""
        request += (send(h11.Data(data=body)) or b"") + (send(h11.EndOfMessage()) or b"")
        try:
            with trio.fail_after(idle):
                await self._stream.send_all(request)
        except trio.TooSlowError:
            raise _silent(self.name, idle) from None
        except trio.BrokenResourceError:
            pass  # a peer may refuse before it has read all: its answer says why, its absence is met below
        while not isinstance(event := self._next_event(), h11.Response):
            if event is h11.NEED_DATA:
                await self._receive(idle)
        return event

    async def read(self, idle: float) -> bytes:
        parts: list[bytes] = []
        while self._wire.their_state is h11.SEND_BODY:
            event = self._next_event()
            if isinstance(event, h11.Data):
                parts.append(event.data)
            elif event is h11.NEED_DATA:
                if parts:
                    break  # more would have to be waited for
                await self._receive(idle)
        return b"".join(parts)

    def _next_event(self) -> object:
        try:
            return self._wire.next_event()
        except h11.RemoteProtocolError as error:
            raise (_cut(self.name) if self._ended else _not_http(self.name)) from error

    async def _receive(self, idle: float) -> None:
        try:
            with trio.fail_after(idle):
                data = await self._stream.receive_some(READ_SIZE)
        except trio.TooSlowError:
            raise _silent(self.name, idle) from None
        except trio.BrokenResourceError as error:
            raise _cut(self.name) from error
        self._ended = not data
        self._wire.receive_data(data)


def _open_pool(tls: ssl.SSLContext | None) -> "httpcore2.AsyncConnectionPool":
    import httpcore2

    return httpcore2.AsyncConnectionPool(
        ssl_context=tls or _system_tls(),
        max_connections=None,
        max_keepalive_connections=MAX_KEPT,
        keepalive_expiry=KEEP_ALIVE,
    )


def _system_tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    if sys.platform != "win32" and not (paths.cafile or paths.capath):
        import certifi  # a Python that was built without a place for certificates, as on macOS

        context.load_verify_locations(certifi.where())
    return context


def _secure_request(
    method: str, target: _Target, lines: list[tuple[bytes, bytes]], body: bytes, limits: dict[str, float]
) -> "httpcore2.Request":
    import httpcore2

    url = httpcore2.URL(scheme=b"https", host=target.host.encode(), port=target.port, target=target.path)
    return httpcore2.Request(method, url, headers=lines, content=body, extensions={"timeout": limits})


@contextmanager
def _secure_failures(name: str, idle: float) -> Generator[None]:
    import httpcore2

    try:
        yield
    except httpcore2.ConnectTimeout as error:
        raise _unreachable(name, "timeout", "no answer") from error
    except httpcore2.ConnectError as error:
        raise _refused_handshake(name, error) from error
    except httpcore2.TimeoutException as error:
        raise _silent(name, idle) from error
    except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
        raise _cut(name) from error


def _refused_handshake(name: str, error: BaseException) -> ProviderError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            advice = "add its authority to the system's store or name it in SSL_CERT_FILE"
            return ProviderError("tls_certificate", f"{name} shows a certificate that is not trusted; {advice}")
        if isinstance(cause, ssl.SSLError):
            return ProviderError("connection", f"{name} does not speak TLS; check the scheme and port in baseUrl")
        cause = cause.__cause__ or cause.__context__
    return _unreachable(name, "connection", "refused or no route")


def _unreachable(name: str, kind: Literal["connection", "timeout"], why: str) -> ProviderError:
    return ProviderError(
        kind, f"could not connect to {name} ({why}); is the server up and baseUrl right?", retryable=True
    )


def _silent(name: str, idle: float) -> ProviderError:
    advice = "raise this provider's timeoutSeconds if it needs longer"
    return ProviderError("timeout", f"{name} was silent for {idle:g} s; {advice}", retryable=True)


def _cut(name: str) -> ProviderError:
    return ProviderError("connection", f"{name} hung up before its answer was complete", retryable=True)


def _not_http(name: str) -> ProviderError:
    return ProviderError("format", f"{name} does not speak HTTP; check the scheme and port in baseUrl")
