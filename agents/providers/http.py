"""The one door out for HTTP: kept-alive connections, limits on silence, typed failures.

Knows no provider and no wire format. It is h11 on a Trio socket or TLS stream rather than a client library, because
this hands over what one network read held in one piece and costs about half the CPU per request (ARCHITECTURE.md).
"""

import ipaddress
import re
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from socket import socket as Socket
from typing import Any, Literal
from urllib.parse import urlsplit

import h11
import msgspec
import trio

from triops.agents.errors import ProviderError
from triops.agents.providers.faults import NOT_JSON, Faults
from triops.agents.providers.routes import Proxy, Target, Trust, open_tunnel, proxy_of, target_of, tls_context
from triops.agents.sockets import receive_now, send_now, with_raw

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
PATIENCE = 20.0
"""Seconds in which people should know what is wrong: so long requests are tried again, and silence is not told of."""

_CHUNK = re.compile(rb"0*([1-9a-fA-F][0-9a-fA-F]{0,5})\r\n")

_Tell = Callable[[], None]
_Late = Callable[[str], object]


def is_local(url: str) -> bool:
    """Whether `url` leads to the user's own machine or network, as far as it tells by itself."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith((".local", ".lan", ".internal"))


class Response:
    """An answer whose body is still to be read, within its `stream` block."""

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], read: Callable[[], Awaitable[bytes]]) -> None:
        self.status = status
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}
        """Names in lower case."""
        self.read = read
        """Wait for more of the body: what one network read held, `b""` at the end. Raises `ProviderError`. Makes no
        checkpoint where that is there already: a loop over what may never end makes its own."""

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

    With `uds` every request goes to that Unix socket, whatever host its URL names. `patience` stands for `PATIENCE`.
    `environ` names proxies and certificates, `trust` what else to believe of a server, by the `host:port` of its URL.
    Opens nothing before the first request; `close` closes what is kept.
    """

    def __init__(
        self,
        *,
        uds: str | None = None,
        patience: float = PATIENCE,
        environ: Mapping[str, str] | None = None,
        trust: Mapping[str, Trust] | None = None,
    ) -> None:
        self.patience = patience
        self._environ = environ or {}
        self._trust = trust or {}
        self._uds = uds
        self._contexts: dict[Trust, ssl.SSLContext] = {}
        self._kept: dict[tuple[bool, str], list[_Connection]] = {}
        self._closed = False
        self._tls_lock = trio.Lock()

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes = b"",
        *,
        idle: float = CLOUD_IDLE,
        sent: _Tell = lambda: None,
        late: _Late = str,
    ) -> AsyncGenerator[Response]:
        """Send a request; the block gets its answer as soon as the head is there.

        `idle` is the silence, in seconds, after which the peer counts as hung: while it takes the request, before the
        head and between reads. `sent` (sync) is called when the request has left, `late` (sync) at each long silence
        after that. A block that is left before the
        body's end, or cancelled, closes its connection and nothing else. Redirects are not followed.

        Raises:
            ProviderError: `connection`, `timeout`, `tls_certificate`, or `format` for what is not HTTP.
        """
        target = target_of(url)
        kept = self._take(target)
        connection = kept or await self._connect(target)
        try:
            try:
                head = await connection.ask(method, target, headers, body, idle, sent, late)
            except ProviderError:
                if kept is None or not connection.was_hung_up:
                    raise
                # The peer closed it just as we took it up, as some servers do after each answer: nothing was heard.
                connection.close()
                connection = await self._connect(target)
                head = await connection.ask(method, target, headers, body, idle, sent, late)
            yield Response(head.status_code, list(head.headers), partial(connection.read, idle))
        finally:
            self._put_back(connection)

    async def get_json(self, url: str, headers: Mapping[str, str], faults: Faults, *, idle: float = CLOUD_IDLE) -> Any:
        """GET a JSON document.

        Raises:
            ProviderError: no connection, or, as `faults` words it, a status other than 2xx or a body that is not JSON.
        """
        async with self.stream("GET", url, headers, idle=idle) as response:
            answer = await response.body()
            if not 200 <= response.status < 300:
                raise faults.answer(response.status, response.headers, answer)
        try:
            return msgspec.json.decode(answer)
        except NOT_JSON as error:
            raise faults.garbled("something that is not JSON", answer) from error

    def close(self) -> None:
        """Close unused connections; from now on each is closed by its own block."""
        self._closed = True
        for connections in self._kept.values():
            for connection in connections:
                connection.close()
        self._kept.clear()

    def _take(self, target: Target) -> "_Connection | None":
        kept = self._kept.get(target.origin, [])
        while kept:
            connection = kept.pop()
            if connection.is_usable():
                return connection
            connection.close()
        return None

    def _put_back(self, connection: "_Connection") -> None:
        kept = self._kept.setdefault(connection.origin, [])
        while kept and kept[0].expires < trio.current_time():
            kept.pop(0).close()
        if connection.is_finished() and not self._closed and len(kept) < MAX_KEPT:
            kept.append(connection)
        else:
            connection.close()

    async def _connect(self, target: Target) -> "_Connection":
        proxy = None if self._uds else proxy_of(target.secure, target.host, target.port, self._environ)
        name = f"the proxy {proxy.host}:{proxy.port}, named in {proxy.variable}," if proxy else target.name
        try:
            with trio.fail_after(CONNECT_LIMIT):
                if self._uds:
                    stream = await trio.open_unix_socket(self._uds)
                else:
                    stream = await trio.open_tcp_stream(*((proxy or target).host, (proxy or target).port))
        except trio.TooSlowError:
            raise _unreachable(name, "timeout", "no answer") from None
        except OSError as error:
            raise _unreachable(name, "connection", "refused or no route") from error
        if not target.secure or self._uds:
            stream, raw = with_raw(stream)
            return _Connection(stream, stream, target, self.patience, proxy, raw)
        try:
            if proxy is not None:
                with trio.fail_after(CONNECT_LIMIT):
                    await open_tunnel(stream, proxy, target.authority)
            return _Connection(stream, await self._secure(stream, target), target, self.patience)
        except trio.TooSlowError:
            stream.socket.close()
            raise _unreachable(name, "timeout", "no answer") from None
        except BaseException:
            stream.socket.close()
            raise

    async def _secure(self, stream: trio.SocketStream, target: Target) -> trio.abc.Stream:
        trust = self._trust.get(target.name, Trust())
        async with self._tls_lock:
            context = self._contexts.get(trust)
            if context is None:
                context = await trio.to_thread.run_sync(tls_context, trust, self._environ)
                self._contexts[trust] = context
        secured = trio.SSLStream(stream, context, server_hostname=target.host, https_compatible=True)
        try:
            with trio.fail_after(CONNECT_LIMIT):
                await secured.do_handshake()
        except trio.TooSlowError:
            raise _unreachable(target.name, "timeout", "no answer") from None
        except trio.BrokenResourceError as error:
            raise _refused_handshake(target.name, error) from error
        return secured


