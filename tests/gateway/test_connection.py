"""One WebSocket client of a real gateway, over a memory stream: its frames, its limits, its end."""

import json
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from tests.kit.host import TOKEN, open_test_gateway
from tests.kit.wire import Client, Closed, Refused, connect_params

from triops.gateway.connection import PING_EVERY, PREAUTH_BYTES, REQUESTS_AT_WORK, REQUESTS_WAITING
from triops.gateway.hello import MAX_PAYLOAD

Clock = trio.testing.MockClock


async def test_a_client_is_challenged_and_greeted_and_its_frames_are_numbered(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        challenge = client.frames[0]
        assert challenge["event"] == "connect.challenge"
        assert "seq" not in challenge
        await client.say("SAY:hello", key="k")
        final = await client.terminal("k")
        assert final["message"]["content"] == [{"type": "text", "text": "hello"}]
        seqs = [frame["seq"] for frame in client.frames if "seq" in frame]
        assert seqs == list(range(1, len(seqs) + 1))
        assert len(seqs) > 4


async def test_the_ack_precedes_every_event_of_the_run(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        for number in range(10):
            await client.ask(
                "chat.send", {"sessionKey": f"s{number}", "message": "SAY:x", "idempotencyKey": f"k{number}"}
            )
        for _ in range(10):
            await client.until(lambda frame: frame.get("payload", {}).get("state") == "final")
        for number in range(10):
            about = [i for i, f in enumerate(client.frames) if f.get("payload", {}).get("runId") == f"k{number}"]
            assert client.frames[about[0]]["type"] == "res"
            assert client.frames[about[0]]["payload"]["status"] == "started"


@pytest.mark.parametrize(
    ("frame", "code", "reason"),
    [
        ("not json", 1000, "malformed JSON: Expecting value: line 1 column 1 (char 0)"),
        ('{"type":"req"}', 1008, "invalid request frame"),
        ('{"type":"req","id":"1","method":"health"}', 1008, "invalid handshake: first request must be connect"),
        ("x" * 70_000, 1009, "preauth payload too large"),
        ("x" * (PREAUTH_BYTES + 70_000), 1009, "preauth payload too large"),
    ],
)
async def test_what_comes_before_connect_and_is_not_it_is_closed_with_a_reason(
    tmp_path: Path, frame: str, code: int, reason: str
) -> None:
    async with open_test_gateway(tmp_path) as host, host.socket() as client:
        await client.send(frame)
        closed = await client.closed()
        assert (closed.code, closed.reason) == (code, reason)
        await trio.aclose_forcefully(client.stream)
        await trio.testing.wait_all_tasks_blocked(0.01)
        (told,) = [record for record in host.log if record.message == "refused a connect"]
        assert (told.fields["code"], told.fields["reason"]) == (code, reason)
        assert told.fields["peer"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("wrong", "client", "reason"),
    [
        ({"minProtocol": 9, "maxProtocol": 9}, "gateway-client", "protocol mismatch"),
        ({"role": "node"}, "gateway-client", "role not supported: this gateway takes no nodes"),
        ({"x" * 200: 1}, None, f"invalid connect params: at root: unexpected property '{'x' * 200}'"),
    ],
)
async def test_a_connect_that_is_not_even_decided_on_is_logged_once_and_whole(
    tmp_path: Path, wrong: dict[str, Any], client: str | None, reason: str
) -> None:
    async with open_test_gateway(tmp_path) as host, host.socket() as socket:
        with pytest.raises(Refused):
            await socket.connect(connect_params(token=TOKEN) | wrong)
        await socket.closed()
        await trio.aclose_forcefully(socket.stream)
        await trio.testing.wait_all_tasks_blocked(0.01)
        (told,) = host.warnings()
        assert (told.message, told.fields["reason"], told.fields["clientId"]) == ("refused a connect", reason, client)


async def test_who_comes_and_leaves_is_logged_with_how_long_and_why(tmp_path: Path, autojump_clock: Clock) -> None:
    async with open_test_gateway(tmp_path, virtual=True) as host:
        async with host.client() as client:
            await trio.sleep(7)
            await client.send("[]")
            await client.close(1000, "bye")
            await client.closed()
        await trio.testing.wait_all_tasks_blocked()
        came, refused, left = host.log[-3:]
        assert [record.message for record in (came, refused, left)] == [
            "client connected",
            "refused a frame",
            "client left",
        ]
        assert came.fields["scopes"] == left.fields["scopes"] == ["operator.admin", "operator.read", "operator.write"]
        assert refused.fields["reason"] == "invalid request frame: must be object"
        about = {name: left.fields[name] for name in ("client", "peer", "seconds", "code", "reason")}
        assert about == {
            "client": "gateway-client",
            "peer": "127.0.0.1",
            "seconds": 7.0,
            "code": 1000,
            "reason": "bye",
        }


async def test_a_binary_frame_before_connect_closes_and_after_it_is_refused(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        async with host.socket() as client:
            await client.send_binary(b"\x00")
            assert (await client.closed()).reason == "binary frame"
        async with host.client() as client:
            await client.send_binary(b"\x00")
            frame = await client.until(lambda frame: frame["type"] == "res" and frame["id"] == "invalid")
            assert frame["error"]["code"] == "INVALID_REQUEST"
            assert (await client.request("health"))["ok"] is True


async def test_a_wrong_token_is_refused_and_closed_and_logged_without_it(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.socket() as client:
        with pytest.raises(Refused) as refused:
            await client.connect(connect_params(token="a-guess-of-somebody"))
        assert refused.value.error["details"]["code"] == "AUTH_TOKEN_MISMATCH"
        closed = await client.closed()
        assert closed.code == 1008
        assert "unauthorized" in closed.reason
        (told,) = [record for record in host.log if record.message == "refused a connect"]
        assert told.fields["peer"] == "127.0.0.1"
        assert "a-guess-of-somebody" not in str(host.log)


async def test_requests_that_are_not_are_answered_and_the_socket_stays(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        await client.send("{nonsense")
        frame = await client.until(lambda frame: frame["type"] == "res" and not frame["ok"])
        assert (frame["id"], frame["error"]["code"]) == ("invalid", "INVALID_REQUEST")
        with pytest.raises(Refused) as refused:
            await client.request("no.such.method")
        assert refused.value.error == {"code": "INVALID_REQUEST", "message": "unknown method: no.such.method"}
        with pytest.raises(Refused) as refused:
            await client.request("connect", connect_params(token=TOKEN))
        assert "first request" in refused.value.error["message"]
        with pytest.raises(Refused) as refused:
            await client.request("chat.send", {"sessionKey": 7})
        assert "/sessionKey" in refused.value.error["message"]
        assert await client.request("health")


async def test_frames_that_come_right_behind_connect_are_taken_up_after_the_hello(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.socket() as client:
        await client.ask("connect", connect_params(token=TOKEN))
        await client.ask("health")
        assert (await client.answer("r1"))["type"] == "hello-ok"
        assert (await client.answer("r2"))["ok"] is True


@pytest.mark.slow
async def test_a_message_past_the_limit_closes_with_1009_and_the_socket_is_gone(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        stream = await trio.open_tcp_stream("127.0.0.1", host.port)
        async with stream:
            client = Client(stream)
            await client.upgrade({"Host": f"127.0.0.1:{host.port}"})
            await client.connect(connect_params(token=TOKEN))
            (connection,) = host.gateway.services.fanout.connections()
            async with trio.open_nursery() as nursery:

                async def flood() -> None:
                    try:
                        await client.send("x" * (MAX_PAYLOAD + 100_000))
                    except trio.BrokenResourceError:
                        pass

                nursery.start_soon(flood)
                closed = await client.closed()
            assert closed.code == 1009
            with trio.fail_after(5):
                while await stream.receive_some():
                    pass
            with trio.fail_after(5):
                await connection.closed.wait()  # type: ignore[attr-defined] # an Audience that is a Connection


async def test_a_parked_request_does_not_keep_others_from_working(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        await client.say("HANG", key="hanging")
        for _ in range(2 * REQUESTS_AT_WORK):
            await client.ask("agent.wait", {"runId": "hanging", "timeoutMs": 60_000})
        stopped = await client.request("chat.abort", {"sessionKey": "main", "runId": "hanging"})
        assert stopped == {"ok": True, "aborted": True, "runIds": ["hanging"]}
        assert (await client.terminal("hanging"))["state"] == "aborted"


async def test_too_many_that_wait_are_refused_and_nothing_else_is(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        await client.say("HANG", key="hanging")
        for _ in range(REQUESTS_WAITING):
            await client.ask("agent.wait", {"runId": "hanging", "timeoutMs": 60_000})
        for method, params in (
            ("agent.wait", {"runId": "hanging"}),
            ("agent", {"message": "SAY:x", "idempotencyKey": "k"}),
        ):
            with pytest.raises(Refused, match="wait already") as refused:
                await client.request(method, params)
            assert (refused.value.error["code"], refused.value.error["retryable"]) == ("UNAVAILABLE", True)
        assert (await client.request("chat.abort", {"sessionKey": "main"}))["runIds"] == ["hanging"]
        for _ in range(REQUESTS_WAITING):
            await client.until(lambda frame: frame["type"] == "res" and frame["payload"].get("status") == "timeout")
        assert (await client.request("agent.wait", {"runId": "hanging"}))["status"] == "timeout"
        assert (await client.request("chat.history", {"sessionKey": "main"}))["totalMessages"] == 1


@pytest.mark.slow
async def test_a_slow_client_is_closed_and_its_run_goes_on(tmp_path: Path, autojump_clock: Clock) -> None:
    async with open_test_gateway(tmp_path, virtual=True) as host, host.client() as other:
        async with host.client(lockstep=True) as slow:
            await slow.say("TOKENS:500 ITL:40", key="k", session="s")
            for number in range(22):  # it reads nothing of what it is told
                for place in range(50):
                    host.gateway.services.fanout.broadcast("cron", {"n": number, "place": place})
                await trio.sleep(0.1)  # the other one keeps up
                await other.request("health")
            await trio.sleep(12)  # a write to its socket takes ten at most
            assert len(host.gateway.services.fanout.connections()) == 1
            (told,) = [record for record in host.log if record.message == "client left"]
            assert told.fields["reason"] == "slow consumer"
        assert (await other.terminal("k"))["state"] == "final"


async def test_a_slow_client_that_reads_again_in_time_is_told_why(tmp_path: Path, autojump_clock: Clock) -> None:
    async with open_test_gateway(tmp_path, virtual=True) as host, host.client(lockstep=True) as slow:
        (connection,) = host.gateway.services.fanout.connections()
        host.gateway.services.fanout.broadcast("cron", {"n": 0})
        await trio.sleep(2)  # it is being written all the time
        for number in range(1100):
            host.gateway.services.fanout.broadcast("cron", {"n": number})
        await trio.testing.wait_all_tasks_blocked()
        closed = await slow.closed()
        assert (closed.code, closed.reason) == (1008, "slow consumer")
        assert connection.outbox.overflowed


async def test_a_burst_makes_no_client_slow_that_reads(tmp_path: Path, autojump_clock: Clock) -> None:
    async with open_test_gateway(tmp_path, virtual=True) as host, host.client() as client:
        for _ in range(2):
            await trio.sleep(5)
            for number in range(3000):
                host.gateway.services.fanout.broadcast("cron", {"n": number})
            await client.until(lambda frame: frame.get("payload") == {"n": 2999})
        await client.request("health")


async def test_a_client_that_takes_ten_seconds_for_one_write_is_dropped_and_said_to_be_slow(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with open_test_gateway(tmp_path, virtual=True) as host, host.client(lockstep=True) as slow:
        await slow.ask("health")
        await trio.sleep(11)
        assert host.gateway.services.fanout.connections() == []
        assert (host.log[-1].message, host.log[-1].fields["reason"]) == ("client left", "slow consumer")


async def test_text_merges_while_a_client_does_not_read(tmp_path: Path, autojump_clock: Clock) -> None:
    async with open_test_gateway(tmp_path, virtual=True) as host, host.client() as other:
        async with host.client(lockstep=True) as slow:
            await slow.ask("chat.send", {"sessionKey": "s", "message": "TOKENS:200 ITL:40", "idempotencyKey": "k"})
            await slow.answer("r2")
            await trio.sleep(7)  # most of it is said by now
            final = await slow.terminal("k")
            deltas = [p["deltaText"] for p in slow.events("chat", "k") if p["state"] == "delta"]
            assert 2 <= len(deltas) < 100
            assert "".join(deltas).strip() == final["message"]["content"][0]["text"]
        await other.terminal("k")
        paced = [p for p in other.events("chat", "k") if p["state"] == "delta"]
        assert len(paced) == 200  # 40 ms apart, each had its own turn


async def test_a_client_is_pinged_and_dropped_when_it_does_not_answer(tmp_path: Path, autojump_clock: Clock) -> None:
    async with open_test_gateway(tmp_path, virtual=True) as host:
        async with host.client() as client:
            for _ in range(3):
                await client.event("tick")
            assert client.pings == 3
            client.answers_pings = False
            began = trio.current_time()
            closed = await client.closed()
            assert closed.code == 1006
            assert trio.current_time() - began <= 2 * PING_EVERY
        assert host.gateway.services.fanout.connections() == []


async def test_every_client_hears_a_tick_each_thirty_seconds(tmp_path: Path, autojump_clock: Clock) -> None:
    async with open_test_gateway(tmp_path, virtual=True) as host, host.client() as client:
        assert client.hello["policy"]["tickIntervalMs"] == 30_000
        first, second = await client.event("tick"), await client.event("tick")
        assert second["ts"] - first["ts"] == 30_000


async def test_a_silent_socket_is_closed_with_a_reason(tmp_path: Path, autojump_clock: Clock) -> None:
    async with open_test_gateway(tmp_path, virtual=True) as host, host.socket() as client:
        began = trio.current_time()
        closed = await client.closed()
        assert (closed.code, closed.reason) == (1000, "handshake timeout")
        assert trio.current_time() - began == pytest.approx(15)


async def test_a_client_that_leaves_does_not_end_its_run(tmp_path: Path, autojump_clock: Clock) -> None:
    async with open_test_gateway(tmp_path, virtual=True) as host, host.client() as other:
        async with host.client() as client:
            await client.say("TOKENS:20 ITL:100", key="k")
        assert (await other.terminal("k"))["state"] == "final"


async def test_a_ping_that_crosses_our_close_is_no_fault_of_ours(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client(lockstep=True) as client:
        (connection,) = host.gateway.services.fanout.connections()
        connection.close(1012, "service restart")  # type: ignore[attr-defined] # an Audience that is a Connection
        await client.ping()
        with pytest.raises((Closed, trio.BrokenResourceError)):
            while True:
                await client.read()
        await trio.testing.wait_all_tasks_blocked(0.01)


async def test_a_payload_that_cannot_be_encoded_is_a_refusal_and_not_the_end(tmp_path: Path) -> None:
    from triops.gateway.methods import METHODS, Call, NoParams, method

    @method("test.unencodable", scope=None)
    async def unencodable(call: Call, params: NoParams) -> Any:
        return {"value": object()}

    try:
        async with open_test_gateway(tmp_path, faulty=True) as host, host.client() as client:
            with pytest.raises(Refused) as refused:
                await client.request("test.unencodable")
            assert refused.value.error["code"] == "INTERNAL_ERROR"
            assert await client.request("health")
            (told,) = host.faults()
            assert told.fields["id"] == refused.value.error["details"]["logId"]
    finally:
        del METHODS["test.unencodable"]


async def test_who_may_not_read_hears_no_run_and_may_not_send(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        scopeless = connect_params(token=TOKEN, client="gateway-client", mode="backend", scopes=())
        async with host.client(**scopeless) as client, host.client() as other:
            with pytest.raises(Refused) as refused:
                await client.say("hi", key="k")
            assert refused.value.error["code"] == "FORBIDDEN"
            assert refused.value.error["details"]["missingScope"] == "operator.write"
            await other.say("SAY:x", key="k2")
            await other.terminal("k2")
            await client.request("health")
            assert client.events("chat") == client.events("agent") == []


async def test_frames_are_ordinary_websocket_text_frames_at_every_size() -> None:
    from wsproto import ConnectionType
    from wsproto.connection import Connection as Peer
    from wsproto.events import CloseConnection, TextMessage

    from triops.gateway.transport import close_frame, text_frame

    for size in (0, 1, 125, 126, 65_535, 65_536):
        peer = Peer(ConnectionType.CLIENT)
        peer.receive_data(text_frame(b"x" * size))
        text = "".join(event.data for event in peer.events() if isinstance(event, TextMessage))
        assert text == "x" * size
    peer = Peer(ConnectionType.CLIENT)
    peer.receive_data(close_frame(1009, "too large"))
    (closing,) = peer.events()
    assert isinstance(closing, CloseConnection)
    assert (closing.code, closing.reason) == (1009, "too large")


async def test_a_connect_that_ends_while_it_is_decided_leaves_nothing_behind(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        for _ in range(20):
            async with host.socket() as client:
                await client.send(
                    {"type": "req", "id": "1", "method": "connect", "params": connect_params(token=TOKEN)}
                )
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert host.gateway.services.fanout.connections() == []
        assert json.dumps(await host.rpc("status")).count('"frames"') == 0
