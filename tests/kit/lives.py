"""Lives of a gateway that are quick to start and can end at a named step of the work.

Everything is imported once, in a process of its own (this file, as a script); each life is a fork of it, or a process
like it where there are no forks. The product knows nothing of this: its functions are wrapped from outside. Besides, a
life notes in the `journal` which runs it began and how it told that they ended.
"""

import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import trio

Seen = Callable[[tuple[Any, ...]], bool]
SCRIPT = Path(__file__).resolve()


def _publishes(event: str) -> Seen:
    return lambda arguments: type(arguments[1]).__name__ == event


def _sends(*parts: bytes) -> Seen:
    return lambda arguments: all(part in arguments[1] for part in parts)


_STORED = "triops.runtime.store.runs"
_BUS = ("triops.runtime.bus", "Bus.publish")
_SEND = ("triops.gateway.transport", "Transport.send_all")
STEPS: dict[str, tuple[str, str, Seen | None]] = {
    "recovery": (_STORED, "recover", None),
    "reserve": ("triops.runtime.runs.supervisor", "Supervisor._reserve", None),
    "accept, not committed": (_STORED, "accept", None),
    "commit": ("triops.runtime.store.sqlite", "commit_group", None),
    "accepted, not acknowledged": ("triops.runtime.runs.supervisor", "Supervisor._stored", None),
    "ack sent": (*_SEND, _sends(b'"res"', b'"runId"')),
    "claim": (_STORED, "claim", None),
    "run start": (*_BUS, _publishes("RunStarted")),
    "model asked": ("triops.agents.providers.scripted", "ScriptedProvider.stream", None),
    "first delta": (*_BUS, _publishes("RunDelta")),
    "tool running": (*_BUS, _publishes("RunTool")),
    "step saved": (_STORED, "save", None),
    "reply, not committed": (_STORED, "finish", None),
    "drop": (_STORED, "drop", None),
    "terminal told": (*_BUS, _publishes("RunEnded")),
    "final sent": (*_SEND, _sends(b'"state":"final"')),
}
"""Where a life can end: the function that is the step, and which of its calls."""


class Death(NamedTuple):
    """Before or after the nth time that a step is taken."""

    step: str
    side: str
    nth: int


class Life:
    """A gateway that starts, serves or is over; see `Lives.life`."""

    def __init__(self) -> None:
        self.pid: int | None = None
        self.url = ""
        self.code: int | None = None
        """How it ended: the exit code, negative for a signal."""
        self.ready = trio.Event()
        """It listens, or is over."""
        self.over = trio.Event()

    def kill(self) -> None:
        """End it at once, as a power cut would; it may be over already."""
        if self.pid is not None and self.code is None:
            with suppress(ProcessLookupError):  # it is over, and we have not heard of it yet
                os.kill(self.pid, getattr(signal, "SIGKILL", signal.SIGTERM))


