"""The listeners: who gets in, what a storm meets, and how a stop looks from outside."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from tests.kit.host import ECHO, TOKEN, open_test_gateway
from tests.kit.wire import Client, Refused, connect_params, read_answer

from triops.gateway.http.head import HEAD_DEADLINE
from triops.gateway.server import (
    SILENT,
    SILENT_PER_ADDRESS,
    UNAUTHENTICATED_PER_ADDRESS,
    PortTaken,
    open_listeners,
)

Clock = trio.testing.MockClock


async def test_a_socket_over_the_real_port_is_a_client_like_any(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        async with await trio.open_tcp_stream("127.0.0.1", host.port) as stream:
            client = Client(stream)
            await client.upgrade({"Host": f"localhost:{host.port}"})
            await client.connect(connect_params(token=TOKEN))
            await client.say("SAY:hello", key="k")
            assert (await client.terminal("k"))["state"] == "final"


async def test_the_thirty_third_unauthenticated_socket_of_an_address_is_503_and_others_get_in(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, trio.open_nursery() as nursery:
        leave = trio.Event()

        async def wait(*, task_status: trio.TaskStatus[None]) -> None:
            async with host.socket("10.0.0.1") as client:
                await client.event("connect.challenge")
                task_status.started()
                await leave.wait()

        for _ in range(UNAUTHENTICATED_PER_ADDRESS):
            await nursery.start(wait)
        with pytest.raises(Refused) as refused:
            async with host.socket("10.0.0.1"):
                pass
        assert refused.value.error["status"] == 503
        async with host.client(address="127.0.0.1"), host.client(address="127.0.0.1"):
            pass  # another address, and those that said hello do not count
        leave.set()
        while len(nursery.child_tasks) > 0:
            await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(0.05)
        async with host.socket("10.0.0.1") as client:
            await client.event("connect.challenge")


async def test_sockets_that_upgrade_at_the_same_moment_count_too(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, trio.open_nursery() as nursery:
        outcomes: list[int] = []

        async def knock() -> None:
            try:
                async with host.socket("10.0.0.1") as client:
                    await client.event("connect.challenge")
                    outcomes.append(101)
                    await trio.sleep_forever()
            except Refused as refused:
                outcomes.append(refused.error["status"])

        for _ in range(2 * UNAUTHENTICATED_PER_ADDRESS):
            nursery.start_soon(knock)
        while len(outcomes) < 2 * UNAUTHENTICATED_PER_ADDRESS:
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert outcomes.count(101) == outcomes.count(503) == UNAUTHENTICATED_PER_ADDRESS
        assert [record.fields["status"] for record in host.warnings()] == [503] * 20  # the rest is counted
        nursery.cancel_scope.cancel(reason="seen")


async def test_a_head_that_cannot_be_read_is_logged_with_its_peer(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        stream = host.dial("10.0.0.1")
        await stream.send_all(b"nonsense\r\n\r\n")
        assert (await read_answer(stream)).status == 400
        (told,) = host.warnings()
        assert told.fields == {"status": 400, "reason": "not an HTTP/1.1 request", "peer": "10.0.0.1"}


@pytest.mark.parametrize(
    ("request_", "status", "reason"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: x\r\n\r\n", 400, "Found multiple Host: headers"),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nExpect: x\r\n\r\n", 417, "no other Expect"),
        (b"POST /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 405, "POST /healthz: use GET or HEAD"),
    ],
)
async def test_a_request_that_http_or_a_probe_refuses_is_logged_with_its_peer(
    tmp_path: Path, request_: bytes, status: int, reason: str
) -> None:
    async with open_test_gateway(tmp_path) as host:
        stream = host.dial("127.0.0.1")
        await stream.send_all(request_)
        assert (await read_answer(stream)).status == status
        (told,) = host.warnings()
        assert told.fields["reason"].startswith(reason)
        assert (told.fields["status"], told.fields["peer"]) == (status, "127.0.0.1")


PROBE = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
CALL = b"GET /status HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n\r\n" % TOKEN.encode()
WRONG = CALL.replace(b"Bearer", b"Bearer x")


async def test_past_16_without_a_token_a_connection_is_not_kept_alive_and_sockets_still_get_in(
    tmp_path: Path,
) -> None:
    async with open_test_gateway(tmp_path) as host:

        async def ask(request: bytes, stream: Any = None) -> tuple[bool, Any]:
            """Whether the connection is kept after the answer, and it."""
            stream = stream or host.dial("127.0.0.1")
            await stream.send_all(request)
            answer = await read_answer(stream)
            assert answer.status == (401 if request == WRONG else 200)
            return answer.headers.get("connection") != "close", stream

        shown = [await ask(CALL) for _ in range(UNAUTHENTICATED_PER_ADDRESS + 1)]
        assert {kept for kept, _ in shown} == {True}
        held = [await ask(request) for request in (WRONG, *[PROBE] * (UNAUTHENTICATED_PER_ADDRESS // 2 - 1))]
        assert {kept for kept, _ in held} == {True}
        for request in (PROBE, WRONG):
            kept, stream = await ask(request)
            assert (kept, await stream.receive_some()) == (False, b"")
        async with host.client():
            pass
        assert (await ask(CALL))[0]
        assert (await ask(PROBE, shown[0][1]))[0]  # it once showed its token
        assert (await ask(CALL, held[0][1]))[0]
        assert (await ask(PROBE))[0]  # that one gave a place back
        assert not (await ask(PROBE))[0]


@pytest.mark.parametrize(
    ("addresses", "most"),
    [(["127.0.0.1"], SILENT_PER_ADDRESS), ([f"10.0.{n // 250}.{n % 250}" for n in range(SILENT + 20)], SILENT)],
)
@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost: loc"])
async def test_sockets_without_a_whole_head_make_room_for_who_asks_and_are_closed_in_time(
    tmp_path: Path, autojump_clock: Clock, addresses: list[str], most: int, said: bytes
) -> None:
    async with open_test_gateway(tmp_path, virtual=True) as host, host.client() as before:
        began = trio.current_time()
        silent = [host.dial(addresses[n % len(addresses)]) for n in range(most + 20)]
        for stream in silent:
            await stream.send_all(said)
        async with host.client(address=addresses[0]) as rightful:
            assert (await rightful.request("health"))["ok"]
            assert (await host.http("GET", "/healthz", token=None, address=addresses[-1])).status == 200
            ends = [bytes(await stream.receive_some())[:12] for stream in silent]
            assert set(ends) == {b"HTTP/1.1 503", b"HTTP/1.1 408" if said else b""}
            assert 20 <= ends.count(b"HTTP/1.1 503") <= 22  # those who asked needed room, too
            assert trio.current_time() - began == pytest.approx(HEAD_DEADLINE, abs=2)
            assert (await rightful.request("health"))["ok"]
            assert (await before.request("health"))["ok"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Origin": "https://evil.example"},
        {"X-Forwarded-For": "10.0.0.1"},
        {"Forwarded": "for=10.0.0.1"},
    ],
)
async def test_an_upgrade_with_a_foreign_host_or_page_or_proxy_is_refused(
    tmp_path: Path, headers: dict[str, str]
) -> None:
    async with open_test_gateway(tmp_path) as host:
        with pytest.raises(Refused) as refused:
            async with host.socket(headers=headers):
                pass
        assert refused.value.error["status"] in (400, 403)
        assert len(host.warnings()) == 1


@pytest.mark.parametrize(
    "lines",
    [
        ["Upgrade: websocket"],
        ["Upgrade: websocket", "Connection: Upgrade"],
        ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"],
        ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 7", "Sec-WebSocket-Key: x"],
        ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: x", "A : b"],
    ],
)
async def test_a_malformed_upgrade_is_a_400_and_no_fault_of_ours(
    tmp_path: Path, lines: list[str], autojump_clock: Clock
) -> None:
    async with open_test_gateway(tmp_path, virtual=True) as host:
        stream = host.dial()
        head = "\r\n".join(["GET / HTTP/1.1", f"Host: 127.0.0.1:{host.port}", *lines, "", ""])
        await stream.send_all(head.encode())
        answer = await stream.receive_some()
        assert answer.split(b"\r\n")[0].startswith((b"HTTP/1.1 400", b"HTTP/1.1 426"))
        await trio.sleep(60)


async def test_garbage_after_the_upgrade_ends_the_connection_and_nothing_else(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        for garbage in (
            b"\x81\x05hello",
            b"\xff" * 100,
            b"\x81\xfe",
            b"\x83\x80abcd",
            b"\x88\x80",
            b"\x89\xfe\xff\xff" + b"x" * 500,
        ):
            async with host.socket() as client:
                await client.event("connect.challenge")
                await client.stream.send_all(garbage)
                await client.stream.send_eof()
                with trio.fail_after(5):
                    await client.closed()
        async with host.client() as client:
            await client.stream.send_all(b"\x81\x05hello")
            with trio.fail_after(5):
                await client.closed()
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert host.gateway.services.fanout.connections() == []


async def test_a_stop_tells_clients_lets_runs_finish_and_says_goodbye(tmp_path: Path, autojump_clock: Clock) -> None:
    frames: list[dict[str, Any]] = []
    closed: list[tuple[int, str]] = []

    async def watch(client: Client) -> None:
        ended = await client.closed()
        frames.extend(client.frames)
        closed.append((ended.code, ended.reason))

    async with trio.open_nursery() as nursery:
        async with open_test_gateway(tmp_path, virtual=True, grace=10) as host:
            client = await _connected(host.dial(), host.port)
            await client.say("TOKENS:50 ITL:100", key="k")
            await client.ask("agent", {"message": "TOKENS:20 ITL:100", "idempotencyKey": "a", "sessionKey": "s"})
            await trio.sleep(1)
            nursery.start_soon(watch, client)
    names = [frame.get("event") for frame in frames]
    shutdown = names.index("shutdown")
    final = next(i for i, frame in enumerate(frames) if frame.get("payload", {}).get("state") == "final")
    assert shutdown < final
    finals = [f["payload"] for f in frames if f.get("event") == "chat" and f["payload"]["state"] == "final"]
    assert {payload["runId"] for payload in finals} == {"a", "k"}
    assert [frame["payload"]["status"] for frame in frames if frame.get("id") == "r3"] == ["accepted", "ok"]
    assert closed == [(1012, "service restart")]


async def _connected(stream: Any, port: int) -> Client:
    client = Client(stream, limit=3600)
    await client.upgrade({"Host": f"127.0.0.1:{port}"})
    await client.connect(connect_params(token=TOKEN))
    return client


async def test_a_run_that_outlives_the_grace_is_aborted_and_its_clients_hear_it(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with trio.open_nursery() as nursery:
        async with open_test_gateway(tmp_path, virtual=True, grace=3) as host:
            client = await _connected(host.dial(), host.port)
            await client.say("HANG", key="k")
            await client.event("agent", runId="k")
            nursery.start_soon(client.closed)
            began = trio.current_time()
    assert trio.current_time() - began < 6
    (terminal,) = [payload for payload in client.events("chat", "k") if payload["state"] != "status"]
    assert (terminal["state"], terminal["stopReason"]) == ("aborted", "restart")


async def test_who_waits_for_the_end_over_http_gets_it_when_the_gateway_stops(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with trio.open_nursery() as nursery:
        async with open_test_gateway(tmp_path, virtual=True, grace=10) as host:
            stream = host.dial()
            body = json.dumps({"sessionKey": "main", "message": "TOKENS:50 ITL:100", "idempotencyKey": "k"})
            head = f"POST /rpc/chat.send?wait=final HTTP/1.1\r\nHost: 127.0.0.1:{host.port}\r\n"
            head += f"Authorization: Bearer {TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n"
            await stream.send_all(head.encode() + body.encode())
            await trio.sleep(1)
            answers: list[Any] = []

            async def read() -> None:
                answers.append(await read_answer(stream, limit=3600))

            nursery.start_soon(read)
    assert [answer.body["state"] for answer in answers] == ["final"]


async def test_a_stop_that_is_hastened_waits_for_no_run(tmp_path: Path, autojump_clock: Clock) -> None:
    async with trio.open_nursery() as nursery:
        async with open_test_gateway(tmp_path, virtual=True, grace=1000) as host:
            client = await _connected(host.dial(), host.port)
            await client.say("HANG", key="k")
            await client.event("agent", runId="k")
            assert host.gateway.running == 1

            async def hasten() -> None:
                await client.event("shutdown")
                host.gateway.patience.cancel()
                await client.closed()

            nursery.start_soon(hasten)
            began = trio.current_time()
    assert trio.current_time() - began < 6
    (terminal,) = [payload for payload in client.events("chat", "k") if payload["state"] != "status"]
    assert (terminal["state"], terminal["stopReason"]) == ("aborted", "restart")


async def test_nothing_is_accepted_while_it_stops(tmp_path: Path, autojump_clock: Clock) -> None:
    async with trio.open_nursery() as nursery:
        async with open_test_gateway(tmp_path, virtual=True, grace=10) as host:
            client = await _connected(host.dial(), host.port)
            await client.say("TOKENS:50 ITL:100", key="k")
            outcome: list[Any] = []

            async def late() -> None:
                await client.event("shutdown")
                try:
                    outcome.append(await client.say("SAY:late", key="late", session="other"))
                except Refused as refused:
                    outcome.append(refused.error)
                with pytest.raises((Refused, AssertionError, trio.BrokenResourceError)):
                    await Client(host.dial(), limit=5).upgrade({"Host": f"127.0.0.1:{host.port}"})
                await client.closed()

            nursery.start_soon(late)
    (refused,) = outcome
    assert (refused["code"], refused["retryable"]) == ("UNAVAILABLE", True)
    assert refused["details"] == {"reason": "stopping"}, "`triops chat` looks for the next gateway by it"


async def test_a_stop_without_clients_takes_no_time(tmp_path: Path, autojump_clock: Clock) -> None:
    async with open_test_gateway(tmp_path, virtual=True, grace=10):
        began = trio.current_time()
    assert trio.current_time() == began


async def test_a_client_that_does_not_read_cannot_hold_up_a_stop(tmp_path: Path, autojump_clock: Clock) -> None:
    async with open_test_gateway(tmp_path, virtual=True, grace=1) as host, trio.open_nursery() as nursery:
        stream = host.dial(lockstep=True)
        await _connected(stream, host.port)
        began = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - began < 5


async def test_a_gateway_that_is_cancelled_or_fails_is_over_at_once(tmp_path: Path, autojump_clock: Clock) -> None:
    began = trio.current_time()
    with trio.CancelScope() as scope:
        async with open_test_gateway(tmp_path, virtual=True, grace=10) as host, host.client():
            scope.cancel()
            await trio.sleep_forever()
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with open_test_gateway(tmp_path / "other", virtual=True, grace=10):
            raise ZeroDivisionError
    assert trio.current_time() - began < 1


async def test_health_is_told_each_minute_with_its_version(tmp_path: Path, autojump_clock: Clock) -> None:
    async with open_test_gateway(tmp_path, virtual=True) as host, host.client() as client:
        frames = [await client.until(lambda frame: frame.get("event") == "health") for _ in range(2)]
        first, second = (frame["stateVersion"]["health"] for frame in frames)
        assert second == first + 1
        assert frames[0]["payload"]["ok"] is True


async def test_a_port_that_is_taken_is_an_error_that_says_what_to_do_or_another_port() -> None:
    (held,) = await open_listeners("127.0.0.1", 0, any_port=False)
    port = held.socket.getsockname()[1]
    async with held:
        with pytest.raises(PortTaken, match=rf"127.0.0.1:{port}.*--port 0"):
            await open_listeners("127.0.0.1", port, any_port=False)
        (other,) = await open_listeners("127.0.0.1", port, any_port=True)
        assert other.socket.getsockname()[1] != port
        await other.aclose()


async def test_many_connects_at_once_are_all_answered(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path, config=ECHO) as host:
        done: list[bool] = []

        async def one(number: int) -> None:
            async with host.client() as client:
                await client.say("SAY:x", key=f"k{number}", session=f"s{number}")
                done.append((await client.terminal(f"k{number}"))["state"] == "final")

        async with trio.open_nursery() as nursery:
            for number in range(UNAUTHENTICATED_PER_ADDRESS):
                nursery.start_soon(partial(one, number))
        assert done == [True] * UNAUTHENTICATED_PER_ADDRESS
