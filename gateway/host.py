"""Hosting: a runtime and its gateway in one process, as `triops gateway run` and `triops chat` have them.

The process that owns itself (`run_gateway`) also has signals and a log on the terminal; a program that hosts
(`open_host`) keeps its own.
"""

import gc
import os
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager

import msgspec
import trio

from triops import __version__
from triops.gateway.cli.process import raise_descriptor_limit, stop_signals
from triops.gateway.server import Gateway, open_gateway, open_listeners
from triops.runtime.compose import open_runtime
from triops.runtime.config_file import LoadedConfig
from triops.runtime.instance import hold_instance
from triops.runtime.logs import Console, Log, LogFile
from triops.runtime.paths import Paths, locate, prepare_state
from triops.runtime.secrets import Secret, load_or_create_token


class Host(msgspec.Struct, frozen=True):
    """An open gateway, as its clients reach it."""

    url: str
    token: Secret | None
    gateway: Gateway
    log: Log


@asynccontextmanager
async def open_host(
    loaded: LoadedConfig, *, port: int | None = None, any_port: bool = True, console: bool = False
) -> AsyncGenerator[Host]:
    """Hold the state folder, open runtime and gateway, and let others on this machine find them.

    `port` replaces the configured one. If it is taken, any free one is used where `any_port` allows. Signals stay
    the host program's.

    Raises:
        InstanceRunning: another process holds the state folder.
        StateError: the state folder cannot be used, or what the configuration names cannot be made.
        Unavailable: the state cannot be opened.
        PortTaken: as it says.
    """
    paths = locate(os.environ)
    narrowed = prepare_state(paths)
    with ExitStack() as stack:
        instance = stack.enter_context(hold_instance(paths))
        file = stack.enter_context(LogFile(paths.logs))
        terminal = [stack.enter_context(Console(sys.stderr))] if console else []
        log = Log(file, *terminal, level=loaded.config.logging.level)
        secret = gateway_secret(loaded, paths)
        log.redactor.add([*loaded.secrets, *([secret] if secret else [])])
        for warning in narrowed:
            log.warning(warning)
        for notice in loaded.warnings:
            log.warning(notice.message, path=notice.path)
        config = loaded.config.gateway
        wanted = config.port if port is None else port
        async with AsyncExitStack() as parts:
            runtime = await parts.enter_async_context(
                open_runtime(loaded, paths, log=log, log_file=file, secret=secret, watched=os.environ)
            )
            listeners = await open_listeners(config.host, wanted, any_port=any_port)
            gateway = await parts.enter_async_context(
                open_gateway(runtime, listeners, host=config.host, version=__version__)
            )
            in_file = config.auth.mode == "token" and config.auth.token is None
            stack.enter_context(instance.published(gateway.url, __version__, token_file=in_file))
            log.info("listening", url=gateway.url, at=", ".join(gateway.services.listening), pid=os.getpid())
            yield Host(gateway.url, secret, gateway, log)
        log.info("stopped")


def gateway_secret(loaded: LoadedConfig, paths: Paths) -> Secret | None:
    """What clients prove themselves with: configured, or the random token of the state folder."""
    auth = loaded.config.gateway.auth
    match auth.mode:
        case "none":
            return None
        case "password":
            return auth.password
        case "token":
            return auth.token or load_or_create_token(paths)


def run_gateway(loaded: LoadedConfig, *, port: int | None = None) -> None:
    """Run a gateway until this process is asked to stop; raises what `open_host` does, in a group."""
    raise_descriptor_limit()
    trio.run(_run, loaded, port)


async def _run(loaded: LoadedConfig, port: int | None) -> None:
    with trio.open_signal_receiver(*stop_signals()) as received:
        async with trio.open_nursery() as nursery:
            async with open_host(loaded, port=port, any_port=False, console=True) as host:
                gc.freeze()  # what is here stays: a full collection would look it through, 8 ms of somebody's turn
                name = signal.Signals(await anext(received)).name
                words = "asked to stop; a second signal does not wait for the runs"
                host.log.info(words, signal=name, runs=host.gateway.running)
                nursery.start_soon(_hasten, received, host.gateway)  # noqa: ASYNC111 - for while that block closes
            nursery.cancel_scope.cancel(reason="the gateway has stopped")


async def _hasten(received: AsyncIterator[int], gateway: Gateway) -> None:
    async for _ in received:  # each is taken: one that is left over would kill a process that has stopped well
        gateway.patience.cancel(reason="a second signal")
