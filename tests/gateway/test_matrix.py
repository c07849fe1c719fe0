"""Who may call what. Every method × every scope × nobody; every route of plain HTTP × every credential × every verb.
A method or a route that is not listed here fails."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import trio.testing
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.kit.host import ECHO, TOKEN, TestHost, open_test_gateway
from tests.kit.wire import Closed, Refused, connect_params

from triops.gateway.client import DeviceIdentity
from triops.gateway.errors import WireError
from triops.gateway.frames import Request
from triops.gateway.http.exchange import HttpResponse
from triops.gateway.http.head import Head
from triops.gateway.http.routes import PROBES, Routes
from triops.gateway.http.table import ROUTES
from triops.gateway.methods import METHODS, NODE_METHODS, Call, dispatch
from triops.gateway.scopes import SCOPES, effective

ADMIN, READ, WRITE, PAIRING = (f"operator.{name}" for name in ("admin", "read", "write", "pairing"))
NEEDS: dict[str, str | None] = {
    **dict.fromkeys(("health", "device.scopes.requestUpgrade", "device.scopes.waitUpgrade")),
    **dict.fromkeys(("agent.identity.get", "channels.status", "chat.history", "config.get"), READ),
    **dict.fromkeys(("cron.get", "cron.list", "cron.runs", "cron.status", "gateway.identity.get"), READ),
    **dict.fromkeys(
        ("last-heartbeat", "logs.tail", "models.authStatus", "models.list", "sessions.list", "sessions.subscribe"), READ
    ),
    **dict.fromkeys(("sessions.messages.subscribe", "sessions.messages.unsubscribe"), READ),
    **dict.fromkeys(("sessions.unsubscribe", "status", "system-presence"), READ),
    **dict.fromkeys(
        ("agent", "agent.wait", "chat.abort", "chat.send", "sessions.create", "sessions.send", "wake"), WRITE
    ),
    **dict.fromkeys((f"device.pair.{verb}" for verb in ("approve", "list", "reject", "remove", "rename")), PAIRING),
    **dict.fromkeys(("device.token.revoke", "device.token.rotate"), PAIRING),
    **dict.fromkeys(("cron.add", "cron.remove", "cron.run", "gateway.token.rotate", "sessions.reset"), ADMIN),
}
GRANTS = {
    ADMIN: set(SCOPES),
    WRITE: {WRITE, READ, "operator.talk", "operator.sessions.read", "operator.sessions.write"},
    READ: {READ, "operator.sessions.read"},
    "operator.sessions.write": {"operator.sessions.write", "operator.sessions.read"},
}
"""What a scope stands for besides itself, written from the protocol's prose."""


def test_every_method_is_listed_with_what_it_needs() -> None:
    assert {name: entry.scope for name, entry in METHODS.items()} == NEEDS


async def outcome(method: str, granted: frozenset[str]) -> str:
    """What comes of a call with params that no method takes: whether it was let in so far."""
    services: Any = SimpleNamespace(writes=SimpleNamespace(count=lambda *_: None))
    peer: Any = SimpleNamespace(id="p", scopes=granted, actor="a")
    with pytest.raises(WireError) as refused:
        await dispatch(Call(services, peer, print), Request("req", "r", method, msgspec.Raw(b'"no params"')))
    return refused.value.shape.code


@pytest.mark.parametrize("method", sorted(NEEDS))
async def test_a_method_is_for_those_who_were_granted_it(method: str) -> None:
    for granted in [(), *((scope,) for scope in SCOPES), *itertools.combinations(SCOPES, 2)]:
        has = set(granted).union(*(GRANTS.get(scope, set()) for scope in granted))
        may = NEEDS[method] is None or NEEDS[method] in has
        assert await outcome(method, effective(granted)) == ("INVALID_REQUEST" if may else "FORBIDDEN"), granted


@pytest.mark.parametrize("method", sorted(NODE_METHODS))
async def test_what_is_for_nodes_is_for_no_operator(method: str) -> None:
    services: Any = None
    peer: Any = SimpleNamespace(scopes=frozenset(SCOPES))
    with pytest.raises(WireError, match=r"^unauthorized role: operator$"):
        await dispatch(Call(services, peer, print), Request("req", "r", method, msgspec.Raw(b"{}")))


