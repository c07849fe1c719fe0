"""`sessions.*` over a socket."""

from pathlib import Path

import pytest
import trio
import trio.testing
from tests.kit.host import open_test_gateway
from tests.kit.wire import Refused

from triops.runtime.sessions import MAIN_KEY

Clock = trio.testing.MockClock


async def test_a_session_is_made_with_its_first_message_and_stays_listed(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        await client.request("sessions.subscribe")
        made = await client.request("sessions.create", {"label": "Work", "message": "SAY:begun", "idempotencyKey": "k"})
        assert (made["ok"], made["runStarted"], made["runId"], made["status"]) == (True, True, "k", "started")
        assert made["entry"]["label"] == "Work"
        assert (await client.ended("k"))["sessionKey"] == made["key"]
        assert next(p["reason"] for p in client.events("sessions.changed") if "reason" in p) == "create"
        (row,) = (await client.request("sessions.list", {"label": "Work"}))["sessions"]
        assert (row["key"], row["sessionId"], row["status"]) == (made["key"], made["sessionId"], "done")
        assert row["lastMessagePreview"] == "begun"
        sent = await client.request("sessions.send", {"key": made["key"], "message": "SAY:more"})
        assert sent["status"] == "started"
        assert (await client.ended(sent["runId"]))["message"]["content"][0]["text"] == "more"


async def test_a_session_without_a_message_has_no_run(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        made = await client.request("sessions.create", {"key": "notes"})
        assert (made["key"], made["runStarted"]) == ("agent:main:notes", False)
        again = await client.request("sessions.create", {"key": "notes"})
        assert again["sessionId"] == made["sessionId"]
        assert host.model.requests == []


async def test_a_session_that_cannot_run_is_made_and_says_why(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        made = await client.request("sessions.create", {"key": "notes", "message": "  "})
        assert made["runStarted"] is False
        assert made["runError"]["code"] == "INVALID_REQUEST"
        with pytest.raises(Refused, match="label already in use"):
            await client.request("sessions.create", {"key": "a", "label": "L"})
            await client.request("sessions.create", {"key": "b", "label": "L"})
        with pytest.raises(Refused, match="scripted/echo"):
            await client.request("sessions.create", {"key": "c", "model": "scripted/ecko"})
        made = await client.request("sessions.create", {"key": "d", "model": "scripted/echo", "task": "SAY:x"})
        assert made["runStarted"] is True


async def test_only_a_session_that_exists_can_be_sent_to(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        with pytest.raises(Refused) as refused:
            await client.request("sessions.send", {"key": "nowhere", "message": "x"})
        assert refused.value.error["details"]["code"] == "NOT_FOUND"
        assert (await client.request("sessions.list"))["sessions"] == []


async def test_the_list_is_paged_and_filtered(tmp_path: Path, autojump_clock: Clock) -> None:
    async with open_test_gateway(tmp_path, virtual=True) as host:
        for number in range(5):
            await host.rpc("sessions.create", {"key": f"s{number}", "label": f"L{number}"})
            await trio.sleep(60)
        page = await host.rpc("sessions.list", {"limit": 2, "offset": 1})
        assert [row["label"] for row in page["sessions"]] == ["L3", "L2"]
        assert (page["count"], page["totalCount"], page["hasMore"], page["nextOffset"]) == (2, 5, True, 3)
        last = await host.rpc("sessions.list", {"limit": 2, "offset": 4})
        assert (last["hasMore"], last["nextOffset"]) == (False, None)
        recent = await host.rpc("sessions.list", {"activeMinutes": 2})
        assert [row["label"] for row in recent["sessions"]] == ["L4", "L3"]
        found = await host.rpc("sessions.list", {"search": "S2"})
        assert [row["label"] for row in found["sessions"]] == ["L2"]
        percent = await host.rpc("sessions.list", {"search": "%"})
        assert percent["sessions"] == []


async def test_a_running_session_says_so(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        await client.say("HANG", key="k")
        await client.event("agent", runId="k")
        (row,) = (await client.request("sessions.list"))["sessions"]
        assert (row["status"], row["hasActiveRun"], row["activeRunIds"]) == ("running", True, ["k"])
        assert (row["isMain"], row["classification"], row["model"]) == (True, "main", "echo")
        await client.request("chat.abort", {"sessionKey": "main"})
        await client.ended("k")
        (row,) = (await client.request("sessions.list"))["sessions"]
        assert (row["status"], row["hasActiveRun"], row["activeRunIds"]) == ("killed", False, [])


async def test_a_reset_stops_runs_keeps_the_transcript_and_makes_the_model_forget(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        await client.request("sessions.subscribe")
        await client.say("SAY:before", key="k1")
        await client.ended("k1")
        await client.say("HANG", key="k2")
        await client.event("agent", runId="k2")
        was = (await client.request("sessions.list"))["sessions"][0]["sessionId"]
        reset = await client.request("sessions.reset", {"key": "main", "reason": "new"})
        history = await client.request("chat.history", {"sessionKey": "main"})
        assert (history["messages"][0]["role"], history["messages"][0]["__openclaw"]["kind"]) == ("system", "reset")
        assert history["messages"][0]["content"] == [{"type": "text", "text": "Reset"}]
        assert (reset["ok"], reset["key"], reset["entry"]["sessionId"]) == (True, "agent:main:main", was)
        assert (await client.ended("k2"))["stopReason"] == "reset"
        assert "new" in [payload.get("reason") for payload in client.events("sessions.changed")]
        await client.say("SAY:after", key="k3")
        await client.ended("k3")
        assert [message.content for message in host.model.requests[-1].messages] == ["SAY:after"]
        history = await client.request("chat.history", {"sessionKey": "main"})
        assert history["totalMessages"] == len(history["messages"]) == 3  # the reset, and k3
        with pytest.raises(Refused) as refused:
            await client.request("sessions.reset", {"key": "main", "expectedSessionId": "another"})
        assert refused.value.error["details"]["reason"] == "session-changed"


async def test_subscriptions_hold_until_they_are_given_back(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client, host.client() as writer:
        assert await client.request("sessions.subscribe") == {"subscribed": True}
        with_list = await client.request("sessions.subscribe", {"limit": 3})
        assert with_list["list"]["limitApplied"] == 3
        assert await client.request("sessions.unsubscribe") == {"subscribed": False}
        assert await client.request("sessions.messages.subscribe", {"key": "ONE"}) == {
            "subscribed": True,
            "key": "agent:main:one",
        }
        for key in ("one", "two"):
            await writer.say("SAY:x", key=key, session=key)
            await writer.ended(key)
            await client.ended(key)
        assert {payload["sessionKey"] for payload in client.events("session.message")} == {"agent:main:one"}
        assert (await client.request("sessions.messages.unsubscribe", {"key": "one"}))["subscribed"] is False
        before = len(client.events("session.message"))
        await writer.say("SAY:x", key="again", session="one")
        await client.ended("again")
        await client.request("health")
        assert len(client.events("session.message")) == before


async def test_who_comes_back_and_subscribes_hears_the_end_that_it_missed_and_nobody_else_does(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as there:
        await there.say("SAY:x", key="k", session="one")
        await there.ended("k")
        async with host.client() as back:
            for key in ("one", "two"):
                await back.request("sessions.messages.subscribe", {"key": key})
            await there.request("sessions.messages.subscribe", {"key": "one"})
            for client in (back, there):
                await client.request("health")
                (end,) = [payload for payload in client.events("chat") if payload["state"] == "final"]
                assert (end["runId"], end["sessionKey"]) == ("k", "agent:main:one" if client is back else "one")
                assert end["message"]["content"][0]["text"] == "x"


async def test_scoped_clients_hear_runs_of_their_sessions_only(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client(caps=("session-scoped-events",)) as client:
        await client.request("sessions.messages.subscribe", {"key": "mine"})
        async with host.client() as writer:
            for key in ("theirs", "mine"):
                await writer.say("SAY:x", key=key, session=key)
                await writer.ended(key)
        await client.ended("mine")
        assert {p["sessionKey"] for p in client.events("chat") + client.events("agent")} == {"agent:main:mine"}


async def test_a_session_that_changes_is_told_with_its_whole_row(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        await client.request("sessions.subscribe")
        await client.say("SAY:x", key="one")
        begun = await client.event("sessions.changed", phase="start", runId="one")
        assert (begun["status"], begun["hasActiveRun"], begun["activeRunIds"]) == ("running", True, ["one"])
        assert (begun["sessionKey"], begun["agentId"], begun["sessionId"]) == (
            MAIN_KEY,
            "main",
            begun["session"]["sessionId"],
        )
        ended = await client.event("sessions.changed", phase="end", runId="one")
        assert (ended["status"], ended["hasActiveRun"], ended["activeRunIds"]) == ("done", False, [])
        assert ended["lastRunId"] == "one" and ended["runtimeMs"] is not None
        assert ended["session"]["lastMessagePreview"] == "x"
        (row,) = (await client.request("sessions.list"))["sessions"]
        assert ended["session"] == row
        await client.say("SAY:y", key="two")
        again = await client.event("sessions.changed", phase="start", runId="two")
        assert (again["endedAt"], again["runtimeMs"]) == (None, None), "what is cleared is said"
        assert again["totalTokens"] == ended["totalTokens"] > 0
        await client.ended("two")
        await client.ask("sessions.reset", {"key": "main"})
        reset = await client.event("sessions.changed", reason="reset")
        assert (reset["status"], reset["totalTokens"]) == (None, 0)


async def test_a_queued_run_begins_with_what_the_run_before_it_left_in_the_row(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_test_gateway(tmp_path, virtual=True) as host, host.client() as client:
        await client.request("sessions.subscribe")
        await client.say("TOKENS:5 ITL:100", key="one", queueMode="followup")
        await client.say("SAY:y", key="two", queueMode="followup")
        await client.event("sessions.changed", phase="end", runId="two")
        told = {(p["runId"], p["phase"]): p for p in client.events("sessions.changed")}
        assert list(told) == [("one", "start"), ("one", "end"), ("two", "start"), ("two", "end")]
        assert told["one", "end"]["totalTokens"] == told["two", "start"]["totalTokens"] > 0
        assert told["two", "start"]["session"]["lastMessagePreview"] == "SAY:y"
