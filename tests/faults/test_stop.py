"""A gateway that is asked to end while it works: it drains within its budget, tells its clients, and leaves nothing."""

import os
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest
import trio
from tests.faults.test_kill import CONFIG, OVER, SESSIONS, connect
from tests.kit.lives import Life, Lives, open_lives
from tests.kit.process import SECONDS, Home

from triops.gateway.client import Event, GatewayClient, GatewayClosed, GatewayError
from triops.gateway.server import CLOSE_GRACE, GRACE
from triops.runtime.instance import read_discovery
from triops.runtime.runs.state import TERMINAL, RunState
from triops.runtime.runs.supervisor import COMMIT_GRACE
from triops.runtime.store import runs as stored_runs
from triops.runtime.testing import open_inline_store

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="a process without a console gets no signal there")


async def hear(client: GatewayClient, heard: list[Event], *, task_status: trio.TaskStatus[None]) -> None:
    """Keep what comes until the gateway is gone, and how it went."""
    with client.events() as events:
        task_status.started()
        try:
            async for event in events:
                heard.append(event)
        except GatewayClosed as closed:
            heard.append(Event("closed", {"code": closed.code, "reason": closed.reason}))


async def talk(client: GatewayClient, session: str, accepted: set[str]) -> None:
    """Send until the gateway takes nothing more; it may say so, and may not say anything else."""
    while True:
        key = f"{session}-{len(accepted)}"
        params = {"sessionKey": session, "message": "TOKENS:3 ITL:5", "idempotencyKey": key, "queueMode": "followup"}
        try:
            await client.request("chat.send", params)
        except GatewayClosed:
            return
        except GatewayError as error:
            if not error.retryable:
                raise
        else:
            accepted.add(key)
        await trio.sleep(0.005)


@posix_only
async def test_a_stop_under_load_drains_in_time_and_tells_everybody(tmp_path: Path) -> None:
    home, journal = Home(tmp_path, CONFIG), tmp_path / "journal"
    accepted: set[str] = set()
    heard: list[Event] = []
    async with open_lives(home.environ, journal) as lives, lives.life() as life:
        async with connect(home, life) as client, trio.open_nursery() as nursery:
            await nursery.start(hear, client, heard)
            for session in SESSIONS:
                nursery.start_soon(talk, client, session, accepted)
            while len(accepted) < 30:  # noqa: ASYNC110 - until there is some load
                await trio.sleep(0.01)
            await client.request(
                "chat.send", {"sessionKey": "long", "message": "TOKENS:20 ITL:20", "idempotencyKey": "long"}
            )
            accepted.add("long")
            assert life.pid is not None
            os.kill(life.pid, signal.SIGTERM)
            with trio.fail_after(GRACE + COMMIT_GRACE + CLOSE_GRACE):
                await life.over.wait()
        assert life.code == 0
    assert [event.payload["reason"] for event in heard if event.event == "shutdown"] == ["gateway stopping"]
    assert heard[-1].event == "closed"
    assert heard[-1].payload == {"code": 1012, "reason": "service restart"}
    ends = Counter(e.payload["runId"] for e in heard if e.event == "chat" and e.payload.get("state") in OVER)
    assert set(ends.values()) == {1}
    with open_inline_store(home.paths.database) as store:
        states = {key: found.state for key in accepted if (found := stored_runs.find(store.db, key)) is not None}
    assert set(states) == accepted, "an acknowledged message is gone"
    assert {key for key, state in states.items() if state in TERMINAL} == set(ends), "an end that was not told"
    assert set(states.values()) <= {RunState.FINAL, RunState.QUEUED}
    assert not home.paths.discovery.exists()
    assert "Traceback" not in home.said()


ENGINE = """
import os, pathlib
class CommonParams:
    def __getattr__(self, name):
        value = self.__dict__[name] = CommonParams()
        return value
class Server:
    listening_address = "http://127.0.0.1:9"
    def __init__(self, parameters):
        pathlib.Path(os.environ["HOME"], "new").write_text(str(os.getpid()))
        os.rename(pathlib.Path(os.environ["HOME"], "new"), pathlib.Path(os.environ["HOME"], "engine.pid"))
"""
"""An engine of local models in whose place nobody answers."""


