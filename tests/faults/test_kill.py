"""A real gateway that is killed at any moment while people talk to it: what it acknowledged is kept, and runs once."""

import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio
import trio.testing
from tests.kit.lives import STEPS, Death, Life, Lives, open_lives
from tests.kit.process import SECONDS, Home
from tests.kit.transcripts import check_pairs

from triops.agents.messages import AssistantMessage, UserMessage
from triops.gateway.client import GatewayClient, GatewayClosed, GatewayError, open_client
from triops.runtime.runs.state import RunState
from triops.runtime.store import runs as stored_runs
from triops.runtime.store import sessions as stored_sessions
from triops.runtime.store.runs import Stored
from triops.runtime.testing import copy_state, open_inline_store

CONFIG = {
    "models": {"providers": {"scripted": {"api": "scripted"}}},
    "agents": {"defaults": {"model": {"primary": "scripted/echo"}}},
}
PLAYS = ("SAY:yes", "TOKENS:4 ITL:20", "TOKENS:2 ITL:20\nCALL:sessions_list {}", "TOKENS:6 ITL:20")
MODES = ("steer", "steer", "followup", "collect", "interrupt")
SESSIONS = ("one", "two", "three")
OVER = ("final", "error", "aborted")
LONGEST = 0.15  # seconds of a life that ends at a random moment
STEP_SECONDS = 1.0  # that a step is waited for


