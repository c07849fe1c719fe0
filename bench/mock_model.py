"""The benchmark's model server: instant, scripted by the message, with its own clock marks. Knows no gateway.

Its own process, so that its work is not the subject's: `python -m triops.bench.mock_model --port 0` prints one line
`{"url": …, "pid": …}` and ends when its standard input ends. It serves `POST /v1/chat/completions` and
`POST /v1/messages` (streaming only), `GET /v1/models` and `GET /marks`, which gives each mark once. Plain asyncio
callbacks and HTTP by hand: each microsecond here is one in which the subject waits.
"""

import argparse
import asyncio
import gc
import os
import re
import selectors
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from triops.bench.mock_script import Ask, Reply, Script, anthropic, openai, read_script

MARKS_KEPT = 65_536
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
MODELS = b'{"object":"list","data":[{"id":"mock-1","object":"model","type":"model","created":0,"owned_by":"triops"}]}'
DIALECTS: dict[bytes, Callable[[Script, str], Reply]] = {b"/v1/chat/completions": openai, b"/v1/messages": anthropic}
ask_decoder = msgspec.json.Decoder(Ask)
now = time.perf_counter_ns
"""Monotonic and the same in every process of the machine, on Linux, macOS and Windows alike (`monotonic` is not)."""


class Mark(msgspec.Struct):
    """When one request was here, in ns of `perf_counter_ns`.

    `first` and `last` are taken just before the first and the last write: what the peer does with a byte never lies
    before its mark. 0 stands for "not yet".
    """

    run: str
    received: int
    first: int = 0
    last: int = 0
    status: int = 200


class Connection(asyncio.Protocol):
    """One kept-alive HTTP/1.1 connection; requests on it are answered one after the other."""

    def __init__(self, marks: deque[Mark], seed: int) -> None:
        self._marks = marks
        self._seed = seed
        self._buffer = bytearray()
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._advance()

    def _advance(self) -> None:
        """Serve what is complete, unless an answer is still on its way."""
        while self._timer is None and (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            length = LENGTH.search(self._buffer, 0, end)
            stop = end + 4 + (int(length[1]) if length else 0)
            if len(self._buffer) < stop:
                return
            received = now()
            method, path, _ = self._buffer.split(b" ", 2)
            body = bytes(self._buffer[end + 4 : stop])
            del self._buffer[:stop]
            self._route(bytes(method), bytes(path), body, received)

    def _route(self, method: bytes, path: bytes, body: bytes, received: int) -> None:
        if method == b"POST" and path in DIALECTS:
            self._generate(DIALECTS[path], body, received)
        elif (method, path) == (b"GET", b"/v1/models"):
            self._answer(200, MODELS)
        elif (method, path) == (b"GET", b"/marks"):
            self._answer(200, msgspec.json.encode(list(self._marks)))
            self._marks.clear()
        else:
            self._fail(404, "the mock model has no such path")

    def _generate(self, dialect: Callable[[Script, str], Reply], body: bytes, received: int) -> None:
        try:
            ask = ask_decoder.decode(body)
            script = read_script(ask, self._seed)
        except ValueError as error:  # msgspec's faults are among them
            return self._fail(400, str(error))
        mark = Mark(script.run, received)
        self._marks.append(mark)
        if script.fail or not ask.stream:
            mark.status = script.fail or 400
            mark.first = mark.last = now()
            return self._fail(mark.status, "told to fail" if script.fail else "the mock model only streams")
        steps = dialect(script, ask.model).writes(script)
        if script.first:
            self._later(script.first, steps, script, mark, STREAM_HEAD)
        else:
            self._write(steps, script, mark, STREAM_HEAD)

    def _write(self, steps: list[bytes], script: Script, mark: Mark, head: bytes = b"") -> None:
        """Send the first of `steps` and set the timer for the next."""
        complete = len(steps) == 1 and script.drop is None
        data = b"%b%x\r\n%b\r\n%b" % (head, len(steps[0]), steps[0], b"0\r\n\r\n" if complete else b"")
        mark.last = now()
        mark.first = mark.first or mark.last
        self._transport.write(data)
        if len(steps) > 1:
            self._later(script.last if script.last and len(steps) == 2 else script.itl, steps[1:], script, mark)
        elif not complete:
            self._transport.close()

    def _later(self, delay: float, *what: Any) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay, self._tick, *what)

    def _tick(self, *what: Any) -> None:
        self._timer = None
        self._write(*what)
        self._advance()

    def _answer(self, status: int, body: bytes) -> None:
        head = b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(body))
        self._transport.write(head + body)

    def _fail(self, status: int, message: str) -> None:
        """Both wire formats read `error.message`."""
        error = {"type": "error", "error": {"type": "mock_failure", "message": message}}
        self._answer(status, msgspec.json.encode(error))


async def serve(port: int, seed: int) -> None:
    """Serve on loopback until standard input ends."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    marks: deque[Mark] = deque(maxlen=MARKS_KEPT)
    server = await loop.create_server(lambda: Connection(marks, seed), "127.0.0.1", port)

    def wait_for_parent() -> None:  # in a thread: not every platform's loop can read a standard input
        sys.stdin.buffer.read()
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=wait_for_parent, daemon=True).start()
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    print(msgspec.json.encode({"url": url, "pid": os.getpid()}).decode(), flush=True)
    gc.freeze()
    await ended.wait()
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="The benchmark's own model server.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0, help="chooses the words of TOKENS:n")
    arguments = parser.parse_args()
    # select() alone waits to the microsecond; epoll, in whole milliseconds.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(serve(arguments.port, arguments.seed))


if __name__ == "__main__":
    main()
