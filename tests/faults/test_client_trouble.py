"""Clients in trouble: gone before the ack, after it, in the middle; asking again; reading nothing. Their runs go on and
end once, and whoever asks again learns how, alone."""

import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from tests.kit.host import TOKEN, TestHost, open_test_gateway
from tests.kit.wire import Client, Refused, connect_params

from triops.agents.model import TextDelta, ThinkingDelta
from triops.agents.providers.scripted import Step
from triops.gateway import outbox
from triops.runtime.runs.state import RunState

Clock = trio.testing.MockClock
OVER = ("final", "aborted", "error")


def ends(client: Client, run_id: str) -> list[dict[str, Any]]:
    """The terminals of a run that a client was told."""
    return [payload for payload in client.events("chat", run_id) if payload["state"] in OVER]


async def everything(client: Client) -> None:
    """Read all that was sent so far: the answer to a question is behind it."""
    await client.request("health")


@pytest.mark.parametrize("steps", range(0, 60, 3))
async def test_a_client_that_goes_at_any_step_finds_its_one_run_when_it_comes_back(
    tmp_path: Path, autojump_clock: Clock, steps: int
) -> None:
    """Before the ack, after it, in the middle of the text."""
    async with open_test_gateway(tmp_path, virtual=True) as host, host.client() as watcher:
        async with host.client() as client:
            await client.ask("chat.send", {"sessionKey": "main", "message": "TOKENS:4", "idempotencyKey": "k"})
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
        async with host.client() as back:
            ack = await again(back, message="TOKENS:4")
            assert ack["status"] in ("started", "in_flight", "ok")
            end = await back.ended("k")
            assert end["state"] == "final"
            assert (await back.request("agent.wait", {"runId": "k"}))["status"] == "ok"
            assert len(ends(back, "k")) == 1
        await everything(watcher)
        assert ends(watcher, "k") == [await_same(end, watcher)]
        history = await watcher.request("chat.history", {"sessionKey": "main"})
        assert [message["role"] for message in history["messages"]] == ["user", "assistant"], "it ran once"


async def again(client: Client, message: str, key: str = "k") -> dict[str, Any]:
    return await client.say(message, key=key)


def await_same(end: dict[str, Any], watcher: Client) -> dict[str, Any]:
    """What the watcher heard, which says the same; a terminal that is told again counts its events anew."""
    (heard,) = ends(watcher, end["runId"])
    assert heard["message"] == end["message"]
    return heard


@pytest.mark.parametrize(
    ("words", "state", "status"),
    [("SAY:x", "final", "ok"), ("FAIL:401", "error", "error"), ("HANG", "aborted", "timeout")],
)
async def test_who_asks_again_gets_the_terminal_again_and_nobody_else_does(
    tmp_path: Path, autojump_clock: Clock, words: str, state: str, status: str
) -> None:
    async with open_test_gateway(tmp_path, virtual=True) as host, host.client() as watcher:
        await watcher.request("sessions.subscribe")
        async with host.client() as client:
            await client.say(words, key="k")
        if state == "aborted":
            await watcher.request("chat.abort", {"sessionKey": "main"})
        await watcher.terminal("k")
        async with host.client() as back:
            for asked in (1, 2):
                if state == "error":
                    with pytest.raises(Refused, match="runId"):
                        await again(back, words)
                else:
                    assert (await again(back, words))["status"] == status
                await everything(back)
                assert [end["state"] for end in ends(back, "k")] == [state] * asked
            assert (await back.request("agent.wait", {"runId": "k", "timeoutMs": 0}))["status"] == status
        await everything(watcher)
        assert len(ends(watcher, "k")) == 1


async def test_who_comes_back_in_the_middle_sees_what_runs_and_its_end(tmp_path: Path, autojump_clock: Clock) -> None:
    async with open_test_gateway(tmp_path, virtual=True) as host:
        async with host.client() as client:
            await client.say("TOKENS:10 ITL:1000", key="k")
            await client.event("chat", runId="k", state="delta")
        await trio.sleep(3.5)
        async with host.client(caps=("session-scoped-events",)) as back:
            await back.request("sessions.messages.subscribe", {"key": "main"})
            running = (await back.request("chat.history", {"sessionKey": "main"}))["inFlightRun"]
            assert running["runId"] == "k" and len(running["text"].split()) == 4
            waiting = await back.ask("agent.wait", {"runId": "k"})
            assert (await again(back, "TOKENS:10 ITL:1000"))["status"] == "in_flight"
            assert (await back.terminal("k"))["state"] == "final"
            assert (await back.answer(waiting))["status"] == "ok"
            await everything(back)
            assert len(ends(back, "k")) == 1


def long_thought(events: int) -> list[Step]:
    """A reply whose events do not merge."""
    return [[*[ThinkingDelta("hm "), TextDelta("so ")] * events, TextDelta("Done.")]]


