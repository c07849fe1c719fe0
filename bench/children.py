"""The processes that measuring needs: each ends with its block, and all that it started with it. Knows no gateway.

A child has a process group of its own: Ctrl-C in the terminal reaches this process alone, which then ends the child.
It is given its standard input and ends with it where it can; what is still there is terminated, then killed.
"""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import IO, Any

import msgspec
import trio

from triops.bench.errors import BenchFailed

START_LIMIT = 60.0
POLL = 0.002
"""Seconds between two looks at what another process does: the resolution of "listening"."""
TERMINATE_GRACE, KILL_GRACE = 5.0, 5.0

if sys.platform == "win32":
    OWN_GROUP: dict[str, Any] = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    TERMINATE, KILL, LOOK = signal.SIGTERM, signal.SIGTERM, 0

    def signal_group(pid: int, number: int) -> bool:
        """End a child and all below it: here every signal does so, at once. Nothing is left."""
        if number != LOOK:
            subprocess.run(["taskkill", "/T", "/F", "/PID", str(pid)], capture_output=True, check=False)
        return False

else:
    OWN_GROUP: dict[str, Any] = {"start_new_session": True}
    TERMINATE, KILL, LOOK = signal.SIGTERM, signal.SIGKILL, 0

    def signal_group(pid: int, number: int) -> bool:
        """Signal a child and what it started; whether something is there."""
        with suppress(ProcessLookupError, PermissionError):  # macOS forbids it where only zombies are left
            os.killpg(pid, number)
            return True
        return False


class Address(msgspec.Struct, frozen=True, rename="camel"):
    """What a child says of itself: a line of the mock or the floor, or the gateway's `gateway.json`."""

    url: str
    pid: int
    token_file: str = ""


@asynccontextmanager
async def open_announced(*arguments: str) -> AsyncGenerator[Address]:
    """A child of this interpreter that prints its address as its first line and ends with its standard input."""
    async with open_child([sys.executable, *arguments], -1, None) as process:
        assert process.stdout is not None
        line = b""
        with trio.move_on_after(START_LIMIT):
            while not line.endswith(b"\n") and (data := await process.stdout.receive_some()):
                line += data
        if not line.endswith(b"\n"):
            raise BenchFailed(f"{' '.join(arguments)} did not start; its standard error says why")
        yield msgspec.json.decode(line, type=Address)


@asynccontextmanager
async def open_child(
    argv: Sequence[str], stdout: IO[bytes] | int, stderr: IO[bytes] | None, *, env: Mapping[str, str] | None = None
) -> AsyncGenerator[trio.Process]:
    """A process; at the end of the block it and all that it started are gone, whatever they do."""
    try:
        process = await trio.lowlevel.open_process(argv, stdin=-1, stdout=stdout, stderr=stderr, env=env, **OWN_GROUP)
    except OSError as error:
        raise BenchFailed(f"{argv[0]} cannot be started: {error}") from error
    try:
        yield process
    finally:
        assert process.stdin is not None
        try:
            with trio.move_on_after(TERMINATE_GRACE, shield=True):
                await process.stdin.aclose()
                if process.stdout is not None:
                    await process.wait()
                signal_group(process.pid, TERMINATE)  # a gateway does not end with its input
                while process.poll() is None or signal_group(process.pid, LOOK):  # noqa: ASYNC110 - grandchildren end unseen
                    await trio.sleep(POLL)
        finally:  # a second Ctrl-C too leaves nobody behind
            signal_group(process.pid, KILL)
            with trio.move_on_after(KILL_GRACE, shield=True):
                await process.wait()
