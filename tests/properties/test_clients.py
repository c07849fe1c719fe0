"""Clients that do anything at any time, on a virtual clock: what a gateway promises holds all the same."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from tests.kit.host import ECHO, TestHost, open_test_gateway
from tests.kit.wire import Client, Refused

OVER = ("final", "aborted", "error")
WORDS = (
    "SAY:x",
    "TOKENS:30 ITL:20",
    "TOKENS:200 ITL:30",
    "FAIL:400",
    "HANG",
    "CALL:sessions_list {}",
    'CALL:sessions_spawn {"task": "TOKENS:20 ITL:20"}',
    'CALL:sessions_send {"label": "agent:main:s1", "message": "SAY:y", "timeoutSeconds": 3}',
    'CALL:nothing {"x": 1}\nCALL:sessions_list {}',
)


class World:
    """What was accepted, by whoever heard the ack."""

    def __init__(self, host: TestHost, seed: int) -> None:
        self.host = host
        self.random = random.Random(seed)
        self.accepted: set[str] = set()
        self.refusals: set[str] = set()
        self._keys = 0

    def key(self) -> str:
        self._keys += 1
        return f"k{self._keys}"

    async def live(self) -> None:
        """One client's life: some actions, and an end without a goodbye."""
        caps = self.random.choice([(), ("tool-events",), ("session-scoped-events",)])
        async with self.host.client(caps=caps) as client:
            for _ in range(self.random.randrange(1, 8)):
                await trio.sleep(self.random.random())
                try:
                    await self.act(client)
                except Refused as refused:
                    self.refusals.add(refused.error["code"])
            check_connection(client)

    async def act(self, client: Client) -> None:
        session = f"s{self.random.randrange(3)}"
        match self.random.randrange(10):
            case 0 | 1 | 2 | 3:
                key, words = self.key(), self.random.choice(WORDS)
                mode = self.random.choice(["steer", "followup", "interrupt", "collect"])
                ack = await client.say(words, key=key, session=session, queueMode=mode)
                assert ack["status"] == "started"
                self.accepted.add(key)
                if self.random.random() < 0.3:
                    again = await client.say(words, key=key, session=session, queueMode=mode)
                    assert again["status"] in ("in_flight", "ok", "timeout")
            case 4:
                key = self.key()
                ask = {"message": self.random.choice(WORDS), "idempotencyKey": key, "sessionKey": session}
                assert (await client.request("agent", ask))["status"] == "accepted"
                self.accepted.add(key)
            case 5:
                await client.request("chat.abort", {"sessionKey": session})
            case 6:
                await client.request("sessions.reset", {"key": session})
            case 7:
                await client.request("sessions.subscribe")
            case 8:
                await client.request("chat.history", {"sessionKey": session})
            case _:
                await client.request("wake", {"mode": "now", "text": "SAY:woken", "sessionKey": session})


def check_connection(client: Client) -> None:
    """What every connection may rely on, whatever it did."""
    seqs = [frame["seq"] for frame in client.frames if "seq" in frame]
    assert seqs == list(range(1, len(seqs) + 1))
    last: dict[str, int] = {}
    for payload in client.events("agent"):
        assert payload["seq"] > last.get(payload["runId"], 0), payload
        last[payload["runId"]] = payload["seq"]
    said: dict[str, str] = {}
    for payload in client.events("chat"):
        if payload["state"] == "delta" and payload["runId"] in said | {payload["runId"]: ""}:
            before = "" if payload.get("replace") else said.get(payload["runId"], "")
            whole: str = payload["message"]["content"][0]["text"]
            # Who came in the middle of a run has not heard its beginning.
            assert whole.endswith(payload["deltaText"])
            assert not before or whole == before + payload["deltaText"]
            said[payload["runId"]] = whole


@pytest.mark.parametrize("seed", range(12))
async def test_every_accepted_run_ends_once_and_is_told_in_order(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, seed: int
) -> None:
    async with open_test_gateway(tmp_path, config=ECHO, virtual=True) as host, host.client() as watcher:
        world = World(host, seed)
        await watcher.request("sessions.subscribe")
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(world.live)
        while host.runtime.runs.open_runs():
            for run in host.runtime.runs.open_runs():
                host.runtime.runs.abort(run, "rpc")
            await trio.sleep(1)
        await watcher.request("health")
        assert world.refusals <= {"UNAVAILABLE", "INVALID_REQUEST"}
        check_connection(watcher)
        ended = Counter(p["runId"] for p in watcher.events("chat") if p["state"] in OVER)
        assert set(ended.values()) <= {1}
        assert world.accepted <= ended.keys()
        begun = {p["runId"] for p in watcher.events("agent") if p["data"].get("phase") == "start"}
        assert begun <= ended.keys()
        for run_id in world.accepted:
            told: dict[str, Any] = next(p for p in watcher.events("chat", run_id) if p["state"] in OVER)
            waited = await watcher.request("agent.wait", {"runId": run_id, "timeoutMs": 0})
            expected = {"final": "ok", "aborted": "timeout", "error": "error"}[told["state"]]
            assert waited["status"] == expected, (told, waited)
        assert host.runtime.runs.statistics().lanes.lanes == 0
