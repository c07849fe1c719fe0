import pytest

from triops.gateway.errors import WireError
from triops.gateway.locality import (
    check_host,
    check_origin,
    is_browser,
    is_loopback,
    locality,
    normalise_address,
    single_header,
)

LOCAL = ["127.0.0.1", "127.8.9.10", "::1", "0:0:0:0:0:0:0:1", "::ffff:127.0.0.1", "::FFFF:7f00:1", "::1%lo"]
REMOTE = [
    "192.168.1.9",
    "10.0.0.1",
    "203.0.113.7",
    "::ffff:203.0.113.7",
    "fe80::1%eth0",
    "fe80::1%lo",
    "2001:db8::1",
    "::127.0.0.1",
    "2002:7f00:1::",
    "64:ff9b::127.0.0.1",
    "0.0.0.0",
    "::",
    "",
    "localhost",
    "127.1",
    "127.0.0.1.evil.com",
    "127.0.0.1:80",
    "[::1]",
    "memory",
]


@pytest.mark.parametrize("peer", LOCAL)
def test_a_loopback_socket_is_local(peer: str) -> None:
    assert is_loopback(peer)
    assert locality(peer, [(b"host", b"localhost"), (b"origin", b"http://evil.com")]) == "direct_local"


@pytest.mark.parametrize("peer", REMOTE)
def test_no_other_socket_is_local(peer: str) -> None:
    assert not is_loopback(peer)
    assert locality(peer, [(b"host", b"localhost:18789")]) == "remote"


@pytest.mark.parametrize(
    "header",
    [
        b"forwarded",
        b"via",
        b"x-real-ip",
        b"x-client-ip",
        b"true-client-ip",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-forwarded-anything",
        b"tailscale-user-login",
        b"tailscale-user-name",
        b"tailscale-user-profile-pic",
        b"tailscale-headers-info",
        b"tailscale-funnel-request",
        b"cf-connecting-ip",
    ],
)
@pytest.mark.parametrize("peer", ["127.0.0.1", "203.0.113.7"])
def test_who_speaks_for_another_is_nobodys_neighbour(peer: str, header: bytes) -> None:
    assert locality(peer, [(b"host", b"localhost"), (header, b"")]) == "proxied"


