"""How a run's end comes to a main session."""

from pathlib import Path
from typing import Any

import pytest
import trio
from tests.kit.host import TestHost, open_test_gateway

from triops.agents.messages import UserMessage
from triops.runtime.cron.job import WakeMode
from triops.runtime.deliveries import told
from triops.runtime.events import SessionMessage
from triops.runtime.runs.state import Accepted, Delivery, RunState, Submission, Terminal
from triops.runtime.runs.supervisor import Supervisor
from triops.runtime.store import runs as stored
from triops.runtime.testing import copy_state

MAIN = "agent:main:main"


async def delivered(host: TestHost, text: str, mode: WakeMode = "next-heartbeat") -> str:
    """What the main session hears of a run that was asked `text`."""
    heard: list[str] = []
    placed = trio.Event()

    def hear(event: object) -> None:
        if isinstance(event, SessionMessage) and event.session_key == MAIN:
            heard.append(str(event.message.content))
            placed.set()

    with host.runtime.bus.subscribe(hear):
        message = UserMessage(text, host.runtime.clock())
        told_of = Delivery(MAIN, "Mail", mode)
        wanted = Submission(run_id="k", session_key="agent:main:work", message=message, delivery=told_of)
        await host.runtime.runs.submit(wanted)
        with trio.fail_after(10):
            await placed.wait()
    return heard[0]


async def test_a_main_session_hears_the_reply_or_why_there_is_none(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        assert await delivered(host, "SAY:two letters") == "Mail: two letters"
    async with open_test_gateway(tmp_path / "other") as host:
        assert (await delivered(host, "FAIL:400")).startswith("Mail: failed: ")


async def test_what_gets_no_turn_is_there_to_be_read(tmp_path: Path) -> None:
    config = {"messages": {"queue": {"cap": 1}}, "agents": {"defaults": {"model": {"primary": "scripted/echo"}}}}
    async with open_test_gateway(tmp_path, config=config) as host:
        for key in ("busy", "waits"):
            body = {"sessionKey": "main", "message": "HANG", "idempotencyKey": key, "queueMode": "followup"}
            await host.rpc("chat.send", body)
        assert await delivered(host, "SAY:x", mode="now") == "Mail: x"
        assert [record.message for record in host.warnings()] == ["the end of a run is told without a turn"]


async def test_a_hook_that_waited_over_a_restart_is_heard_all_the_same(tmp_path: Path) -> None:
    hooks = {"enabled": True, "token": "the-hooks-own-secret", "defaultSessionKey": "hook:one"}
    config = {"hooks": hooks, "agents": {"defaults": {"model": {"primary": "scripted/echo"}}}}
    async with open_test_gateway(tmp_path, config=config) as host:
        for text in ("HANG", "SAY:late"):
            body = {"message": text, "name": "Mail", "wakeMode": "next-heartbeat"}
            assert (await host.http("POST", "/hooks/agent", body, token="the-hooks-own-secret")).status == 200
        copy_state(tmp_path / "state", tmp_path / "killed" / "state")
    async with open_test_gateway(tmp_path / "killed", config=config) as host, host.client() as client:
        await client.request("sessions.messages.subscribe", {"key": MAIN})
        while not (heard := (await client.request("chat.history", {"sessionKey": "main"}))["messages"]):
            await client.event("session.message")
        assert [message["content"] for message in heard] == ["Mail: late"]


@pytest.mark.parametrize("mode", ["now", "next-heartbeat"])
async def test_an_end_that_a_kill_left_untold_is_told_by_the_next_process_and_by_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: WakeMode
) -> None:
    config = {"agents": {"defaults": {"model": {"primary": "scripted/echo"}}}}
    killed = tmp_path / "killed"
    async with open_test_gateway(tmp_path, config=config) as host:
        begun = trio.Event()

        async def hang(*_: object, **__: object) -> None:
            begun.set()
            await trio.sleep_forever()

        monkeypatch.setattr(Supervisor, "append", hang)
        submit = Supervisor.submit

        async def submit_or_hang(self: Supervisor, submission: Submission, **more: Any) -> Accepted:
            if submission.source == "wake":
                await hang()
            return await submit(self, submission, **more)

        monkeypatch.setattr(Supervisor, "submit", submit_or_hang)
        message = UserMessage("SAY:done", host.runtime.clock())
        wanted = Submission(
            run_id="k", session_key="agent:main:work", message=message, delivery=Delivery(MAIN, "Mail", mode)
        )
        await host.runtime.runs.submit(wanted)
        with trio.fail_after(10):
            await begun.wait()
        copy_state(tmp_path / "state", killed / "state")
        monkeypatch.undo()
    for _ in range(2):
        async with open_test_gateway(killed, config=config) as host, host.client() as client:
            await client.request("sessions.messages.subscribe", {"key": MAIN})
            while not (heard := (await client.request("chat.history", {"sessionKey": "main"}))["messages"]):
                await client.event("session.message")
            assert [message["content"] for message in heard if message["role"] == "system"] == ["Mail: done"]
            if mode == "now":
                await host.runtime.runs.wait("wake:k")
            for _ in range(10_000):
                if not await host.runtime.store.read(stored.undelivered):
                    break
            else:
                pytest.fail("it stays to be told")


@pytest.mark.parametrize(
    ("terminal", "words"),
    [
        (Terminal(state=RunState.FINAL, text=" said "), "said"),
        (Terminal(state=RunState.FINAL, text="NO_REPLY"), ""),
        (Terminal(state=RunState.FINAL), ""),
        (Terminal(state=RunState.ABORTED, text="half"), ""),
        (Terminal(state=RunState.ERROR, error_message="no key"), "failed: no key"),
    ],
)
def test_an_end_in_words(terminal: Terminal, words: str) -> None:
    assert told(terminal) == words
