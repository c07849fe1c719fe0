"""A real gateway that is killed at any moment while people talk to it: what it acknowledged is kept, and runs once."""

import random
import shutil
import subprocess
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.kit.process import COMMAND, SECONDS, Home, RunningGateway, kill
from tests.kit.transcripts import check_pairs

from triops.agents.messages import UserMessage
from triops.gateway.client import GatewayClient, GatewayClosed, GatewayError
from triops.runtime.instance import read_discovery
from triops.runtime.runs.state import RunState
from triops.runtime.store import runs as stored_runs
from triops.runtime.store import sessions as stored_sessions
from triops.runtime.store.runs import Stored
from triops.runtime.testing import open_inline_store

CONFIG = {
    "models": {"providers": {"scripted": {"api": "scripted"}}},
    "agents": {"defaults": {"model": {"primary": "scripted/echo"}}},
}
PLAYS = ("SAY:yes", "TOKENS:4 ITL:20", "TOKENS:2 ITL:20\nCALL:sessions_list {}", "TOKENS:20 ITL:20")
SESSIONS = ("one", "two", "three")
OVER = ("final", "error", "aborted")


class Crowd:
    """People who talk to a gateway, and what they were told; it lives outside of the gateway's process."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.asked: dict[str, dict[str, Any]] = {}
        self.acknowledged: set[str] = set()
        self.ends: dict[str, list[str]] = {}
        """States of the terminal `chat` events that came for each run."""

    async def talk(self, client: GatewayClient, session: str) -> None:
        """Send until the gateway is gone."""
        while True:
            key = f"key-{len(self.asked)}"
            text = f"{self.random.choice(PLAYS)}\n#{key}"
            self.asked[key] = {"sessionKey": session, "message": text, "idempotencyKey": key}
            if not await self.ask(client, key):
                return
            await trio.sleep(self.random.uniform(0, 0.03))

    async def ask(self, client: GatewayClient, key: str) -> bool:
        """Send, or send again; False when the gateway is gone."""
        try:
            ack = await client.request("chat.send", self.asked[key])
        except GatewayClosed:
            return False
        except GatewayError as error:
            if not error.retryable:
                raise
            return True
        assert ack["runId"] == key
        self.acknowledged.add(key)
        return True

    async def listen(self, client: GatewayClient) -> None:
        """Note how runs end, until the gateway is gone."""
        with client.events("chat") as events:
            try:
                async for event in events:
                    if event.payload.get("state") in OVER:
                        self.ends.setdefault(event.payload["runId"], []).append(event.payload["state"])
            except GatewayClosed:
                return


def start(home: Home) -> "subprocess.Popen[bytes]":
    command = [*COMMAND, "gateway", "run", "--port", "0"]
    return subprocess.Popen(command, env=home.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@asynccontextmanager
async def gateway_process(home: Home) -> AsyncGenerator[RunningGateway]:
    """`triops gateway run`, killed at the end of the block."""
    process = start(home)
    try:
        with trio.fail_after(SECONDS):
            while (found := read_discovery(home.paths)) is None:  # noqa: ASYNC110 - another process
                assert process.poll() is None, home.said()
                await trio.sleep(0.01)
        yield RunningGateway(home, found)
    finally:
        kill(process.pid)
        process.wait(SECONDS)


async def talk_and_kill(home: Home, crowd: Crowd) -> None:
    """One life of the gateway, ended at a moment that nobody chose."""
    async with gateway_process(home) as gateway, gateway.client() as client, trio.open_nursery() as nursery:
        nursery.start_soon(crowd.listen, client)
        for session in SESSIONS:
            nursery.start_soon(crowd.talk, client, session)
        await trio.sleep(crowd.random.uniform(0.02, 0.3))
        kill(gateway.pid)


def open_on_disk(home: Home, folder: Path) -> dict[str, RunState]:
    """The runs that a dead gateway left unfinished, read from a copy of its state."""
    folder.mkdir()
    for file in home.paths.state.glob(f"{home.paths.database.name}*"):
        shutil.copy(file, folder / file.name)
    with open_inline_store(folder / home.paths.database.name) as store:
        rows = store.db.execute("SELECT id, state FROM runs WHERE state IN ('queued', 'running')").fetchall()
    shutil.rmtree(folder)
    return {run_id: RunState(state) for run_id, state in rows}


async def settle(home: Home, crowd: Crowd) -> None:
    """A last life, in which all that was asked is asked again and comes to its end."""
    async with gateway_process(home) as gateway, gateway.client() as client:
        with trio.fail_after(120):
            for key in crowd.asked:
                while key not in crowd.acknowledged:
                    assert await crowd.ask(client, key)
                    await trio.sleep(0.01)
                assert await crowd.ask(client, key)  # a known key is the same run
                while (await client.request("agent.wait", {"runId": key, "timeoutMs": 1000})).get("endedAt") is None:
                    pass


def check(home: Home, crowd: Crowd, running: set[str], queued: set[str]) -> None:
    said: Counter[object] = Counter()
    ends: dict[str, Stored] = {}
    with open_inline_store(home.paths.database) as store:
        for session in SESSIONS:
            page = stored_sessions.transcript(store.db, f"agent:main:{session}", limit=100_000)
            check_pairs([placed.message for placed in page.messages])
            said.update(entry.message.content for entry in page.messages if isinstance(entry.message, UserMessage))
        for key in crowd.asked:
            stored = stored_runs.find(store.db, key)
            assert stored is not None and stored.terminal is not None, key
            ends[key] = stored
    assert said == Counter({asked["message"]: 1 for asked in crowd.asked.values()})
    for key in running:
        terminal = ends[key].terminal
        assert terminal is not None and (terminal.state, terminal.stop_reason) == (RunState.ABORTED, "restart"), key
    for key, told in crowd.ends.items():
        assert len(told) == 1, f"{key} ended as {told}"
        state = ends[key].state
        assert state is RunState.MERGED or told == [str(state)], f"{key} was told {told}, and is {state}"
    # Those that waited had their turn in a later life, unless that one was killed in the middle of it.
    assert all(ends[key].state is not RunState.ABORTED for key in queued - running)


async def kills(folder: Path, *, count: int, seed: int) -> tuple[int, int]:
    home, crowd = Home(folder, CONFIG), Crowd(seed)
    running: set[str] = set()
    queued: set[str] = set()
    for life in range(count):
        await talk_and_kill(home, crowd)
        for key, state in open_on_disk(home, folder / f"life-{life}").items():
            (running if state is RunState.RUNNING else queued).add(key)
    await settle(home, crowd)
    taken = {key for key in queued if key in running}
    check(home, crowd, running, queued - taken)
    return len(running), len(queued)


@pytest.mark.slow
async def test_a_gateway_that_is_killed_keeps_what_it_acknowledged_and_runs_it_once(tmp_path: Path) -> None:
    running, queued = await kills(tmp_path, count=8, seed=1)
    assert running and queued, "no kill hit a run; the test saw nothing"


@pytest.mark.soak
async def test_a_gateway_that_is_killed_two_hundred_times_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    running, queued = await kills(tmp_path, count=200, seed=2)
    assert running and queued
