"""The client against a scripted gateway on loopback: a real socket, and nothing of ours on its other side."""

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, serve_websocket

from triops.gateway.client import (
    DeviceIdentity,
    Event,
    EventsLost,
    GatewayClient,
    GatewayClosed,
    GatewayError,
    open_client,
)

CHALLENGE = {"nonce": "n-1", "ts": 1795344090925}


class Peer:
    """The gateway's end of one connection, as a script sees it."""

    def __init__(self, socket: WebSocketConnection) -> None:
        self.socket = socket

    async def send(self, frame: dict[str, Any]) -> None:
        await self.socket.send_message(json.dumps(frame))

    async def event(self, name: str, payload: dict[str, Any], seq: int | None = None) -> None:
        await self.send({"type": "event", "event": name, "payload": payload} | ({} if seq is None else {"seq": seq}))

    async def request(self, method: str) -> dict[str, Any]:
        frame = json.loads(await self.socket.get_message())
        assert frame["method"] == method, frame
        return frame

    async def answer(self, frame: dict[str, Any], payload: Any) -> None:
        await self.send({"type": "res", "id": frame["id"], "ok": True, "payload": payload})

    async def refuse(self, frame: dict[str, Any], error: dict[str, Any]) -> None:
        await self.send({"type": "res", "id": frame["id"], "ok": False, "error": error})

    async def greet(self, *, tick_ms: int = 30_000) -> dict[str, Any]:
        await self.event("connect.challenge", CHALLENGE)
        frame = await self.request("connect")
        await self.answer(frame, {"type": "hello-ok", "protocol": 4, "policy": {"tickIntervalMs": tick_ms}})
        return frame["params"]


Script = Callable[[Peer], Awaitable[object]]


@asynccontextmanager
async def scripted(script: Script) -> AsyncGenerator[str]:
    """A gateway that runs `script` on each connection; a failing script fails the test."""

    async def serve(request: WebSocketRequest) -> None:
        socket = await request.accept()
        try:
            await script(Peer(socket))
            await socket.get_message()  # until the client goes
        except ConnectionClosed:
            pass
        finally:
            with trio.move_on_after(1, shield=True):
                await socket.aclose()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(partial(serve_websocket, max_message_size=2**24), serve, "127.0.0.1", 0, None)
            yield f"ws://127.0.0.1:{server.port}"
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def connected(script: Script, **options: Any) -> AsyncGenerator[GatewayClient]:
    async def greeting(peer: Peer) -> None:
        await peer.greet()
        await script(peer)

    async with scripted(greeting) as url, open_client(url, token="t", **options) as client:
        yield client


def chat_event(run_id: str, state: str, **fields: Any) -> dict[str, Any]:
    return {"runId": run_id, "sessionKey": "main", "seq": 1, "state": state, **fields}


async def test_connect_waits_for_the_challenge_and_keeps_the_hello():
    params: dict[str, Any] = {}

    async def script(peer: Peer) -> None:
        params.update(await peer.greet())

    async with scripted(script) as url, open_client(url, token="secret", platform="linux", version="9") as client:
        assert client.hello["protocol"] == 4
    assert params == {
        "minProtocol": 4,
        "maxProtocol": 4,
        "client": {"id": "gateway-client", "version": "9", "platform": "linux", "mode": "backend"},
        "role": "operator",
        "scopes": ["operator.read", "operator.write", "operator.admin"],
        "caps": [],
        "auth": {"token": "secret"},
    }


async def test_answers_find_their_requests_in_any_order():
    async def script(peer: Peer) -> None:
        frames = [json.loads(await peer.socket.get_message()) for _ in range(2)]
        for frame in reversed(frames):
            await peer.answer(frame, frame["method"])

    answers: dict[str, Any] = {}

    async def ask(client: GatewayClient, method: str) -> None:
        answers[method] = await client.request(method, {})

    async with connected(script) as client, trio.open_nursery() as nursery:
        nursery.start_soon(ask, client, "health")
        nursery.start_soon(ask, client, "status")
    assert answers == {"health": "health", "status": "status"}


async def test_a_refusal_keeps_what_the_gateway_said():
    async def script(peer: Peer) -> None:
        error = {"code": "UNAVAILABLE", "message": "busy", "details": {"a": 1}, "retryable": True, "retryAfterMs": 250}
        await peer.refuse(await peer.request("chat.send"), error)

    async with connected(script) as client:
        with pytest.raises(GatewayError, match="UNAVAILABLE: busy") as caught:
            await client.request("chat.send")
    error = caught.value
    assert (error.code, error.message, error.details) == ("UNAVAILABLE", "busy", {"a": 1})
    assert (error.retryable, error.retry_after_ms) == (True, 250)


