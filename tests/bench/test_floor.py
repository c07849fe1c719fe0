import inspect
import json

import trio
from trio_websocket import open_websocket_url

from triops.bench import floor
from triops.bench.driver import Turn, open_driver


async def test_floor_answers_a_turn_in_six_frames_after_the_handshake(floor_url: str):
    with trio.fail_after(10):
        async with open_websocket_url(floor_url) as socket:

            async def receive() -> dict:
                return json.loads(await socket.get_message())

            async def request(id: str, method: str, params: dict) -> None:
                await socket.send_message(json.dumps({"type": "req", "id": id, "method": method, "params": params}))

            assert (await receive())["event"] == "connect.challenge"
            await request("1", "connect", {})
            assert (await receive())["payload"]["type"] == "hello-ok"
            turn = {"sessionKey": "agent:main:six", "message": "SAY:hello", "idempotencyKey": "six"}
            await request("2", "chat.send", turn)
            ack, start, said, delta, end, final = [await receive() for _ in range(6)]
    assert ack == {"type": "res", "id": "2", "ok": True, "payload": {"runId": "six", "status": "started"}}
    events = (start, said, delta, end, final)
    assert [frame["event"] for frame in events] == ["agent", "agent", "chat", "agent", "chat"]
    assert {frame["payload"]["runId"] for frame in events} == {"six"}
    assert start["payload"]["data"]["phase"] == "start"
    assert said["payload"]["data"] == {"text": "hello", "delta": "hello"}
    assert (delta["payload"]["state"], delta["payload"]["deltaText"]) == ("delta", "hello")
    assert end["payload"]["data"]["phase"] == "end"
    assert final["payload"]["state"] == "final"
    assert final["payload"]["message"]["content"] == [{"type": "text", "text": "hello"}]


async def test_floor_serves_many_turns_at_once_and_outlives_a_client_that_leaves(floor_url: str):
    with trio.fail_after(10):
        async with open_websocket_url(floor_url) as leaving:
            turn = {"sessionKey": "s", "message": "TOKENS:5 ITL:5", "idempotencyKey": "left"}
            await leaving.send_message(json.dumps({"id": "1", "method": "chat.send", "params": turn}))
        states: list[str] = []
        async with open_driver(floor_url, "") as driver:

            async def talk(run: str) -> None:
                await driver.chat(turn := Turn(run, f"agent:main:{run}"), "TOKENS:4")
                states.append(turn.state)

            async with trio.open_nursery() as nursery:
                for number in range(8):
                    nursery.start_soon(talk, f"many-{number}")
    assert states == ["final"] * 8


def test_floor_stays_the_least_code():
    assert len(inspect.getsource(floor).splitlines()) <= 150
