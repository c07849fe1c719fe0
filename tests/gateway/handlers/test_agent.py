"""`agent`, `agent.wait`, `agent.identity.get` over a socket."""

from pathlib import Path

import pytest
import trio
import trio.testing
from tests.kit.host import ECHO, open_test_gateway
from tests.kit.wire import Refused

Clock = trio.testing.MockClock


async def test_agent_answers_twice_under_one_id_and_the_second_after_the_end(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        id = await client.ask("agent", {"message": "SAY:hello", "idempotencyKey": "a"})
        accepted = await client.answer(id)
        assert (accepted["runId"], accepted["status"], accepted["sessionKey"]) == ("a", "accepted", "agent:main:main")
        over = await client.answer(id)
        assert (over["status"], over["summary"], over["stopReason"]) == ("ok", "completed", "stop")
        assert over["result"]["payloads"] == [{"text": "hello", "mediaUrl": None}]
        meta = over["result"]["meta"]
        assert meta["agentMeta"]["model"] == "echo"
        assert meta["agentMeta"]["usage"]["output"] == 1
        assert meta["aborted"] is False
        places = {
            name: client.frames.index(next(f for f in client.frames if wanted(f)))
            for name, wanted in (
                ("ack", lambda f: f.get("payload", {}).get("status") == "accepted"),
                ("start", lambda f: f.get("event") == "agent"),
                ("end", lambda f: f.get("event") == "agent" and f["payload"]["data"].get("phase") == "end"),
                ("final", lambda f: f.get("payload", {}).get("state") == "final"),
                ("answer", lambda f: f.get("payload", {}).get("summary") == "completed"),
            )
        }
        assert list(places) == sorted(places, key=places.__getitem__)


async def test_a_known_key_of_agent_gets_the_one_answer_that_is_left(tmp_path: Path) -> None:
    ask = {"message": "HANG", "idempotencyKey": "a"}
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        first = await client.ask("agent", ask)
        await client.answer(first)
        second = await client.ask("agent", ask)
        assert await client.answer(second) == {"runId": "a", "status": "in_flight"}
        await client.request("chat.abort", {"sessionKey": "main"})
        frames = [await client.until(lambda f: f.get("payload", {}).get("summary") == "aborted") for _ in range(2)]
        assert {frame["id"] for frame in frames} == {first, second}
        assert frames[0]["payload"]["status"] == "timeout"
        over = await client.request("agent", ask)
        assert (over["status"], over["summary"], over["stopReason"]) == ("timeout", "aborted", "rpc")


async def test_a_failed_run_is_a_refusal_the_second_time(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        id = await client.ask("agent", {"message": "FAIL:400", "idempotencyKey": "a"})
        assert (await client.answer(id))["status"] == "accepted"
        with pytest.raises(Refused) as refused:
            await client.answer(id)
        error = refused.value.error
        assert (error["code"], error["details"]["runId"], error["details"]["status"]) == ("UNAVAILABLE", "a", "error")


async def test_a_model_of_ones_own_needs_the_administrator(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        ask = {"message": "SAY:x", "idempotencyKey": "a", "provider": "scripted", "model": "echo"}
        async with host.client(scopes=["operator.write"]) as client:
            with pytest.raises(Refused, match="not authorized"):
                await client.request("agent", ask)
        async with host.client() as client:
            id = await client.ask("agent", ask)
            await client.answer(id)
            assert (await client.answer(id))["status"] == "ok"


async def test_a_run_without_the_model_it_asks_for_says_which_and_what_was_near(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        id = await client.ask("agent", {"message": "x", "idempotencyKey": "a", "model": "scripted/ecko"})
        await client.answer(id)
        with pytest.raises(Refused, match="scripted/echo"):
            await client.answer(id)


async def test_agent_takes_its_deadline_extra_prompt_and_session(tmp_path: Path, autojump_clock: Clock) -> None:
    async with open_test_gateway(tmp_path, virtual=True) as host, host.client() as client:
        began = trio.current_time()
        ask = {
            "message": "HANG",
            "idempotencyKey": "a",
            "timeout": 3,
            "extraSystemPrompt": "Be brief.",
            "sessionKey": "s",
        }
        id = await client.ask("agent", ask)
        assert (await client.answer(id))["sessionKey"] == "agent:main:s"
        with pytest.raises(Refused, match="longer than it may"):
            await client.answer(id)
        assert trio.current_time() - began == pytest.approx(3)
        assert host.model.requests[-1].system.endswith("Be brief.")


async def test_wait_answers_at_the_end_or_when_its_window_is_over(tmp_path: Path, autojump_clock: Clock) -> None:
    config = ECHO | {"messages": {"queue": {"mode": "followup"}}}
    async with open_test_gateway(tmp_path, config=config, virtual=True) as host, host.client() as client:
        await client.say("TOKENS:11 ITL:1000", key="runs")
        await client.say("SAY:x", key="waits")
        began = trio.current_time()
        assert await client.request("agent.wait", {"runId": "runs", "timeoutMs": 4000}) == {
            "runId": "runs",
            "status": "timeout",
        }
        assert trio.current_time() - began == pytest.approx(4)
        pending = await client.request("agent.wait", {"runId": "waits", "timeoutMs": 0})
        assert pending == {"runId": "waits", "status": "pending", "timeoutPhase": "queue", "providerStarted": False}
        over = await client.request("agent.wait", {"runId": "runs"})
        assert trio.current_time() - began == pytest.approx(10, abs=0.1)
        assert (over["status"], over["stopReason"]) == ("ok", "stop")
        assert over["endedAt"] - over["startedAt"] == 10_000
        assert over["terminalReply"]["disposition"] == "visible"
        assert over["terminalReceipt"]["effective"]["model"] == "echo"
        assert (await client.request("agent.wait", {"runId": "runs", "timeoutMs": 0})) == over
        unknown = await client.request("agent.wait", {"runId": "unheard-of", "timeoutMs": 1000})
        assert unknown == {"runId": "unheard-of", "status": "timeout"}


async def test_wait_tells_an_error_and_an_abort(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        await client.say("FAIL:400", key="bad")
        failed = await client.request("agent.wait", {"runId": "bad"})
        assert failed["status"] == "error"
        assert failed["error"]
        await client.say("HANG", key="cut")
        await client.request("chat.abort", {"sessionKey": "main"})
        aborted = await client.request("agent.wait", {"runId": "cut"})
        assert (aborted["status"], aborted["stopReason"]) == ("timeout", "rpc")


async def test_the_assistant_has_a_name_and_a_face(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        identity = await client.request("agent.identity.get")
        assert identity["agentId"] == "main"
        assert identity["avatar"] == identity["name"][:1].upper()
        assert await client.request("agent.identity.get", {"sessionKey": "agent:main:x"}) == identity
        with pytest.raises(Refused, match="nobody"):
            await client.request("agent.identity.get", {"agentId": "nobody"})