async def test_a_refused_connect_raises_the_error_itself():
    async def script(peer: Peer) -> None:
        await peer.event("connect.challenge", CHALLENGE)
        frame = await peer.request("connect")
        await peer.refuse(frame, {"code": "NOT_PAIRED", "message": "pairing required", "details": {"code": "X"}})
        await peer.socket.aclose(1008, "pairing required")

    async with scripted(script) as url:
        with pytest.raises(GatewayError) as caught:
            async with open_client(url):
                pass
    assert (caught.value.code, caught.value.details) == ("NOT_PAIRED", {"code": "X"})


async def test_a_close_before_the_hello_surfaces_with_its_code():
    async def script(peer: Peer) -> None:
        await peer.socket.aclose(1013, "gateway starting")

    async with scripted(script) as url:
        with pytest.raises(GatewayClosed) as caught:
            async with open_client(url):
                pass
    assert (caught.value.code, caught.value.reason) == (1013, "gateway starting")


async def test_an_upgrade_refused_over_http_says_its_status_and_text():
    async def refuse(request: WebSocketRequest) -> None:
        body = b"Too many unauthenticated sockets"
        await request.reject(503, extra_headers=[(b"Content-Length", str(len(body)).encode())], body=body)

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(serve_websocket, refuse, "127.0.0.1", 0, None)
            with pytest.raises(GatewayError, match="Too many unauthenticated sockets") as caught:
                async with open_client(f"ws://127.0.0.1:{server.port}"):
                    pass
            nursery.cancel_scope.cancel()
    assert (caught.value.code, caught.value.retryable) == ("HTTP_503", True)


async def test_nobody_listening_is_an_os_error():
    with trio.socket.socket() as taken:
        await taken.bind(("127.0.0.1", 0))
        with pytest.raises(OSError):
            async with open_client(f"ws://127.0.0.1:{taken.getsockname()[1]}"):
                pass


async def test_all_who_wait_hear_of_the_close():
    async def script(peer: Peer) -> None:
        await peer.request("health")
        await peer.event("shutdown", {"reason": "gateway stopping"})
        await peer.socket.aclose(1012, "service restart")

    async with connected(script) as client:
        with client.events("shutdown") as events:
            with pytest.raises(GatewayClosed, match="1012 service restart"):
                await client.request("health")
            assert (await events.receive()).payload == {"reason": "gateway stopping"}, "what came before is still there"
            with pytest.raises(GatewayClosed) as caught:
                await events.receive()
        assert (caught.value.code, caught.value.reason) == (1012, "service restart")
        with pytest.raises(GatewayClosed):
            await client.request("health")
        with client.events() as events, pytest.raises(GatewayClosed):
            await events.receive()


async def test_a_request_that_meets_the_close_says_why():
    async def script(peer: Peer) -> None:
        await peer.request("health")
        await peer.socket.aclose(1008, "slow consumer")

    codes: list[int] = []

    async def ask(client: GatewayClient) -> None:
        with pytest.raises(GatewayClosed) as caught:
            await client.request("health")
        codes.append(caught.value.code)

    async with connected(script) as client, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask, client)
    assert codes == [1008] * 20


async def test_agent_gets_two_answers_under_one_id():
    async def script(peer: Peer) -> None:
        frame = await peer.request("agent")
        await peer.answer(frame, {"status": "accepted"})
        await peer.answer(frame, {"status": "ok"})

    async with connected(script) as client, client.requests("agent", {"message": "hi"}) as responses:
        assert await responses.receive() == {"status": "accepted"}
        assert await responses.receive() == {"status": "ok"}


async def test_a_chat_ends_with_its_terminal_event_and_aborts_nothing():
    async def script(peer: Peer) -> None:
        frame = await peer.request("chat.send")
        run_id = frame["params"]["idempotencyKey"]
        await peer.answer(frame, {"runId": run_id, "status": "started"})
        await peer.event("chat", chat_event("another run", "final"), 1)
        await peer.event("chat", chat_event(run_id, "delta", deltaText="Hello"), 2)
        await peer.event("chat", chat_event(run_id, "final"), 3)
        await peer.answer(await peer.request("health"), {"ok": True})

    async with connected(script) as client:
        async with client.chat("main", "hi", key="k-1", thinking="off") as run:
            assert (run.run_id, run.ack["status"]) == ("k-1", "started")
            states = [event.payload["state"] async for event in run]
        assert states == ["delta", "final"]
        assert await client.request("health") == {"ok": True}, "the next request was this one, and no abort"


