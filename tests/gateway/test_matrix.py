"""Every method × every scope × nobody: who may call what. A method that is not listed here fails."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from tests.kit.host import TOKEN, open_test_gateway
from tests.kit.wire import Closed, Refused, connect_params

from triops.gateway.errors import WireError
from triops.gateway.frames import Request
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