class Crowd:
    """People who talk to a gateway, and what they were told; it lives outside of the gateway's process."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.asked: dict[str, dict[str, Any]] = {}
        self.acknowledged: set[str] = set()
        self.stopped: set[str] = set()
        """What somebody was told to be stopped."""
        self.ends: dict[str, list[str]] = {}
        """States of the terminal `chat` events that came for each run, without being asked for."""

    async def talk(self, client: GatewayClient, session: str) -> None:
        """Send until the gateway is gone."""
        while True:
            key = f"key-{len(self.asked)}"
            text = f"{self.random.choice(PLAYS)}\n#{key}"
            mode = self.random.choice(MODES)
            self.asked[key] = {
                "sessionKey": session,
                "message": text,
                "idempotencyKey": key,
                "queueMode": mode,
            }
            if not await self.ask(client, key):
                return
            if self.random.random() < 0.2 and not await self.stop(client, session, key):
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

    async def stop(self, client: GatewayClient, session: str, key: str) -> bool:
        """Stop one that runs or waits; False when the gateway is gone."""
        try:
            answer = await client.request("chat.abort", {"sessionKey": session, "runId": key})
        except GatewayClosed:
            return False
        self.stopped.update(answer["runIds"])
        return True

    async def listen(self, client: GatewayClient, ends: dict[str, list[str]]) -> None:
        """Note how runs end, until the gateway is gone."""
        with client.events("chat") as events:
            try:
                async for event in events:
                    if event.payload.get("state") in OVER:
                        ends.setdefault(event.payload["runId"], []).append(event.payload["state"])
            except GatewayClosed:
                return

    async def live(self, home: Home, life: Life, death: Death | None) -> bool:
        """Talk to a gateway until it dies at its step, or at a moment that nobody chose; False if it had to be ended
        because nobody took its step."""
        reached = True
        try:
            async with connect(home, life) as client, trio.open_nursery() as nursery:
                nursery.start_soon(self.listen, client, self.ends)
                for session in SESSIONS:
                    nursery.start_soon(self.talk, client, session)
                with trio.move_on_after(STEP_SECONDS if death else self.random.uniform(0.02, LONGEST)) as scope:
                    await life.over.wait()
                reached = death is None or not scope.cancelled_caught
                life.kill()
        except* (GatewayClosed, OSError):  # it died before it had said hello
            with trio.fail_after(SECONDS):
                await life.over.wait()
        return reached

    async def settle(self, home: Home, life: Life) -> dict[str, list[str]]:
        """A last life, in which all that was asked is asked again and comes to its end; what who asks again is told."""
        ends: dict[str, list[str]] = {}
        async with connect(home, life) as client, trio.open_nursery() as nursery:
            with trio.fail_after(120):
                for key in self.asked:
                    while key not in self.acknowledged:
                        assert await self.ask(client, key)
                    while (await client.request("agent.wait", {"runId": key, "timeoutMs": 9000})).get(
                        "endedAt"
                    ) is None:
                        pass
                nursery.start_soon(self.listen, client, ends)
                await trio.testing.wait_all_tasks_blocked()
                for key in self.asked:
                    assert await self.ask(client, key)  # a known key is the same run
                while set(ends) != set(self.asked):  # noqa: ASYNC110
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        return ends


def connect(home: Home, life: Life) -> Any:
    return open_client(life.url, token=home.paths.token.read_text().strip())


class Found(NamedTuple):
    """What the dead left on disk: runs that were going on, and runs that waited; and the steps at which they died."""

    running: set[str]
    queued: set[str]
    steps: set[str]


def look(home: Home, folder: Path, found: Found) -> None:
    """Look at a copy of the state that a dead gateway left."""
    copy_state(home.paths.state, folder)
    with open_inline_store(folder / home.paths.database.name) as store:
        assert store.db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = store.db.execute("SELECT id, state FROM runs WHERE state IN ('queued', 'running')").fetchall()
    shutil.rmtree(folder)
    for run_id, state in rows:
        (found.running if state == RunState.RUNNING else found.queued).add(run_id)


def check(home: Home, crowd: Crowd, found: Found, told: dict[str, list[str]], journal: Path) -> None:
    said: Counter[object] = Counter()
    ends: dict[str, Stored] = {}
    notes: set[str] = set()
    with open_inline_store(home.paths.database) as store:
        assert store.db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        for session in SESSIONS:
            page = stored_sessions.transcript(store.db, f"agent:main:{session}", limit=100_000)
            check_pairs([placed.message for placed in page.messages])
            said.update(entry.message.content for entry in page.messages if isinstance(entry.message, UserMessage))
            notes |= {
                entry.run_id or ""
                for entry in page.messages
                if isinstance(entry.message, AssistantMessage) and entry.message.stop_reason == "aborted"
            }
        for key in crowd.asked:
            stored = stored_runs.find(store.db, key)
            assert stored is not None and stored.terminal is not None, key
            ends[key] = stored
    assert said == Counter({asked["message"]: 1 for asked in crowd.asked.values()})
    for key in found.running:
        terminal = ends[key].terminal
        assert terminal is not None and (terminal.state, terminal.stop_reason) == (RunState.ABORTED, "restart"), key
        assert key in notes, f"history does not say that {key} was cut off"
    # Those that waited had their turn in a later life, unless that one was killed in the middle of it.
    for key in found.queued - found.running:
        terminal = ends[key].terminal
        assert terminal is not None
        assert ends[key].state is RunState.MERGED or terminal.stop_reason != "restart", f"{key} waited and never ran"
    for key in crowd.stopped:
        assert ends[key].state is RunState.ABORTED, f"{key} was stopped, and is {ends[key].state}"
    for heard in (crowd.ends, told):
        for key, states in heard.items():
            state = "final" if ends[key].state is RunState.MERGED else str(ends[key].state)
            assert states == [state], f"{key} was told {states}, and is {ends[key].state}"
    events = Counter((line["event"], line["run"]) for line in map(json.loads, journal.read_text().splitlines()))
    assert {what: count for what, count in events.items() if count > 1} == {}, "a run began or ended twice"


async def kills(folder: Path, deaths: list[Death | None], *, seed: int) -> tuple[Crowd, Found]:
    """Lives of one gateway that end as `deaths` say, None being a moment that nobody chose; and a last one."""
    home, crowd, found, journal = Home(folder, CONFIG), Crowd(seed), Found(set(), set(), set()), folder / "journal"
    async with open_lives(home.environ, journal) as lives:
        for number, death in enumerate(deaths):
            async with lives.life(death) as life:
                if (life.code is not None or await crowd.live(home, life, death)) and death is not None:
                    found.steps.add(f"{death.side} {death.step}")
            look(home, folder / f"life-{number}", found)
        told = await last_life(home, crowd, lives)
    check(home, crowd, found, told, journal)
    return crowd, found


async def last_life(home: Home, crowd: Crowd, lives: Lives) -> dict[str, list[str]]:
    async with lives.life() as life:
        assert life.code is None, home.said()
        return await crowd.settle(home, life)


def seeded(count: int, seed: int) -> list[Death | None]:
    """At a random moment, and before and after each named step, in an order of its own."""
    chance = random.Random(seed)
    steps = [(step, side) for step in STEPS for side in ("before", "after")]
    chance.shuffle(steps)
    named = [Death(step, side, 1 if step == "recovery" else chance.randint(1, 4)) for step, side in steps]
    deaths: list[Death | None] = [*named, *[None] * max(0, count - len(named))][:count]
    chance.shuffle(deaths)
    return deaths


@pytest.mark.slow
async def test_a_gateway_that_is_killed_forty_times_keeps_what_it_acknowledged_and_runs_it_once(tmp_path: Path) -> None:
    crowd, found = await kills(tmp_path, seeded(40, 1), seed=1)
    assert found.running and found.queued, "no kill hit a run; the test saw nothing"
    assert crowd.stopped
    assert len(found.steps) > len(STEPS), f"only these steps were reached: {sorted(found.steps)}"


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 27))
async def test_a_gateway_that_is_killed_a_thousand_times_keeps_what_it_acknowledged(tmp_path: Path, seed: int) -> None:
    crowd, found = await kills(tmp_path, seeded(40, seed), seed=seed)
    cut, waited = len(found.running), len(found.queued)
    print(f"asked {len(crowd.asked)}, cut off {cut}, found waiting {waited}, steps {len(found.steps)}")
    assert cut and waited
