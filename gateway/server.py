"""The listeners: one port for HTTP and WebSocket, split after the request head. Knows no methods.

`open_gateway` is a context: inside it the port is open. Leaving it stops the intake, tells clients (`shutdown`), lets
the runtime drain while finals still reach them, and closes them with 1012.
"""

from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from errno import EADDRINUSE
from socket import socket as Socket

import trio
from msgspec.structs import replace

from triops.agents.sockets import with_raw
from triops.gateway import handlers
from triops.gateway.connection import Connection, serve_websocket
from triops.gateway.door import Caller, caller_of
from triops.gateway.errors import WireError, http_status
from triops.gateway.handlers.system import health_summary
from triops.gateway.hello import TICK_MS
from triops.gateway.http.exchange import Answer, HttpResponse, refuse, serve_http
from triops.gateway.http.head import Head, HeadError, read_head
from triops.gateway.http.routes import Routes
from triops.gateway.locality import normalise_address
from triops.gateway.services import Services
from triops.gateway.transport import Broken, Transport
from triops.runtime.boundaries import contain
from triops.runtime.compose import Runtime
from triops.runtime.events import RunDelta, RunEnded, RunTool
from triops.runtime.runs.state import RunState

HEALTH_EVERY = 60.0  # seconds
UNAUTHENTICATED_PER_ADDRESS = 32  # sockets that asked and have shown no secret; past it 503, and HTTP is not kept alive
SILENT_PER_ADDRESS, SILENT = 512, 1024  # sockets without a whole head yet; past them the oldest makes room, by 503
BACKLOG = 1024  # a burst of connects waits in the kernel, and is answered 503 rather than reset
GRACE = 10.0  # seconds that runs may take to finish when the gateway stops
CLOSE_GRACE = 2.0  # seconds for the goodbyes

assert handlers  # importing it fills the table of methods