@pytest.mark.parametrize("how", ["left", "cancelled", "failed"])
async def test_leaving_a_chat_early_aborts_its_run(how: str):
    aborted: list[dict[str, Any]] = []

    async def script(peer: Peer) -> None:
        frame = await peer.request("chat.send")
        await peer.answer(frame, {"runId": "k", "status": "started"})
        frame = await peer.request("chat.abort")
        aborted.append(frame["params"])
        await peer.answer(frame, {"ok": True})

    async with connected(script) as client:
        with trio.CancelScope() as scope:
            try:
                async with client.chat("agent:main:x", "hi", key="k"):
                    if how == "failed":
                        raise LookupError
                    if how == "cancelled":
                        scope.cancel()
                        await trio.sleep_forever()
            except LookupError:
                pass
        assert aborted == [{"sessionKey": "agent:main:x", "runId": "k"}]


async def test_a_chat_cancelled_before_its_ack_aborts_as_well():
    arrived = trio.Event()
    aborted: list[dict[str, Any]] = []

    async def script(peer: Peer) -> None:
        await peer.request("chat.send")
        arrived.set()
        frame = await peer.request("chat.abort")
        aborted.append(frame["params"])
        await peer.answer(frame, {"ok": True})

    async def send(client: GatewayClient) -> None:
        async with client.chat("main", "hi", key="k"):
            pytest.fail("there was no ack")

    async with connected(script) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, client)
            await arrived.wait()
            nursery.cancel_scope.cancel()
        assert aborted == [{"sessionKey": "main", "runId": "k"}]


async def test_a_refused_chat_raises_and_aborts_nothing():
    async def script(peer: Peer) -> None:
        await peer.refuse(await peer.request("chat.send"), {"code": "INVALID_REQUEST", "message": "no"})
        await peer.answer(await peer.request("health"), {"ok": True})

    async with connected(script) as client:
        with pytest.raises(GatewayError):
            async with client.chat("main", ""):
                pytest.fail("there was no run")
        assert await client.request("health") == {"ok": True}


async def test_a_slow_consumer_is_told_what_it_missed_and_the_connection_goes_on():
    async def script(peer: Peer) -> None:
        frame = await peer.request("health")
        for seq in range(1, 6):
            await peer.event("tick", {"ts": seq}, seq)
        await peer.answer(frame, {})
        frame = await peer.request("health")
        await peer.event("tick", {"ts": 6}, 6)
        await peer.answer(frame, {})

    async with connected(script) as client:
        with client.events("tick", capacity=2) as slow, client.events() as other:
            await client.request("health")
            assert [(await slow.receive()).payload["ts"] for _ in range(2)] == [1, 2]
            with pytest.raises(EventsLost) as caught:
                await slow.receive()
            assert caught.value.count == 3
            await client.request("health")
            assert (await slow.receive()).payload == {"ts": 6}
            assert [(await other.receive()).seq for _ in range(6)] == [1, 2, 3, 4, 5, 6]


async def test_a_gap_in_the_numbers_is_reported_once():
    async def script(peer: Peer) -> None:
        frame = await peer.request("health")
        for seq in (1, 2, 5, 6):
            await peer.event("tick", {"ts": seq}, seq)
        await peer.event("models.snapshot", {})
        await peer.answer(frame, {})

    gaps: list[tuple[int, int]] = []
    async with connected(script, on_gap=lambda *gap: gaps.append(gap)) as client:
        await client.request("health")
    assert gaps == [(3, 5)]


async def test_a_silent_gateway_is_closed_with_4000():
    reasons: list[Any] = []

    async def script(peer: Peer) -> None:
        await peer.greet(tick_ms=20)
        with pytest.raises(ConnectionClosed) as caught:
            await peer.socket.get_message()
        assert caught.value.reason
        reasons.append((caught.value.reason.code, caught.value.reason.reason))

    async with scripted(script) as url, open_client(url) as client:
        with client.events() as events, pytest.raises(GatewayClosed, match="4000 tick timeout"):
            await events.receive()
    assert reasons == [(4000, "tick timeout")]


async def test_pings_are_answered():
    async def script(peer: Peer) -> None:
        await peer.socket.ping(b"still there?")  # returns with the pong
        await peer.event("tick", {})

    async with connected(script) as client:
        with client.events("tick") as events:
            assert await events.receive() == Event("tick")


async def test_frames_of_unknown_kinds_are_ignored_and_malformed_ones_close():
    async def script(peer: Peer) -> None:
        await peer.send({"type": "novelty", "of": "a later version"})
        await peer.answer(await peer.request("health"), {"ok": True})
        await peer.request("status")
        await peer.socket.send_message('{"type":"event",')

    async with connected(script) as client:
        assert await client.request("health") == {"ok": True}
        with pytest.raises(GatewayClosed, match="1007 malformed JSON"):
            await client.request("status")


async def test_a_large_message_arrives_whole():
    async def script(peer: Peer) -> None:
        frame = await peer.request("echo")
        await peer.answer(frame, frame["params"])

    async with connected(script) as client:
        text = "ü" * 700_000
        assert await client.request("echo", {"text": text}) == {"text": text}


