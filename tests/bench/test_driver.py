import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, serve_websocket

from triops.bench import driver as driving
from triops.bench.driver import Driver, Place, Turn, open_driver, place_of
from triops.bench.errors import BenchFailed

Answer = Callable[[WebSocketConnection, dict[str, Any]], Awaitable[None]]


async def send(socket: WebSocketConnection, **frame: object) -> None:
    await socket.send_message(json.dumps(frame))


async def chat_event(socket: WebSocketConnection, asked: dict[str, Any], **payload: object) -> None:
    run = asked["params"]["idempotencyKey"]
    await send(socket, type="event", event="chat", payload={"runId": run, **payload})


async def played(driver: Driver) -> Turn:
    turn = Turn("run-1", "agent:main:a")
    await driver.chat(turn, "hello")
    return turn


@asynccontextmanager
async def driver_of(answer: Answer) -> AsyncGenerator[Driver]:
    """A driver connected to a gateway that answers each request by `answer`."""

    async def serve(request: WebSocketRequest) -> None:
        socket = await request.accept()
        await send(socket, type="event", event="connect.challenge", payload={"nonce": "n"})
        hello = json.loads(await socket.get_message())
        assert hello["params"]["auth"] == {"token": "secret"}
        assert hello["params"]["caps"] == ["turn-phases"]
        await send(socket, type="res", id=hello["id"], ok=True, payload={"type": "hello-ok"})
        await answer(socket, json.loads(await socket.get_message()))
        await socket.get_message()  # until the driver leaves

    async with serving(serve) as url, open_driver(url, "secret") as driver:
        yield driver


@asynccontextmanager
async def serving(serve: Callable[[WebSocketRequest], Awaitable[None]]) -> AsyncGenerator[str]:
    async def until_closed(request: WebSocketRequest) -> None:
        with suppress(ConnectionClosed):
            await serve(request)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(serve_websocket, until_closed, "127.0.0.1", 0, None)
            yield f"ws://127.0.0.1:{server.port}"
            nursery.cancel_scope.cancel()


async def test_a_stamp_is_the_moment_at_which_its_frame_was_there(monkeypatch: pytest.MonkeyPatch):
    moment = 0
    monkeypatch.setattr("triops.bench.driver.now", lambda: moment)

    async def answer(socket: WebSocketConnection, asked: dict[str, Any]) -> None:
        nonlocal moment

        async def at(ms: int) -> None:
            nonlocal moment
            await trio.testing.wait_all_tasks_blocked(0.02)
            moment = ms

        await at(1)
        await send(socket, type="res", id=asked["id"], ok=True, payload={})
        for ms in (2, 3):
            await at(ms)
            await chat_event(socket, asked, state="delta")
        await at(4)
        await chat_event(socket, asked, state="final")

    async with driver_of(answer) as driver:
        turn = await played(driver)
    assert (turn.sent, turn.acked, turn.first_delta, turn.final) == (0, 1, 2, 4)


async def test_a_turn_is_stamped_in_the_order_of_its_frames():
    async def answer(socket: WebSocketConnection, asked: dict[str, Any]) -> None:
        await send(socket, type="event", event="tick", payload={"ts": 1})
        await send(socket, type="res", id=asked["id"], ok=True, payload={"runId": "x", "status": "started"})
        await chat_event(socket, asked, state="status", phase="preparing_context")
        await chat_event(socket, asked, state="delta", deltaText="he", message={"role": "assistant"})
        await chat_event(socket, asked, state="delta", deltaText="llo")
        await chat_event(socket, asked, state="final", stopReason="stop")

    async with driver_of(answer) as driver:
        turn = await played(driver)
    assert (turn.run, turn.session, turn.state) == ("run-1", "agent:main:a", "final")
    assert 0 < turn.sent < turn.acked <= turn.first_delta <= turn.final


async def test_a_refused_message_has_no_final():
    async def answer(socket: WebSocketConnection, asked: dict[str, Any]) -> None:
        error = {"code": "UNAVAILABLE", "message": "the lane is full"}
        await send(socket, type="res", id=asked["id"], ok=False, error=error)

    async with driver_of(answer) as driver:
        turn = await played(driver)
    assert (turn.state, turn.acked, turn.final) == ("refused", 0, 0)
    assert "the lane is full" in turn.error


@pytest.mark.parametrize("state", ["error", "aborted"])
async def test_a_run_that_fails_is_a_turn_with_its_state_and_reason(state: str):
    async def answer(socket: WebSocketConnection, asked: dict[str, Any]) -> None:
        await chat_event(socket, asked, state=state, errorMessage="no model")

    async with driver_of(answer) as driver:
        turn = await played(driver)
    assert (turn.state, turn.error) == (state, "no model")
    assert turn.final


async def test_events_of_other_runs_are_left_alone():
    async def answer(socket: WebSocketConnection, asked: dict[str, Any]) -> None:
        await chat_event(socket, {"params": {"idempotencyKey": "other"}}, state="final")
        await chat_event(socket, asked, state="final")

    async with driver_of(answer) as driver:
        turn = await played(driver)
    assert (turn.first_delta, turn.state) == (0, "final")


async def test_pings_are_answered_while_a_turn_waits():
    async def answer(socket: WebSocketConnection, asked: dict[str, Any]) -> None:
        await socket.ping()  # returns with the pong
        await chat_event(socket, asked, state="final")

    async with driver_of(answer) as driver:
        assert (await played(driver)).state == "final"


