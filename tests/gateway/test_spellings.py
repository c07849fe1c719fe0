"""Sixty ways to write `Host` and `Origin`, against every route and the upgrade: a page that has no business here gets
in nowhere, with the right token too."""

import re
from pathlib import Path

import pytest
from tests.gateway.test_locality import BAD_HOSTS
from tests.kit.host import TestHost, open_test_gateway

from triops.gateway.http.table import ROUTES as TABLE
from triops.gateway.methods import METHODS

pytestmark = pytest.mark.slow

ROUTES = [
    *((route.method, re.sub(r"\{\w+\}", "main", route.path)) for route in TABLE),
    *(("POST", f"/rpc/{name}") for name in sorted(METHODS)),
    *(("GET", f"/{path}") for path in ("health", "healthz", "ready", "readyz", "", "nowhere", "%2e%2e/x")),
    ("OPTIONS", "/status"),
    ("GET", "//status"),
    ("GET", "/rpc%252fstatus"),
]
HOSTS = [host for host in BAD_HOSTS if host and host.isascii() and host.isprintable() and host == host.strip()]
ORIGINS = [
    *(
        "null",
        "",
        "http://",
        "evil.com",
        "http://evil.com",
        "https://evil.com:18789",
        "file://",
        "chrome-extension://abc",
    ),
    *(
        "http://127.0.0.1.evil.com",
        "http://localhost.evil.com",
        "http://localhost@evil.com",
        "http://evil.com#localhost",
    ),
    *("http://localhost:PORT.evil.com", "http://127.1:PORT", "http://2130706433:PORT", "http://0x7f000001:PORT"),
    *("http://[::ffff:10.0.0.1]:PORT", "http://192.168.1.9:PORT", "http://localhost:PORT/", "http://localhost:PORT/x"),
    *("http://localhost:PORT http://localhost:PORT", "http://localhost :PORT", "ws://localhost:PORT", "localhost:PORT"),
    *("http://localhost:0", "http://localhost:99999", "http://localhost:-1", "http:///localhost:PORT", "*"),
]


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


async def statuses(host: TestHost, headers: dict[str, str]) -> set[int]:
    """What all routes and the upgrade answer, the token being right."""
    upgrade = (await host.http("GET", "/", headers=headers | UPGRADE)).status
    return {upgrade} | {
        (await host.http(verb, path, None if verb == "GET" else {}, headers=headers)).status for verb, path in ROUTES
    }


async def test_no_foreign_name_of_ours_gets_in_anywhere(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        for name in HOSTS:
            assert await statuses(host, {"Host": name}) <= {400, 403}, name


async def test_no_foreign_page_gets_in_anywhere(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        before = host.runtime.store.statistics().transactions
        for origin in ORIGINS:
            assert await statuses(host, {"Origin": origin.replace("PORT", str(host.port))}) == {403}, origin
        assert host.runtime.store.statistics().transactions == before


def test_sixty_are_tried() -> None:
    assert len({*HOSTS, *ORIGINS}) >= 60