async def test_a_request_cancelled_in_the_middle_of_its_frame_spoils_nothing():
    """Between the two stands a relay that stalls while the frame is larger than all buffers of the kernel."""
    stalled, proceed = trio.Event(), trio.Event()
    methods: list[str] = []

    async def script(peer: Peer) -> None:
        await peer.greet()
        for _ in range(2):
            frame = json.loads(await peer.socket.get_message())
            methods.append(frame["method"])
            await peer.answer(frame, None)

    async def relay(downstream: trio.SocketStream) -> None:
        async def pump_down() -> None:
            async for data in upstream:
                await downstream.send_all(data)

        passed = 0
        async with downstream, await trio.open_tcp_stream("127.0.0.1", port) as upstream, trio.open_nursery() as pumps:
            pumps.start_soon(pump_down)
            async for data in downstream:
                passed += len(data)
                if passed > 100_000:
                    stalled.set()
                    await proceed.wait()
                await upstream.send_all(data)
            pumps.cancel_scope.cancel()

    async def request_big(client: GatewayClient, scope: trio.CancelScope) -> None:
        with scope:
            await client.request("big", {"text": "x" * 12_000_000})

    async with scripted(script) as url, trio.open_nursery() as nursery:
        port = int(url.rpartition(":")[2])
        listener = (await nursery.start(trio.serve_tcp, relay, 0))[0]
        big = trio.CancelScope()
        address = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}"
        async with open_client(address) as client, trio.open_nursery() as requests:
            requests.start_soon(request_big, client, big)
            await stalled.wait()
            big.cancel()
            proceed.set()
            await client.request("small")
        assert big.cancelled_caught
        nursery.cancel_scope.cancel()
    assert methods == ["big", "small"]


async def test_what_the_block_raises_comes_out_as_it_is():
    async with scripted(Peer.greet) as url:
        with pytest.raises(LookupError, match="mine"):
            async with open_client(url):
                raise LookupError("mine")


async def test_a_cancelled_block_says_goodbye():
    codes: list[int | None] = []

    async def script(peer: Peer) -> None:
        await peer.greet()
        with pytest.raises(ConnectionClosed) as caught:
            await peer.socket.get_message()
        codes.append(caught.value.reason and caught.value.reason.code)

    async with scripted(script) as url:
        with trio.move_on_after(5) as scope:
            async with open_client(url):
                scope.cancel()
                await trio.sleep_forever()
    assert codes == [1000]


async def test_the_client_works_under_asyncio():
    async def script(peer: Peer) -> None:
        await peer.greet()
        frame = await peer.request("chat.send")
        await peer.answer(frame, {"runId": "k", "status": "started"})
        await peer.event("chat", chat_event("k", "delta", deltaText="a"), 1)
        await peer.event("chat", chat_event("k", "final"), 2)
        await peer.refuse(await peer.request("health"), {"code": "FORBIDDEN", "message": "no"})

    async def main(url: str) -> list[str]:
        async with open_client(url, token="t") as client:
            async with client.chat("main", "hi", key="k") as run:
                states = [event.payload["state"] async for event in run]
            with pytest.raises(GatewayError, match="FORBIDDEN"):
                await client.request("health")
        with pytest.raises(GatewayClosed):
            await client.request("health")
        return states

    async with scripted(script) as url:
        states = await trio.to_thread.run_sync(lambda: anyio.run(main, url, backend="asyncio"))
    assert states == ["delta", "final"]


async def test_a_device_signs_the_v3_payload(tmp_path: Path):
    device = DeviceIdentity.load(tmp_path / "device.key")
    assert DeviceIdentity.load(tmp_path / "device.key").id == device.id
    if os.name == "posix":
        assert (tmp_path / "device.key").stat().st_mode & 0o777 == 0o600
    params: dict[str, Any] = {}

    async def script(peer: Peer) -> None:
        params.update(await peer.greet())

    options: dict[str, Any] = {"client_id": "cli", "mode": "cli", "platform": " Linux ", "scopes": ["operator.read"]}
    async with scripted(script) as url, open_client(url, token="t", device=device, **options):
        pass

    def raw(text: str) -> bytes:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))

    sent = params["device"]
    key = raw(sent["publicKey"])
    assert (sent["id"], sent["nonce"], sent["signedAt"]) == (hashlib.sha256(key).hexdigest(), "n-1", CHALLENGE["ts"])
    payload = f"v3|{device.id}|cli|cli|operator|operator.read|{CHALLENGE['ts']}|t|n-1|linux|"
    Ed25519PublicKey.from_public_bytes(key).verify(raw(sent["signature"]), payload.encode())


def test_importing_the_client_loads_no_loop_and_no_cryptography():
    code = (
        "import sys, triops.gateway.client; print([m for m in ('trio', 'asyncio', 'cryptography') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