class Gateway:
    """An open gateway; see `open_gateway`."""

    def __init__(self, services: Services, *, grace: float) -> None:
        self.services = services
        self.url = ""
        self._grace = grace
        self.patience = trio.CancelScope()
        """Around the wait for what runs when it stops: cancelled, it waits no longer and ends the runs at once."""
        self._accepting = trio.CancelScope()
        self._over = trio.Event()
        self._connections: set[Connection] = set()
        services.sockets = self._connections
        self._strangers: list[str] = []
        """Addresses of sockets on their way to being one, or that asked over HTTP and have shown no secret."""
        self._silent: dict[trio.CancelScope, str] = {}
        """Addresses of sockets whose first head is not there yet, the oldest first."""
        self._answers: set[trio.Event] = set()
        """One for each HTTP request whose answer is not written yet."""
        self._stopping = False

    @property
    def running(self) -> int:
        """How many runs are under way."""
        return sum(run.state is RunState.RUNNING for run in self.services.runtime.runs.open_runs())

    async def serve(
        self, listeners: list[trio.SocketListener], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """The gateway's own task: serve clients at `listeners` until it is told to `stop`; closes them."""
        reason = "the gateway stops"
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.services.fanout.run, name="fan-out")
                nursery.start_soon(self._tick, name="tick")
                nursery.start_soon(self._tell_health, name="health")
                async with trio.open_nursery() as connections:
                    with self._accepting:
                        task_status.started()
                        await trio.serve_listeners(self.serve_stream, listeners, handler_nursery=connections)
                    await self._say_goodbye()
                    connections.cancel_scope.cancel(reason=reason)
                nursery.cancel_scope.cancel(reason=reason)
        finally:
            self._over.set()

    async def stop(self) -> None:
        """Accept no runs, let those that run finish while their finals are still sent, say goodbye, and be over."""
        self.services.log.info("stopping", clients=len(self._connections))
        self._stopping = True
        self._accepting.cancel(reason="the gateway stops")
        await self._over.wait()

    async def serve_stream(self, stream: trio.SocketStream) -> None:
        """One accepted socket, to its end: the connection boundary."""
        try:
            address = normalise_address(stream.socket.getpeername()[0])
        except OSError:
            await trio.aclose_forcefully(stream)
            return
        await self.serve_client(*with_raw(stream), address=address)

    async def serve_client(
        self, stream: trio.abc.HalfCloseableStream, raw: Socket | None = None, *, address: str
    ) -> None:
        """One client over any stream, as if its socket's peer were `address`; `raw` is the socket under it."""
        transport = Transport(stream, raw)
        try:
            with contain(self.services.log, "a connection failed by our own fault"), suppress(*Broken):  # it left
                await self._serve(transport, address)
        finally:
            await trio.aclose_forcefully(transport)

    async def _serve(self, transport: Transport, address: str) -> None:
        try:
            head = await self._first_head(transport, address)
            caller = caller_of(address, head.headers)
            if not head.is_websocket:
                await self._serve_http(transport, caller.address)
                return
        except HeadError as error:
            if error.status:
                await self._refuse(transport, address, error.status, str(error))
            return
        try:
            self.services.door.check_head(caller)
        except WireError as error:
            await refuse(transport, http_status(error.shape), str(error))
            return
        if self._stopping:
            await self._refuse(transport, address, 503, "the gateway is stopping")
            return
        await self._upgrade(transport, caller)

    async def _first_head(self, transport: Transport, address: str) -> Head:
        """Whoever sends its head at once is heard, however many say nothing.

        Raises:
            HeadError: as `read_head`, or it made room for others (503).
        """
        near = [scope for scope, other in self._silent.items() if other == address]
        if len(near) >= SILENT_PER_ADDRESS or len(self._silent) >= SILENT:
            oldest = near[0] if len(near) >= SILENT_PER_ADDRESS else next(iter(self._silent))
            del self._silent[oldest]
            oldest.cancel(reason="others wait as well")
        with trio.CancelScope() as scope:
            self._silent[scope] = address
            try:
                return await read_head(transport)
            finally:
                self._silent.pop(scope, None)
        raise HeadError(503, "too many sockets have asked nothing yet")

    async def _serve_http(self, transport: Transport, address: str) -> None:
        routes = Routes(self.services, address, stopping=lambda: self._stopping)
        crowded = self._is_crowded(address, UNAUTHENTICATED_PER_ADDRESS // 2)  # the rest is for WebSockets
        with self._stranger(address) as stranger:

            async def admit(head: Head) -> Answer | HttpResponse:
                answer = await routes.admit(head)
                if not isinstance(answer, HttpResponse):
                    stranger.close()
                elif crowded:  # a monitor is answered all the same, but holds no socket
                    return replace(answer, headers=(*answer.headers, (b"Connection", b"close")))
                return answer

            await serve_http(transport, admit, self._busy)

    def _is_crowded(self, address: str, most: int = UNAUTHENTICATED_PER_ADDRESS) -> bool:
        known = sum(connection.unknown and connection.actor == address for connection in self._connections)
        return self._strangers.count(address) + known >= most

    def _stranger(self, address: str) -> ExitStack:
        """Count a socket among those of its address that have proven nothing, until what this gives is closed."""
        self._strangers.append(address)
        counted = ExitStack()
        counted.callback(self._strangers.remove, address)
        return counted

    async def _refuse(self, transport: Transport, address: str, status: int, reason: str) -> None:
        self.services.log.refusal("refused a request", status=status, reason=reason, peer=address)
        await refuse(transport, status, reason)

    @contextmanager
    def _busy(self) -> Generator[None]:
        written = trio.Event()
        self._answers.add(written)
        try:
            yield
        finally:
            self._answers.discard(written)
            written.set()

    async def _upgrade(self, transport: Transport, caller: Caller) -> None:
        if self._is_crowded(caller.address):
            await self._refuse(transport, caller.address, 503, "Too many unauthenticated sockets")
            return
        connection: Connection | None = None

        def opened(made: Connection) -> None:
            nonlocal connection
            connection = made
            self._connections.add(made)
            stranger.close()

        with self._stranger(caller.address) as stranger:
            try:
                await serve_websocket(transport, caller, self.services, opened=opened)
            finally:
                if connection is not None:
                    self._connections.discard(connection)
                    connection.left()

    async def _tick(self) -> None:
        """Tell every client that the connection lives, until cancelled."""
        while True:
            await trio.sleep(TICK_MS / 1000)
            self.services.fanout.broadcast("tick", {"ts": self.services.runtime.clock()})

    async def _tell_health(self) -> None:
        """Send the health snapshot now and then, until cancelled."""
        while True:
            await trio.sleep(HEALTH_EVERY)
            with contain(self.services.log, "the health snapshot failed"):
                self.services.health_version += 1
                summary = await health_summary(self.services)
                self.services.fanout.broadcast("health", summary, state_version=self.services.state_version())

    async def _say_goodbye(self) -> None:
        self.services.fanout.broadcast("shutdown", {"reason": "gateway stopping"})
        with self.patience:
            await self.services.runtime.runs.drain(self._grace)
        await self.services.runtime.runs.drain(0)
        for connection in self._connections:
            connection.close(1012, "service restart")
        with trio.move_on_after(CLOSE_GRACE):
            for over in [*self._answers, *(connection.closed for connection in self._connections)]:
                await over.wait()


class PortTaken(Exception):
    """Another program listens there, or the system does not let us; the message says what to do."""


async def open_listeners(host: str, port: int, *, any_port: bool) -> list[trio.SocketListener]:
    """Open the port; if it is taken and `any_port` allows, a free one.

    Raises:
        PortTaken: it cannot be had.
    """
    try:
        return await trio.open_tcp_listeners(port, host=host, backlog=BACKLOG)
    except OSError as error:
        taken = error
    if any_port and taken.errno == EADDRINUSE:
        return await trio.open_tcp_listeners(0, host=host, backlog=BACKLOG)
    why = "another program listens there" if taken.errno == EADDRINUSE else taken.strerror
    hint = "end that one, use --port 0 for any free port, or set gateway.port"
    raise PortTaken(f"cannot listen on {host}:{port}: {why}; {hint}") from taken


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@asynccontextmanager
async def open_gateway(
    runtime: Runtime, listeners: list[trio.SocketListener], *, host: str, version: str, grace: float = GRACE
) -> AsyncGenerator[Gateway]:
    """Serve clients at `listeners`, opened for the address `host`, until the block ends; closes them."""
    services = Services(runtime, host=host, version=version)
    gateway = Gateway(services, grace=grace)
    services.listening = [_address(*listener.socket.getsockname()[:2]) for listener in listeners]
    services.door.port = port = listeners[0].socket.getsockname()[1]
    gateway.url = f"http://{_address({'0.0.0.0': '127.0.0.1', '::': '::1'}.get(host, host), port)}"
    with runtime.bus.subscribe(services.feeds.hear, RunDelta, RunTool, RunEnded):
        async with trio.open_nursery() as nursery:
            await nursery.start(gateway.serve, listeners, name="gateway")
            try:
                yield gateway
            finally:
                with trio.move_on_after(grace + CLOSE_GRACE + 15, shield=True):
                    await gateway.stop()
                nursery.cancel_scope.cancel(reason="the gateway stops")