async def test_nobody_calls_anything_before_he_is_known(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        for method in NEEDS:
            assert (await host.http("POST", f"/rpc/{method}", {}, token=None)).status == 401
            async with host.socket() as socket:
                with pytest.raises(Refused) as refused:
                    await socket.request(method)
                assert "first request must be connect" in refused.value.error["message"]
                assert (await socket.closed()).code == 1008


@pytest.mark.parametrize("role", ["node", "worker", "admin", "operator.admin"])
async def test_no_other_role_gets_in(tmp_path: Path, role: str) -> None:
    async with open_test_gateway(tmp_path) as host, host.socket() as socket:
        with pytest.raises(Refused):
            await socket.connect(connect_params(token=TOKEN) | {"role": role})
        with pytest.raises(Closed):
            await socket.request("health")


async def test_who_keeps_calling_what_his_role_may_not_is_closed(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        for _ in range(11):
            with pytest.raises(Refused, match="unauthorized role: operator"):
                await client.request("node.event")
        closed = await client.closed()
        assert (closed.code, closed.reason) == (1008, "repeated unauthorized calls")


# -- plain HTTP --------------------------------------------------------------------------------------------------------

HOOK = "the-hooks-own-secret-of-the-matrix"
HTTP: dict[str, str | None] = {
    **dict.fromkeys(("POST /rpc/{method}", "POST /hooks/wake", "POST /hooks/agent", "POST /hooks/{name}")),
    **dict.fromkeys(("GET /status", "GET /metrics", "GET /sessions", "GET /sessions/{key}", "GET /heartbeat"), READ),
    **dict.fromkeys(("GET /v1/models", "GET /v1/models/{id}", "GET /api/openapi.json", "GET /webchat/messages"), READ),
    **dict.fromkeys(("GET /sessions/{key}/history", "GET /v1/runs/{id}", "GET /v1/runs/{id}/events"), READ),
    **dict.fromkeys(("POST /webchat/messages", "POST /heartbeat", "POST /sessions/{key}/ping"), WRITE),
    **dict.fromkeys(("POST /v1/chat/completions", "POST /v1/responses", "POST /v1/runs"), WRITE),
    **dict.fromkeys(("POST /v1/runs/{id}/stop", "POST /tools/invoke"), WRITE),
    "POST /sessions/{key}/kill": ADMIN,
}
"""What each route needs; of `/rpc`, the method decides."""
PATHS = sorted({entry.partition(" ")[2] for entry in HTTP})
VERBS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get")
ON = ECHO | {"gateway": {"http": {"endpoints": {name: {"enabled": True} for name in ("chatCompletions", "responses")}}}}


def test_every_route_is_listed_with_what_it_needs() -> None:
    assert {f"{entry.method} {entry.path}": entry.scope for entry in ROUTES} == HTTP


async def statuses(host: TestHost, path: str, *headers: tuple[bytes, bytes]) -> dict[str, int]:
    """What the heads of all verbs get; 0 for one that is let in."""
    routes = Routes(host.gateway.services, "127.0.0.1", stopping=lambda: False)
    told: dict[str, int] = {}
    for verb in VERBS:
        answer = await routes.admit(
            Head(verb, path.replace("{", "").replace("}", ""), ((b"host", b"localhost"), *headers))
        )
        told[verb] = answer.status if isinstance(answer, HttpResponse) else 0
    return told


def spellings(path: str) -> list[str]:
    """`path` with the first letter of each of its segments, one after the other, written as a number."""
    segments = path.replace("{", "").replace("}", "").split("/")
    return [
        "/".join([*segments[:at], f"%{ord(segment[0]):02x}{segment[1:]}", *segments[at + 1 :]])
        for at, segment in enumerate(segments)
        if segment
    ]


def expected(path: str, granted: set[str]) -> dict[str, int]:
    """What somebody with these scopes gets."""
    told: dict[str, int] = {}
    for verb in VERBS:
        entry = f"{'GET' if verb == 'HEAD' else verb} {path}"
        if entry not in HTTP:
            told[verb] = 405 if path in PATHS else 404
        else:
            told[verb] = 0 if HTTP[entry] in (None, *granted) else 403
    return told


async def device_token(host: TestHost, *scopes: str) -> str:
    device = DeviceIdentity(Ed25519PrivateKey.generate())
    async with host.socket() as client:
        challenge = await client.event("connect.challenge")
        params = connect_params(token=TOKEN, client="test", mode="test", scopes=scopes)
        hello = await client.request("connect", params | {"device": device.proof(params, challenge)})
        assert set(hello["auth"]["scopes"]) == set(scopes)
        return hello["auth"]["deviceToken"]


def bearer(token: str) -> tuple[bytes, bytes]:
    return (b"authorization", f"Bearer {token}".encode())


async def test_hooks_are_where_the_configuration_wants_them_and_opened_by_their_secret_alone(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """However their path is spelled, and though the mode `none` asks nobody else for a secret."""
    hooks = {"enabled": True, "token": HOOK}
    for place in ("/hooks", "my/own place"):
        config = ON | {"gateway": ON["gateway"] | {"auth": {"mode": "none"}}, "hooks": hooks | {"path": place}}
        async with open_test_gateway(tmp_path / place.strip("/")[:2], config=config, virtual=True) as host:
            there = "/" + place.strip("/").replace(" ", "%20")
            for name in ("wake", "agent", "{name}"):
                for spelled in (f"{there}/{name}", *spellings(f"{there}/{name}".replace("%20", " "))):
                    path = spelled.replace(" ", "%20")
                    for headers in ((), ((b"x-openclaw-scopes", b""),), (bearer(TOKEN),)):
                        assert set((await statuses(host, path, *headers)).values()) == {401}, path
                    assert await statuses(host, path, bearer(HOOK)) == expected(f"/hooks/{name}", set(SCOPES)), path
                if place != "/hooks":
                    for path in (f"/hooks/{name}", *spellings(f"/hooks/{name}")):
                        assert set((await statuses(host, path, bearer(HOOK))).values()) == {404}, path


def test_a_route_that_needs_no_scope_is_a_hook_or_has_a_method_that_decides() -> None:
    assert {entry.path for entry in ROUTES if entry.scope is None and entry.style != "hook"} == {"/rpc/{method}"}


@pytest.mark.slow
async def test_a_route_is_for_those_who_have_its_own_credential(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    config = ON | {"hooks": {"enabled": True, "token": HOOK}}
    async with open_test_gateway(tmp_path, config=config, virtual=True) as host:
        devices = [await device_token(host, scope) for scope in SCOPES]
        devices.append(await device_token(host, *SCOPES))
        nobody = dict.fromkeys(VERBS, 401)
        for path in (*PATHS, "/nowhere", "/", "/sessions/a/b/c"):
            is_hook = path.startswith("/hooks/")
            if path in PATHS:
                given = bearer(HOOK if is_hook else TOKEN)
                for spelled in spellings(path):
                    assert await statuses(host, spelled) == nobody, spelled
                    assert await statuses(host, spelled, given) == expected(path, set(SCOPES)), spelled
            for token in (None, "", "wrong", f"{TOKEN} ", f"{TOKEN}x", f"x {TOKEN}", HOOK, TOKEN, *devices):
                own = (token or "").strip() == (HOOK if is_hook else TOKEN)
                given = () if token is None else (bearer(token),)
                wanted = expected(path, set(SCOPES)) if own else nobody
                assert await statuses(host, path, *given) == wanted, (path, token)
            for headers in ([(b"x-openclaw-scopes", b"operator.admin")], [bearer(TOKEN), bearer(TOKEN)]):
                assert await statuses(host, path, *headers) == nobody, (path, headers)
        for path in PROBES:
            told = {verb: 200 if verb in ("GET", "HEAD") else 405 for verb in VERBS}
            for token in ("wrong", HOOK, TOKEN, *devices):
                assert await statuses(host, path) == await statuses(host, path, bearer(token)) == told


async def test_without_a_secret_a_route_is_for_the_scopes_that_the_request_keeps(tmp_path: Path) -> None:
    config = ON | {"gateway": ON["gateway"] | {"auth": {"mode": "none"}}}
    async with open_test_gateway(tmp_path, config=config) as host:
        for path in PATHS:
            if path.startswith("/hooks/"):
                assert set((await statuses(host, path)).values()) == {
                    404
                }  # there are none without a secret of their own
                continue
            assert await statuses(host, path) == expected(path, set(SCOPES))
            for granted in [(), *((scope,) for scope in SCOPES)]:
                has = set(granted).union(*(GRANTS.get(scope, set()) for scope in granted))
                kept = (b"x-openclaw-scopes", ",".join(granted).encode())
                assert await statuses(host, path, kept) == expected(path, has), (path, granted)
