"""What plain HTTP serves, through the whole gateway."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from tests.kit.host import TOKEN, TestHost, open_test_gateway
from tests.kit.wire import Refused, read_answer

from triops.gateway.admission import MAX_PARKED
from triops.gateway.http.table import ROUTES as TABLE

ROUTES = [
    ("GET", "/healthz", None),
    ("GET", "/readyz", None),
    ("GET", "/status", None),
    ("GET", "/metrics", None),
    ("GET", "/sessions", None),
    ("GET", "/sessions/agent:main:main", None),
    ("GET", "/sessions/agent%3Amain%3Amain", None),
    ("GET", "/sessions/main", None),
    ("GET", "/webchat/messages", None),
    ("GET", "/webchat/messages?limit=1&sessionKey=main", None),
    ("POST", "/webchat/messages?wait=final", {"message": "SAY:one"}),
    ("POST", "/webchat/messages", {"text": "SAY:two", "sessionKey": "other"}),
    ("POST", "/sessions/main/ping", None),
    ("GET", "/heartbeat", None),
    ("POST", "/heartbeat", None),
    ("POST", "/rpc/health", {}),
    ("POST", "/rpc/health", None),
]


async def test_every_route_answers_with_data(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        await host.rpc("chat.send", {"sessionKey": "main", "message": "SAY:x", "idempotencyKey": "k"}, final=True)
        for method, target, body in ROUTES:
            answer = await host.http(method, target, body)
            assert answer.status == 200, (method, target, answer)
            kind = "text/plain; version=0.0.4" if target == "/metrics" else "application/json"
            assert answer.headers["content-type"].startswith(kind)
            if method == "GET":
                head = await host.http("HEAD", target)
                assert (head.status, head.body) == (200, None), target
                assert head.headers.keys() == answer.headers.keys()
        status = (await host.http("GET", "/status")).body
        assert status["runtimeVersion"] == "0.0.0-test"
        assert status["models"]["default"] == "scripted/echo"
        assert status["cron"]["enabled"] is True
        assert status["sessions"]["count"] == 2
        assert {"runs", "cron", "warmup", "store", "bus", "connections"} <= status["statistics"].keys()
        messages = (await host.http("GET", "/webchat/messages")).body["messages"]
        assert [message["role"] for message in messages[:2]] == ["user", "assistant"]
        assert host.warnings() == []


async def test_probes_need_no_token_and_take_get_and_head_only(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        for path in ("/health", "/healthz", "/ready", "/readyz"):
            assert (await host.http("GET", path, token=None)).status == 200
            head = await host.http("HEAD", path, token=None)
            assert (head.status, head.body) == (200, None)
            refused = await host.http("POST", path, token=None)
            assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD")
        assert (await host.http("GET", "/healthz")).body == {"ok": True, "status": "live"}
        ready = (await host.http("GET", "/readyz")).body
        assert (ready["ready"], ready["failing"]) == (True, [])
        assert (await host.http("GET", "/health/x")).status == 404


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/rpc/health", "POST"),
        ("HEAD", "/rpc/health", "POST"),
        ("DELETE", "/status", "GET, HEAD"),
        ("POST", "/metrics", "GET, HEAD"),
        ("POST", "/sessions", "GET, HEAD"),
        ("PUT", "/sessions/main", "GET, HEAD"),
        ("PATCH", "/webchat/messages", "GET, HEAD, POST"),
        ("OPTIONS", "/heartbeat", "GET, HEAD, POST"),
        ("GET", "/sessions/main/ping", "POST"),
    ],
)
async def test_a_method_that_a_route_does_not_take_is_405_with_those_it_does(
    tmp_path: Path, method: str, path: str, allow: str
) -> None:
    async with open_test_gateway(tmp_path) as host:
        answer = await host.http(method, path)
        assert (answer.status, answer.headers["allow"]) == (405, allow)


async def test_what_does_not_exist_is_404(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        for path in ("/", "/nothing", "/rpc", "/rpc/a/b", "/sessions/a/b/c"):
            answer = await host.http("GET", path)
            assert (answer.status, answer.body["error"]["type"]) == (404, "not_found"), path
        unknown = await host.http("GET", "/sessions/agent:main:nowhere")
        assert unknown.status == 404
        assert (await host.http("POST", "/sessions/agent:main:nowhere/ping")).status == 404


async def test_every_route_but_the_probes_needs_the_token(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        every = [(route.method, re.sub(r"\{\w+\}", "main", route.path), None) for route in TABLE]
        for method, target, body in [*ROUTES[2:], *every]:
            missing = await host.http(method, target, body, token=None)
            assert (missing.status, missing.body["error"]["details"]["code"]) == (401, "AUTH_TOKEN_MISSING"), target
            assert missing.headers["www-authenticate"] == "Bearer"
        wrong = await host.http("GET", "/status", token="wrong-token-of-somebody")
        assert (wrong.status, wrong.body["error"]["details"]["code"]) == (401, "AUTH_TOKEN_MISMATCH")
        basic = await host.http("GET", "/status", headers={"Authorization": f"Basic {TOKEN}"}, token=None)
        assert basic.status == 401
        assert (
            await host.http("GET", "/status", headers={"Authorization": f"bearer {TOKEN}"}, token=None)
        ).status == 200
        assert "wrong-token-of-somebody" not in str(host.log)


async def test_who_guesses_from_elsewhere_is_locked_out_and_others_are_not(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_test_gateway(tmp_path, virtual=True) as host:
        statuses = [
            (await host.http("GET", "/status", token=f"guess-{n}", address="10.0.0.5")).status for n in range(11)
        ]
        assert statuses == [401] * 10 + [429]
        locked = await host.http("GET", "/status", address="10.0.0.5")
        assert locked.status == 429
        assert 0 < int(locked.headers["retry-after"]) <= 300
        assert locked.body["error"]["details"]["code"] == "AUTH_RATE_LIMITED"
        assert (await host.http("GET", "/status", address="10.0.0.6")).status == 200
        assert (await host.http("GET", "/status")).status == 200


@pytest.mark.parametrize("host_header", ["evil.example", "evil.example:{port}", "10.0.0.1", "localhost.", ""])
async def test_a_foreign_host_is_refused_because_a_page_may_have_rebound_its_name(
    tmp_path: Path, host_header: str
) -> None:
    async with open_test_gateway(tmp_path) as host:
        answer = await host.http("GET", "/status", headers={"Host": host_header.format(port=host.port)})
        assert answer.status == 403
        assert answer.body["error"]["details"]["code"] == "HOST_NOT_ALLOWED"
        probe = await host.http("GET", "/healthz", headers={"Host": host_header.format(port=host.port)})
        assert probe.status == 403
        assert {record.fields["details"]["code"] for record in host.warnings()} == {"HOST_NOT_ALLOWED"}


async def test_hosts_that_name_this_machine_are_served(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        for name in ("127.0.0.1", "localhost", "LOCALHOST", "[::1]", "127.0.0.2"):
            for port in (f":{host.port}", ":9000", ""):  # a tunnel or a port map has its own
                answer = await host.http("GET", "/healthz", headers={"Host": name + port})
                assert answer.status == 200, name


async def test_a_foreign_page_is_refused_even_with_the_token(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        for origin in ("https://evil.example", "null", "file://", f"http://evil.example:{host.port}"):
            answer = await host.http("POST", "/rpc/health", {}, headers={"Origin": origin})
            assert answer.status in (400, 403), origin
            assert answer.body["error"]["details"]["code"] == "CONTROL_UI_ORIGIN_NOT_ALLOWED"
        own = await host.http("POST", "/rpc/health", {}, headers={"Origin": f"http://127.0.0.1:{host.port}"})
        assert own.status == 200


async def test_a_page_of_this_machine_is_heard_where_a_token_is_asked_for(tmp_path: Path) -> None:
    origin = {"Origin": "http://localhost:5173"}  # the Control UI's development server
    async with open_test_gateway(tmp_path / "token") as host:
        assert (await host.http("GET", "/status", headers=origin)).status == 200
        assert (await host.http("GET", "/status", headers=origin, token=None)).status == 401
        async with host.socket(headers=origin) as socket:
            await socket.event("connect.challenge")
    open_to_all = {"gateway": {"auth": {"mode": "none"}}}
    async with open_test_gateway(tmp_path / "none", config=open_to_all, providers=()) as host:
        assert (await host.http("GET", "/status", headers=origin)).status == 403
        with pytest.raises(Refused, match="403"):
            async with host.socket(headers=origin):
                pass


async def test_forwarded_requests_are_refused(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        for header in ("X-Forwarded-For", "Forwarded", "Via", "X-Real-IP", "CF-Connecting-IP"):
            answer = await host.http("GET", "/status", headers={header: "10.1.2.3"})
            assert answer.status == 403
            assert answer.body["error"]["details"]["code"] == "PROXY_ATTRIBUTION_REQUIRED"


async def test_faults_of_the_caller_have_their_status_and_path(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        cases: list[tuple[str, str, Any, int, str]] = [
            ("POST", "/rpc/no.such", {}, 400, "unknown method"),
            ("POST", "/rpc/chat.send", b"{nonsense", 400, "malformed JSON"),
            ("POST", "/rpc/chat.send", {"sessionKey": 1}, 400, "/sessionKey"),
            ("POST", "/rpc/chat.send", {"sessionKey": "m", "message": "x", "idempotencyKey": "k", "z": 1}, 400, "'z'"),
            ("POST", "/rpc/sessions.subscribe", {}, 400, "only subscribes a socket"),
            ("POST", "/rpc/sessions.messages.subscribe", {"key": "main"}, 400, "only subscribes a socket"),
            ("GET", "/webchat/messages?limit=many", None, 400, "/limit"),
            ("GET", "/webchat/messages?limit=0", None, 400, "/limit"),
            ("GET", "/webchat/messages?limit=%C2%B2", None, 400, "/limit"),
            ("GET", "/sessions?limit=x", None, 400, "/limit"),
            ("GET", "/sessions?limit=" + "9" * 5000, None, 400, "/limit"),
            ("GET", "/sessions?nonsense=1", None, 400, "'nonsense'"),
            ("GET", "/sessions/main?nonsense=1", None, 400, "'nonsense'"),
            ("GET", "/status?wait=final", None, 400, "/wait"),
            ("POST", "/rpc/health?wait=bogus", {}, 400, "/wait"),
            ("POST", "/webchat/messages?wait=", {"message": "x"}, 400, "/wait"),
            ("POST", "/webchat/messages?nonsense=1", {"message": "x"}, 400, "'nonsense'"),
            ("POST", "/webchat/messages", {"message": "x", "session": "other"}, 400, "'session'"),
            ("POST", "/heartbeat", {"text": "x"}, 400, "'text'"),
            ("POST", "/heartbeat", b"{nonsense", 400, "malformed JSON"),
            ("POST", "/sessions/main/ping", {"x": 1}, 400, "'x'"),
            ("GET", "/sessions/" + "k" * 10_000, None, 400, "at most 512"),
            ("GET", "/sessions?offset=" + "9" * 30, None, 400, "/offset"),
            ("POST", "/webchat/messages", b"[]", 400, "body"),
            ("POST", "/webchat/messages", {"message": "  "}, 400, "message"),
            ("GET", "/sessions/agent:nobody:main", None, 400, "nobody"),
            ("GET", "/sessions/%00", None, 400, "control"),
            ("POST", "/rpc/agent.wait", {"runId": "x", "timeoutMs": 10**400}, 400, "/timeoutMs"),
        ]
        for method, target, body, status, words in cases:
            answer = await host.http(method, target, body)
            assert answer.status == status, (target, answer)
            assert words in answer.body["error"]["message"], (target, answer)


async def test_chat_answers_with_the_ack_or_with_the_end(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        send = {"sessionKey": "main", "message": "SAY:hello", "idempotencyKey": "k1"}
        ack = await host.rpc("chat.send", send)
        assert ack == {"runId": "k1", "status": "started", "messageSeq": 1}
        await host.rpc("agent.wait", {"runId": "k1", "timeoutMs": 10_000})  # else it may take the next message in
        end = await host.rpc("chat.send", send | {"idempotencyKey": "k2"}, final=True)
        assert (end["status"], end["state"], end["text"], end["model"]) == ("ok", "final", "hello", "echo")
        again = await host.rpc("chat.send", send | {"idempotencyKey": "k2"}, final=True)
        assert again == end
        failed = await host.rpc("chat.send", send | {"idempotencyKey": "k3", "message": "FAIL:400"}, final=True)
        assert (failed["status"], failed["state"]) == ("error", "error")
        assert failed["error"]
        conflict = await host.http("POST", "/rpc/chat.send", send | {"message": "SAY:other"})
        assert conflict.status == 409
        agent = await host.rpc("agent", {"message": "SAY:hi", "idempotencyKey": "k4"}, final=True)
        assert agent["text"] == "hi"
        accepted = await host.rpc("agent", {"message": "SAY:hi", "idempotencyKey": "k5"})
        assert accepted["status"] == "accepted"


async def test_the_ack_of_agent_over_http_says_how_a_known_run_stands(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        ask = {"message": "HANG", "idempotencyKey": "k"}
        assert (await host.rpc("agent", ask))["status"] == "accepted"
        assert (await host.rpc("agent", ask))["status"] == "in_flight"
        await host.rpc("chat.abort", {"sessionKey": "main"})
        await host.rpc("agent.wait", {"runId": "k"})
        over = await host.rpc("agent", ask)
        assert (over["status"], over["summary"]) == ("timeout", "aborted")


async def test_a_client_that_leaves_while_it_waits_for_the_end_stops_the_run(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as watcher:
        stream = host.dial()
        body = json.dumps({"sessionKey": "main", "message": "HANG", "idempotencyKey": "k"})
        head = f"POST /rpc/chat.send?wait=final HTTP/1.1\r\nHost: 127.0.0.1:{host.port}\r\n"
        head += f"Authorization: Bearer {TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n"
        await stream.send_all(head.encode() + body.encode())
        await watcher.event("agent", runId="k", stream="lifecycle")
        await stream.aclose()
        terminal = await watcher.terminal("k")
        assert (terminal["state"], terminal["stopReason"]) == ("aborted", "rpc")


async def test_a_busy_session_is_503_with_a_time_to_try_again(tmp_path: Path) -> None:
    config = {
        "agents": {"defaults": {"model": {"primary": "scripted/echo"}}},
        "messages": {"queue": {"cap": 2, "mode": "followup"}},
    }
    async with open_test_gateway(tmp_path, config=config) as host:
        answers = [
            await host.http("POST", "/rpc/chat.send", {"sessionKey": "m", "message": "HANG", "idempotencyKey": f"k{n}"})
            for n in range(4)
        ]
        assert [answer.status for answer in answers] == [200, 200, 200, 503]
        assert answers[-1].headers["retry-after"] == "1"
        assert answers[-1].body["error"]["retryable"] is True


async def test_so_many_may_wait_and_no_more(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, trio.open_nursery() as nursery:
        waits = {"runId": "to-come", "timeoutMs": 600_000}
        for _ in range(MAX_PARKED):
            nursery.start_soon(host.http, "POST", "/rpc/agent.wait", waits)
        with trio.fail_after(10):
            while host.gateway.services.parking.taken < MAX_PARKED:
                await trio.testing.wait_all_tasks_blocked()
        send = {"sessionKey": "main", "message": "SAY:x", "idempotencyKey": "k"}
        for target, body in (
            ("/rpc/agent.wait", waits),
            ("/rpc/chat.send?wait=final", send),
            ("/webchat/messages?wait=final", {"message": "x"}),
            ("/heartbeat", None),
        ):
            refused = await host.http("POST", target, body)
            error = refused.body["error"]
            assert (refused.status, error["code"], error["retryable"]) == (503, "UNAVAILABLE", True), target
            assert refused.headers["retry-after"] == "1"
        told = [record.fields["status"] for record in host.log if record.message == "refused a call"]
        assert told == [503] * 4
        assert (await host.rpc("chat.send", send))["status"] == "started"
        nursery.cancel_scope.cancel()
        with trio.fail_after(10):
            while host.gateway.services.parking.taken:
                await trio.testing.wait_all_tasks_blocked()
    assert host.model.requests


async def test_control_plane_writes_are_limited(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        statuses = [(await host.http("POST", "/rpc/cron.remove", {"id": "x"})).status for _ in range(31)]
        assert statuses == [404] * 30 + [429]


async def test_two_requests_on_one_connection_over_the_real_port(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        async with await trio.open_tcp_stream("127.0.0.1", host.port) as stream:
            for _ in range(2):
                await stream.send_all(f"GET /healthz HTTP/1.1\r\nHost: localhost:{host.port}\r\n\r\n".encode())
                assert (await read_answer(stream)).status == 200


async def test_readyz_says_no_while_the_gateway_stops(tmp_path: Path) -> None:
    probe = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with open_test_gateway(tmp_path, grace=30) as host:
        await host.rpc("chat.send", {"sessionKey": "main", "message": "HANG", "idempotencyKey": "k"})
        stream = host.dial()
        await stream.send_all(probe)
        assert (await read_answer(stream)).status == 200
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.gateway.stop)
            await trio.testing.wait_all_tasks_blocked()
            await stream.send_all(probe)
            answer = await read_answer(stream)
            assert (answer.status, answer.body["ready"]) == (503, False)
            assert answer.body["failing"] == ["the gateway is stopping"]
            await stream.send_all(probe.replace(b"readyz", b"healthz"))
            assert (await read_answer(stream)).status == 200
            run = host.runtime.runs.open_run("k")
            assert run is not None
            host.runtime.runs.abort(run, "rpc")


async def raw(host: TestHost, data: bytes) -> tuple[int, str]:
    """What bytes on the real port are answered with."""
    async with await trio.open_tcp_stream("127.0.0.1", host.port) as stream:
        await stream.send_all(data)
        answer = await read_answer(stream)
        return answer.status, answer.body["error"]["message"]


async def test_heads_that_cannot_be_served_are_refused_on_the_real_port(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        assert (await raw(host, b"nonsense\r\n\r\n"))[0] == 400
        assert (await raw(host, b"GET / HTTP/1.1\r\nX: " + b"x" * 200_000 + b"\r\n\r\n"))[0] == 431
        post = f"POST /rpc/health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n{{}}\r\n{'x' * 3_000_000}"
        assert (await raw(host, post.format("").encode()))[0] == 401
        assert (await raw(host, post.format(f"Authorization: Bearer {TOKEN}\r\n").encode()))[0] == 413


async def test_a_call_that_is_refused_leaves_a_line(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        for method, path in (("POST", "/rpc/nope"), ("GET", "/nowhere"), ("PUT", "/status")):
            await host.http(method, path, {} if method == "POST" else None)
        told = [record.fields for record in host.log if record.message == "refused a call"]
        assert [(line["call"], line["status"]) for line in told] == [
            ("POST /rpc/nope", 400),
            ("GET /nowhere", 404),
            ("PUT /status", 405),
        ]
        assert "unknown method: nope" in str(told[0]["reason"])