class _Connection:
    """One connection and where its HTTP conversation stands. All but the two waiting methods are sync."""

    def __init__(
        self,
        socket: trio.SocketStream,
        stream: trio.abc.Stream,
        target: Target,
        patience: float,
        proxy: Proxy | None = None,
        raw: Socket | None = None,
    ) -> None:
        self.name = target.name
        self.origin = target.origin
        self.expires = 0.0
        self._socket = socket.socket
        self._raw = raw
        self._stream = stream
        self._wire = h11.Connection(h11.CLIENT)
        self._ended = False
        self._heard = False
        self._whole = False
        """The last thing that was read of a body is the end of a chunk."""
        self._late: _Late = str
        self._patience = patience
        self._proxy = proxy
        """The one that hears the requests; one that made a tunnel does not."""

    @property
    def was_hung_up(self) -> bool:
        """The peer closed it before it said anything to the present request."""
        return self._ended and not self._heard

    def is_usable(self) -> bool:
        """Kept not too long, and the peer did not hang up: an unused connection has nothing to read but that."""
        return trio.current_time() < self.expires and not self._socket.is_readable()

    def is_finished(self) -> bool:
        """Ready for another request; if the last one ended halfway, it is not."""
        if self._wire.our_state is not h11.DONE or self._wire.their_state is not h11.DONE:
            return False
        self._wire.start_next_cycle()
        self.expires = trio.current_time() + KEEP_ALIVE
        return True

    def close(self) -> None:
        self._socket.close()

    async def ask(
        self,
        method: str,
        target: Target,
        headers: Mapping[str, str],
        body: bytes,
        idle: float,
        sent: _Tell,
        late: _Late,
    ) -> h11.Response:
        send = self._wire.send
        self._late = late
        self._heard = self._whole = False
        path = target.path
        if self._proxy is not None:
            path, headers = f"http://{target.name}{path}", {**headers, **self._proxy.headers}
        head: h11.Request | None = None
        with suppress(h11.LocalProtocolError, ValueError):  # which repeat what is wrong, and it may be a key
            head = h11.Request(method=method, target=path, headers=target.head(headers, body))
        if head is None:
            raise ProviderError("format", "a header or the API key holds characters that HTTP does not allow")
        request = send(head) or b""
        request += (send(h11.Data(data=body)) or b"") + (send(h11.EndOfMessage()) or b"")
        now = send_now(self._raw, request) if self._raw is not None else 0
        try:
            if now < len(request):
                with trio.fail_after(idle):
                    await self._stream.send_all(request[now:])
        except trio.TooSlowError:
            raise _silent(self.name, idle) from None
        except trio.BrokenResourceError:
            pass  # a peer may refuse before it has read all: its answer says why, its absence is met below
        sent()
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
                self._whole = event.chunk_end
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
        quiet = min(self._patience or idle, idle)
        data = await self._wait(quiet)
        if data is None and quiet < idle:
            self._late(f"{self.name} has been silent for {quiet:g} s; it is given up after {idle:g} s")
            data = await self._wait(idle - quiet)
        if data is None:
            raise _silent(self.name, idle)
        self._ended = not data
        self._heard = self._heard or bool(data)
        at_chunk = self._whole and not self._wire.trailing_data[0]
        self._wire.receive_data(_merged(data) if at_chunk else data)

    async def _wait(self, seconds: float) -> bytes | None:
        try:
            if self._heard and self._raw is not None and (data := receive_now(self._raw, READ_SIZE)) is not None:
                return data
            with trio.move_on_after(seconds):
                return bytes(await self._stream.receive_some(READ_SIZE))
        except (trio.BrokenResourceError, OSError) as error:
            self._ended = True
            raise _cut(self.name) from error
        return None


def _merged(data: bytes) -> bytes:
    """The whole chunks that `data` begins with, as one: for each, h11 takes twice as long as to read what it holds."""
    parts, at = list[bytes](), 0
    while (found := _CHUNK.match(data, at)) and data.startswith(b"\r\n", end := found.end() + int(found[1], 16)):
        parts.append(data[found.end() : end])
        at = end + 2
    whole = b"".join(parts)
    return b"%x\r\n%b\r\n%b" % (len(whole), whole, data[at:]) if len(parts) > 1 else data


def _refused_handshake(name: str, error: BaseException) -> ProviderError:
    if isinstance(error.__cause__, ssl.SSLCertVerificationError):
        advice = (
            "add its authority to the system's store or name it in SSL_CERT_FILE; for a server of your own,"
            " models.providers.<id>.request.tls says what to trust"
        )
        return ProviderError("tls_certificate", f"{name} shows a certificate that is not trusted; {advice}")
    if isinstance(error.__cause__, ssl.SSLError):
        return ProviderError("connection", f"{name} does not speak TLS; check the scheme and port in baseUrl")
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
