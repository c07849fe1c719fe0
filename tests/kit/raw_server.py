"""A model server on loopback that answers with the bytes, pauses and ends it is told to; what streams say, in both wire
formats."""

import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import h11
import trio

Answer = Sequence[bytes | float | None]
"""Bytes to send, seconds to wait, None to hang. After the last the server hangs up."""

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


class RawServer:
    """Made by `open_raw_server`; `answer` is asked, with the body of the request, how to answer it."""

    def __init__(self, answer: Callable[[Any], Answer]) -> None:
        self.url = ""
        self.asked: list[Any] = []
        """The bodies of what was posted."""
        self._answer = answer

    async def serve(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        body = b""
        try:
            async with stream:
                while not isinstance(event := connection.next_event(), h11.EndOfMessage):
                    if event is h11.NEED_DATA:
                        connection.receive_data(await stream.receive_some())
                    elif isinstance(event, h11.Data):
                        body += event.data
                    elif isinstance(event, h11.ConnectionClosed):
                        return
                if not body:  # the list of models, with which the warm-up opens the connection
                    await stream.send_all(refusal(404))
                    return
                asked = json.loads(body)
                self.asked.append(asked)
                for item in self._answer(asked):
                    if item is None:
                        await trio.sleep_forever()
                    elif isinstance(item, bytes):
                        await stream.send_all(item)
                    else:
                        await trio.sleep(item)
        except (trio.BrokenResourceError, h11.RemoteProtocolError):
            pass  # the client hung up


@asynccontextmanager
async def open_raw_server(answer: Callable[[Any], Answer], *, port: int = 0) -> AsyncGenerator[RawServer]:
    server = RawServer(answer)
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, server.serve, port, host="127.0.0.1", backlog=1024)
        listeners: list[trio.SocketListener] = await nursery.start(serve)
        server.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        yield server
        nursery.cancel_scope.cancel()


def said(body: Any) -> str:
    """The last words of people in a request, of either format."""
    last = [message for message in body["messages"] if message["role"] == "user"][-1]["content"]
    return last if isinstance(last, str) else "".join(part.get("text", "") for part in last)


def refusal(status: int, body: bytes = b'{"error": {"message": "no"}}', headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d No\r\nContent-Length: %d\r\nConnection: close\r\n%s\r\n%s" % (
        status,
        len(body),
        headers,
        body,
    )


def stream(events: Sequence[bytes], *, chunked: bool = True) -> list[bytes]:
    """A whole answer of these events: its head, and a piece an event; not chunked, its end is the connection's."""
    if not chunked:
        return [HEAD + b"\r\n", *events]
    chunks = [b"%x\r\n%s\r\n" % (len(event), event) for event in events]
    return [HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *chunks, b"0\r\n\r\n"]


def event(data: Any) -> bytes:
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


def completions(*words: str, usage: Any = None, stop: str | None = "stop") -> list[bytes]:
    """A reply as chat completions stream it; without `stop` it is never finished."""
    events = [event({"id": "c1", "choices": [{"delta": {"content": word}}]}) for word in words]
    if stop is None:
        return events
    told = {} if usage is None else {"usage": usage}
    return [*events, event({"choices": [{"delta": {}, "finish_reason": stop}], **told}), event(b"[DONE]")]


def messages(*words: str, usage: Any = None, stop: str | None = "end_turn") -> list[bytes]:
    """The same as the Messages API streams it."""
    told = {} if usage is None else {"usage": usage}
    events = [
        event({"type": "message_start", "message": {"id": "m1", **told}}),
        event({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        *(event({"type": "content_block_delta", "index": 0, "delta": {"text": word}}) for word in words),
    ]
    if stop is None:
        return events
    return [
        *events,
        event({"type": "message_delta", "delta": {"stop_reason": stop}, **told}),
        event({"type": "message_stop"}),
    ]
