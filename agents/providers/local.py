"""Models in `.gguf` files on this machine, each served by a child process that starts when first asked.

Knows where the files lie and how a child lives and dies; what is said to it is the OpenAI dialect's business.
"""

import math
import os
import re
import secrets
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import IO, Any

import msgspec
import trio

from triops.agents.errors import ProviderError
from triops.agents.messages import UserMessage
from triops.agents.model import Compat, ModelInfo, ModelRef, ModelRequest, ProviderEvent
from triops.agents.providers.demo import INSTALL_COMMAND, engine_is_installed, weights_folder
from triops.agents.providers.http import HttpClient
from triops.agents.providers.openai_completions import OpenAICompletionsProvider

CONTEXT_WINDOW = 2048
"""Tokens; what a child is started with for the demonstration model, and for a file that does not say more."""
MOST_CONTEXT = 8192
"""Tokens for a file that was trained on more: memory grows with them."""
DEMO_TEMPERATURE = 0.2
"""Warmer, the demonstration model loses the thread."""
IDLE_UNLOAD = 300.0
GRACE = 2.0
"""Seconds that a child gets to end by itself."""
_CONTEXT = re.compile(rb"GGUF.*?\.context_length(?:[\x04\x05]\0\0\0(.{4})|[\x0a\x0b]\0\0\0(.{8}))", re.DOTALL)
"""In the head of a `.gguf`: the key, its kind (a number of 32 or 64 bits) and the number."""
SOCKET_PATH_LIMIT = 100
"""Bytes; macOS allows 104 with the closing zero. A longer path means a loopback port, as on Windows."""


@asynccontextmanager
async def open_local_provider(
    folders: Sequence[Path], *, socket_folder: Path, idle_unload: float = IDLE_UNLOAD
) -> AsyncGenerator["LocalProvider"]:
    """The provider `local`: every `.gguf` in `folders`, and the demonstration model if it is installed.

    Children listen in `socket_folder`, which is made when the first one starts. One that nobody asked for `idle_unload`
    seconds is ended, so that its memory is free. At the end of the block all are gone, killed after two seconds if need
    be.
    """
    async with trio.open_nursery() as nursery:
        yield LocalProvider(nursery, folders, socket_folder, idle_unload)
        nursery.cancel_scope.cancel(reason="the local provider closes")


class LocalProvider:
    """Serves local files as `local/<name of the file>`. Made by `open_local_provider`."""

    id = "local"

    def __init__(self, nursery: trio.Nursery, folders: Sequence[Path], socket_folder: Path, idle_unload: float) -> None:
        self._nursery = nursery
        self._folders = folders
        self._socket_folder = socket_folder
        self._idle_unload = idle_unload
        self._engines: dict[str, _Engine] = {}
        self._starting: defaultdict[str, trio.Lock] = defaultdict(trio.Lock)

    @property
    def rest(self) -> str:
        """As the protocol says."""
        if not self._engines or any(not engine.is_over() for engine in self._engines.values()):
            return ""
        idle = all(engine.life.cancel_called for engine in self._engines.values())
        why = f"unloaded after {self._idle_unload:.0f} s without a message" if idle else "its process ended"
        return f"{why}; the next message loads it again"

    async def discover(self) -> Sequence[ModelInfo]:
        """The files that are there now.

        Raises:
            ProviderError: the engine or every model is missing; the words say how to install them.
        """
        return [_describe(path) for path in self._files().values()]

    async def resolve_dynamic(self, model_id: str) -> ModelInfo | None:
        """None: a file that is not there cannot be made up."""
        return None

    @asynccontextmanager
    async def stream(self, request: ModelRequest) -> AsyncGenerator[AsyncIterable[Sequence[ProviderEvent]]]:
        """As the protocol says. Starts the model's child if there is none; a child answers one request at a time.

        Raises:
            ProviderError: `model_not_found` if something is not installed, `server_error` if the model cannot be
                loaded, `connection` if the child died; the next request starts a new one.
        """
        if request.model.demo and request.temperature is None:
            request = msgspec.structs.replace(request, temperature=DEMO_TEMPERATURE)
        engine = await self._claim(request.model.ref.model)
        try:
            async with engine.client.stream(request) as batches:
                yield batches
        except ProviderError as error:
            if error.kind == "connection" and await engine.has_died():  # noqa: ASYNC120  # a cancellation outweighs it
                words = f"the engine of {request.model.ref} ended while it answered; the next message starts it again"
                raise ProviderError("connection", words, retryable=True, detail=engine.last_words) from error
            raise
        finally:
            engine.release()

    async def warm(self, model: ModelInfo, system: str) -> None:
        """Load the weights and let the model read `system`, so that a first turn reads only its own message."""
        greeting = UserMessage("Hello", timestamp=0)
        request = ModelRequest(model=model, system=system, messages=(greeting,), max_tokens=1)
        async with self.stream(request) as batches:
            async for _ in batches:
                pass

    def _files(self) -> dict[str, Path]:
        if not engine_is_installed():
            raise _not_installed("the engine of local models (xllamacpp) is not installed")
        folders = [weights_folder(), *self._folders]  # a user's own file wins over ours of the same name
        files = {path.stem: path for folder in folders if folder for path in sorted(folder.glob("*.gguf"))}
        if not files:
            raise _not_installed("no local model is installed")
        return files

    async def _claim(self, model_id: str) -> "_Engine":
        async with self._starting[model_id]:
            engine = self._engines.get(model_id)
            if engine is None or engine.is_over():
                path = self._files().get(model_id)
                if path is None:
                    raise _not_installed(f"there is no local model {model_id!r}")
                engine = await self._nursery.start(self._serve, path)
                self._engines[model_id] = engine
            engine.claim()
            return engine

    async def _serve(self, model: Path, *, task_status: trio.TaskStatus["_Engine"]) -> None:
        """Own one child from its start to its end: its own, or the end of `life`."""
        self._socket_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        socket = self._socket_folder / f"{secrets.token_hex(4)}.sock"
        command = [sys.executable, "-P", "-m", "triops.agents.providers.engine", "--model", str(model)]
        threads = 1 if model.parent == weights_folder() else max(1, (os.cpu_count() or 1) - 1)
        command += ["--context", str(_window(model)), "--threads", str(threads)]
        if sys.platform != "win32" and len(os.fsencode(socket)) <= SOCKET_PATH_LIMIT:
            command += ["--socket", str(socket)]
        key = secrets.token_urlsafe(32)
        with tempfile.TemporaryFile() as stderr:
            process = await trio.lowlevel.open_process(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr
            )
            try:
                address = await _start(process, key, model.stem, stderr)
                base_url = f"{address.get('url', 'http://localhost')}/v1"
                with closing(HttpClient(uds=address.get("socket"))) as http:
                    client = OpenAICompletionsProvider(id=self.id, base_url=base_url, api_key=key, http=http)
                    engine = _Engine(process, client, self._idle_unload)
                    task_status.started(engine)
                    with engine.life:
                        await process.wait()
                    engine.last_words = _words(stderr)
                    engine.ended.set()
            finally:
                with trio.move_on_after(3 * GRACE, shield=True):
                    await _end(process)
                socket.unlink(missing_ok=True)