@pytest.mark.parametrize(
    ("spelling", "normal"),
    [
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("203.0.113.7", "203.0.113.7"),
        ("fe80::1%eth0", "fe80::1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("memory", "memory"),
    ],
)
def test_a_peer_has_one_spelling(spelling: str, normal: str) -> None:
    assert normalise_address(spelling) == normal


def test_a_header_counts_once() -> None:
    headers = [(b"host", b"a"), (b"origin", b"b"), (b"host", b"c")]
    assert single_header(headers, b"origin") == "b"
    assert single_header(headers, b"cookie") is None
    assert single_header(headers, b"host") == "a, c"
    assert not check_host(single_header([(b"host", b"localhost")] * 2, b"host"), bind_host="127.0.0.1")


GOOD_HOSTS = [
    "localhost:18789",
    "LocalHost:18789",
    "127.0.0.1:18789",
    "127.0.0.2:18789",
    "[::1]:18789",
    "[0:0:0:0:0:0:0:1]:18789",
    "[::ffff:127.0.0.1]:18789",
    "localhost",
    "localhost:9000",
    "localhost:65535",
    "127.0.0.1:80",
    "[::1]",
]
BAD_HOSTS = [
    None,
    "",
    ":18789",
    "localhost:",
    "localhost:0",
    "localhost:018789",
    "localhost:+18789",
    "localhost: 18789",
    "localhost:18789 ",
    " localhost:18789",
    "localhost:18789,localhost:18789",
    "localhost:١٨٧٨٩",
    "localhost:187890",
    "localhost:65536",
    "localhost:99999",
    "localhost:18789:18789",
    "localhost.:18789",
    "localhost..:18789",
    ".localhost:18789",
    "localhost.evil.com:18789",
    "evil-localhost:18789",
    "localhost.localdomain:18789",
    "xlocalhost:18789",
    "user@localhost:18789",
    "localhost@evil.com:18789",
    "localhost#evil.com:18789",
    "localhost/evil.com:18789",
    "localhost\\evil.com:18789",
    "localhost%00.evil.com:18789",
    "localhost\x00:18789",
    "localhost\n:18789",
    "127.evil.com:18789",
    "127.0.0.1.evil.com:18789",
    "127.0.0.1.nip.io:18789",
    "127.0.0.1.:18789",
    "127.1:18789",
    "127.0.1:18789",
    "127.0.0.01:18789",
    "0177.0.0.1:18789",
    "0x7f.0.0.1:18789",
    "2130706433:18789",
    "0:18789",
    "0.0.0.0:18789",
    "1270.0.0.1:18789",
    "128.0.0.1:18789",
    "192.168.1.9:18789",
    "::1:18789",
    "::1",
    "[::1]18789",
    "[::1:18789",
    "[::1%25lo]:18789",
    "[::1%lo]:18789",
    "[127.0.0.1]:18789",
    "[localhost]:18789",
    "[::]:18789",
    "[::ffff:203.0.113.7]:18789",
    "[fe80::1]:18789",
    "ⓛocalhost:18789",
    "lоcalhost:18789",
    "http://localhost:18789",
    "evil.com:18789",
    "evil.com",
    "gateway.local:18789",
]


@pytest.mark.parametrize("host", GOOD_HOSTS)
def test_a_host_that_can_only_be_this_machine_is_taken(host: str) -> None:
    assert check_host(host, bind_host="127.0.0.1")


@pytest.mark.parametrize("host", BAD_HOSTS)
def test_a_host_that_a_name_could_be_pointed_at_is_refused(host: str | None) -> None:
    assert not check_host(host, bind_host="127.0.0.1")
    assert not check_host(host, bind_host="x")


def test_sixty_spellings_are_tried() -> None:
    assert len({*GOOD_HOSTS, *BAD_HOSTS}) >= 60


@pytest.mark.parametrize("bound", ["192.168.1.9", "::ffff:192.168.1.9"])
def test_the_address_that_we_are_bound_to_is_ours(bound: str) -> None:
    assert check_host("192.168.1.9:1", bind_host=bound)
    assert not check_host("192.168.1.10:1", bind_host=bound)
    assert not check_host("evil.com:1", bind_host=bound)


@pytest.mark.parametrize("bound", ["0.0.0.0", "::"])
def test_bound_to_every_address_any_literal_is_ours_and_no_name(bound: str) -> None:
    assert check_host("192.168.1.10:1", bind_host=bound)
    assert check_host("[2001:db8::1]:1", bind_host=bound)
    assert not check_host("evil.com:1", bind_host=bound)


def test_a_bound_name_is_taken_as_it_is() -> None:
    assert check_host("gateway.lan:1", bind_host="Gateway.lan")
    assert not check_host("evil.com:1", bind_host="Gateway.lan")
    assert not check_host("192.168.1.9:1", bind_host="Gateway.lan")


OWN = "localhost:18789"


def refusal(origin: str | None, **about: object) -> str | None:
    """The reason that `origin` is refused for."""
    known: dict[str, object] = {"host": OWN, "locality": "direct_local"}
    try:
        check_origin(origin, **(known | about))  # type: ignore[arg-type]  # the keyword arguments vary by test
    except WireError as error:
        shape = error.shape
        assert shape.code == "INVALID_REQUEST"
        assert shape.message == (
            "origin not allowed (open the Control UI from the gateway host or allow it in "
            "gateway.controlUi.allowedOrigins)"
        )
        assert shape.details is not None
        assert shape.details["code"] == "CONTROL_UI_ORIGIN_NOT_ALLOWED"
        return shape.details["reason"]
    return None


NOT_ALLOWED, INVALID = "origin not allowed", "origin missing or invalid"


def test_who_is_no_browser_needs_no_origin() -> None:
    assert refusal(None) is None
    assert refusal(None, browser=True) == INVALID


@pytest.mark.parametrize(
    ("client", "mode", "browser"),
    [
        ("openclaw-control-ui", "ui", True),
        ("openclaw-browser-copilot", "ui", True),
        ("webchat-ui", "ui", True),
        ("cli", "webchat", True),
        ("openclaw-tui", "ui", False),
        ("gateway-client", "backend", False),
    ],
)
def test_browser_clients_are_known_by_id_or_mode(client: str, mode: str, browser: bool) -> None:
    assert is_browser(client, mode) is browser


def test_our_own_page_is_let_in() -> None:
    assert refusal("http://localhost:18789") is None
    assert refusal("HTTP://LOCALHOST:18789") is None
    assert refusal("http://127.0.0.1:18789", host="127.0.0.1:18789") is None
    assert refusal("http://[::1]:18789", host="[::1]:18789") is None
    assert refusal("http://localhost:9000", host="localhost:9000") is None
    assert refusal("http://localhost", host="localhost") is None
    assert refusal("http://localhost", host="localhost:80") is None
    assert refusal("https://localhost", host="localhost:443") is None
    assert refusal("http://192.168.1.9:18789", host="192.168.1.9:18789", locality="remote") is None


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost:3000",
        "https://localhost:18789.evil.com",
        "http://127.0.0.1:18789",
        "http://localhost",
        "http://evil.com",
        "http://evil.com:18789",
        "http://localhost.evil.com:18789",
        "http://127.evil.com:18789",
        "http://gateway.local:18789",
        "http://203.0.113.7:18789",
        "tauri://localhost:18789",
        "chrome-extension://abcdefgh",
        "ws://localhost:18789",
    ],
)
def test_no_other_page_is(origin: str) -> None:
    assert refusal(origin) in (NOT_ALLOWED, INVALID)
    assert refusal(origin, browser=True) in (NOT_ALLOWED, INVALID)


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "file://",
        "localhost:18789",
        "//localhost:18789",
        "http:/localhost:18789",
        "http://",
        "http://localhost:18789/",
        "http://localhost:18789/path",
        "http://localhost:18789?x",
        "http://localhost:18789#x",
        "http://user@localhost:18789",
        "http://localhost@evil.com",
        "http://localhost.:18789",
        "http://localhost:0",
        "http://localhost:18789 http://evil.com",
        "http://localhost:18789, http://localhost:18789",
        " http://localhost:18789",
        "http://lоcalhost:18789",
        "http://[localhost]:18789",
    ],
)
def test_an_origin_that_is_none_is_refused_even_where_all_are_allowed(origin: str) -> None:
    assert refusal(origin) == INVALID
    assert refusal(origin, allowed=[origin], local_pages=True) == INVALID


