"""A model server on loopback that answers by script, and requests to ask it with."""

import json
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import h11
import pytest
import trio
import trio.testing

from triops.agents.messages import (
    AssistantMessage,
    Image,
    SystemMessage,
    Text,
    Thinking,
    ToolCall,
    ToolResultMessage,
    UserMessage,
)
from triops.agents.model import Done, ModelInfo, ModelRef, ModelRequest, Prices, ToolSchema
from triops.agents.providers.draft import Draft
from triops.agents.providers.faults import Faults
from triops.agents.providers.http import HttpClient
from triops.agents.providers.sse import SseParser
from triops.agents.providers.wire import Dialect

Answer = Sequence[bytes | float | str | None]
"""Bytes to send, seconds to wait, None to hang, `drop` to hang up, `reset` to do that without a farewell."""


class ModelServer:
    """Answers request n with `answers[n]`, the last one for ever; keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.asked: list[h11.Request] = []
        self.bodies: list[Any] = []
        self.connections = 0
        self.url = ""

    async def serve(self, stream: trio.abc.Stream) -> None:
        self.connections += 1
        try:
            async with stream:
                while await self._answer_one(stream):
                    pass
        except (trio.BrokenResourceError, h11.RemoteProtocolError):
            pass  # the client hung up, or spoke something else

    async def _answer_one(self, stream: trio.abc.Stream) -> bool:
        wire, request, body = h11.Connection(h11.SERVER), None, b""
        while True:
            event = wire.next_event()
            if event is h11.NEED_DATA:
                wire.receive_data(bytes(await stream.receive_some()))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return False
        assert request
        answer = self.answers[min(len(self.asked), len(self.answers) - 1)]
        self.asked.append(request)
        self.bodies.append(json.loads(body) if body else None)
        for item in answer:
            if isinstance(item, bytes):
                await stream.send_all(item)
            elif isinstance(item, float):
                await trio.sleep(item)
            elif item is None:
                await trio.sleep_forever()
            else:
                if item == "reset" and isinstance(stream, trio.SocketStream):
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
        return True

    def header(self, name: str) -> str | None:
        """Of the last request."""
        return dict(self.asked[-1].headers).get(name.encode(), b"").decode() or None


@pytest.fixture
async def server(nursery: trio.Nursery) -> ModelServer:
    model_server = ModelServer()
    listeners = await nursery.start(trio.serve_tcp, model_server.serve, 0)
    port = listeners[0].socket.getsockname()[1]
    model_server.url = f"http://127.0.0.1:{port}"
    return model_server


@pytest.fixture
async def http():
    client = HttpClient()
    yield client
    client.close()


@pytest.fixture
def patient_clock() -> trio.testing.MockClock:
    """Jumps only when sockets have been quiet for a moment too."""
    return trio.testing.MockClock(autojump_threshold=0.02)


def events(*datas: Any) -> list[bytes]:
    return [b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n" for data in datas]


@pytest.fixture
def hello() -> list[bytes]:
    """A short reply as chat completions stream it."""
    return events(
        {"id": "c1", "choices": [{"delta": {"role": "assistant", "content": "Hel"}}]},
        {"id": "c1", "choices": [{"delta": {"content": "lo"}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}},
        b"[DONE]",
    )


@pytest.fixture
def ask() -> Callable[..., ModelRequest]:
    def request(text: str = "hi", **fields: Any) -> ModelRequest:
        model = ModelInfo(ref=ModelRef("mock", "mock-1"))
        values = {"model": model, "system": "Be brief.", "messages": [UserMessage(text, 1)], **fields}
        return ModelRequest(**values)

    return request


Collect = Callable[..., Awaitable[list[Any]]]


@pytest.fixture
def collect() -> Collect:
    async def all_events(provider: Any, request: ModelRequest) -> list[Any]:
        collected: list[Any] = []
        with trio.fail_after(100):  # virtual where it is long
            async with provider.stream(request) as batches:
                async for batch in batches:
                    collected += batch
        return collected

    return all_events


SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}


@pytest.fixture
def conversation() -> ModelRequest:
    """Every kind of message and block, in an order that a turn with tools makes."""
    signed = Thinking("Two files.", signature='{"type":"reasoning","id":"rs_1","encrypted_content":"x"}')
    calls = ToolCall("call|1", "read", {"path": "a"}), ToolCall("call|2", "read", {"path": "b"})
    return ModelRequest(
        model=ModelInfo(ref=ModelRef("mock", "vendor/mock-1"), input=("text", "image"), params=(("top_k", 5),)),
        system="Be brief.",
        messages=[
            SystemMessage("woke up\nat seven", 1_790_000_000_000),
            UserMessage((Text("Compare"), Image("aW1n", "image/png")), 2),
            AssistantMessage((signed, Text("Reading."), *calls), 3, provider="mock", stop_reason="toolUse"),
            ToolResultMessage("call|1", "read", (Text("A"), Image("cG5n", "image/jpeg")), 4),
            ToolResultMessage("call|2", "read", (), 5, is_error=True),
            UserMessage("And?", 6),
            AssistantMessage((Thinking("hm", signature="of another"), Text("Same.")), 7, provider="elsewhere"),
            AssistantMessage((), 8, stop_reason="aborted"),
            UserMessage("Sure?", 9),
        ],
        tools=(ToolSchema("read", "Read a file.", SCHEMA),),
        max_tokens=1000,
        temperature=0.5,
        session_id="s1",
    )


Parse = Callable[..., list[Any]]


@pytest.fixture
def parse() -> Parse:
    """The events of a stream of `dialect`, read in the pieces that `cuts` make."""

    def read(
        dialect: Dialect, data: bytes, cuts: Sequence[int] = (), tools: Mapping[str, Mapping[str, Any]] | None = None
    ) -> list[Any]:
        model = ModelInfo(ref=ModelRef("mock", "mock-1"), cost=Prices(1, 2, 0.5, 4))
        draft = Draft(model, dialect.api, Faults("mock/mock-1"), lambda: 42)
        draft.tools = tools or {}
        parser, sse = dialect.parser(draft), SseParser()
        found: list[Any] = []
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            for event in sse.feed(data[start:end]):
                found += parser.feed(event)
                if found and isinstance(found[-1], Done):
                    return found
        return [*found, *parser.end()]

    return read