class Lives:
    """Made by `open_lives`."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._lives: list[Life] = []
        self._asking = trio.Lock()

    @asynccontextmanager
    async def life(self, death: Death | None = None) -> AsyncGenerator[Life]:
        """`triops gateway run`, killed at the end of the block unless it is over; inside, it listens or is over."""
        life = Life()
        order = {"id": len(self._lives), "death": death}
        self._lives.append(life)
        assert self._process.stdin is not None
        async with self._asking:
            await self._process.stdin.send_all(json.dumps(order).encode() + b"\n")
        try:
            await life.ready.wait()
            yield life
        finally:
            life.kill()
            with trio.move_on_after(20, shield=True):
                await life.over.wait()

    async def hear(self) -> None:
        """Hear of the lives, until the launcher is closed."""
        assert self._process.stdout is not None
        rest = b""
        async for data in self._process.stdout:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._told(**json.loads(line))

    def _told(self, id: int, pid: int, url: str = "", code: int | None = None) -> None:
        life = self._lives[id]
        life.pid, life.url, life.code = pid, url or life.url, code
        if url or code is not None:
            life.ready.set()
        if code is not None:
            life.over.set()


@asynccontextmanager
async def open_lives(environ: dict[str, str], journal: Path) -> AsyncGenerator[Lives]:
    """A launcher of gateways with this environment."""
    command = [sys.executable, "-P", str(SCRIPT), str(journal)]
    async with trio.open_nursery() as nursery:
        process = await trio.lowlevel.open_process(
            command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdin is not None
        lives = Lives(process)
        nursery.start_soon(lives.hear)
        try:
            yield lives
        finally:
            with trio.move_on_after(20, shield=True) as scope:
                await process.stdin.aclose()
                await process.wait()
            if scope.cancelled_caught:
                process.kill()


# -- the script --------------------------------------------------------------------------------------------------------


def tell(**what: object) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


def wrap(module: str, name: str, make: Callable[[Any], Any]) -> None:
    owner: Any = importlib.import_module(module)
    *inside, attribute = name.split(".")
    for part in inside:
        owner = getattr(owner, part)
    function = getattr(owner, attribute)
    setattr(owner, attribute, functools.wraps(function)(make(function)))


def die_at(death: Death) -> None:
    module, name, seen = STEPS[death.step]
    count = 0

    def look(arguments: tuple[Any, ...], side: str) -> None:
        nonlocal count
        if side != death.side or (seen is not None and not seen(arguments)):
            return
        count += 1
        if count == death.nth:
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

    def sync(function: Any) -> Any:
        def wrapped(*arguments: Any, **more: Any) -> Any:
            look(arguments, "before")
            value = function(*arguments, **more)
            look(arguments, "after")
            return value

        return wrapped

    def waits(function: Any) -> Any:
        async def wrapped(*arguments: Any, **more: Any) -> Any:
            look(arguments, "before")
            value = await function(*arguments, **more)
            look(arguments, "after")
            return value

        return wrapped

    wrap(module, name, waits if name.endswith("send_all") else sync)


def live(order: dict[str, Any], journal: str) -> int:
    """One life, in this process; its exit code."""
    from triops.gateway.cli.main import main

    file = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(function: Any) -> Any:
        def publish(bus: Any, event: Any) -> None:
            kind = type(event).__name__
            if kind in ("RunStarted", "RunEnded"):
                os.write(file, json.dumps({"run": event.run.run_id, "event": kind}).encode() + b"\n")
            function(bus, event)

        return publish

    def announce(function: Any) -> Any:
        def published(instance: Any, url: str, *about: Any, **more: Any) -> Any:
            tell(id=order["id"], pid=os.getpid(), url=url)
            return function(instance, url, *about, **more)

        return published

    wrap("triops.runtime.bus", "Bus.publish", note)
    wrap("triops.runtime.instance", "Instance.published", announce)
    if order["death"] is not None:
        die_at(Death(*order["death"]))
    try:
        main(["gateway", "run", "--port", "0"])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1


def become(run: Callable[[], int]) -> int:
    """Fork: the child is `run` and ends with its code; gives back the child's id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        code = run()
    finally:
        os._exit(code)


def keep(order: dict[str, Any], journal: str) -> int:
    """Start a life, and tell of its start and its end."""
    if hasattr(os, "fork"):
        pid = become(lambda: live(order, journal))
        tell(id=order["id"], pid=pid)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    else:
        child = subprocess.Popen([sys.executable, "-P", str(SCRIPT), journal, json.dumps(order)])
        pid = child.pid
        tell(id=order["id"], pid=pid)
        code = child.wait()
    tell(id=order["id"], pid=pid, code=code)
    return 0


def launch(journal: str) -> None:
    for module in ("gateway.host", "gateway.cli.gateway", "agents.providers.scripted", "runtime.providers"):
        importlib.import_module(f"triops.{module}")
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    for line in sys.stdin:
        run = functools.partial(keep, json.loads(line), journal)
        if hasattr(os, "fork"):
            become(run)
        else:
            threading.Thread(target=run).start()


if __name__ == "__main__":
    if len(sys.argv) > 2:
        sys.exit(live(json.loads(sys.argv[2]), sys.argv[1]))
    launch(sys.argv[1])
