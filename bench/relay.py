"""Stands before a real model endpoint, so that its answers bear the clock marks that the mock's bear. Knows no gateway.

Its own process: `python -m triops.bench.relay --to URL --name MODEL` prints one line `{"url": …, "pid": …}` and ends
when its standard input ends. It serves `POST /v1/chat/completions`, which it passes on under the model's name and with
the key in `TRIOPS_BENCH_KEY`, `GET /v1/models`, and `GET /marks` as `mock_model` does.
"""

import argparse
import os
import re
import sys
from collections import deque
from functools import partial
from typing import Any

import h11
import msgspec
import trio

from triops.agents.errors import ProviderError
from triops.agents.providers.http import HttpClient
from triops.bench.driver import now
from triops.bench.mock_model import MARKS_KEPT, MODELS, Mark

KEY = "TRIOPS_BENCH_KEY"
RUN = re.compile(rb"RUN:(\w+)")
MAX_TOKENS = 64
"""Of one answer: how much a model likes to talk is not the question here."""
READ_SIZE = 65_536
PASSED_ON = ("content-type", "retry-after")


class Relay:
    """One endpoint, and the marks of what was asked of it."""

    def __init__(self, http: HttpClient, url: str, name: str, key: str) -> None:
        self._http = http
        self._url = f"{url.rstrip('/')}/chat/completions"
        self._name = name
        self._headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        self._marks: deque[Mark] = deque(maxlen=MARKS_KEPT)

    async def serve(self, stream: trio.SocketStream) -> None:
        """One kept-alive connection; requests on it are answered one after the other. The caller closes it."""
        wire = h11.Connection(h11.SERVER)
        try:
            while (request := await _next(wire, stream)) is not None and isinstance(request, h11.Request):
                body = b""
                while isinstance(part := await _next(wire, stream), h11.Data):
                    body += part.data
                await self._route(request, body, partial(_send, wire, stream))
                wire.start_next_cycle()
        except (h11.ProtocolError, trio.BrokenResourceError):
            pass  # who asked is gone

    async def _route(self, request: h11.Request, body: bytes, send: Any) -> None:
        match request.method, request.target:
            case b"POST", b"/v1/chat/completions":
                await self._pass_on(body, send)
            case b"GET", b"/v1/models":
                await _answer(send, 200, MODELS)
            case b"GET", b"/marks":
                found = msgspec.json.encode(list(self._marks))
                self._marks.clear()
                await _answer(send, 200, found)
            case _:
                await _fail(send, 404, "the relay has no such path")

    async def _pass_on(self, body: bytes, send: Any) -> None:
        runs = RUN.findall(body)
        mark = Mark(runs[-1].decode() if runs else "", now())
        self._marks.append(mark)
        try:
            asked = msgspec.json.decode(body, type=dict[str, Any])
            ask = msgspec.json.encode({**asked, "model": self._name, "max_tokens": MAX_TOKENS})
        except msgspec.DecodeError as error:
            return await _fail(send, 400, f"no request of a model: {error}")
        begun = False
        try:
            async with self._http.stream("POST", self._url, self._headers, ask) as answer:
                mark.status = answer.status
                head = [(name, value) for name, value in answer.headers.items() if name in PASSED_ON]
                await send(h11.Response(status_code=answer.status, headers=head))
                begun = True
                while data := await answer.read():
                    mark.last = now()
                    mark.first = mark.first or mark.last
                    await send(h11.Data(data))
        except ProviderError as error:
            if begun:
                raise trio.BrokenResourceError from error  # half an answer is told by hanging up
            mark.status = 502
            return await _fail(send, 502, str(error))
        await send(h11.EndOfMessage())


async def _next(wire: h11.Connection, stream: trio.SocketStream) -> h11.Event | None:
    """The next event of the peer; None when it hung up between two requests."""
    while (event := wire.next_event()) is h11.NEED_DATA:
        wire.receive_data(await stream.receive_some(READ_SIZE))
    return None if isinstance(event, type | h11.ConnectionClosed) else event


async def _send(wire: h11.Connection, stream: trio.SocketStream, *events: h11.Event) -> None:
    await stream.send_all(b"".join(wire.send(event) or b"" for event in events))


async def _answer(send: Any, status: int, body: bytes) -> None:
    head = [("content-type", "application/json"), ("content-length", str(len(body)))]
    await send(h11.Response(status_code=status, headers=head), h11.Data(body), h11.EndOfMessage())


async def _fail(send: Any, status: int, message: str) -> None:
    await _answer(send, status, msgspec.json.encode({"error": {"type": "relay_failure", "message": message}}))


async def main() -> None:
    parser = argparse.ArgumentParser(description="Passes requests on to a model endpoint, and notes when.")
    parser.add_argument("--to", required=True, help="the endpoint's base URL, for example http://127.0.0.1:1234/v1")
    parser.add_argument("--name", required=True, help="the model there")
    arguments = parser.parse_args()
    http = HttpClient(environ=os.environ)
    relay = Relay(http, arguments.to, arguments.name, os.environ.get(KEY, ""))

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await relay.serve(stream)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        print(msgspec.json.encode({"url": url, "pid": os.getpid()}).decode(), flush=True)
        await trio.to_thread.run_sync(sys.stdin.buffer.read)
        nursery.cancel_scope.cancel(reason="standard input ended")


if __name__ == "__main__":
    trio.run(main)
