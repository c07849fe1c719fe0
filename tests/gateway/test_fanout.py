"""Who hears what, and when: the fan-out with connections that are only an outbox."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing
from msgspec.structs import replace

from triops.agents.messages import AssistantMessage, Text, ToolCall, ToolResultMessage, UserMessage
from triops.gateway.fanout import PACE, Fanout
from triops.gateway.outbox import Outbox
from triops.gateway.schema.sessions import SessionRow
from triops.runtime.bus import Bus
from triops.runtime.events import (
    CronEvent,
    HeartbeatEvent,
    ModelsChanged,
    RunDelta,
    RunEnded,
    RunInfo,
    RunModel,
    RunStarted,
    RunStatus,
    RunThinking,
    RunTool,
    RunUsage,
    SessionChanged,
    SessionMessage,
)
from triops.runtime.logs import Log
from triops.runtime.phases import Phases
from triops.runtime.runs.state import RunState, Terminal
from triops.runtime.sessions import Session

RUN = RunInfo(
    run_id="r",
    session_key="agent:main:main",
    spelled_key="agent:main:main",
    session_id="s",
    agent_id="main",
    source="chat",
    origin="asker",
    tool_events=False,
)
CALL = ToolCall("c1", "read", {"path": "x"})
FINAL = Terminal(state=RunState.FINAL, stop_reason="stop", text="hello", started_at=1, ended_at=9)


class Listener:
    """An `Audience`."""

    def __init__(self, name: str = "asker", **settings: Any) -> None:
        self.id = name
        self.outbox = Outbox()
        self.reads: bool = settings.get("reads", True)
        self.scopes = frozenset({"operator.read"} if self.reads else ())
        self.all_sessions: bool = settings.get("all_sessions", False)
        self.session_keys: set[str] = set(settings.get("keys", ()))
        self.scoped: bool = settings.get("scoped", False)
        self.tool_events: bool = settings.get("tool_events", False)
        self.turn_phases: bool = settings.get("turn_phases", False)

    def heard(self) -> list[dict[str, Any]]:
        """What came since the last look."""
        frames: list[dict[str, Any]] = []
        while batch := self.outbox.take():
            frames += map(json.loads, batch)
        return frames

    def names(self) -> list[str]:
        return [frame["event"] for frame in self.heard()]


def row_of(session: Session) -> SessionRow:
    return SessionRow(
        key=session.key,
        session_id=session.session_id,
        agent_id=session.agent_id,
        classification="direct",
        created_via="operator",
        created_at=1,
        updated_at=2,
        ended_at=session.ended_at,
    )


@asynccontextmanager
async def fanning(*listeners: Listener) -> AsyncGenerator[Bus]:
    bus = Bus(Log())
    fanout = Fanout(bus, row_of)
    for listener in listeners:
        fanout.join(listener)
    async with trio.open_nursery() as nursery:
        await nursery.start(fanout.run)
        yield bus
        nursery.cancel_scope.cancel()


def delta(seq: int, text: str, index: int = 1, run: RunInfo = RUN) -> RunDelta:
    return RunDelta(run, seq, seq, index, text)


def texts(frames: list[dict[str, Any]]) -> list[str]:
    return [f["payload"]["deltaText"] for f in frames if f["payload"].get("state") == "delta"]


async def test_the_first_delta_goes_at_once_and_the_next_when_its_time_has_come(
    autojump_clock: trio.testing.MockClock,
) -> None:
    me = Listener()
    async with fanning(me) as bus:
        bus.publish(delta(1, "a"))
        assert texts(me.heard()) == ["a"]
        bus.publish(delta(2, "b"))
        await trio.sleep(PACE * 0.4)
        bus.publish(delta(3, "c"))
        await trio.sleep(PACE * 0.5)
        assert me.heard() == []
        await trio.sleep(PACE * 0.2)
        agent, chat = me.heard()
        assert (agent["event"], agent["payload"]["data"]["delta"], agent["payload"]["seq"]) == ("agent", "bc", 3)
        assert (chat["payload"]["deltaText"], chat["payload"]["message"]["content"][0]["text"]) == ("bc", "abc")
        await trio.sleep(PACE * 2)
        bus.publish(delta(4, "d"))
        assert texts(me.heard()) == ["d"]


async def test_each_run_has_its_own_pace(autojump_clock: trio.testing.MockClock) -> None:
    me, other = Listener(), replace(RUN, run_id="other")
    async with fanning(me) as bus:
        bus.publish(delta(1, "a"))
        bus.publish(delta(1, "x", run=other))
        assert texts(me.heard()) == ["a", "x"]
        bus.publish(delta(2, "b"))
        await trio.sleep(PACE / 2)
        bus.publish(delta(2, "y", run=other))
        await trio.sleep(PACE)
        assert texts(me.heard()) == ["b", "y"]


async def test_whatever_a_run_tells_next_does_not_overtake_its_text(autojump_clock: trio.testing.MockClock) -> None:
    following = [
        RunUsage(RUN, 3, 3, 7),
        RunTool(RUN, 3, 3, "start", CALL),
        RunThinking(RUN, 3, 3, "hm"),
        RunStatus(RUN, 3, 3, "starting_model"),
        RunModel(RUN, 3, 3, "p", "m"),
        RunEnded(RUN, 3, 3, FINAL),
    ]
    for event in following:
        me = Listener(tool_events=True)
        async with fanning(me) as bus:
            bus.publish(delta(1, "a"))
            bus.publish(delta(2, "b"))
            bus.publish(event)
            frames = me.heard()
        assert "".join(texts(frames)) == "ab", event
        seqs = [frame["payload"]["seq"] for frame in frames]
        assert seqs == sorted(seqs), event


async def test_text_that_is_sent_before_its_pacer_woke_does_not_end_the_fan_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    me = Listener()
    async with fanning(me) as bus:
        bus.publish(delta(1, "a"))
        bus.publish(delta(2, "b"))
        bus.publish(RunEnded(RUN, 3, 3, FINAL))
        await trio.sleep(1)
        me.heard()
        bus.publish(delta(1, "later", run=replace(RUN, run_id="next")))
        assert texts(me.heard()) == ["later"]


async def test_the_text_of_a_second_message_replaces_that_of_the_first(autojump_clock: trio.testing.MockClock) -> None:
    me = Listener()
    async with fanning(me) as bus:
        bus.publish(delta(1, "looking"))
        bus.publish(delta(2, " it up"))
        bus.publish(delta(3, "found", index=2))
        await trio.sleep(1)
        chats = [frame["payload"] for frame in me.heard() if frame["event"] == "chat"]
    # The three waited in one outbox and became one: a client that reads late shows the second message alone.
    assert len(chats) == 1
    assert (chats[0]["deltaText"], chats[0]["replace"]) == ("found", True)
    assert chats[0]["message"]["content"][0]["text"] == "found"


async def test_the_end_is_the_lifecycle_then_the_chat_terminal() -> None:
    me = Listener()
    async with fanning(me) as bus:
        bus.publish(RunStarted(RUN, 1, 1))
        bus.publish(RunEnded(RUN, 2, 9, FINAL))
        start, end, final = me.heard()
    assert start["payload"]["data"] == {"phase": "start", "startedAt": 1}
    assert (end["event"], end["payload"]["data"]["phase"]) == ("agent", "end")
    assert (final["event"], final["payload"]["state"]) == ("chat", "final")
    assert final["payload"]["message"]["content"] == [{"type": "text", "text": "hello"}]


async def test_a_merged_run_has_a_final_without_a_message_and_no_lifecycle() -> None:
    me = Listener()
    async with fanning(me) as bus:
        bus.publish(RunEnded(RUN, 1, 9, Terminal(state=RunState.MERGED, merged_into="other", ended_at=9)))
        (final,) = me.heard()
    assert (final["event"], final["payload"]["state"]) == ("chat", "final")
    assert "message" not in final["payload"]


async def test_where_the_time_went_is_told_to_who_asks_and_to_nobody_else() -> None:
    me, asker, deaf = Listener(), Listener("b", turn_phases=True), Listener("c", turn_phases=True, reads=False)
    phases = Phases()
    phases.end()
    async with fanning(me, asker, deaf) as bus:
        bus.publish(delta(1, "hel"))
        bus.publish(delta(2, "lo"))
        bus.publish(RunEnded(RUN, 3, 3, FINAL, phases))
        bus.publish(RunEnded(replace(RUN, run_id="of another life"), 1, 1, FINAL))
        told, asked = me.heard(), asker.heard()
    assert deaf.heard() == []
    ends = [frame["payload"]["data"] for frame in told if frame["payload"].get("stream") == "lifecycle"]
    timed = [frame["payload"]["data"] for frame in asked if frame["payload"].get("stream") == "lifecycle"]
    assert timed == [ends[0] | {"phases": timed[0]["phases"]}, ends[1]]
    assert list(timed[0]["phases"]) == ["queue", "plan", "connect", "firstToken", "stream", "tools", "commit", "emit"]
    assert [frame["event"] for frame in asked] == [frame["event"] for frame in told]
    assert texts(asked) == texts(told) == ["hello"]


async def test_only_readers_hear_of_runs() -> None:
    me, deaf = Listener(), Listener("deaf", reads=False, all_sessions=True, tool_events=True)
    async with fanning(me, deaf) as bus:
        bus.publish(RunStarted(RUN, 1, 1))
        bus.publish(delta(2, "a"))
        bus.publish(RunTool(replace(RUN, origin="deaf"), 3, 3, "start", CALL))
        bus.publish(RunEnded(RUN, 4, 4, FINAL))
        bus.publish(CronEvent(payload={"jobId": "j"}))
        bus.publish(ModelsChanged(1))
        assert deaf.heard() == []
        bus.publish(HeartbeatEvent(payload={"ts": 1}))
        assert deaf.names() == ["heartbeat"]
        assert me.heard()


async def test_scoped_connections_hear_only_the_sessions_they_subscribed_to() -> None:
    scoped = Listener("asker", scoped=True, tool_events=True, all_sessions=True)
    elsewhere = Listener("other", scoped=True, keys=["agent:main:other"])
    subscribed = Listener("third", scoped=True, keys=["agent:main:main"])
    async with fanning(scoped, elsewhere, subscribed) as bus:
        bus.publish(RunStarted(RUN, 1, 1))
        bus.publish(delta(2, "a"))
        bus.publish(RunTool(RUN, 3, 3, "start", CALL))
        bus.publish(RunEnded(RUN, 4, 4, FINAL))
        assert scoped.heard() == elsewhere.heard() == []
        assert subscribed.names() == ["agent", "agent", "chat", "session.tool", "agent", "chat"]


async def test_tool_events_go_to_the_sender_with_the_cap_and_to_subscribers_by_another_name() -> None:
    sender = Listener("asker", tool_events=True, all_sessions=True)
    plain_sender = Listener("plain")
    all_sessions, one_session = Listener("a", all_sessions=True), Listener("b", keys=[RUN.session_key])
    capable_stranger = Listener("c", tool_events=True)
    result = ToolResultMessage("c1", "read", (Text("data"),), 5)
    async with fanning(sender, plain_sender, all_sessions, one_session, capable_stranger) as bus:
        bus.publish(RunTool(RUN, 1, 1, "start", CALL))
        bus.publish(RunTool(RUN, 2, 2, "update", CALL, partial="da"))
        bus.publish(RunTool(RUN, 3, 3, "result", CALL, result))
        frames = sender.heard()
        assert [frame["event"] for frame in frames] == ["agent"] * 3
        start, update, ended = (frame["payload"]["data"] for frame in frames)
        assert start == {"phase": "start", "name": "read", "toolCallId": "c1", "args": {"path": "x"}}
        assert update["partialResult"] == {"content": [{"type": "text", "text": "da"}]}
        assert (ended["isError"], ended["result"]) == (False, {"content": [{"type": "text", "text": "data"}]})
        assert all_sessions.names() == one_session.names() == ["session.tool"] * 3
        assert plain_sender.heard() == capable_stranger.heard() == []
        bus.publish(RunTool(replace(RUN, origin="plain"), 4, 4, "start", CALL))
        assert plain_sender.heard() == []


async def test_heartbeats_have_no_tool_events() -> None:
    me = Listener(tool_events=True, all_sessions=True)
    async with fanning(me) as bus:
        bus.publish(RunTool(replace(RUN, source="heartbeat"), 1, 1, "start", CALL))
        assert me.heard() == []


async def test_the_sender_sees_its_own_spelling_of_the_key_and_nobody_else_does() -> None:
    run = replace(RUN, spelled_key="Agent:Main:MAIN")
    sender, other = Listener("asker", tool_events=True), Listener("other", all_sessions=True)
    async with fanning(sender, other) as bus:
        for event in (
            RunStatus(run, 1, 1, "starting_model"),
            RunStarted(run, 2, 2),
            RunDelta(run, 3, 3, 1, "a"),
            RunTool(run, 4, 4, "start", CALL),
            RunEnded(run, 5, 5, FINAL),
        ):
            bus.publish(event)
        mine, others = sender.heard(), other.heard()
    assert {frame["payload"]["sessionKey"] for frame in mine} == {"Agent:Main:MAIN"}
    assert {frame["payload"]["sessionKey"] for frame in others} == {"agent:main:main"}
    assert len(mine) == len(others) == 8


async def test_a_client_without_tool_events_sees_its_own_spelling_in_those_of_the_session() -> None:
    run = replace(RUN, spelled_key="main")
    sender, one, two = Listener("asker", all_sessions=True), Listener("b", all_sessions=True), Listener("c", keys=["k"])
    async with fanning(sender, one, two) as bus:
        bus.publish(RunTool(run, 1, 1, "start", CALL))
        (mine,), (others,) = sender.heard(), one.heard()
        assert (mine["event"], mine["payload"]["sessionKey"]) == ("session.tool", "main")
        assert (others["event"], others["payload"]["sessionKey"]) == ("session.tool", "agent:main:main")
        assert two.heard() == []


async def test_session_events_go_to_who_subscribed() -> None:
    nobody = Listener("n")
    everything, one, another = Listener("a", all_sessions=True), Listener("b", keys=["k"]), Listener("c", keys=["x"])
    message = SessionMessage(
        session_key="k", agent_id="main", message_id="m", seq=3, message=UserMessage("hi", 5), run_id="r"
    )
    async with fanning(nobody, everything, one, another) as bus:
        bus.publish(message)
        session = Session(sid=1, key="k", agent_id="main", session_id="s")
        bus.publish(SessionChanged(session=session, ts=5, phase="end", run_id="r"))
        told, changed = one.heard()
        assert everything.names() == ["session.message", "sessions.changed"]
        assert nobody.heard() == another.heard() == []
    assert told["payload"]["message"]["__openclaw"] == {"id": "m", "seq": 3, "runId": "r"}
    assert (told["payload"]["messageId"], told["payload"]["messageSeq"], told["payload"]["runId"]) == ("m", 3, "r")
    about, row = changed["payload"], changed["payload"]["session"]
    assert (about["sessionKey"], about["ts"], about["phase"], about["runId"]) == ("k", 5, "end", "r")
    assert row["key"] == "k" and "endedAt" not in row and about["endedAt"] is None, "null: cleared"
    assert {name: about[name] for name in row if name != "key"} | {"key": "k"} == row


async def test_a_terminal_is_told_again_to_one_connection_only() -> None:
    bus = Bus(Log())
    fanout = Fanout(bus, row_of)
    me, other, deaf = Listener("asker"), Listener("other"), Listener("deaf", reads=False)
    for listener in (me, other, deaf):
        fanout.join(listener)
    run = replace(RUN, spelled_key="MAIN")
    fanout.repeat("asker", run, FINAL)
    fanout.repeat("deaf", run, FINAL)
    fanout.repeat("gone", run, FINAL)
    (again,) = me.heard()
    assert (again["payload"]["state"], again["payload"]["sessionKey"], again["seq"]) == ("final", "MAIN", 1)
    assert other.heard() == deaf.heard() == []


async def test_who_left_hears_nothing_more() -> None:
    bus = Bus(Log())
    fanout = Fanout(bus, row_of)
    me = Listener()
    fanout.join(me)
    fanout.leave(me)
    fanout.leave(me)
    fanout.broadcast("tick", {"ts": 1})
    assert me.heard() == []
    assert fanout.connections() == []


async def test_an_assistant_message_of_a_transcript_is_shown_with_its_place() -> None:
    me = Listener(all_sessions=True)
    message = AssistantMessage((Text("hi"),), 5, stop_reason="stop")
    async with fanning(me) as bus:
        bus.publish(SessionMessage(session_key="k", agent_id="main", message_id="m", seq=1, message=message))
        (told,) = me.heard()
    assert told["payload"]["message"]["role"] == "assistant"
    assert "runId" not in told["payload"]
