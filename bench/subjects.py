"""Who is measured, each opened for a block. Knows no scenario."""

import os
import shlex
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path

import msgspec
import trio

from triops.bench.children import POLL, START_LIMIT, Address, open_announced, open_child
from triops.bench.driver import now, place_of
from triops.bench.errors import BenchFailed
from triops.bench.turns import BARE, INSIDE

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


def openers(targets: Targets, model: str, *, children: bool = False) -> dict[str, Opener]:
    """By name, what opens each subject; the floor last.

    Raises:
        BenchFailed: a command without the address at which it listens, or an address without one where all are to be
            `children` of ours.
    """
    if children and targets.url and not targets.command:
        raise BenchFailed("only a child is measured so: add --start with the command that starts the gateway at --url")
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


@asynccontextmanager
async def open_model(targets: Targets = NO_TARGETS) -> AsyncGenerator[str]:
    """The URL of the model that leaves marks: the one that runs already, or the mock or a relay in its own process."""
    if targets.model:
        place_of(targets.model, "--model", "http://127.0.0.1:8000")
        yield targets.model
        return
    relay = ("triops.bench.relay", "--to", targets.endpoint, "--name", targets.endpoint_model)
    async with open_announced("-m", *(relay if targets.endpoint else ("triops.bench.mock_model",))) as address:
        yield address.url


@asynccontextmanager
async def open_peer(targets: Targets, model: str) -> AsyncGenerator[Subject]:
    """A gateway that a command starts, as a child; it is there when its port is open.

    Raises:
        BenchFailed: somebody listens there already; there is no such command, it ended, or did not listen in time.
    """
    try:
        words = shlex.split(targets.command, posix=os.name == "posix")
    except ValueError as error:
        raise BenchFailed(f"--start {targets.command!r} is no command: {error}") from error
    if not words:
        raise BenchFailed("--start names no command")
    argv = [word.replace("{model}", model) for word in words]
    if await _connects(targets.url):
        raise BenchFailed(f"somebody listens at {targets.url} already: end it, or leave out --start to measure it")
    with tempfile.TemporaryDirectory(prefix="triops-bench-", ignore_cleanup_errors=True) as folder:
        state, spawned = Path(folder), now()
        log = state / "bench.log"
        with log.open("wb") as output:
            async with open_child(argv, output, output) as process:
                listening = await _port_opened(process, targets.url, log)
                yield Subject("gateway", targets.url, targets.token, process.pid, spawned, listening, log=log)


async def _port_opened(process: trio.Process, url: str, log: Path) -> int:
    with trio.move_on_after(START_LIMIT):
        while process.poll() is None:
            if listening := await _connects(url):
                return listening
            await trio.sleep(POLL)
    raise BenchFailed(f"nobody listens at {url} (exit code {process.returncode}):\n{_tail(log)}")


async def _connects(url: str) -> int:
    """When a connection to it was made; 0 if none was."""
    place = place_of(url)
    with suppress(OSError):
        stream = await trio.open_tcp_stream(place.host, place.port)
        connected = now()
        await trio.aclose_forcefully(stream)
        return connected
    return 0


@asynccontextmanager
async def open_floor(model: str, python: Sequence[str] = ("-m", FLOOR)) -> AsyncGenerator[Subject]:
    """The floor in its own process; `python` are the interpreter's arguments that start it."""
    spawned = now()
    async with open_announced(*python, "--model", model) as address:
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
            async with open_child(argv, output, output, env=env) as process:
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
