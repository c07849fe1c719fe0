"""The messages of a session over plain HTTP, page by page and as they come."""

import json
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from tests.kit.host import TOKEN, TestHost, open_test_gateway

from triops.agents.messages import SystemMessage
from triops.gateway.http.history import MAX_BEHIND
from triops.gateway.http.openai import KEEP_ALIVE
from triops.runtime.runs.worker import announce
from triops.runtime.store import sessions as stored
from triops.runtime.store.sessions import Placed


class Listener:
    """A client of the stream that reads when it is asked to."""

    def __init__(self, host: TestHost, key: str = "main") -> None:
        self._stream = host.dial()
        self._head = f"GET /sessions/{key}/history HTTP/1.1\r\nHost: 127.0.0.1:{host.port}\r\n"
        self._data = b""

    async def open(self) -> None:
        head = f"{self._head}Authorization: Bearer {TOKEN}\r\nAccept: text/event-stream\r\n\r\n"
        await self._stream.send_all(head.encode())
        await self.block()  # retry: 1000

    async def block(self) -> str:
        """The next block of the stream, whatever chunk it is in."""
        while b"\n\n" not in self._data:
            chunk = bytes(await self._stream.receive_some())
            assert chunk not in (b"", b"0\r\n\r\n"), "the stream ended"
            lines = chunk.split(b"\r\n")
            self._data += b"".join(line for line in lines if b"\n" in line)
        block, _, self._data = self._data.partition(b"\n\n")
        return block.decode()

    async def event(self) -> tuple[str, Any]:
        while (block := await self.block()).startswith(":"):
            pass
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        return fields["event"], json.loads(fields["data"])


async def say(host: TestHost, text: str, key: str = "main") -> None:
    await host.http("POST", "/webchat/messages?wait=final", {"message": text, "sessionKey": key})


def texts(page: dict[str, Any]) -> list[str]:
    return [
        item["content"] if isinstance(item["content"], str) else item["content"][0]["text"] for item in page["items"]
    ]


async def test_a_history_is_read_page_by_page_to_its_beginning(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        for n in range(3):
            await say(host, f"SAY:{n}")
        page = (await host.http("GET", "/sessions/main/history")).body
        assert texts(page) == ["SAY:0", "0", "SAY:1", "1", "SAY:2", "2"]
        assert (page["sessionKey"], page["hasMore"], page["items"]) == ("agent:main:main", False, page["messages"])
        assert "nextCursor" not in page
        seen: list[str] = []
        target = "/sessions/agent%3Amain%3Amain/history?limit=4"
        page = (await host.http("GET", target)).body
        seen = texts(page) + seen
        page = (await host.http("GET", f"{target}&cursor={page['nextCursor']}")).body
        assert (texts(page) + seen, page["hasMore"]) == (["SAY:0", "0", "SAY:1", "1", "SAY:2", "2"], False)
        assert (await host.http("GET", "/sessions/main/history?limit=1000000")).status == 200


async def test_what_is_wrong_with_a_history_is_said(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        missing = await host.http("GET", "/sessions/agent:main:nowhere/history")
        assert (missing.status, missing.body["ok"], missing.body["error"]["type"]) == (404, False, "not_found")
        assert missing.body["error"]["message"] == "session not found: agent:main:nowhere"
        stream = await host.http("GET", "/sessions/nowhere/history", headers={"Accept": "text/event-stream"})
        assert stream.status == 404
        for query in ("limit=0", "limit=x", "cursor=0", "cursor=x", "agentId=nobody", "nonsense=1"):
            answer = await host.http("GET", f"/sessions/main/history?{query}")
            assert (answer.status, answer.body["error"]["type"]) == (400, "invalid_request"), query


async def test_a_stream_begins_with_the_history_and_goes_on_with_each_message(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        await say(host, "SAY:before")
        listener = Listener(host)
        with trio.fail_after(10):
            await listener.open()
            name, page = await listener.event()
            assert (name, texts(page)) == ("history", ["SAY:before", "before"])
            await say(host, "SAY:elsewhere", key="other")
            await say(host, "SAY:after")
            told = [await listener.event() for _ in range(2)]
            assert [(name, body["messageSeq"]) for name, body in told] == [("message", 3), ("message", 4)]
            assert told[1][1]["message"]["content"][0]["text"] == "after"
            await host.rpc("sessions.reset", {"key": "main"})
            while (await listener.event())[0] != "history":
                pass


async def test_a_silent_stream_is_kept_alive_and_does_not_hold_the_gateway_back(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_test_gateway(tmp_path, virtual=True) as host:
        await say(host, "SAY:x")
        listener = Listener(host)
        await listener.open()
        await listener.event()
        before = trio.current_time()
        assert await listener.block() == ": keepalive"
        assert trio.current_time() - before == KEEP_ALIVE
        before = trio.current_time()
        await host.gateway.stop()
        assert trio.current_time() - before < 1


async def test_who_falls_behind_gets_the_history_again(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        await say(host, "SAY:x")
        listener = Listener(host)
        with trio.fail_after(20):
            await listener.open()
            await listener.event()
            now = host.runtime.clock()
            await host.runtime.store.write(
                lambda db: [stored.append(db, "agent:main:main", SystemMessage("x", now), now) for _ in range(9)]
            )
            placed = [Placed(n, str(n), SystemMessage("x", now)) for n in range(3, MAX_BEHIND + 5)]
            announce(host.runtime.bus, "agent:main:main", placed)  # all at once: nothing can be written in between
            name, page = await listener.event()
            assert (name, len(page["items"])) == ("history", 11)


async def test_what_runs_in_a_session_is_killed(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        await host.rpc("chat.send", {"sessionKey": "main", "message": "HANG", "idempotencyKey": "k"})
        assert (await host.http("POST", "/sessions/main/kill")).body == {"ok": True, "killed": True}
        end = await host.rpc("agent.wait", {"runId": "k", "timeoutMs": 10_000})
        assert end["status"] == "timeout"
        assert (await host.http("POST", "/sessions/main/kill")).body == {"ok": True, "killed": False}
        assert (await host.http("POST", "/sessions/nowhere/kill")).status == 404


async def test_a_stream_ends_when_the_secret_that_it_stands_on_is_changed(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        await say(host, "SAY:x")
        listener = Listener(host)
        with trio.fail_after(10):
            await listener.open()
            await listener.event()
            await host.rpc("gateway.token.rotate")
            with pytest.raises(AssertionError, match="the stream ended"):
                await listener.block()
        assert (await host.http("GET", "/status")).status == 401
