from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
from tests.runtime.cron.conftest import EPOCH, World
from trio.testing import MockClock

from triops.agents.messages import SystemMessage
from triops.runtime.config import Duration, HeartbeatConfig
from triops.runtime.cron.heartbeat import PROMPT, Heartbeat, status_of
from triops.runtime.errors import Busy, Invalid
from triops.runtime.runs.state import RunState, Terminal


@asynccontextmanager
async def heart(world: World, config: HeartbeatConfig = HeartbeatConfig()) -> AsyncGenerator[Heartbeat]:
    async with world.store() as (store, bus):
        yield Heartbeat(store, bus, world.runs, config=config, clock=world.clock)


async def test_waking_now_runs_the_session_with_a_visible_message(world: World, autojump_clock: MockClock) -> None:
    world.runs.seconds = 60
    async with heart(world) as heartbeat:
        await heartbeat.wake("look", session_key="agent:main:work")
    (submission,) = world.runs.submissions
    assert (submission.session_key, submission.source) == ("agent:main:work", "wake")
    assert submission.message == SystemMessage("look", EPOCH, source="wake")
    assert trio.current_time() < 1  # accepted, not awaited


async def test_waking_later_only_shows_the_message(world: World, autojump_clock: MockClock) -> None:
    async with heart(world) as heartbeat:
        await heartbeat.wake("look", mode="next-heartbeat")
    assert world.runs.appended == [("agent:main:main", SystemMessage("look", EPOCH, source="wake"))]
    assert world.runs.submissions == []


async def test_a_sub_agent_is_not_woken(world: World, autojump_clock: MockClock) -> None:
    async with heart(world) as heartbeat:
        for mode in ("now", "next-heartbeat"):
            with pytest.raises(Invalid, match="sub-agent"):
                await heartbeat.wake("look", mode=mode, session_key="agent:main:subagent:1")
    assert world.runs.submissions == world.runs.appended == []


async def test_a_beat_is_a_turn_whose_outcome_is_published_and_survives(
    world: World, autojump_clock: MockClock
) -> None:
    world.runs.seconds = 3
    world.runs.terminal = Terminal(state=RunState.FINAL, text="The oven is on.")
    async with heart(world) as heartbeat:
        assert await heartbeat.last() is None
        payload = await heartbeat.beat()
    assert payload == {
        "ts": EPOCH + 3000,
        "status": "sent",
        "preview": "The oven is on.",
        "hasMedia": False,
        "durationMs": 3000,
    }
    assert world.beats == [payload]
    (submission,) = world.runs.submissions
    assert (submission.session_key, submission.source, submission.message) == (
        "agent:main:main",
        "heartbeat",
        SystemMessage(PROMPT, EPOCH, source="heartbeat"),
    )
    async with heart(world) as heartbeat:
        assert await heartbeat.last() == payload


async def test_a_beat_takes_session_words_and_model_from_the_configuration(
    world: World, autojump_clock: MockClock
) -> None:
    async with heart(world, HeartbeatConfig(session="Watch", prompt="All well?", model="a/b")) as heartbeat:
        await heartbeat.beat()
    (submission,) = world.runs.submissions
    assert (submission.session_key, submission.model) == ("agent:main:watch", "a/b")
    assert submission.message.content == "All well?"


@pytest.mark.parametrize(
    ("terminal", "status", "reason"),
    [
        (Terminal(state=RunState.ERROR, error_message="no key"), "failed", "no key"),
        (Terminal(state=RunState.ABORTED, stop_reason="rpc"), "failed", "aborted: rpc"),
    ],
)
async def test_a_beat_that_fails_says_so(
    world: World, autojump_clock: MockClock, terminal: Terminal, status: str, reason: str
) -> None:
    world.runs.terminal = terminal
    async with heart(world) as heartbeat:
        payload = await heartbeat.beat()
    assert (payload["status"], payload["reason"]) == (status, reason)


async def test_a_beat_that_is_refused_is_skipped(world: World, autojump_clock: MockClock) -> None:
    world.runs.refusal = Busy("the session is full")
    async with heart(world) as heartbeat:
        payload = await heartbeat.beat()
    assert (payload["status"], payload["reason"]) == ("skipped", "the session is full")
    assert world.beats == [payload]


async def test_there_is_no_beat_unless_asked_for(world: World, autojump_clock: MockClock) -> None:
    async with heart(world) as heartbeat:
        with trio.fail_after(1):
            await heartbeat.run()
    assert world.runs.submissions == []


async def test_beats_come_as_often_as_configured(world: World, autojump_clock: MockClock) -> None:
    async with heart(world, HeartbeatConfig(every=Duration(1800))) as heartbeat:
        with trio.move_on_after(3 * 3600 + 1):
            await heartbeat.run()
    assert len(world.runs.submissions) == len(world.beats) == 6


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        ("", "ok-empty"),
        ("  \n", "ok-empty"),
        ("NO_REPLY", "ok-token"),
        (" NO_REPLY\n", "ok-token"),
        ("HEARTBEAT_OK", "ok-token"),
        ("**HEARTBEAT_OK**", "ok-token"),
        ("HEARTBEAT_OK nothing new", "ok-token"),
        ("Nothing new. HEARTBEAT_OK.", "ok-token"),
        ("HEARTBEAT_OK " + "x" * 300, "ok-token"),
        ("HEARTBEAT_OK " + "x" * 301, "sent"),
        ("I say HEARTBEAT_OK in the middle", "sent"),
        ("NO_REPLY needed, but look", "sent"),
        ("MY_HEARTBEAT_OKAY", "sent"),
    ],
)
def test_tokens_say_that_nothing_needs_attention(reply: str, status: str) -> None:
    assert status_of(reply) == status
