"""The floor: the least code that does one durable chat turn, to be measured beside a gateway. Has no features.

`python -m triops.bench.floor --model URL` prints `{"url": …, "pid": …}` and ends when its standard input ends. A turn
is two fsynced commits (message and run before the ack, reply before the final), one kept-alive HTTP call with its event
stream, and six frames: ack, lifecycle `start`, an `agent` and a `chat` delta, lifecycle `end`, `final`.
"""

import argparse
import itertools
import os
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, cast
from urllib.parse import urlsplit

import apsw
import h11
import msgspec
import trio
from trio_websocket import ConnectionClosed, WebSocketRequest, serve_websocket

# What gives rows comes last: apsw stops at the first of them.
SCHEMA = """PRAGMA synchronous=FULL; CREATE TABLE messages (session TEXT, role TEXT, text TEXT);
CREATE TABLE runs (id TEXT PRIMARY KEY, state TEXT) WITHOUT ROWID; PRAGMA journal_mode=WAL;"""
MESSAGE = "INSERT INTO messages VALUES (?, ?, ?)"
ACCEPT = "INSERT INTO runs VALUES (?, 'running')"
FINISH = "UPDATE runs SET state = 'final' WHERE id = ?"
Statement = tuple[str, tuple[str, ...]]
encode = msgspec.json.encode
decode: Callable[[str | bytes | bytearray], Any] = msgspec.json.decode


class Writer:
    """One database connection in one thread; jobs that wait at the same moment share a commit."""

    def __init__(self, path: str) -> None:
        self._execute: Callable[..., object] = cast("Any", apsw.Connection(path)).execute
        self._execute(SCHEMA)
        self._jobs: SimpleQueue[tuple[tuple[Statement, ...], trio.Event]] = SimpleQueue()
        self._token = trio.lowlevel.current_trio_token()
        threading.Thread(target=self._run, daemon=True).start()

    async def commit(self, *statements: Statement) -> None:
        done = trio.Event()
        self._jobs.put((statements, done))
        await done.wait()

    def _run(self) -> None:
        while True:
            jobs = [self._jobs.get()]
            while not self._jobs.empty():
                jobs.append(self._jobs.get())
            self._execute("BEGIN IMMEDIATE")
            for statement in (statement for statements, _ in jobs for statement in statements):
                self._execute(*statement)
            self._execute("COMMIT")
            self._token.run_sync_soon(lambda done: [event.set() for _, event in done], jobs)


class Model:
    """Kept-alive connections to one endpoint, as many as there are calls at once."""

    def __init__(self, url: str) -> None:
        self._host, self._port = urlsplit(url).hostname or "", urlsplit(url).port or 80
        self._idle: list[tuple[trio.SocketStream, h11.Connection]] = []

    async def ask(self, text: str, on_text: Callable[[str], Awaitable[None]]) -> None:
        """Call `on_text` with what each network read held."""
        body = encode({"model": "mock-1", "stream": True, "messages": [{"role": "user", "content": text}]})
        if not self._idle:
            self._idle.append((await trio.open_tcp_stream(self._host, self._port), h11.Connection(h11.CLIENT)))
        (stream, http), rest = self._idle.pop(), b""
        head = {"host": self._host, "content-length": str(len(body))}
        request = h11.Request(method="POST", target="/v1/chat/completions", headers=list(head.items()))
        parts = (request, h11.Data(body), h11.EndOfMessage())
        await stream.send_all(b"".join(http.send(part) or b"" for part in parts))
        while not isinstance(event := http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                http.receive_data(await stream.receive_some(65_536))
            elif isinstance(event, h11.Data):
                *lines, rest = (rest + event.data).split(b"\n\n")
                choices = [c for line in lines if line != b"data: [DONE]" for c in decode(line[6:])["choices"]]
                if fresh := "".join(choice["delta"].get("content", "") for choice in choices):
                    await on_text(fresh)
        http.start_next_cycle()
        self._idle.append((stream, http))


async def serve(request: WebSocketRequest, writer: Writer, model: Model) -> None:
    """One client: each of its messages is a turn of its own."""
    socket, numbers = await request.accept(), itertools.count(1)

    async def send(frame: dict[str, Any]) -> None:
        await socket.send_message(encode(frame).decode())

    async def event(name: str, payload: dict[str, Any]) -> None:
        await send({"type": "event", "event": name, "payload": payload, "seq": next(numbers)})

    async def turn(id: str, params: dict[str, str]) -> None:
        session, message, run = params["sessionKey"], params["message"], params["idempotencyKey"]
        about, texts = {"runId": run, "sessionKey": session}, list[str]()

        async def delta(text: str) -> None:
            texts.append(text)
            await event("agent", {**about, "stream": "assistant", "data": {"text": "".join(texts), "delta": text}})
            await event("chat", {**about, "state": "delta", "deltaText": text, "message": reply()})

        def reply() -> dict[str, Any]:
            return {"role": "assistant", "content": [{"type": "text", "text": "".join(texts)}]}

        await writer.commit((MESSAGE, (session, "user", message)), (ACCEPT, (run,)))
        await send({"type": "res", "id": id, "ok": True, "payload": {"runId": run, "status": "started"}})
        await event("agent", {**about, "stream": "lifecycle", "data": {"phase": "start"}})
        await model.ask(message, delta)
        await writer.commit((MESSAGE, (session, "assistant", "".join(texts))), (FINISH, (run,)))
        await event("agent", {**about, "stream": "lifecycle", "data": {"phase": "end"}})
        await event("chat", {**about, "state": "final", "stopReason": "stop", "message": reply()})

    await event("connect.challenge", {"nonce": "floor"})
    try:
        async with trio.open_nursery() as nursery:
            while True:
                asked = decode(await socket.get_message())
                if asked["method"] == "connect":
                    await send({"type": "res", "id": asked["id"], "ok": True, "payload": {"type": "hello-ok"}})
                else:
                    nursery.start_soon(turn, asked["id"], asked["params"])
    except* ConnectionClosed:
        pass


async def main(make_writer: Callable[[str], Writer] = Writer, make_model: Callable[[str], Model] = Model) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    model = make_model(parser.parse_args().model)
    with tempfile.TemporaryDirectory() as folder:
        async with trio.open_nursery() as nursery:
            handler = partial(serve, writer=make_writer(f"{folder}/floor.db"), model=model)
            server = await nursery.start(partial(serve_websocket, handler, "127.0.0.1", 0, None))
            print(encode({"url": f"ws://127.0.0.1:{server.port}", "pid": os.getpid()}).decode(), flush=True)
            await trio.to_thread.run_sync(sys.stdin.buffer.read)
            nursery.cancel_scope.cancel(reason="standard input ended")


if __name__ == "__main__":
    trio.run(main)
