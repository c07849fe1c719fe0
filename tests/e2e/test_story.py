"""What a user set out to do, from the start of the gateway to the answers of its sessions: with a real process over
`POST /rpc` and again over a WebSocket with only the token, and its schedule on a virtual clock."""

import json
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from tests.kit.host import open_test_gateway
from tests.kit.model_server import ACCOUNT_TOKEN, open_model_server
from tests.kit.process import SECONDS, Home, RunningGateway, kill, open_gateway_process

from triops.gateway.cli.process import GRACEFUL
from triops.gateway.client import GatewayClient

JOB = {
    "name": "test",
    "schedule": {"kind": "every", "everyMs": 180_000},
    "payload": {"kind": "systemEvent", "text": "test"},
    "sessionTarget": "current",
}
ROUTES = [
    ("GET", "/healthz", None),
    ("GET", "/readyz", None),
    ("POST", "/rpc/health", {}),
    ("GET", "/status", None),
    ("GET", "/sessions", None),
    ("GET", "/sessions/agent:main:main", None),
    ("GET", "/webchat/messages", None),
    ("POST", "/webchat/messages", {"message": "SAY:hello"}),
    ("POST", "/sessions/agent:main:main/ping", None),
    ("GET", "/heartbeat", None),
    ("POST", "/heartbeat", None),
]
FORBIDDEN = ("pairing required", "unknown model")
SCRIPTED = {
    "models": {"providers": {"scripted": {"api": "scripted"}}},
    "agents": {"defaults": {"model": {"primary": "scripted/echo"}}},
}

Call = Callable[[str, Mapping[str, Any]], Awaitable[Any]]
"""A method by its name: its payload."""


