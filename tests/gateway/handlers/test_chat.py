"""`chat.*` over a socket: acceptance, replays, aborts, queue modes, history."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from tests.kit.host import ECHO, open_test_gateway
from tests.kit.wire import Client, Refused

from triops.agents.model import TextDelta
from triops.runtime.sessions import canonical_key

Clock = trio.testing.MockClock
FOLLOWUP = ECHO | {"messages": {"queue": {"mode": "followup"}}}


def terminals(client: Client) -> dict[str, list[str]]:
    """The states that ended each run, as this client heard them."""
    ended: dict[str, list[str]] = {}
    for payload in client.events("chat"):
        if payload["state"] in ("final", "aborted", "error"):
            ended.setdefault(payload["runId"], []).append(payload["state"])
    return ended


async def refused(client: Client, message: str, **params: Any) -> dict[str, Any]:
    with pytest.raises(Refused) as caught:
        await client.say(message, **params)
    return caught.value.error


async def test_a_run_is_told_in_order(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client(caps=("tool-events",)) as client:
        await client.request("sessions.subscribe")
        await client.say('CALL:sessions_list {"limit": 1}', key="k")
        await client.terminal("k")
        told = [
            (f["event"], p.get("stream") or p.get("state"), p.get("data", {}).get("phase"))
            for f in client.frames
            if f.get("event") in ("agent", "chat") and (p := f["payload"])["runId"] == "k"
        ]
        assert told[0] == ("agent", "lifecycle", "start")
        tool = [item for item in told if item[1] == "tool"]
        assert tool == [("agent", "tool", "start"), ("agent", "tool", "result")]
        assert told.index(("agent", "tool", "result")) < told.index(("chat", "delta", None))
        assert told[-2:] == [("agent", "lifecycle", "end"), ("chat", "final", None)]
        seqs = [p["seq"] for p in client.events("agent", "k")]
        assert seqs == sorted(set(seqs))
        roles = [p["message"]["role"] for p in client.events("session.message")]
        assert roles[0] == "user"


async def test_who_has_the_cap_learns_where_the_time_went(tmp_path: Path, autojump_clock: Clock) -> None:
    async with (
        open_test_gateway(tmp_path, virtual=True) as host,
        host.client(caps=("turn-phases",)) as client,
        host.client() as other,
    ):
        await client.say("TOKENS:3 ITL:40", key="k")
        await client.terminal("k")
        await other.terminal("k")
        (mine,) = [p["data"] for p in client.events("agent", "k") if p["data"].get("phase") == "end"]
        (theirs,) = [p["data"] for p in other.events("agent", "k") if p["data"].get("phase") == "end"]
        phases = mine.pop("phases")
        assert mine == theirs
        assert {name: ms for name, ms in phases.items() if ms} == {"stream": 80.0}
        assert len(phases) == 8


async def test_a_model_error_is_one_error_terminal_with_its_kind(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        for status, kind in ((401, "unknown"), (400, "unknown")):
            await client.say(f"FAIL:{status}", key=f"k{status}")
            terminal = await client.terminal(f"k{status}")
            assert (terminal["state"], terminal["errorKind"]) == ("error", kind)
            assert terminal["errorDetail"]["httpStatus"] == status
            assert terminal["errorMessage"]
            (end,) = [p for p in client.events("agent", f"k{status}") if p["data"].get("phase") in ("end", "error")]
            assert (end["data"]["phase"], end["data"]["executionSettled"]) == ("error", True)
        await client.say("SAY:well", key="next")
        assert (await client.terminal("next"))["state"] == "final"
        assert set(map(len, terminals(client).values())) == {1}


async def test_a_known_key_gets_the_same_run_again(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client, host.client() as other:
        assert (await client.say("HANG", key="k"))["status"] == "started"
        assert await client.say("HANG", key="k") == {"runId": "k", "status": "in_flight"}
        await client.request("chat.abort", {"sessionKey": "main", "runId": "k"})
        await client.terminal("k")
        again = await client.say("HANG", key="k")
        assert (again["status"], again["summary"], again["stopReason"]) == ("timeout", "aborted", "rpc")
        assert again["endedAt"] > 0
        assert (await client.terminal("k"))["state"] == "aborted"  # told once more, to who asked
        await client.say("SAY:x", key="ok")
        await client.terminal("ok")
        assert await client.say("SAY:x", key="ok") == {"runId": "ok", "status": "ok"}
        assert (await client.terminal("ok"))["message"]["content"][0]["text"] == "x"
        await client.say("FAIL:400", key="bad")
        await client.terminal("bad")
        error = await refused(client, "FAIL:400", key="bad")
        assert (error["code"], error["details"]["runId"]) == ("UNAVAILABLE", "bad")
        assert (await client.terminal("bad"))["state"] == "error"
        assert (await host.rpc("chat.send", {"sessionKey": "main", "message": "SAY:x", "idempotencyKey": "ok"})) == {
            "runId": "ok",
            "status": "ok",
        }
        await other.terminal("bad")
        assert set(map(len, terminals(other).values())) == {1}
        assert (await client.request("chat.history", {"sessionKey": "main"}))["totalMessages"] == 5


async def test_a_key_for_other_words_or_another_session_is_a_conflict(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        await client.say("SAY:x", key="k")
        for error in (
            await refused(client, "SAY:y", key="k"),
            await refused(client, "SAY:x", key="k", session="other"),
        ):
            assert (error["code"], error["details"]["reason"]) == ("INVALID_REQUEST", "chat-request-conflict")
            assert not error.get("retryable")


async def test_a_replay_survives_a_restart(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        await client.say("SAY:x", key="k")
        await client.terminal("k")
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        assert await client.say("SAY:x", key="k") == {"runId": "k", "status": "ok"}
        assert (await client.terminal("k"))["state"] == "final"
        assert host.model.requests == []


async def test_an_abort_ends_what_runs_and_what_waits(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path, config=FOLLOWUP) as host, host.client() as client:
        await client.say("TOKENS:5000 ITL:5", key="running")
        for key in ("one", "two", "three"):
            await client.say("SAY:x", key=key)
        await client.event("chat", runId="running", state="delta")
        await client.event("chat", runId="running", state="delta")
        stopped = await client.request("chat.abort", {"sessionKey": "main", "runId": "two"})
        assert stopped == {"ok": True, "aborted": True, "runIds": ["two"]}
        assert (await client.ended("two"))["stopReason"] == "rpc"
        stopped = await client.request("chat.abort", {"sessionKey": "MAIN"})
        assert stopped["runIds"] == ["one", "three", "running"]
        partial = await client.ended("running")
        assert partial["state"] == "aborted"
        assert partial["message"]["content"][0]["text"].startswith("tok0 quick")
        assert await client.request("chat.abort", {"sessionKey": "main"}) == {
            "ok": True,
            "aborted": False,
            "runIds": [],
        }
        with pytest.raises(Refused, match="does not match"):
            await client.say("HANG", key="elsewhere", session="other")
            await client.request("chat.abort", {"sessionKey": "main", "runId": "elsewhere"})
        assert await client.request("chat.abort", {"sessionKey": "other", "runId": "unheard-of"}) == {
            "ok": True,
            "aborted": False,
            "runIds": [],
        }
        await client.request("chat.abort", {"sessionKey": "other"})
        for key in ("elsewhere", "one", "three"):
            await client.ended(key)
        ended = terminals(client)
        assert ended.keys() == {"running", "one", "two", "three", "elsewhere"}
        assert set(map(len, ended.values())) == {1}


async def test_stop_as_a_message_is_an_abort(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        await client.say("HANG", key="k")
        assert (await client.say(" /stop ", key="s"))["runIds"] == ["k"]
        assert (await client.terminal("k"))["state"] == "aborted"
        await client.say("/stop", key="words", suppressCommandInterpretation=True)
        assert (await client.terminal("words"))["state"] == "final"


async def test_a_run_past_its_own_deadline_is_an_error_of_kind_timeout(tmp_path: Path, autojump_clock: Clock) -> None:
    async with open_test_gateway(tmp_path, virtual=True) as host, host.client() as client:
        began = trio.current_time()
        await client.say("HANG", key="k", timeoutMs=2000)
        terminal = await client.terminal("k")
        assert (terminal["state"], terminal["errorKind"]) == ("error", "timeout")
        assert trio.current_time() - began == pytest.approx(2)


async def test_messages_of_one_session_are_answered_one_after_the_other_each_with_its_final(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path, config=FOLLOWUP) as host, host.client() as client:
        for number in range(5):
            await client.say(f"SAY:{number}", key=f"k{number}")
        for number in range(5):
            assert (await client.ended(f"k{number}"))["message"]["content"][0]["text"] == str(number)
        history = await client.request("chat.history", {"sessionKey": "main"})
        assert [message["role"] for message in history["messages"]] == ["user", "assistant"] * 5


async def test_a_steered_message_is_part_of_the_run_and_still_has_its_one_final(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with open_test_gateway(tmp_path, virtual=True) as host, host.client() as client:
        await client.say('TOKENS:40 ITL:20\nCALL:sessions_list {"limit": 1}', key="runs")
        await client.event("chat", runId="runs", state="delta")
        await client.say("SAY:steered", key="joins", queueMode="steer")
        await client.terminal("runs")
        joined = await client.terminal("joins")
        assert joined["state"] == "final"
        assert "message" not in joined
        waited = await client.request("agent.wait", {"runId": "joins"})
        assert (waited["status"], waited["mergedInto"]) == ("ok", "runs")
        assert set(map(len, terminals(client).values())) == {1}


async def test_an_interrupting_message_ends_the_run_before_it(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        await client.say("HANG", key="first")
        await client.event("agent", runId="first")
        ack = await client.say("SAY:now", key="second", queueMode="interrupt")
        assert ack["interruptedActiveRun"] is True
        assert (await client.terminal("first"))["state"] == "aborted"
        assert (await client.terminal("second"))["message"]["content"][0]["text"] == "now"


async def test_history_shows_what_waits_and_what_runs(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path, config=FOLLOWUP) as host, host.client() as client:
        await client.say("TOKENS:5000 ITL:5", key="running")
        await client.say("SAY:later", key="waiting")
        await client.event("chat", runId="running", state="delta")
        await client.event("chat", runId="running", state="delta")
        history = await client.request("chat.history", {"sessionKey": "main"})
        assert [message["content"] for message in history["messages"]] == ["TOKENS:5000 ITL:5"]
        assert history["messages"][0]["__openclaw"]["runId"] == "running"
        assert history["inFlightRun"]["runId"] == "running"
        assert history["inFlightRun"]["text"].startswith("tok0 quick")
        (waiting,) = history["pendingInputs"]["items"]
        assert (waiting["runId"], waiting["text"], waiting["status"]) == ("waiting", "SAY:later", "queued")
        assert history["sessionInfo"]["hasActiveRun"] is True
        assert history["sessionInfo"]["activeRunIds"] == ["running"]
        await client.request("chat.abort", {"sessionKey": "main", "runId": "running"})
        await client.terminal("waiting")
        history = await client.request("chat.history", {"sessionKey": "main"})
        assert "inFlightRun" not in history
        assert history["pendingInputs"] == {"items": [], "total": 0}


async def test_history_is_paged_and_cut(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        for number in range(5):
            await client.say(f"SAY:{number}{'x' * 2000}", key=f"k{number}")
            await client.terminal(f"k{number}")
        page = await client.request("chat.history", {"sessionKey": "main", "limit": 4})
        assert [message["__openclaw"]["seq"] for message in page["messages"]] == [7, 8, 9, 10]
        assert (page["hasMore"], page["nextOffset"], page["totalMessages"]) == (True, 4, 10)
        page = await client.request("chat.history", {"sessionKey": "main", "limit": 100, "offset": 8})
        assert [message["__openclaw"]["seq"] for message in page["messages"]] == [1, 2]
        assert page["hasMore"] is False
        page = await client.request("chat.history", {"sessionKey": "main", "maxChars": 3})
        assert {len(_text(message)) for message in page["messages"]} == {3}
        page = await client.request("chat.history", {"sessionKey": "main", "maxBytes": 5000})
        assert 1 <= len(page["messages"]) < 10
        assert page["messages"][-1]["__openclaw"]["seq"] == 10
        assert page["nextOffset"] == len(page["messages"])
        nothing = await client.request("chat.history", {"sessionKey": "nowhere"})
        assert (nothing["messages"], nothing["hasMore"]) == ([], False)
        assert "sessionId" not in nothing


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else content[0]["text"]


@pytest.mark.parametrize("spelled", ["main", "Main", "agent:Main:Project-X", "project-x"])
async def test_the_sender_alone_sees_its_own_spelling_of_the_session(tmp_path: Path, spelled: str) -> None:
    canonical = canonical_key(spelled)
    params = {"sessionKey": spelled, "message": "SAY:x"}
    async with (
        open_test_gateway(tmp_path) as host,
        host.client(caps=("tool-events",)) as client,
        host.client() as other,
    ):
        await other.request("sessions.subscribe")
        await client.say('CALL:sessions_list {"limit": 1}', key="k", session=spelled)
        await client.terminal("k")
        await other.terminal("k")
        mine, others = client.events(run_id="k"), [*other.events("chat", "k"), *other.events("session.tool", "k")]
        assert {payload["sessionKey"] for payload in mine} == {spelled}
        assert {payload["sessionKey"] for payload in others} == {canonical}
        await client.say('CALL:sessions_list {"limit": 1}', key="k", session=spelled)
        assert (await client.terminal("k"))["sessionKey"] == spelled
        final = await host.rpc("chat.send", {**params, "idempotencyKey": "http"}, final=True)
        assert final["sessionKey"] == spelled
        assert (await other.ended("http"))["sessionKey"] == canonical


async def test_an_agent_call_without_a_key_is_told_the_canonical_one(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        await client.request("agent", {"message": "SAY:x", "idempotencyKey": "k", "agentId": "Main"})
        assert (await client.ended("k"))["sessionKey"] == "agent:main:main"


async def test_attachments_are_images_within_the_limits(tmp_path: Path) -> None:
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    image = {"mimeType": "image/png", "fileName": "a.png", "content": pixel}
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        await client.say("SAY:seen", key="k", attachments=[image])
        await client.terminal("k")
        history = await client.request("chat.history", {"sessionKey": "main", "limit": 2})
        assert [block["type"] for block in history["messages"][0]["content"]] == ["text", "image"]
        await client.say("SAY:url", key="k2", attachments=[image | {"content": f"data:image/png;base64,{pixel}"}])
        for wrong, words in (
            ({"content": "not base64!"}, "base64"),
            ({"mimeType": "text/plain"}, "only images"),
            ({"content": 7}, "only images"),
            ({"content": "A" * (9 * 1024 * 1024)}, "larger than"),
        ):
            error = await refused(client, "x", key="bad", attachments=[image | wrong])
            assert words in error["message"]
        error = await refused(client, "x" * (1024 * 1024 + 1), key="long")
        assert str(1024 * 1024) in error["message"]
        for empty in ("", "  \n"):
            assert "required" in (await refused(client, empty, key="empty"))["message"]
        assert "256" in (await refused(client, "x", key="k" * 257))["message"]
        assert (await client.say("SAY:" + "x" * (1024 * 1024 - 4), key="longest"))["status"] == "started"
        await client.terminal("longest")


async def test_nothing_that_was_accepted_is_lost_whoever_comes_and_goes(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path, config=FOLLOWUP) as host, host.client() as watcher:
        sent: set[str] = set()

        async def come_and_go(number: int) -> None:
            async with host.client() as client:
                for turn in range(4):
                    key = f"{number}-{turn}"
                    await client.say("TOKENS:5 ITL:1", key=key, session=f"s{number % 3}")
                    sent.add(key)
                if number % 2:
                    await client.terminal(f"{number}-3")

        async with trio.open_nursery() as nursery:
            for number in range(9):
                nursery.start_soon(come_and_go, number)
        for _ in range(len(sent)):
            await watcher.until(lambda frame: frame.get("payload", {}).get("state") in ("final", "aborted", "error"))
        ended = terminals(watcher)
        assert ended.keys() == sent
        assert Counter(state for states in ended.values() for state in states) == {"final": 36}
        assert host.warnings() == []


async def test_a_transcript_keeps_the_white_space_that_a_terminal_is_shown_without(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path, script=[[TextDelta("  hi "), TextDelta("you \n")]]) as host:
        async with host.client() as client:
            await client.request("sessions.subscribe")
            await client.say("hello", key="k")
            shown = (await client.terminal("k"))["message"]["content"][0]["text"]
            waited = await client.request("agent.wait", {"runId": "k"})
            assert shown == waited["terminalReply"]["text"] == "  hi you"
            history = await client.request("chat.history", {"sessionKey": "main"})
            (told,) = [m for m in client.events("session.message") if m["message"]["role"] == "assistant"]
            assert _text(history["messages"][-1]) == _text(told["message"]) == "  hi you \n"
            assert history["sessionInfo"]["lastMessagePreview"] == "hi you"
