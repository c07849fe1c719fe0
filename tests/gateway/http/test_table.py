"""What holds for every route, because it is in the table."""

import re
from pathlib import Path

from tests.kit.host import ECHO, open_test_gateway

from triops.gateway.http.table import ROUTES

HOOKS = ECHO | {"hooks": {"enabled": True, "token": "the-hooks-own-secret-of-this-test"}}
OPEN = {"gateway": {"auth": {"mode": "none"}}} | ECHO
TARGETS = [(entry, re.sub(r"{\w+}", "x", entry.path)) for entry in ROUTES]


async def test_no_route_lets_in_who_has_no_secret_or_comes_from_a_foreign_page_or_by_a_foreign_name(
    tmp_path: Path,
) -> None:
    async with open_test_gateway(tmp_path, config=HOOKS) as host:
        for entry, target in TARGETS:
            assert (await host.http(entry.method, target, token=None)).status == 401, target
            assert (await host.http(entry.method, f"{target}?token=x&auth=x", token=None)).status in (400, 401), target
            for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"X-Forwarded-For": "::1"}):
                answer = await host.http(entry.method, target, headers=headers)
                assert answer.status == 403, (target, headers)
                assert "evil" not in str(answer.headers)
        assert host.model.requests == []


async def test_every_route_needs_its_scope_and_takes_no_other_method(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path, config=OPEN) as host:
        for entry, target in TARGETS:
            if entry.style == "hook":
                continue
            wrong = await host.http("DELETE", target, token=None)
            assert wrong.status == 405, target
            assert entry.method in wrong.headers["allow"]
            if entry.scope is None:
                continue
            for scopes in ("", "operator.pairing"):
                answer = await host.http(entry.method, target, token=None, headers={"x-openclaw-scopes": scopes})
                assert answer.status == 403, (target, scopes)
                assert f"missing scope: {entry.scope}" in str(answer.body)


async def test_no_scope_header_narrows_who_has_the_secret(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        assert (await host.http("GET", "/v1/models", headers={"x-openclaw-scopes": ""})).status == 200
