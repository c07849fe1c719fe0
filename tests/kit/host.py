"""A runtime and its gateway in the test's own process, with the scripted provider; its clients speak over memory
streams as if from the loopback, or over the real port."""

import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio
import trio.testing
from tests.kit.inline_store import open_inline_store
from tests.kit.wire import LIMIT, VIRTUAL_LIMIT, Client, HttpAnswer, connect_params, read_answer

from triops.agents.providers.scripted import ScriptedProvider, Step
from triops.agents.tool import AnyTool
from triops.gateway.server import Gateway, open_gateway
from triops.runtime.clock import Clock, system_clock, trio_clock
from triops.runtime.compose import Runtime, open_runtime
from triops.runtime.config_file import load_config
from triops.runtime.logs import Log, LogFile, Record
from triops.runtime.models import ProviderEntry
from triops.runtime.paths import Paths, prepare_state
from triops.runtime.secrets import Secret

TOKEN = "the-token-of-this-test-gateway"
EPOCH = 1_800_000_000_000
ECHO = {"agents": {"defaults": {"model": {"primary": "scripted/echo"}}}}


class TestHost:
    """An open gateway, and what a test wants of it."""

    __test__ = False

    def __init__(
        self,
        runtime: Runtime,
        gateway: Gateway,
        model: ScriptedProvider,
        log: list[Record],
        nursery: trio.Nursery,
        limit: float,
    ) -> None:
        self.runtime = runtime
        self.gateway = gateway
        self.model = model
        self.log = log
        """What was logged so far."""
        self._nursery = nursery
        self._limit = limit

    @property
    def port(self) -> int:
        return self.gateway.services.door.port

    def dial(self, address: str = "127.0.0.1", *, lockstep: bool = False) -> trio.StapledStream[Any, Any]:
        """One end of a connection that the gateway serves; `lockstep` makes each write wait for its reader."""
        make = trio.testing.lockstep_stream_pair if lockstep else trio.testing.memory_stream_pair
        ours, theirs = make()
        self._nursery.start_soon(partial(self.gateway.serve_client, theirs, address=address), name="client under test")
        return ours

    @asynccontextmanager
    async def socket(
        self,
        address: str = "127.0.0.1",
        *,
        headers: Mapping[str, str] | None = None,
        lockstep: bool = False,
    ) -> AsyncGenerator[Client]:
        """A WebSocket that has said nothing yet."""
        stream = self.dial(address, lockstep=lockstep)
        try:
            client = Client(stream, limit=self._limit)
            await client.upgrade({"Host": f"127.0.0.1:{self.port}"} | dict(headers or {}))
            yield client
        finally:
            await trio.aclose_forcefully(stream)

    @asynccontextmanager
    async def client(
        self, *, caps: tuple[str, ...] = (), lockstep: bool = False, address: str = "127.0.0.1", **connect: Any
    ) -> AsyncGenerator[Client]:
        """A WebSocket past its hello: `gateway-client`/`backend` with the token, unless `connect` says otherwise."""
        async with self.socket(address, lockstep=lockstep) as client:
            params = connect_params(token=TOKEN, caps=caps) | connect
            client.hello = await client.connect(params)
            yield client

    async def http(
        self,
        method: str,
        target: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        token: str | None = TOKEN,
        address: str = "127.0.0.1",
    ) -> HttpAnswer:
        """One plain HTTP exchange on a connection of its own."""
        stream = self.dial(address)
        try:
            data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
            head = {"Host": f"127.0.0.1:{self.port}", "Content-Length": str(len(data))} | dict(headers or {})
            if token is not None:
                head["Authorization"] = f"Bearer {token}"
            lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", ""]
            await stream.send_all("\r\n".join(lines).encode() + data)
            return await read_answer(stream, head_only=method == "HEAD")
        finally:
            await trio.aclose_forcefully(stream)

    async def rpc(self, method: str, params: object = None, *, final: bool = False) -> Any:
        """A method over plain HTTP; its payload. A refusal fails the test."""
        answer = await self.http("POST", f"/rpc/{method}{'?wait=final' if final else ''}", params or {})
        assert answer.status == 200, answer
        return answer.body

    def warnings(self) -> list[Record]:
        """What was logged and is not good to hear."""
        return [record for record in self.log if record.level in ("warn", "error")]

    def faults(self) -> list[Record]:
        """Our own faults, as the boundaries logged them."""
        return [record for record in self.log if record.level == "error"]


async def _inline(
    sync_fn: Callable[..., Any], *args: Any, thread_name: str | None = None, abandon_on_cancel: bool = False, **_: Any
) -> Any:
    await trio.lowlevel.checkpoint()
    return sync_fn(*args)


@asynccontextmanager
async def open_test_gateway(
    tmp_path: Path,
    *,
    config: Mapping[str, Any] | None = None,
    script: list[Step] | None = None,
    providers: tuple[ProviderEntry, ...] | None = None,
    tools: tuple[AnyTool, ...] = (),
    virtual: bool = False,
    clock: Clock | None = None,
    grace: float = 0.5,
    environ: Mapping[str, str] | None = None,
    faulty: bool = False,
    secret: str = TOKEN,
) -> AsyncGenerator[TestHost]:
    """Open everything on `tmp_path/state`; `script` goes to the scripted provider, which obeys the messages without.

    `virtual` is for a mock clock: no thread works (it would be jumped over), and the wall clock follows Trio's.
    `providers` replaces the scripted one; without any, pass `providers=()` for what the configuration names.
    Leaving the block stops the gateway as a signal would; runs get `grace` seconds. A fault of our own in the log fails
    the test, unless it is `faulty` on purpose.
    """
    paths = Paths(tmp_path / "state", tmp_path / "state" / "triops.json")
    prepare_state(paths)
    paths.config.write_text(json.dumps(ECHO if config is None else config))
    records: list[Record] = []
    wall = clock or (trio_clock(EPOCH) if virtual else system_clock)
    model = ScriptedProvider(script, now=wall)
    entries = (ProviderEntry(provider=model, why="the test"),) if providers is None else providers
    loaded = load_config(paths, environ or {})
    async with AsyncExitStack() as stack:
        file = stack.enter_context(LogFile(paths.logs))
        log = Log(records.append, file, clock=wall, level="debug")
        log.redactor.add([Secret(secret)])
        for notice in loaded.warnings:
            log.warning(notice.message, path=notice.path)
        store = None
        if virtual:
            store = stack.enter_context(open_inline_store(paths.database))
            real = trio.to_thread.run_sync
            stack.callback(setattr, trio.to_thread, "run_sync", real)
            trio.to_thread.run_sync = _inline  # pyright: ignore[reportAttributeAccessIssue] - threads and mock clocks do not mix
        runtime = await stack.enter_async_context(
            open_runtime(
                loaded,
                paths,
                log=log,
                log_file=file,
                secret=Secret(secret),
                clock=wall,
                store=store,
                providers=entries or None,
                tools=tools,
                drain=grace,
                watched=environ,
            )
        )
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        clients = await stack.enter_async_context(trio.open_nursery())
        stack.callback(clients.cancel_scope.cancel, reason="the test is over")
        gateway = await stack.enter_async_context(
            open_gateway(runtime, listeners, host="127.0.0.1", version="0.0.0-test", grace=grace)
        )
        yield TestHost(runtime, gateway, model, records, clients, VIRTUAL_LIMIT if virtual else LIMIT)
    faults = [(record.message, record.fields) for record in records if record.level == "error"]
    assert faulty or not faults, faults[:2]