@posix_only
async def test_a_stop_leaves_no_child_process(tmp_path: Path) -> None:
    home = Home(tmp_path, {"agents": {"defaults": {"model": {"primary": "local/tiny"}}}})
    home.paths.models.mkdir()
    (home.paths.models / "tiny.gguf").touch()
    (tmp_path / "xllamacpp").mkdir()
    (tmp_path / "xllamacpp" / "__init__.py").write_text(ENGINE)
    environ = home.environ | {"PYTHONPATH": str(tmp_path)}
    async with open_lives(environ, tmp_path / "journal") as lives, lives.life() as life:
        heard: list[Event] = []
        async with connect(home, life) as client, trio.open_nursery() as nursery:
            await nursery.start(hear, client, heard)
            async with client.chat("main", "hello"):
                while not (engine := tmp_path / "engine.pid").exists():  # noqa: ASYNC110 - another process
                    await trio.sleep(0.01)
            child = int(engine.read_text())
            os.kill(child, 0)  # it lives, and waits to be asked again
            assert life.pid is not None
            os.kill(life.pid, signal.SIGTERM)
            with trio.fail_after(GRACE + COMMIT_GRACE + CLOSE_GRACE):
                await life.over.wait()
        assert life.code == 0
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


@posix_only
@pytest.mark.soak  # for its ten seconds; on a mock clock it is with the supervisor and the server
async def test_a_run_that_will_not_end_is_ended_when_the_budget_is_over(tmp_path: Path) -> None:
    home = Home(tmp_path, CONFIG)
    async with open_lives(home.environ, tmp_path / "journal") as lives, lives.life() as life:
        heard: list[Event] = []
        async with connect(home, life) as client, trio.open_nursery() as nursery:
            await nursery.start(hear, client, heard)
            for key in ("cut", "waits"):
                asked = {"sessionKey": "main", "message": "HANG", "idempotencyKey": key, "queueMode": "followup"}
                await client.request("chat.send", asked)
            assert life.pid is not None
            os.kill(life.pid, signal.SIGTERM)
            with trio.fail_after(GRACE + COMMIT_GRACE + CLOSE_GRACE):
                await life.over.wait()
        assert life.code == 0
    ends = [e.payload for e in heard if e.event == "chat" and e.payload.get("state") in OVER]
    assert [(end["runId"], end["state"]) for end in ends] == [("cut", "aborted")]
    with open_inline_store(home.paths.database) as store:
        waits = stored_runs.find(store.db, "waits")
        assert waits is not None and waits.state is RunState.QUEUED


@pytest.mark.slow
async def test_of_two_starts_at_once_one_wins_and_the_other_ends_with_75_in_two_seconds(tmp_path: Path) -> None:
    home = Home(tmp_path, CONFIG)
    async with open_lives(home.environ, tmp_path / "journal") as lives:
        async with lives.life():
            pass  # the launcher has imported everything
        for _ in range(5):
            both: list[Life] = []
            over = trio.Event()
            async with trio.open_nursery() as nursery:
                started = trio.current_time()
                for _ in range(2):
                    nursery.start_soon(race, lives, both, over)
                with trio.fail_after(SECONDS):
                    while len(both) < 2:  # noqa: ASYNC110 - other processes
                        await trio.sleep(0.01)
                took = trio.current_time() - started
                assert sorted(str(life.code) for life in both) == ["75", "None"]
                assert took < 2, f"the loser took {took:.1f} s"
                (winner,) = [life for life in both if life.code is None]
                found = read_discovery(home.paths)
                assert found is not None and (found.pid, found.url) == (winner.pid, winner.url)
                over.set()


async def race(lives: Lives, both: list[Life], over: trio.Event) -> None:
    async with lives.life() as life:
        both.append(life)
        await over.wait()
