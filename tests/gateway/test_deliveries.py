"""How a run's end comes to a main session."""

from pathlib import Path

import pytest
import trio
from tests.kit.host import TestHost, open_test_gateway

from triops.gateway.deliveries import Delivery, told
from triops.runtime.cron.job import WakeMode
from triops.runtime.events import SessionMessage
from triops.runtime.runs.state import RunState, Terminal

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
        await host.rpc("chat.send", {"sessionKey": "work", "message": text, "idempotencyKey": "k"})
        await host.gateway.services.deliveries.add(Delivery("k", MAIN, "Mail", mode))
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
