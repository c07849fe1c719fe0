"""A gateway in a process of its own, as a user has it, and the commands against it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import trio
from tests.kit import canary
from tests.kit.wire import HttpAnswer, read_answer

from triops.gateway.client import GatewayClient, open_client
from triops.runtime.instance import Discovery, read_discovery
from triops.runtime.paths import Paths

COMMAND = [sys.executable, "-m", "triops.gateway.cli.main"]
KEPT = ("PATH", "SYSTEMROOT", "TEMP", "TMP", "LANG")
SECONDS = 20.0  # for anything a process does here; on an idle machine all of it takes tenths


class Ran(NamedTuple):
    code: int
    out: str
    err: str


class Home:
    """A user's empty home folder with a state folder in it."""

    def __init__(self, folder: Path, config: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> None:
        self.paths = Paths(folder / "state", folder / "state" / "triops.json")
        self.paths.state.mkdir(mode=0o700, parents=True)
        self.paths.config.write_text(json.dumps(config))
        self.paths.config.chmod(0o600)
        home = {name: str(folder) for name in ("HOME", "USERPROFILE")}
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        self.environ = kept | home | {"TRIOPS_STATE_DIR": str(self.paths.state)} | dict(environ or {})

    async def run(self, *arguments: str) -> Ran:
        """Run `triops` with these arguments to its end."""
        with trio.fail_after(SECONDS):
            done = await trio.run_process(
                [*COMMAND, *arguments], env=self.environ, capture_stdout=True, capture_stderr=True, check=False
            )
        canary.check(b"\n".join([done.stderr, *map(str.encode, arguments)]), "a command")
        return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())

    def spawn(self, *arguments: str) -> "subprocess.Popen[bytes]":
        """Start `triops` and do not wait for it; whoever does ends it."""
        return subprocess.Popen(
            [*COMMAND, *arguments], env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def said(self) -> str:
        """All that the gateway wrote: its log and its output."""
        return "\n".join(path.read_text("utf-8", "replace") for path in sorted(self.paths.logs.iterdir()))


class RunningGateway:
    """A gateway that answers."""

    def __init__(self, home: Home, found: Discovery) -> None:
        self.home = home
        self.pid = found.pid
        self.url = found.url
        self.port = int(found.url.rpartition(":")[2])
        self.token = Path(found.token_file).read_text().strip() if found.token_file else ""

    async def http(self, method: str, target: str, body: object = None, *, token: str | None = None) -> HttpAnswer:
        """One plain HTTP exchange."""
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Length: {len(data)}\r\n"
        head += f"Authorization: Bearer {token or self.token}\r\n\r\n"
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
            await stream.send_all(head.encode() + data)
            return await read_answer(stream, limit=SECONDS)

    async def rpc(self, method: str, params: Mapping[str, Any] | None = None) -> Any:
        """A method over plain HTTP; its payload. A refusal fails the test."""
        answer = await self.http("POST", f"/rpc/{method}", params or {})
        assert answer.status == 200, (method, params, answer)
        return answer.body

    def client(self, **settings: Any) -> AbstractAsyncContextManager[GatewayClient]:
        """The Python client with the token and nothing else: `gateway-client`/`backend`."""
        return open_client(self.url, token=self.token, **settings)


@asynccontextmanager
async def open_gateway_process(home: Home) -> AsyncGenerator[RunningGateway]:
    """`triops gateway start`, and its end by its process id at the end of the block, whatever happens in it."""
    started = await home.run("gateway", "start", "--port", "0")
    try:
        assert started.code == 0, started
        found = read_discovery(home.paths)
        assert found is not None
        yield RunningGateway(home, found)
    finally:
        with trio.move_on_after(2 * SECONDS, shield=True):
            await stop(home)


async def stop(home: Home) -> None:
    """End the gateway of a home, if one runs, and wait until it has."""
    found = read_discovery(home.paths)
    if found is None:
        return
    os.kill(found.pid, signal.SIGTERM)
    with trio.move_on_after(SECONDS):
        while read_discovery(home.paths) is not None:  # noqa: ASYNC110 - another process
            await trio.sleep(0.01)
        return
    kill(found.pid)


def kill(pid: int) -> None:
    """End a process of ours at once, as a power cut would."""
    os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))