class Story:
    """One telling: how it calls, and everything that it was told."""

    def __init__(self, gateway: RunningGateway, call: Call) -> None:
        self.gateway = gateway
        self._call = call
        self.events: list[dict[str, Any]] = []
        self.answers: list[str] = []
        self.accepted: set[str] = set()
        self._sent = 0
        self._news = trio.Event()

    async def call(self, method: str, params: Mapping[str, Any] | None = None) -> Any:
        payload = await self._call(method, params or {})
        self.answers.append(json.dumps(payload))
        return payload

    async def watch(self, client: GatewayClient, *, task_status: trio.TaskStatus[None]) -> None:
        """Keep every event, until cancelled."""
        with client.events() as events:
            await client.request("sessions.subscribe")
            task_status.started()
            async for event in events:
                self.events.append({"event": event.event, **event.payload})
                self._news.set()

    async def heard(self, name: str, **wanted: Any) -> dict[str, Any]:
        """The first such event, once it came."""

        def find() -> list[dict[str, Any]]:
            return [event for event in self.events if event["event"] == name and wanted.items() <= event.items()]

        return (await self.until(find))[0]

    async def until(self, find: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """What `find` finds among the events, once it finds something."""
        with trio.fail_after(SECONDS):
            while not (found := find()):
                self._news = trio.Event()
                await self._news.wait()
        return found

    async def say(self, session: str, message: str) -> dict[str, Any]:
        """A message to a session and its answer: the terminal event."""
        self._sent += 1
        run_id = f"story-{self._sent}"
        ack = await self.call("chat.send", {"sessionKey": session, "message": message, "idempotencyKey": run_id})
        assert ack["status"] == "started"
        self.accepted.add(run_id)
        return (await self.until(partial(self.terminals, run_id)))[0]

    async def use(self, tool: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Have the model call a tool; the tool's result."""
        final = await self.say("agent:main:story", f"CALL:{tool} {json.dumps(arguments)}")
        assert final["state"] == "final", final
        history = await self.call("chat.history", {"sessionKey": "agent:main:story", "limit": 3})
        (result,) = [message for message in history["messages"] if message["role"] == "toolResult"]
        assert (result["toolName"], result["isError"]) == (tool, False), result
        return json.loads(result["content"][0]["text"])

    def terminals(self, run_id: str | None = None) -> list[dict[str, Any]]:
        over = [e for e in self.events if e["event"] == "chat" and e["state"] in ("final", "aborted", "error")]
        return [event for event in over if run_id in (None, event["runId"])]


@asynccontextmanager
async def telling(gateway: RunningGateway, transport: str) -> AsyncGenerator[Story]:
    async with gateway.client() as client, trio.open_nursery() as nursery:
        story = Story(gateway, gateway.rpc if transport == "rpc" else client.request)
        await nursery.start(story.watch, client)
        yield story
        nursery.cancel_scope.cancel()


async def tell(home: Home, transport: str) -> Story:
    """The whole story against a running gateway of that home."""
    async with open_gateway_process(home) as gateway:
        status = await home.run("gateway", "status")
        assert status.code == 0
        assert status.out.splitlines() == [
            f"Runtime: running (pid {gateway.pid})",
            f"Listening: 127.0.0.1:{gateway.port}",
            f"Probe target: ws://127.0.0.1:{gateway.port}",
            "RPC probe: ok",
        ]
        async with telling(gateway, transport) as story:
            await cron(story, home if transport == "rpc" else None)
            await sessions(story)
            for method, target, body in ROUTES:
                answer = await gateway.http(method, target, body)
                assert answer.status == 200, (target, answer)
                story.answers.append(json.dumps(answer.body))
            await story.say("main", "SAY:goodbye")
            started = {e["runId"] for e in story.events if e["event"] == "agent" and e["stream"] == "lifecycle"}
            for run_id in started:
                await story.until(partial(story.terminals, run_id))
            ended = Counter(event["runId"] for event in story.terminals())
            assert set(ended) == started >= story.accepted
            assert set(ended.values()) == {1}
        stopped = await home.run("gateway", "stop")
        assert stopped.code == 0, stopped
    told = "\n".join([home.said(), status.out, *story.answers, *map(json.dumps, story.events)]).lower()
    assert not [words for words in FORBIDDEN if words in told]
    return story


async def cron(story: Story, home: Home | None) -> None:
    """The job of the reporter: made, fired by hand, seen where it belongs."""
    if home is None:
        job = await story.call("cron.add", JOB)
    else:
        added = await home.run("cron", "add", "--job", json.dumps(JOB), "--json")
        assert added.code == 0, added
        job = json.loads(added.out)
    assert (job["name"], job["enabled"]) == ("test", True)
    ran = await story.call("cron.run", {"id": job["id"]})
    assert ran["enqueued"] is True
    finished = await story.heard("cron", jobId=job["id"], action="finished")
    assert finished["status"] == "ok", finished
    (receipt,) = (await story.call("cron.runs", {"id": job["id"]}))["entries"]
    assert (receipt["status"], receipt["runId"]) == ("ok", ran["runId"])
    history = await story.call("chat.history", {"sessionKey": "main"})
    event, reply = history["messages"]
    assert (event["role"], event["content"]) == ("system", "test")
    assert reply["role"] == "assistant"
    story.accepted.add(ran["runId"])
    listed = await story.call("cron.list")
    assert [shown["id"] for shown in listed["jobs"]] == [job["id"]]


async def sessions(story: Story) -> None:
    """Sessions that speak with each other."""
    sent = await story.use("sessions_send", {"label": "agent:main:main", "message": "SAY:pong"})
    assert (sent["status"], sent["reply"], sent["sessionKey"]) == ("ok", "pong", "agent:main:main")
    spawned = await story.use("sessions_spawn", {"runtime": "subagent", "task": "SAY:done"})
    assert (spawned["status"], spawned["reply"]) == ("ok", "done")
    child = spawned["childSessionKey"]
    listed = await story.use("sessions_list", {})
    assert {"agent:main:main", "agent:main:story", child} <= {row["key"] for row in listed["sessions"]}
    rows = {row["key"]: row for row in (await story.call("sessions.list"))["sessions"]}
    assert rows[child]["spawnedBy"] == "agent:main:story"
    again = await story.say(child, "SAY:still-here")
    assert again["message"]["content"][0]["text"] == "still-here"


TRANSPORTS = pytest.mark.parametrize("transport", ["rpc", "websocket"])


@pytest.mark.slow
@TRANSPORTS
async def test_the_story(tmp_path: Path, transport: str) -> None:
    await tell(Home(tmp_path, SCRIPTED), transport)


@pytest.mark.slow
@TRANSPORTS
async def test_the_story_with_a_local_server_of_the_messages_api(tmp_path: Path, transport: str) -> None:
    async with open_model_server() as server:
        model = {
            "id": "qwen/qwen3.5-9b",
            "name": "Qwen 3.5 9B",
            "contextWindow": 190_000,
            "maxTokens": 262_144,
            "input": ["text"],
            "reasoning": False,
            "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0},
        }
        provider = {"api": "anthropic-messages", "baseUrl": server.url, "apiKey": "lm-studio-key", "models": [model]}
        ref = "lmstudio-anthropic/qwen/qwen3.5-9b"
        config = {
            "models": {"mode": "merge", "providers": {"lmstudio-anthropic": provider}},
            "agents": {"defaults": {"model": {"primary": ref}, "models": {ref: {"alias": "qwen"}}}},
        }
        home = Home(tmp_path, config)
        story = await tell(home, transport)
    asked = [body for path, _, body in server.asked if path == "/v1/messages"]
    assert {body["model"] for body in asked} == {"qwen/qwen3.5-9b"}
    assert {body["max_tokens"] for body in asked} == {95_000}
    assert "262144 of qwen/qwen3.5-9b is more than its contextWindow 190000" in home.said()
    assert "lm-studio-key" not in home.said()
    models = {
        event["model"]
        for event in story.events
        if event.get("data", {}).get("phase") == "model"
        for event in [event["data"]]
    }
    assert models == {"qwen/qwen3.5-9b"}


@pytest.mark.slow
@TRANSPORTS
async def test_the_story_with_a_model_that_exists_only_through_its_hook(tmp_path: Path, transport: str) -> None:
    async with open_model_server() as server:
        login = tmp_path / "codex" / "auth.json"
        login.parent.mkdir()
        login.write_text(json.dumps({"tokens": {"access_token": ACCOUNT_TOKEN, "account_id": "acc-1"}}))
        config = {
            "models": {"providers": {"codex": {"api": "codex", "baseUrl": f"{server.url}/codex"}}},
            "agents": {"defaults": {"model": {"primary": "codex/gpt-5.4"}}},
        }
        home = Home(tmp_path, config, {"CODEX_HOME": str(login.parent)})
        await tell(home, transport)
    assert ACCOUNT_TOKEN not in home.said()
    assert {path for path, _, _ in server.asked} == {"/codex/models", "/codex/responses"}


async def test_the_job_fires_into_its_session_every_three_minutes(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_test_gateway(tmp_path, virtual=True) as host, host.client() as client:
        await client.request("sessions.subscribe")
        began = host.runtime.clock()
        job = await host.rpc("cron.add", JOB)
        finished = [await client.event("cron", jobId=job["id"], action="finished") for _ in range(3)]
        assert [event["runAtMs"] - began for event in finished] == [180_000, 360_000, 540_000]
        assert [event["status"] for event in finished] == ["ok"] * 3
        runs = (await host.rpc("cron.runs", {"id": job["id"], "sortDir": "asc"}))["entries"]
        assert [(entry["runAtMs"] - began, entry["status"]) for entry in runs] == [
            (180_000, "ok"),
            (360_000, "ok"),
            (540_000, "ok"),
        ]
        history = (await host.rpc("chat.history", {"sessionKey": "main"}))["messages"]
        assert [
            (message["role"], message["timestamp"] - began) for message in history if message["role"] == "system"
        ] == [
            ("system", 180_000),
            ("system", 360_000),
            ("system", 540_000),
        ]
        assert {message["content"] for message in history if message["role"] == "system"} == {"test"}
        (row,) = (await host.rpc("sessions.list"))["sessions"]
        assert (row["key"], row["updatedAt"] - began) == ("agent:main:main", 540_000)
        for entry in runs:
            terminals = [p for p in client.events("chat", entry["runId"]) if p["state"] != "delta"]
            assert [payload["state"] for payload in terminals] == ["final"]
        shown = [payload["message"]["role"] for payload in client.events("session.message")]
        assert shown == ["system", "assistant"] * 3
        order = [
            (frame["event"], frame["payload"].get("action") or frame["payload"].get("state"))
            for frame in client.frames
            if frame.get("event") in ("cron", "chat") and frame["payload"].get("state") != "delta"
        ]
        assert order[:4] == [("cron", "added"), ("cron", "started"), ("chat", "final"), ("cron", "finished")]


async def test_a_job_for_the_callers_session_fires_there(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_test_gateway(tmp_path, virtual=True) as host, host.client() as client:
        await client.say("SAY:hi", key="k", session="agent:main:project")
        job = await host.rpc("cron.add", JOB | {"sessionKey": "agent:main:project"})
        await client.event("cron", jobId=job["id"], action="finished")
        history = (await host.rpc("chat.history", {"sessionKey": "agent:main:project"}))["messages"]
        assert [message["role"] for message in history] == ["user", "assistant", "system", "assistant"]


async def test_two_starts_at_once_make_one_gateway(tmp_path: Path) -> None:
    home = Home(tmp_path, SCRIPTED)
    children = [home.spawn("gateway", "run", "--port", "0") for _ in range(2)]
    try:
        with trio.fail_after(SECONDS):
            while all(child.poll() is None for child in children):  # noqa: ASYNC110 - another process tells no event
                await trio.sleep(0.01)
        (loser,) = [child for child in children if child.poll() is not None]
        (winner,) = [child for child in children if child is not loser]
        assert loser.returncode == 75
        assert loser.stdout is not None
        assert b"already runs" in loser.stdout.read()
        with trio.fail_after(SECONDS):
            while (await home.run("gateway", "status")).code != 0:  # noqa: ASYNC110 - another process
                await trio.sleep(0.05)
        winner.terminate()
        code = await trio.to_thread.run_sync(partial(winner.wait, SECONDS))
        assert code == 0 or not GRACEFUL
    finally:
        for child in children:
            child.kill()
            child.communicate()


async def test_a_killed_gateway_ends_its_runs_at_the_next_start(tmp_path: Path) -> None:
    home = Home(tmp_path, SCRIPTED)
    async with open_gateway_process(home) as gateway:
        for key in ("cut", "waiting"):
            await gateway.rpc(
                "chat.send",
                {"sessionKey": "main", "message": "HANG", "idempotencyKey": key, "queueMode": "followup"},
            )
        kill(gateway.pid)
        with trio.fail_after(SECONDS):
            while (await home.run("gateway", "status")).code == 0:  # noqa: ASYNC110 - another process
                await trio.sleep(0.05)
    async with open_gateway_process(home) as gateway:
        ended = await gateway.rpc("agent.wait", {"runId": "cut"})
        assert (ended["status"], ended["stopReason"]) == ("timeout", "restart")
        waiting = await gateway.rpc("agent.wait", {"runId": "waiting", "timeoutMs": 100})
        assert waiting == {"runId": "waiting", "status": "timeout"}  # what was queued runs after the restart
        again = await gateway.rpc("chat.abort", {"sessionKey": "main"})
        assert again["runIds"] == ["waiting"]