async def test_ten_of_a_hundred_watchers_that_read_nothing_hold_nobody_up(
    tmp_path: Path, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "MAX_FRAMES", 32)  # the real limit would be a thousand frames for each of the hundred
    async with open_test_gateway(tmp_path, virtual=True, script=2 * long_thought(60)) as host:
        async with trio.open_nursery() as nursery:
            reading = [await watcher(host, nursery) for _ in range(90)]
            stalled = [await watcher(host, nursery, lockstep=True) for _ in range(10)]
            await reading[0].say("think", key="before")
            await reading[0].terminal("before")
            await trio.sleep(2)  # for so long the first write to each of the ten is under way
            began = trio.current_time()
            await reading[0].say("think", key="k")
            for client in reading:
                assert (await client.terminal("k"))["state"] == "final"
            assert trio.current_time() == began, "nobody waited for those who do not read"
            told = [p["seq"] for p in reading[1].events("agent", "k")]
            assert len(told) > 60 and told == sorted(told)
            for client in reading[1:]:
                assert [p["seq"] for p in client.events("agent", "k")] == told, "everybody heard everything"
            for client in stalled:
                closed = await client.closed()
                assert (closed.code, closed.reason) == (1008, "slow consumer")
                assert len(ends(client, "k")) == 0
            await trio.sleep(2)  # they may answer the close for a second
            assert len(host.gateway.services.fanout.connections()) == 90
            async with host.client() as back:  # as one of the ten does
                assert (await back.request("agent.wait", {"runId": "k"}))["status"] == "ok"
            nursery.cancel_scope.cancel()


async def watcher(host: TestHost, nursery: trio.Nursery, *, lockstep: bool = False) -> Client:
    """A client past its hello, connected until the nursery ends."""

    async def stay(*, task_status: trio.TaskStatus[Client]) -> None:
        async with host.client(lockstep=lockstep) as client:
            task_status.started(client)
            await trio.sleep_forever()

    return await nursery.start(stay)


async def test_watchers_that_never_read_again_are_given_up_and_the_run_is_not(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with open_test_gateway(tmp_path, virtual=True) as host, trio.open_nursery() as nursery:
        reader = await watcher(host, nursery)
        for _ in range(10):
            await watcher(host, nursery, lockstep=True)
        await reader.say("TOKENS:40 ITL:1000", key="k")
        assert (await reader.terminal("k"))["state"] == "final"
        assert len(reader.events("chat", "k")) == 41, "each word in its own time"
        assert len(host.gateway.services.fanout.connections()) == 1
        assert host.runtime.runs.statistics().runs.running == 0
        nursery.cancel_scope.cancel()


@pytest.mark.soak
async def test_the_others_are_as_quick_beside_ten_that_read_nothing(tmp_path: Path) -> None:
    """Over real sockets, at the real limits: the p99 of the time from a frame's being made to a reader's having it is
    below twice what it is without the ten."""

    async def p99(stalled: int) -> float:
        late: list[float] = []
        script: list[Step] = [[TextDelta("Noted.")], [*[0.06, ThinkingDelta("hm " * 1000)] * 200, TextDelta("Done.")]]
        async with open_test_gateway(tmp_path / str(stalled), script=script) as host:
            clients = [await dial(host) for _ in range(90)]
            slow = [await dial(host, room=4096) for _ in range(stalled)]

            async def read(client: Client) -> None:
                while not ends(client, "k"):
                    frame = await client.read()
                    if frame.get("event") == "agent" and frame["payload"]["runId"] == "k":  # it reads since that began
                        late.append(time.time() - frame["payload"]["ts"] / 1000)

            await clients[0].say("x" * 900_000, key="large", session="large")
            await clients[0].terminal("large")
            for client in slow:  # more than the kernel takes, less than the outbox
                for _ in range(8):
                    await client.ask("chat.history", {"sessionKey": "large"})

            await clients[0].ask("chat.send", {"sessionKey": "main", "message": "think", "idempotencyKey": "k"})
            with trio.fail_after(300):
                async with trio.open_nursery() as nursery:
                    for client in clients:
                        nursery.start_soon(read, client)
            assert len(host.gateway.services.fanout.connections()) == 90, (
                "a write may take ten seconds, the run took more"
            )
            assert (await host.runtime.runs.wait("k")).state is RunState.FINAL
            for client in (*clients, *slow):
                await client.stream.aclose()
        return statistics.quantiles(late, n=100)[98]

    baseline = await p99(0)
    beside = await p99(10)
    assert beside < 2 * baseline, (baseline, beside)
    print(f"p99 {baseline * 1000:.1f} ms alone, {beside * 1000:.1f} ms beside ten that stall")


async def dial(host: TestHost, *, room: int | None = None) -> Client:
    """A client over a real socket, which holds `room` bytes that nobody reads."""
    sock = trio.socket.socket()
    if room is not None:
        sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, room)
    await sock.connect(("127.0.0.1", host.port))
    client = Client(trio.SocketStream(sock), limit=300)
    await client.upgrade({"Host": f"127.0.0.1:{host.port}"})
    await client.connect(connect_params(token=TOKEN))
    return client