class _Engine:
    """One running child, and how many answers it owes."""

    def __init__(self, process: trio.Process, client: OpenAICompletionsProvider, idle_unload: float) -> None:
        self.process = process
        self.client = client
        self.life = trio.CancelScope()
        """Its deadline passes when the child was idle too long; moved by `claim` and `release`."""
        self.ended = trio.Event()
        self.last_words = ""
        """What llama.cpp said was wrong, once it has ended."""
        self._idle_unload = idle_unload
        self._users = 0

    def is_over(self) -> bool:
        """Ended, or about to."""
        return self.life.cancel_called or self.process.returncode is not None

    def claim(self) -> None:
        self._users += 1
        self.life.deadline = math.inf

    def release(self) -> None:
        self._users -= 1
        if not self._users:
            self.life.deadline = trio.current_time() + self._idle_unload

    async def has_died(self) -> bool:
        """Whether the child is what failed: its sockets close a moment before it can be waited for."""
        with trio.move_on_after(0.5):
            await self.ended.wait()
        return self.is_over()


async def _start(process: trio.Process, key: str, name: str, stderr: IO[bytes]) -> dict[str, Any]:
    """Hand over the key and wait for the line that says where the child listens."""
    assert process.stdin is not None and process.stdout is not None
    line = b""
    try:
        await process.stdin.send_all(f"{key}\n".encode())
        while not line.endswith(b"\n") and (data := await process.stdout.receive_some()):
            line += data
    except trio.BrokenResourceError:
        pass  # it ended before it read its key; said below
    if not line.endswith(b"\n"):
        with trio.move_on_after(GRACE):
            await process.wait()
        words = _words(stderr)
        raise ProviderError("server_error", f"the local model {name} could not be loaded: {words}", detail=words)
    return msgspec.json.decode(line, type=dict[str, Any])


async def _end(process: trio.Process) -> None:
    """Make sure that the child is gone and waited for."""
    process.terminate()
    with trio.move_on_after(GRACE):
        await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            await trio.aclose_forcefully(pipe)


def trained_context(path: Path) -> int:
    """The tokens that a `.gguf` was trained on; 0 if the beginning of the file does not say so."""
    try:
        with path.open("rb") as file:
            found = _CONTEXT.match(file.read(1 << 16))
    except OSError:
        return 0  # what is wrong with it llama.cpp says when it is loaded
    return int.from_bytes(found[1] or found[2], "little") if found else 0


def _window(path: Path) -> int:
    own = 0 if path.parent == weights_folder() else min(MOST_CONTEXT, trained_context(path))
    return own if own > 0 else CONTEXT_WINDOW


def _describe(path: Path) -> ModelInfo:
    demo = path.parent == weights_folder()
    window = _window(path)
    return ModelInfo(
        ref=ModelRef(LocalProvider.id, path.stem),
        name=f"{path.stem} (demonstration)" if demo else path.stem,
        api="openai-completions",
        context_window=window,
        max_tokens=window // 4,
        compat=Compat(supports_tools=not demo),
        demo=demo,
    )


def _words(stderr: IO[bytes]) -> str:
    """The first words of a child that has ended: llama.cpp writes nothing but errors, the cause before what follows."""
    stderr.seek(0)
    text = re.sub(r"^[\d.]+ E ", "", stderr.read(4096).decode(errors="replace"), flags=re.MULTILINE)
    return " ".join(text.split())[:300] or "it ended without a word"


def _not_installed(what: str) -> ProviderError:
    return ProviderError("model_not_found", f"{what}; for the demonstration model run: {INSTALL_COMMAND}")
