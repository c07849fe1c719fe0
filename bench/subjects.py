"""Who is measured, and the processes that measuring needs: each ends with its block. Knows no scenario.

A child is given its standard input and ends with it where it can; what is still there is terminated, then killed.
"""

import os
import shlex
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import msgspec
import trio

from triops.bench.driver import now
from triops.bench.errors import BenchFailed
from triops.bench.turns import BARE, INSIDE

START_LIMIT = 60.0
POLL = 0.002
"""Seconds between two looks at a file that another process writes: the resolution of "listening"."""
TERMINATE_GRACE, KILL_GRACE = 5.0, 5.0
GATEWAY, FLOOR = "triops.gateway.cli.main", "triops.bench.floor"


class Subject(msgspec.Struct, frozen=True):
    """Something that speaks the protocol; the times and what follows them only for a child of ours."""

    name: str
    url: str
    token: str
    pid: int = 0
    spawned: int = 0
    listening: int = 0
    """ns of `perf_counter_ns`; listening is when its address could be read."""
    env: dict[str, str] = {}
    log: Path = Path()


class Targets(msgspec.Struct, frozen=True):
    """Who is to be measured."""

    url: str = ""
    """A gateway that runs already, or that `command` starts; without, this project's is started."""
    token: str = ""
    model: str = ""
    """The mock model that the gateway at `url` uses; without, one is started."""
    floor: bool = True
    inside: bool = False
    """This project's gateway also in the generator's own process."""
    bare: bool = False
    """Also the model's endpoint alone."""
    command: str = ""
    """Starts the gateway at `url`; `{model}` in it stands for the mock model's URL."""
    endpoint: str = ""
    """The base URL of a real model endpoint, to be asked in the mock's place."""
    endpoint_model: str = ""


NO_TARGETS = Targets()
Opener = Callable[[], AbstractAsyncContextManager[Subject]]


def openers(targets: Targets, model: str) -> dict[str, Opener]:
    """By name, what opens each subject; the floor last.

    Raises:
        BenchFailed: a command without the address at which it listens.
    """
    if targets.command and not targets.url:
        raise BenchFailed("--start names a command, but not where it listens: add --url ws://127.0.0.1:PORT")
    found: dict[str, Opener] = {}
    if targets.command:
        found["gateway"] = partial(open_peer, targets, model)
    elif targets.url:
        found["gateway"] = partial(nullcontext[Subject], Subject("gateway", targets.url, targets.token))
    else:
        found["triops"] = partial(open_gateway, model)
    if targets.inside:
        found[INSIDE] = partial(open_inside, model)
    if targets.bare:
        found[BARE] = partial(nullcontext[Subject], Subject(BARE, model, ""))
    return found | ({"floor": partial(open_floor, model)} if targets.floor else {})


class Address(msgspec.Struct, frozen=True, rename="camel"):
    """What a child says of itself: a line of the mock or the floor, or the gateway's `gateway.json`."""

    url: str
    pid: int
    token_file: str = ""


@asynccontextmanager
async def open_model(targets: Targets = NO_TARGETS) -> AsyncGenerator[str]:
    """The URL of the model that leaves marks: the one that runs already, or the mock or a relay in its own process."""
    if targets.model:
        yield targets.model
        return
    relay = ("triops.bench.relay", "--to", targets.endpoint, "--name", targets.endpoint_model)
    async with _open_announced("-m", *(relay if targets.endpoint else ("triops.bench.mock_model",))) as address:
        yield address.url


@asynccontextmanager
async def open_peer(targets: Targets, model: str) -> AsyncGenerator[Subject]:
    """A gateway that a command starts, as a child; it is there when its port is open.

    Raises:
        BenchFailed: there is no such command, it ended, or did not listen in time.
    """
    argv = [part.replace("{model}", model) for part in shlex.split(targets.command, posix=os.name == "posix")]
    with tempfile.TemporaryDirectory(prefix="triops-bench-", ignore_cleanup_errors=True) as folder:
        state, spawned = Path(folder), now()
        log = state / "bench.log"
        with log.open("wb") as output:
            async with _open_child(argv, output, output) as process:
                listening = await _port_opened(process, targets.url, log)
                yield Subject("gateway", targets.url, targets.token, process.pid, spawned, listening, log=log)


async def _port_opened(process: trio.Process, url: str, log: Path) -> int:
    parts = urlsplit(url)
    with trio.move_on_after(START_LIMIT):
        while process.poll() is None:
            with suppress(OSError):
                stream = await trio.open_tcp_stream(parts.hostname or "", parts.port or 80)
                listening = now()
                await trio.aclose_forcefully(stream)
                return listening
            await trio.sleep(POLL)
    raise BenchFailed(f"nobody listens at {url} (exit code {process.returncode}):\n{_tail(log)}")


