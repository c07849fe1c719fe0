"""A wire tap: stands between clients and a gateway, notes every WebSocket frame, and can lose one or cut the line."""

import json
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager
from typing import Any

import trio
from tests.kit.schema import Conversation, Watch

Wanted = Callable[[dict[str, Any]], bool]


class Tap:
    """Made by `open_tap`. Clients connect to `url`; `target` is the gateway's port, which a restart may change."""

    def __init__(self, port: int, target: int, watch: Watch) -> None:
        self.url = f"ws://127.0.0.1:{port}"
        self.target = target
        self._watch = watch
        self._lose: Wanted | None = None
        self._lines: set[trio.CancelScope] = set()

    def lose(self, wanted: Wanted) -> None:
        """Keep the next frame of the gateway that is `wanted` from its client."""
        self._lose = wanted

    def cut(self) -> None:
        """End every connection without a goodbye."""
        for line in self._lines:
            line.cancel(reason="the tap cuts the line")

    async def serve(self, client: trio.SocketStream) -> None:
        with trio.CancelScope() as line:
            self._lines.add(line)
            try:
                async with client, await trio.open_tcp_stream("127.0.0.1", self.target) as gateway:
                    await self._carry(client, gateway, self._watch.conversation())
            except OSError:
                pass  # nobody listens there, as while a gateway restarts
        self._lines.discard(line)

    async def _carry(self, client: trio.SocketStream, gateway: trio.SocketStream, conversation: Conversation) -> None:
        async with trio.open_nursery() as nursery:

            async def outward() -> None:
                await copy(client, gateway, conversation.asked)
                nursery.cancel_scope.cancel(reason="the client left")

            async def inward() -> None:
                await copy(gateway, client, self._told(conversation))
                nursery.cancel_scope.cancel(reason="the gateway left")

            async def copy(
                source: trio.SocketStream, target: trio.SocketStream, heard: Callable[[str], bool | None]
            ) -> None:
                buffer = bytearray()
                upgraded = False
                try:
                    async for data in source:
                        buffer += data
                        if not upgraded and (end := buffer.find(b"\r\n\r\n")) >= 0:
                            upgraded = True
                            await target.send_all(buffer[: end + 4])
                            del buffer[: end + 4]
                        if upgraded:
                            kept = [raw for raw, text in frames(buffer) if text is None or heard(text) is not False]
                            await target.send_all(b"".join(kept))
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass  # one side left

            nursery.start_soon(outward)
            nursery.start_soon(inward)

    def _told(self, conversation: Conversation) -> Callable[[str], bool]:
        def told(text: str) -> bool:
            conversation.told(text)
            if self._lose is None or not self._lose(json.loads(text)):
                return True
            self._lose = None
            return False

        return told


def frames(buffer: bytearray) -> Generator[tuple[bytes, str | None]]:
    """Take the whole WebSocket frames off `buffer`: each as it is, and its text if it is a text frame. Neither side
    fragments what this kit sends."""
    while len(buffer) >= 2:
        size, start = buffer[1] & 127, 2
        if size > 125:
            start = 4 if size == 126 else 10
            size = int.from_bytes(buffer[2:start], "big")
        mask = b""
        if buffer[1] & 128:
            mask = bytes(buffer[start : start + 4])
            start += 4
        if len(buffer) < start + size:
            return
        raw = bytes(buffer[: start + size])
        del buffer[: start + size]
        data = raw[start:]
        if mask:
            data = bytes(byte ^ mask[place % 4] for place, byte in enumerate(data))
        assert raw[0] & 128, "a fragment"
        yield raw, data.decode() if raw[0] & 15 == 1 else None


@asynccontextmanager
async def open_tap(target: int, watch: Watch) -> AsyncGenerator[Tap]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    tap = Tap(listener.socket.getsockname()[1], target, watch)
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, tap.serve, [listener])
        yield tap
        nursery.cancel_scope.cancel(reason="the test is over")
