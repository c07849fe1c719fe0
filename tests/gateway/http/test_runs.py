"""Runs over plain HTTP: started, followed, left, found again, stopped."""

import json
from pathlib import Path
from typing import Any

import trio
from tests.kit.host import TestHost, open_test_gateway

from triops.gateway.feeds import MAX_KEPT
from triops.runtime.events import RunDelta


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a stream, with their ids; comments left out."""
    events: list[dict[str, Any]] = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if fields:
            data = json.loads(fields["data"])
            assert fields["event"] == data["event"]
            events.append({"id": int(fields["id"])} | data)
    return events


async def follow(host: TestHost, run_id: str, last: int | None = None) -> list[dict[str, Any]]:
    headers = {} if last is None else {"Last-Event-ID": str(last)}
    answer = await host.http("GET", f"/v1/runs/{run_id}/events", headers=headers)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    return events_of(answer.body)


async def started(host: TestHost, text: str, **more: Any) -> str:
    answer = await host.http("POST", "/v1/runs", {"input": text} | more)
    assert (answer.status, answer.body["status"]) == (202, "started"), answer
    return answer.body["run_id"]


def said(events: list[dict[str, Any]]) -> str:
    return "".join(event["delta"] for event in events if event["event"] == "message.delta")


async def test_a_run_is_followed_to_its_end_and_again_from_any_event(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        run_id = await started(host, "CALL:sessions_list {}")
        events = await follow(host, run_id)
        kinds = [event["event"] for event in events]
        assert kinds[:2] == ["tool.started", "tool.completed"]
        assert (kinds[-1], kinds.count("run.completed")) == ("run.completed", 1)
        assert said(events).rstrip() == events[-1]["output"]
        assert [event["id"] for event in events] == sorted({event["id"] for event in events})
        for place, event in enumerate(events[:-1]):
            assert await follow(host, run_id, event["id"]) == events[place + 1 :]
        shown = await host.http("GET", f"/v1/runs/{run_id}")
        assert (shown.body["status"], shown.body["output"]) == ("completed", events[-1]["output"])


async def test_who_leaves_a_run_leaves_it_running_and_finds_the_rest(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        run_id = await started(host, "TOKENS:40 ITL:5")
        stream = host.dial()
        await stream.send_all(
            f"GET /v1/runs/{run_id}/events HTTP/1.1\r\nHost: 127.0.0.1:{host.port}\r\n"
            "Authorization: Bearer the-token-of-this-test-gateway\r\n\r\n".encode()
        )
        early = b""
        while early.count(b"message.delta") < 6:
            early += await stream.receive_some()
        await trio.aclose_forcefully(stream)
        begun = events_of("".join(part.split("\r\n", 1)[-1] for part in _chunks(early)))
        rest = await follow(host, run_id, begun[-1]["id"])
        assert said(begun + rest).split() == rest[-1]["output"].split()
        assert rest[-1]["event"] == "run.completed"
        assert len(rest[-1]["output"].split()) == 40


def _chunks(data: bytes) -> list[str]:
    """The whole chunks after the head of a chunked response."""
    rest = data.partition(b"\r\n\r\n")[2]
    chunks: list[str] = []
    while b"\r\n" in rest:
        size, _, rest = rest.partition(b"\r\n")
        if len(rest) < int(size, 16):
            break
        chunks.append("x\r\n" + rest[: int(size, 16)].decode())
        rest = rest[int(size, 16) + 2 :]
    return chunks


async def test_a_run_is_stopped_and_its_followers_hear_it(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        run_id = await started(host, "HANG")
        ended: list[Any] = []
        async with trio.open_nursery() as nursery:

            async def listen() -> None:
                ended.extend(await follow(host, run_id))

            nursery.start_soon(listen)
            assert (await host.http("GET", f"/v1/runs/{run_id}")).body["status"] == "running"
            stop = await host.http("POST", f"/v1/runs/{run_id}/stop")
            assert stop.body == {"run_id": run_id, "status": "stopping"}
        assert [event["event"] for event in ended] == ["run.cancelled"]
        assert (await host.http("POST", f"/v1/runs/{run_id}/stop")).body["status"] == "cancelled"


async def test_a_key_that_comes_again_is_the_same_run(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        body = {"input": "SAY:once", "session_key": "agent:main:work"}
        first = await host.http("POST", "/v1/runs", body, headers={"Idempotency-Key": "k"})
        assert first.body == {"run_id": "k", "status": "started", "session_key": "agent:main:work"}
        events = await follow(host, "k")
        again = await host.http("POST", "/v1/runs", body, headers={"Idempotency-Key": "k"})
        assert (again.status, again.body["status"]) == (202, "completed")
        alone = [await host.http("POST", "/v1/runs", {"input": "SAY:x", "idempotency_key": "own"}) for _ in range(2)]
        assert [answer.status for answer in alone] == [202, 202]
        assert len({answer.body["session_key"] for answer in alone}) == 1
        other = await host.http("POST", "/v1/runs", body | {"input": "x"}, headers={"Idempotency-Key": "k"})
        assert (other.status, other.body["error"]["type"]) == (409, "invalid_request_error")
        assert await follow(host, "k") == events


async def test_a_run_that_was_started_elsewhere_is_followed_from_what_it_has_said(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        await host.rpc("chat.send", {"sessionKey": "main", "message": "TOKENS:30 ITL:5", "idempotencyKey": "ws"})
        run = host.runtime.runs.open_run("ws")
        assert run is not None
        spoke = trio.Event()
        with host.runtime.bus.subscribe(lambda event: spoke.set() if isinstance(event, RunDelta) else None):
            await spoke.wait()
        events = await follow(host, "ws")
        assert said(events).split() == events[-1]["output"].split()
        assert [event["event"] for event in await follow(host, "ws")] == ["run.completed"]
        assert (await host.http("GET", "/v1/runs/nobody/events")).status == 404
        assert (await host.http("GET", "/v1/runs/nobody")).status == 404


async def test_feeds_are_kept_for_so_many_runs_and_the_oldest_that_is_over_goes(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        feeds = host.gateway.services.feeds
        first = await started(host, "SAY:x")
        await follow(host, first)
        runs = [await started(host, "HANG", session_key=f"s{n}") for n in range(MAX_KEPT)]
        assert feeds.get(first) is None
        busy = await host.http("POST", "/v1/runs", {"input": "x"})
        assert (busy.status, busy.headers["retry-after"]) == (503, "1")
        await host.http("POST", f"/v1/runs/{runs[0]}/stop")
        await follow(host, runs[0])
        await started(host, "SAY:x")


async def test_what_is_wrong_with_a_run_is_said(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        for body, headers, words in (
            ({"input": "  "}, {}, "Missing user message in `input`"),
            ({"input": "x", "stream": True}, {}, "/v1/runs/{id}/events"),
            ({"input": "x", "session_key": "subagent:x"}, {}, "may not choose"),
            ({"input": "x", "model": "gpt-5"}, {}, "Use `openclaw`"),
            ({"input": "x"}, {"x-openclaw-agent-id": "nobody"}, "nobody"),
            ({}, {}, "input"),
        ):
            answer = await host.http("POST", "/v1/runs", body, headers=headers)
            assert (answer.status, answer.body["error"]["type"]) == (400, "invalid_request_error"), body
            assert words in answer.body["error"]["message"]
        wrong = await host.http("GET", "/v1/runs/x/events", headers={"Last-Event-ID": "x"})
        assert wrong.status == 400
        assert host.gateway.services.feeds.get("x") is None