def test_listed_origins_are_let_in_as_they_are_spelled() -> None:
    allowed = ["https://ui.example.com", "tauri://localhost"]
    assert refusal("https://UI.example.com", allowed=allowed, locality="remote") is None
    assert refusal("tauri://localhost", allowed=allowed) is None
    assert refusal("https://ui.example.com:8443", allowed=allowed) == NOT_ALLOWED
    assert refusal("http://ui.example.com", allowed=allowed) == NOT_ALLOWED
    assert refusal("https://xui.example.com", allowed=allowed) == NOT_ALLOWED
    assert refusal("tauri://127.0.0.1:18789") == NOT_ALLOWED


def test_pages_of_other_ports_of_this_machine_need_leave_and_a_local_socket() -> None:
    for origin in ("http://localhost:3000", "https://127.0.0.1:3000", "http://[::1]:3000"):
        assert refusal(origin) == NOT_ALLOWED
        assert refusal(origin, local_pages=True) is None
        assert refusal(origin, local_pages=True, locality="remote") == NOT_ALLOWED
        assert refusal(origin, local_pages=True, locality="proxied") == NOT_ALLOWED
    for origin in ("http://192.168.1.9:3000", "http://localhost.evil.com:3000", "tauri://localhost:3000"):
        assert refusal(origin, local_pages=True) == NOT_ALLOWED


def test_a_name_of_ours_is_only_ours_on_this_machine() -> None:
    assert refusal("http://localhost:18789", locality="remote") == NOT_ALLOWED
    assert refusal("http://8.8.8.8:1", host="8.8.8.8:1") == NOT_ALLOWED
    assert refusal("http://gateway.lan:1", host="gateway.lan:1") == NOT_ALLOWED
    assert refusal("ws://127.0.0.1:1", host="127.0.0.1:1") == NOT_ALLOWED
    assert refusal("http://localhost:18789", host=None) == NOT_ALLOWED
    assert refusal("http://localhost:18789", host="localhost:18789/") == NOT_ALLOWED
