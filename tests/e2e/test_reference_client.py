"""OpenClaw's published client, which nobody here wrote, against a gateway process; every frame is checked."""

import json
import subprocess
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.kit.node import NODE, installed
from tests.kit.process import SECONDS, Home, kill, open_gateway_process
from tests.kit.schema import Watch
from tests.kit.tap import open_tap

CONFIG = {
    "models": {"providers": {"scripted": {"api": "scripted"}}},
    "agents": {"defaults": {"model": {"primary": "scripted/echo"}}},
}
OVER = ("final", "aborted", "error")


class Reference:
    """The reference client in a process of its own; `heard` is all that it called back, in order."""

    def __init__(self, process: trio.Process) -> None:
        self.heard: list[dict[str, Any]] = []
        self._process = process
        self._news = trio.Event()
        self._last_id = 0
        self._seen = 0

    async def listen(self) -> None:
        assert self._process.stdout is not None
        buffer = b""
        async for data in self._process.stdout:
            *lines, buffer = (buffer + data).split(b"\n")
            self.heard += map(json.loads, lines)
            self._news.set()
            self._news = trio.Event()

    async def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first thing it calls back that is `wanted`, counted from the last one that was."""
        with trio.fail_after(SECONDS):
            while True:
                while self._seen < len(self.heard):
                    self._seen += 1
                    if wanted(self.heard[self._seen - 1]):
                        return self.heard[self._seen - 1]
                await self._news.wait()

    async def kind(self, kind: str) -> dict[str, Any]:
        return await self.until(lambda said: said["kind"] == kind)

    async def ask(self, method: str, params: dict[str, Any] | None = None, *, final: bool = False) -> int:
        assert self._process.stdin is not None
        self._last_id += 1
        request = {"id": self._last_id, "method": method, "params": params or {}, "expectFinal": final}
        await self._process.stdin.send_all(json.dumps(request).encode() + b"\n")
        return self._last_id

    async def outcome(self, id: int) -> dict[str, Any]:
        """What became of a request: `result` with its payload, or `refused` with its error."""
        with trio.fail_after(SECONDS):
            while True:
                for said in self.heard:
                    if said["kind"] in ("result", "refused") and said["id"] == id:
                        return said
                await self._news.wait()

    async def request(self, method: str, params: dict[str, Any] | None = None, *, final: bool = False) -> Any:
        outcome = await self.outcome(await self.ask(method, params, final=final))
        assert outcome["kind"] == "result", outcome
        return outcome["payload"]

    async def say(self, message: str, key: str, **params: Any) -> Any:
        return await self.request(
            "chat.send", {"sessionKey": "main", "message": message, "idempotencyKey": key, **params}
        )

    async def terminal(self, run_id: str) -> dict[str, Any]:
        """The terminal `chat` event of a run, heard already or to come."""
        with trio.fail_after(SECONDS):
            while not (over := [event for event in self.chat(run_id) if event["state"] in OVER]):
                await self._news.wait()
        assert len(over) == 1
        return over[0]

    def chat(self, run_id: str) -> list[dict[str, Any]]:
        events = (said["event"] for said in self.heard if said["kind"] == "event")
        chats = (event["payload"] for event in events if event["event"] == "chat")
        return [payload for payload in chats if payload["runId"] == run_id]


@asynccontextmanager
async def open_reference(url: str, **options: Any) -> AsyncGenerator[Reference]:
    """The client, which connects by itself, and again whenever it is cut off; it stops when its stdin ends."""
    folder = installed()
    command = [NODE, folder / "client.mjs", json.dumps({"url": url, **options})]
    async with trio.open_nursery() as nursery:
        run = partial(trio.run_process, command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        process: trio.Process = await nursery.start(run)
        client = Reference(process)
        nursery.start_soon(client.listen)
        try:
            yield client
            assert process.stdin is not None
            await process.stdin.aclose()
            with trio.fail_after(SECONDS):
                await process.wait()
        finally:
            nursery.cancel_scope.cancel(reason="the test is over")


@pytest.mark.slow
async def test_it_chats_runs_agents_reads_aborts_and_waits(tmp_path: Path, frames: Watch) -> None:
    home = Home(tmp_path, CONFIG)
    async with open_gateway_process(home) as gateway, open_tap(gateway.port, frames) as tap:
        async with open_reference(tap.url, token=gateway.token, caps=["tool-events"]) as client:
            hello = (await client.kind("hello"))["hello"]
            assert (hello["protocol"], hello["auth"]["role"]) == (4, "operator")
            await chat(client)
            await agent(client)
            await abort(client)
            await refusals(client)
        assert [said["kind"] for said in client.heard if said["kind"] in ("gap", "connectError", "paused")] == []
        told = [frame for frame in frames.frames if frame["type"] == "event"]
        assert len(told) == sum(said["kind"] == "event" for said in client.heard) + 1  # the challenge is its own
    frames.check()


async def chat(client: Reference) -> None:
    await client.request("sessions.subscribe")
    assert (await client.say('CALL:sessions_list {}\nSAY:"never"', "tool"))["status"] == "started"
    assert (await client.terminal("tool"))["state"] == "final"
    await client.say("TOKENS:30 ITL:10", "streamed")
    final = await client.terminal("streamed")
    states = [payload["state"] for payload in client.chat("streamed")]
    assert states == ["delta"] * (len(states) - 1) + ["final"]
    assert len(states) > 2
    text = "".join(payload["deltaText"] for payload in client.chat("streamed")[:-1]).strip()
    assert final["message"]["content"][0]["text"] == text
    assert len(text.split()) == 30
    history = await client.request("chat.history", {"sessionKey": "main"})
    assert [message["role"] for message in history["messages"]][-2:] == ["user", "assistant"]
    assert history["messages"][-1]["content"][0]["text"].strip() == text


async def agent(client: Reference) -> None:
    asked = {"message": "SAY:done", "sessionKey": "agent:main:other", "idempotencyKey": "agent"}
    result = await client.request("agent", asked, final=True)
    assert (result["status"], result["result"]["payloads"]) == ("ok", [{"text": "done", "mediaUrl": None}])
    (accepted,) = [said["payload"] for said in client.heard if said["kind"] == "accepted"]
    assert (accepted["runId"], accepted["status"]) == ("agent", "accepted")
    waited = await client.request("agent.wait", {"runId": "agent", "timeoutMs": 5000})
    assert waited["status"] == "ok"


async def abort(client: Reference) -> None:
    await client.say("HANG", "hangs")
    waiting = await client.ask("agent.wait", {"runId": "hangs", "timeoutMs": 20_000})
    aborted = await client.request("chat.abort", {"sessionKey": "main", "runId": "hangs"})
    assert (aborted["aborted"], aborted["runIds"]) == (True, ["hangs"])
    assert (await client.terminal("hangs"))["state"] == "aborted"
    waited = (await client.outcome(waiting))["payload"]
    assert (waited["status"], waited["stopReason"]) == ("timeout", "rpc")


async def refusals(client: Reference) -> None:
    unknown = await client.outcome(await client.ask("no.such.method"))
    assert (unknown["kind"], unknown["error"]["code"]) == ("refused", "INVALID_REQUEST")
    reused = {"sessionKey": "main", "message": "another text", "idempotencyKey": "tool"}
    conflict = await client.outcome(await client.ask("chat.send", reused))
    assert conflict["error"]["details"]["reason"] == "chat-request-conflict"


@pytest.mark.slow
async def test_it_comes_back_after_a_stop_and_a_kill_and_gets_what_it_missed(tmp_path: Path, frames: Watch) -> None:
    home = Home(tmp_path, CONFIG)
    async with open_gateway_process(home) as gateway, open_tap(gateway.port, frames) as tap:
        async with open_reference(tap.url, token=gateway.token) as client:
            await client.kind("hello")
            await client.say("TOKENS:10 ITL:40", "drained")
            stopped = await home.run("gateway", "stop")
            assert stopped.code == 0, stopped
            assert (await client.terminal("drained"))["state"] == "final"
            closed = await client.kind("close")
            assert (closed["code"], closed["reason"]) == (1012, "service restart")
            async with open_gateway_process(home) as second:
                tap.target = second.port
                await client.kind("hello")
                await client.say("HANG", "cut")
                kill(second.pid)
                assert (await client.kind("close"))["code"] == 1006
            async with open_gateway_process(home) as third:
                tap.target = third.port
                await client.kind("hello")
                waited = await client.request("agent.wait", {"runId": "cut"})
                assert (waited["status"], waited["stopReason"]) == ("timeout", "restart")
                again = await client.say("HANG", "cut")
                assert (again["status"], again["stopReason"]) == ("timeout", "restart")
                assert (await client.terminal("cut"))["state"] == "aborted"
                replayed = await client.say("TOKENS:10 ITL:40", "drained")
                assert (replayed["runId"], replayed["status"]) == ("drained", "ok")
    frames.check()


@pytest.mark.slow
async def test_it_notices_a_lost_event_and_survives_a_cut_line(tmp_path: Path, frames: Watch) -> None:
    home = Home(tmp_path, CONFIG)
    async with open_gateway_process(home) as gateway, open_tap(gateway.port, frames) as tap:
        async with open_reference(tap.url, token=gateway.token) as client:
            await client.kind("hello")
            tap.lose(lambda frame: frame.get("payload", {}).get("state") == "delta")
            await client.say("TOKENS:5 ITL:40", "k")
            gap = (await client.kind("gap"))["gap"]
            assert gap["received"] == gap["expected"] + 1
            assert (await client.terminal("k"))["state"] == "final"
            await client.say("HANG", "hangs")
            tap.cut()
            assert (await client.kind("close"))["code"] == 1006
            await client.kind("hello")
            again = await client.say("HANG", "hangs")
            assert (again["runId"], again["status"]) == ("hangs", "in_flight")
            await client.request("chat.abort", {"sessionKey": "main"})
            assert (await client.terminal("hangs"))["state"] == "aborted"
    frames.check()


@pytest.mark.slow
async def test_it_is_refused_with_a_wrong_token_and_pauses(tmp_path: Path, frames: Watch) -> None:
    home = Home(tmp_path, CONFIG)
    async with open_gateway_process(home) as gateway, open_tap(gateway.port, frames) as tap:
        async with open_reference(tap.url, token="wrong") as client:
            refused = (await client.kind("connectError"))["error"]
            assert refused["details"]["code"] == "AUTH_TOKEN_MISMATCH"
            paused = (await client.kind("paused"))["info"]
            assert paused["detailCode"] == "AUTH_TOKEN_MISMATCH"
    frames.check()
