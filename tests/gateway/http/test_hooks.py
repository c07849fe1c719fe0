"""What programs start with the hooks' secret, and that it opens nothing else."""

from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from tests.kit.host import ECHO, TOKEN, TestHost, open_test_gateway

from triops.gateway.http.table import MAX_HOOK

HOOK = "the-hooks-own-secret-of-this-test"


def config(**more: Any) -> dict[str, Any]:
    return ECHO | {"hooks": {"enabled": True, "token": HOOK} | more}


async def hook(host: TestHost, name: str, body: object, **more: Any) -> Any:
    options: dict[str, Any] = {"token": HOOK} | more
    return await host.http("POST", f"/hooks/{name}", body, **options)


async def texts(host: TestHost, key: str = "main") -> list[str]:
    page = await host.rpc("chat.history", {"sessionKey": key})
    return [m["content"] if isinstance(m["content"], str) else m["content"][0]["text"] for m in page["messages"]]


async def until_quiet(host: TestHost) -> None:
    with trio.fail_after(10):
        while runs := host.runtime.runs.open_runs():
            await runs[0].ended.wait()


async def test_a_wake_is_a_system_event_that_is_answered_or_waits(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path, config=config()) as host:
        answer = await hook(host, "wake", {"text": "SAY:up"})
        assert (answer.status, answer.body) == (200, {"ok": True, "mode": "now", "eventOutcome": "queued"})
        await until_quiet(host)
        assert await texts(host) == ["SAY:up", "up"]
        header = {"x-openclaw-token": HOOK}
        later = await hook(host, "wake", {"text": "x", "mode": "next-heartbeat"}, token=None, headers=header)
        assert later.body["mode"] == "next-heartbeat"
        assert await texts(host) == ["SAY:up", "up", "x"]


async def test_an_agent_works_on_a_message_in_a_session_of_its_own_and_the_main_one_hears_the_end(
    tmp_path: Path,
) -> None:
    async with open_test_gateway(tmp_path, config=config()) as host:
        body = {"message": "SAY:done", "name": "Mail", "wakeMode": "next-heartbeat", "waitForCompletion": True}
        placed = trio.Event()
        heard = host.runtime.bus.subscribe(lambda event: placed.set() if "Mail: done" in str(event) else None)
        with heard:
            answer = await hook(host, "agent", body)
            assert answer.body["completion"] == {"status": "ok", "replyDisposition": "visible", "delivered": True}
            with trio.fail_after(10):
                await placed.wait()
        asked = host.model.requests[0]
        assert asked.session_id != ""
        assert '<<<EXTERNAL_UNTRUSTED_CONTENT id="' in str(asked.messages[-1])
        assert await texts(host) == ["Mail: done"]
        (own,) = [row["key"] for row in (await host.rpc("sessions.list"))["sessions"] if ":hook:" in row["key"]]
        assert (await texts(host, own))[-1] == "done"


async def test_who_does_not_wait_gets_the_run_and_a_key_that_comes_again_is_the_same_run(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path, config=config()) as host:
        body = {"message": "SAY:once", "deliver": False, "idempotencyKey": "k"}
        first = await hook(host, "agent", body)
        assert first.body == {"ok": True, "runId": "hook:k"}
        await until_quiet(host)
        assert (await hook(host, "agent", body)).body == first.body
        again = await hook(host, "agent", {**body, "idempotencyKey": None}, headers={"Idempotency-Key": "k"})
        assert again.body == first.body
        assert len(host.model.requests) == 1
        assert await texts(host) == []
        assert (await hook(host, "agent", body | {"message": "other"})).status == 409