async def test_a_gateway_that_closes_ends_the_measurement_with_its_reason():
    async def answer(socket: WebSocketConnection, asked: dict[str, Any]) -> None:
        await socket.aclose(1008, "slow consumer")

    with pytest.RaisesGroup(pytest.RaisesExc(BenchFailed, match="1008 slow consumer"), flatten_subgroups=True):
        async with driver_of(answer) as driver:
            await played(driver)


async def test_a_refused_connect_is_said_in_the_gateway_s_words():
    async def refuse(request: WebSocketRequest) -> None:
        socket = await request.accept()
        await send(socket, type="event", event="connect.challenge", payload={"nonce": "n"})
        asked = json.loads(await socket.get_message())
        await send(socket, type="res", id=asked["id"], ok=False, error={"code": "NOT_PAIRED", "message": "pairing"})
        await socket.get_message()

    with pytest.RaisesGroup(pytest.RaisesExc(BenchFailed, match="NOT_PAIRED"), flatten_subgroups=True):
        async with serving(refuse) as url, open_driver(url, "wrong"):
            pass


async def test_an_upgrade_that_is_answered_by_http_is_named():
    async def reject(request: WebSocketRequest) -> None:
        await request.reject(503)

    with pytest.RaisesGroup(pytest.RaisesExc(BenchFailed, match="HTTP 503"), flatten_subgroups=True):
        async with serving(reject) as url, open_driver(url, "t"):
            pass


async def test_nobody_at_the_address_is_said_in_words():
    with pytest.raises(BenchFailed, match=r"no gateway listens at ws://127\.0\.0\.1:1"):
        async with open_driver("ws://127.0.0.1:1", "t"):
            pass


async def test_a_server_that_says_nothing_is_given_up_on(autojump_clock: trio.testing.MockClock):
    async def silent(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    with pytest.RaisesGroup(pytest.RaisesExc(BenchFailed, match="said no hello"), flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, silent, 0, host="127.0.0.1"))
            async with open_driver(f"ws://127.0.0.1:{listener.socket.getsockname()[1]}", "t"):
                pass


async def test_a_request_that_nobody_answers_is_given_up_on_and_a_late_answer_is_ignored(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(driving, "ANSWER_LIMIT", 0.05)
    given_up = trio.Event()

    async def answer(socket: WebSocketConnection, asked: dict[str, Any]) -> None:
        await given_up.wait()
        await send(socket, type="res", id=asked["id"], ok=True, payload={})
        await chat_event(socket, json.loads(await socket.get_message()), state="final")

    async with driver_of(answer) as driver:
        with pytest.raises(BenchFailed, match=r"did not answer cron\.add within"):
            await driver.ask("cron.add", {})
        given_up.set()
        assert (await played(driver)).state == "final"


@pytest.mark.parametrize("frame", ["{", '{"type": 1}', '{"type": "event", "event": "chat", "payload": {"runId": 1}}'])
async def test_a_frame_that_cannot_be_read_is_said_in_words(frame: str):
    async def answer(socket: WebSocketConnection, asked: dict[str, Any]) -> None:
        await socket.send_message(frame)

    with pytest.RaisesGroup(pytest.RaisesExc(BenchFailed, match="frame that cannot be read"), flatten_subgroups=True):
        async with driver_of(answer) as driver:
            await played(driver)


async def test_the_first_frame_may_be_none_too():
    async def babble(request: WebSocketRequest) -> None:
        socket = await request.accept()
        await socket.send_message("hello")
        await socket.get_message()

    with pytest.RaisesGroup(pytest.RaisesExc(BenchFailed, match="frame that cannot be read"), flatten_subgroups=True):
        async with serving(babble) as url, open_driver(url, "t"):
            pass


async def test_the_path_of_the_url_is_asked_for():
    asked: list[str] = []

    async def note(request: WebSocketRequest) -> None:
        asked.append(request.path)
        await (await request.accept()).aclose(1008)

    with pytest.RaisesGroup(pytest.RaisesExc(BenchFailed, match="1008"), flatten_subgroups=True):
        async with serving(note) as url, open_driver(f"{url}/gateway?a=b", "t"):
            pass
    assert asked == ["/gateway?a=b"]


def test_a_url_names_host_port_and_path():
    assert place_of("wss://h/x") == Place("h", 443, True, "/x")
    assert place_of("http://[::1]") == Place("::1", 80, False, "/")
    assert place_of("ws://[::1]:7").netloc == "[::1]:7"


@pytest.mark.parametrize("url", ["ws://h:abc", "ws://h:99999", "h:80", "ws://", "ws://[::1", ""])
def test_a_url_that_is_none_is_said_in_words(url: str):
    with pytest.raises(BenchFailed, match=r"--url .*; write for example ws://127\.0\.0\.1:18789"):
        place_of(url)


async def test_a_turn_keeps_the_phases_that_the_gateway_tells():
    async def answer(socket: WebSocketConnection, asked: dict[str, Any]) -> None:
        run = asked["params"]["idempotencyKey"]
        for known, phases in (("other", {"plan": 9.0}), (run, {"queue": 0.5, "plan": 1.25})):
            told = {"runId": known, "stream": "lifecycle", "data": {"phase": "end", "phases": phases}}
            await send(socket, type="event", event="agent", payload=told)
        await send(socket, type="event", event="agent", payload={"runId": run, "data": {"text": "phases"}})
        await chat_event(socket, asked, state="final")

    async with driver_of(answer) as driver:
        turn = await played(driver)
    assert turn.phases == {"queue": 0.5, "plan": 1.25}
