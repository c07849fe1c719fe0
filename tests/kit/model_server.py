"""Models on loopback: the Messages API of a local server, and the account of the Codex CLI, whose models exist only
when they are asked for. Both obey the directives of `bench.mock_script`."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import h11
import msgspec
import trio

from triops.bench.mock_script import Ask, Message, Script, anthropic, openai, read_script

ACCOUNT_TOKEN = "the-login-of-the-mock-account"
ACCOUNT = {"models": [{"slug": "gpt-5.4", "display_name": "GPT-5.4", "context_window": 272_000}]}


class ModelServer:
    """Made by `open_model_server`."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        """Path, headers and body of every request."""
        self.connections: list[bool] = []
        """Those that were ever made, and whether each is still there."""
        self.otherwise = 404
        """The status of what is not served."""

    async def serve(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        number = len(self.connections)
        self.connections.append(True)
        try:
            async with stream:
                while connection.our_state is not h11.MUST_CLOSE:
                    if not await self._answer(stream, connection):
                        return
                    connection.start_next_cycle()
        except (trio.BrokenResourceError, h11.ProtocolError):
            pass  # the gateway hung up
        finally:
            self.connections[number] = False

    async def _answer(self, stream: trio.SocketStream, connection: h11.Connection) -> bool:
        head, body = None, b""
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some())
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                return False
        assert head is not None
        path = head.target.decode().partition("?")[0]
        headers = {name.decode(): value.decode() for name, value in head.headers}
        self.asked.append((path, headers, json.loads(body) if body else None))
        kind, content = self._content(path, headers, body)
        data = connection.send(
            h11.Response(
                status_code=200 if content else self.otherwise,
                headers=[("Content-Type", kind), ("Content-Length", str(len(content)))],
            )
        )
        data = (data or b"") + (connection.send(h11.Data(data=content)) or b"")
        await stream.send_all(data + (connection.send(h11.EndOfMessage()) or b""))
        return True

    def _content(self, path: str, headers: dict[str, str], body: bytes) -> tuple[str, bytes]:
        match path:
            case "/v1/models":
                return "application/json", b'{"data": [{"id": "m", "context_length": 9000}]}'
            case "/v1/chat/completions" if self.otherwise == 404:
                ask = msgspec.json.decode(body, type=Ask)
                script = read_script(ask, 0)
                return "text/event-stream", b"".join(openai(script, ask.model).writes(script))
            case "/v1/responses":
                return "text/event-stream", b"".join(_responses(json.loads(body)))
            case "/v1/messages":
                ask = msgspec.json.decode(body, type=Ask)
                return "text/event-stream", b"".join(_anthropic(read_script(ask, 0), ask.model))
            case "/codex/models" if headers.get("authorization") == f"Bearer {ACCOUNT_TOKEN}":
                return "application/json", json.dumps(ACCOUNT).encode()
            case "/codex/responses" if headers.get("authorization") == f"Bearer {ACCOUNT_TOKEN}":
                return "text/event-stream", b"".join(_responses(json.loads(body)))
            case _:
                return "text/plain", b""


def _anthropic(script: Script, model: str) -> list[bytes]:
    return anthropic(script, model).writes(script)


def _responses(body: dict[str, Any]) -> list[bytes]:
    messages: list[Message] = []
    for item in body["input"]:
        if item.get("type") == "function_call_output":
            messages.append(Message("tool", msgspec.Raw(b'""')))
        elif "role" in item:
            parts = [{"type": "text", "text": part.get("text", "")} for part in item["content"]]
            messages.append(Message(item["role"], msgspec.Raw(json.dumps(parts).encode())))
    script = read_script(Ask(messages), 0)
    events: list[dict[str, Any]] = []
    for index, (id, name, arguments) in enumerate(script.calls):
        item = {"type": "function_call", "call_id": id, "name": name, "arguments": arguments.decode()}
        place = {"output_index": index}
        events += [
            {"type": "response.output_item.added", **place, "item": item | {"arguments": ""}},
            {"type": "response.function_call_arguments.delta", **place, "delta": arguments.decode()},
            {"type": "response.output_item.done", **place, "item": item},
        ]
    if not script.calls:
        events += [{"type": "response.output_text.delta", "delta": token} for token in script.tokens]
    usage = {"input_tokens": 3, "output_tokens": len(script.tokens)}
    events.append({"type": "response.completed", "response": {"id": "resp_mock", "usage": usage}})
    return [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]


@asynccontextmanager
async def open_model_server() -> AsyncGenerator[ModelServer]:
    server = ModelServer()
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, server.serve, 0, host="127.0.0.1")
        listeners: list[trio.SocketListener] = await nursery.start(serve)
        server.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        yield server
        nursery.cancel_scope.cancel()