@pytest.mark.parametrize("hooks", [None, {"enabled": False, "token": HOOK}, {"enabled": True}])
async def test_without_a_secret_there_are_no_hooks(tmp_path: Path, hooks: Any) -> None:
    async with open_test_gateway(tmp_path, config=ECHO if hooks is None else ECHO | {"hooks": hooks}) as host:
        for name in ("wake", "agent", "x"):
            assert (await hook(host, name, {"text": "x", "message": "x"})).status == 401
            assert (await hook(host, name, {"text": "x", "message": "x"}, token=TOKEN)).status == 404


async def test_neither_secret_opens_the_other_door(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path, config=config()) as host:
        for token in (None, TOKEN, "wrong", ""):
            answer = await hook(host, "wake", {"text": "x"}, token=token)
            assert (answer.status, answer.body) == (401, "Unauthorized"), token
        for method, path in (("GET", "/status"), ("POST", "/rpc/status"), ("GET", "/v1/models"), ("GET", "/hooks")):
            assert (await host.http(method, path, token=HOOK)).status == 401
        query = await host.http("POST", f"/hooks/wake?token={HOOK}", {"text": "x"}, token=None)
        assert (query.status, "query parameters are not allowed" in query.body) == (400, True)
        foreign = await hook(host, "wake", {"text": "x"}, headers={"Origin": "https://evil.example"})
        assert foreign.status == 403
        assert host.model.requests == []
        assert HOOK not in str(host.log)


async def test_who_guesses_the_hooks_secret_is_locked_out_and_knowing_it_excuses_no_other_guess(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_test_gateway(tmp_path, config=config(), virtual=True) as host:
        far: Any = {"address": "10.0.0.5"}
        for n in range(5):
            assert (await host.http("GET", "/status", token=f"guess-{n}", **far)).status == 401
            assert (await hook(host, "wake", {"text": "x", "mode": "next-heartbeat"}, **far)).status == 200
        statuses = [(await hook(host, "wake", {}, token=f"guess-{n}", **far)).status for n in range(6)]
        assert statuses == [401] * 5 + [429]


async def test_what_is_wrong_with_a_hook_is_said(tmp_path: Path) -> None:
    more = {"allowedAgentIds": ["other"], "allowRequestSessionKey": True, "allowedSessionKeyPrefixes": ["hook:"]}
    async with open_test_gateway(tmp_path, config=config(**more)) as host:
        for name, body, status, words in (
            ("wake", {"mode": "now"}, 400, "text required"),
            ("wake", b"{bad", 400, "malformed JSON"),
            ("wake", {"text": "x", "mode": "later"}, 400, "/mode"),
            ("wake", {"text": "x"}, 400, "hooks.allowedAgentIds"),
            ("agent", {}, 400, "message required"),
            ("agent", {"message": "x", "sessionKey": "main"}, 400, "hooks.allowedSessionKeyPrefixes"),
            ("agent", {"message": "x", "agentId": "nobody"}, 400, "nobody"),
            ("agent", {"message": "x", "channel": "last"}, 400, "no channels"),
            ("agent", b" " * (MAX_HOOK + 1), 413, "at most"),
        ):
            answer = await hook(host, name, body)
            assert (answer.status, answer.body["ok"]) == (status, False), (name, body, answer)
            assert words in answer.body["error"], answer
        assert (await hook(host, "none", {"a": 1})).body == "Not Found"
        wrong_method = await host.http("GET", "/hooks/wake", token=HOOK)
        assert (wrong_method.status, wrong_method.headers["allow"]) == (405, "POST")
    async with open_test_gateway(tmp_path, config=config()) as host:
        named = await hook(host, "agent", {"message": "x", "sessionKey": "hook:x"})
        assert "hooks.allowRequestSessionKey" in named.body["error"]


async def test_hooks_stand_where_the_configuration_wants_them(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path, config=config(path="/in/coming/")) as host:
        moved = await host.http("POST", "/in/coming/wake", {"text": "x", "mode": "next-heartbeat"}, token=HOOK)
        assert moved.status == 200
        assert (await hook(host, "wake", {"text": "x"}, token=TOKEN)).status == 404