@asynccontextmanager
async def open_floor(model: str, python: Sequence[str] = ("-m", FLOOR)) -> AsyncGenerator[Subject]:
    """The floor in its own process; `python` are the interpreter's arguments that start it."""
    spawned = now()
    async with _open_announced(*python, "--model", model) as address:
        yield Subject("floor", address.url, "", address.pid, spawned, now())


@asynccontextmanager
async def open_gateway(model: str, python: Sequence[str] = ("-m", GATEWAY)) -> AsyncGenerator[Subject]:
    """This project's gateway as a child, with a state folder of its own and `model` as its only provider.

    Raises:
        BenchFailed: it ended, or did not listen in time; the end of its log is in the message.
    """
    with tempfile.TemporaryDirectory(prefix="triops-bench-", ignore_cleanup_errors=True) as folder:
        state = Path(folder)
        config, log = state / "triops.json", state / "bench.log"
        config.write_bytes(msgspec.json.encode(gateway_config(model)))
        env = {**os.environ, "TRIOPS_STATE_DIR": folder, "TRIOPS_CONFIG_PATH": str(config)}
        argv = [sys.executable, *python, "gateway", "run", "--port", "0"]
        spawned = now()
        with log.open("wb") as output:
            async with _open_child(argv, output, output, env=env) as process:
                address = await _discover(process, state / "gateway.json", log)
                listening = now()
                token = (state / address.token_file).read_text().strip()
                yield Subject("triops", address.url, token, process.pid, spawned, listening, env, log)


@asynccontextmanager
async def open_inside(model: str) -> AsyncGenerator[Subject]:
    """This project's gateway in this process, on a port of its own and a state folder that goes with it."""
    from triops.gateway.host import open_host
    from triops.runtime.config_file import load_config
    from triops.runtime.paths import locate

    with tempfile.TemporaryDirectory(prefix="triops-bench-", ignore_cleanup_errors=True) as folder:
        config = Path(folder) / "triops.json"
        config.write_bytes(msgspec.json.encode(gateway_config(model)))
        os.environ |= {"TRIOPS_STATE_DIR": folder, "TRIOPS_CONFIG_PATH": str(config)}
        loaded = load_config(locate(os.environ), os.environ)
        async with open_host(loaded, port=0, any_port=True, console=False) as host:
            yield Subject(INSIDE, host.url, host.token.reveal() if host.token else "", os.getpid())


def gateway_config(model: str) -> dict[str, object]:
    """A `triops.json` that knows the mock model and nothing else."""
    info = {"id": "mock-1", "contextWindow": 200_000, "maxTokens": 8_192}
    provider = {"baseUrl": f"{model}/v1", "apiKey": "bench", "api": "openai-completions", "models": [info]}
    default = {"model": {"primary": "mock/mock-1"}}
    return {"models": {"providers": {"mock": provider}}, "agents": {"defaults": default}}


async def _discover(process: trio.Process, path: Path, log: Path) -> Address:
    with trio.move_on_after(START_LIMIT):
        while process.poll() is None:
            if (address := _read_address(path)) is not None:
                return address
            await trio.sleep(POLL)
    raise BenchFailed(f"the gateway did not come up (exit code {process.returncode}):\n{_tail(log)}")


def _read_address(path: Path) -> Address | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Address)
    except (FileNotFoundError, msgspec.DecodeError):
        return None  # not yet, or not whole yet


def _tail(log: Path) -> str:
    return log.read_text("utf-8", "replace")[-2000:]


@asynccontextmanager
async def _open_announced(*arguments: str) -> AsyncGenerator[Address]:
    """A child that prints its address as its first line and ends with its standard input."""
    async with _open_child([sys.executable, *arguments], -1, None) as process:
        assert process.stdout is not None
        line = b""
        with trio.move_on_after(START_LIMIT):
            while not line.endswith(b"\n") and (data := await process.stdout.receive_some()):
                line += data
        if not line.endswith(b"\n"):
            raise BenchFailed(f"{' '.join(arguments)} did not start; its standard error says why")
        yield msgspec.json.decode(line, type=Address)


@asynccontextmanager
async def _open_child(
    argv: Sequence[str], stdout: IO[bytes] | int, stderr: IO[bytes] | None, *, env: Mapping[str, str] | None = None
) -> AsyncGenerator[trio.Process]:
    """A process; at the end of the block it is gone, whatever it does."""
    try:
        process = await trio.lowlevel.open_process(argv, stdin=-1, stdout=stdout, stderr=stderr, env=env)
    except OSError as error:
        raise BenchFailed(f"{argv[0]} cannot be started: {error}") from error
    try:
        yield process
    finally:
        assert process.stdin is not None
        with trio.move_on_after(TERMINATE_GRACE, shield=True):
            await process.stdin.aclose()
            if process.stdout is None:
                process.terminate()  # a gateway does not end with its input
            await process.wait()
        process.kill()
        with trio.move_on_after(KILL_GRACE, shield=True):
            await process.wait()
