"""The decision on a connect: its whole truth table, and the cases that the table's axes do not hold."""

import itertools
import json
from typing import Any

import msgspec
import pytest

from triops.gateway.auth import AuthMode, SharedAuth, check_shared
from triops.gateway.locality import is_loopback, locality
from triops.gateway.pairing import Admit, Facts, Refuse, decide, is_local_backend
from triops.gateway.records import DeviceToken, PairedDevice, PendingPairing, pairing_request
from triops.gateway.schema.connect import ConnectParams
from triops.runtime.secrets import Secret

NOW = 1_000_000
READ, WRITE, ADMIN = "operator.read", "operator.write", "operator.admin"
SECRET = Secret("the-secret")
NEW_TOKEN = Secret("fresh-token")


def connect(client: str = "cli", mode: str = "cli", *, device: bool = True, **fields: Any) -> ConnectParams:
    about = {"id": client, "version": "1", "platform": "linux", "mode": mode} | fields.pop("client_fields", {})
    proof = {"id": "dev", "publicKey": "key", "signature": "s", "signedAt": NOW, "nonce": "n"} if device else None
    base = {"minProtocol": 4, "maxProtocol": 4, "client": about, "scopes": [READ, ADMIN], "device": proof}
    return msgspec.convert(base | fields, ConnectParams)


def token(*scopes: str, **about: Any) -> DeviceToken:
    return DeviceToken(token=Secret("device-token"), role="operator", scopes=scopes, created_at_ms=5, **about)


def paired(*scopes: str, tokens: tuple[DeviceToken, ...] | None = None, **about: Any) -> PairedDevice:
    known: dict[str, Any] = {
        "device_id": "dev",
        "public_key": "key",
        "client_id": "cli",
        "client_mode": "cli",
        "platform": "linux",
        "roles": ("operator",),
        "scopes": scopes,
        "tokens": (token(*scopes),) if tokens is None else tokens,
        "approved_via": "owner",
        "created_at_ms": 5,
        "approved_at_ms": 5,
    }
    return PairedDevice(**known | about)


def facts(params: ConnectParams, **about: Any) -> Facts:
    known: dict[str, Any] = {
        "locality": "direct_local",
        "address": "127.0.0.1",
        "has_origin": False,
        "shared": SharedAuth("token", offered=True),
        "public_key": "key" if params.device else None,
        "secret_generation": "g1",
        "now_ms": NOW,
        "new_token": NEW_TOKEN,
        "new_request_id": "new-request",
    }
    return Facts(params=params, **known | about)


def admitted(decision: Admit | Refuse) -> Admit:
    assert isinstance(decision, Admit), decision
    return decision


def refused(decision: Admit | Refuse) -> Refuse:
    assert isinstance(decision, Refuse), decision
    return decision


def details(decision: Admit | Refuse) -> dict[str, Any]:
    shape = refused(decision).error.shape
    assert shape.details is not None
    return shape.details


# The truth table --------------------------------------------------------------------------------------------------

IDS = ["gateway-client", "cli", "openclaw-control-ui", "openclaw-tui", "test"]
MODES = ["backend", "cli", "ui", "webchat"]
PEERS = {
    "127.0.0.1": True,
    "::1": True,
    "::ffff:127.0.0.1": True,
    "192.168.1.9": False,
    "::ffff:203.0.113.7": False,
    "fe80::1%lo": False,
}
PROXIED = [False, True]
ORIGIN = [False, True]
AUTH: dict[str, tuple[AuthMode, dict[str, str]]] = {
    "open": ("none", {}),
    "token": ("token", {"token": "the-secret"}),
    "password": ("password", {"password": "the-secret"}),
    "nothing": ("token", {}),
    "wrong": ("token", {"token": "guess"}),
    "device-token": ("token", {"deviceToken": "device-token"}),
    "device-token-as-token": ("token", {"token": "device-token"}),
    "wrong-device-token": ("token", {"deviceToken": "guess"}),
}
DEVICES: dict[str, PairedDevice | None] = {
    "absent": None,
    "unknown": None,
    "paired": paired(READ, ADMIN),
    "narrow": paired(READ),
    "revoked": paired(READ, ADMIN, tokens=(token(READ, ADMIN, revoked_at_ms=7),)),
    "stale": paired(READ, ADMIN, public_key="another key"),
}
ROWS = list(itertools.product(IDS, MODES, PEERS, PROXIED, ORIGIN, AUTH, DEVICES))


def expected(id: str, mode: str, peer: str, proxied: bool, origin: bool, auth: str, device: str) -> tuple[Any, ...]:
    """What must come of a request for read and admin, written from the protocol's prose and not from the code.

    ("in", method, scopes, has a token) or ("out", details.code, details.reason).
    """
    on_this_machine = PEERS[peer] and not proxied
    by_secret = auth in ("token", "password") or (auth == "open" and on_this_machine)
    by_device = auth.startswith("device-token") and device in ("paired", "narrow")
    method = ("none" if auth == "open" else auth) if by_secret else "device-token"
    own_backend = id + mode == "gateway-clientbackend" and on_this_machine and not origin and (by_secret or by_device)
    page = mode == "webchat" or id == "openclaw-control-ui"
    needs_device = id in ("openclaw-control-ui", "openclaw-tui")
    everything = (READ, ADMIN)

    if device == "absent":
        if own_backend:
            return "in", method, everything, False
        if needs_device:
            return "out", "CONTROL_UI_DEVICE_IDENTITY_REQUIRED", None
        if by_secret:
            own_cli = id == mode == "cli" and on_this_machine and not origin
            return "in", method, everything if own_cli or auth == "open" else (), False
        if auth in ("wrong", "device-token-as-token"):
            return "out", "AUTH_TOKEN_MISMATCH", None
        return "out", "DEVICE_IDENTITY_REQUIRED", None

    if not by_secret and not by_device:
        code = {
            "open": "AUTH_UNAUTHORIZED",
            "nothing": "AUTH_TOKEN_MISSING",
            "wrong": "AUTH_TOKEN_MISMATCH",
            "device-token-as-token": "AUTH_TOKEN_MISMATCH",
        }
        return "out", code.get(auth, "AUTH_DEVICE_TOKEN_MISMATCH"), None
    if own_backend:
        scopes = (READ,) if by_device and device == "narrow" else everything
        return "in", method, scopes, device in ("paired", "narrow")
    if by_device and device == "narrow":
        return "out", "AUTH_SCOPE_MISMATCH", None
    if auth == "open" and needs_device:
        return "in", "none", everything, device in ("paired", "narrow")
    if device in ("paired", "revoked"):
        return "in", method, everything, True
    if on_this_machine and (page or not origin):
        return "in", method, everything, True
    return "out", "PAIRING_REQUIRED", "scope-upgrade" if device == "narrow" else "not-paired"


def outcome(id: str, mode: str, peer: str, proxied: bool, origin: bool, auth: str, device: str) -> tuple[Any, ...]:
    auth_mode, offered = AUTH[auth]
    params = connect(id, mode, device=device != "absent", auth=offered)
    place = locality(peer, [(b"x-forwarded-for", b"127.0.0.1")] if proxied else [])
    decision = decide(
        facts(
            params,
            locality=place,
            has_origin=origin,
            shared=check_shared(params.auth, auth_mode, SECRET.matches, locality=place),
            device=DEVICES[device],
        )
    )
    if isinstance(decision, Admit):
        return "in", decision.method, decision.scopes, decision.token is not None
    return "out", details(decision)["code"], details(decision).get("reason")


@pytest.mark.slow
def test_every_row_of_the_truth_table() -> None:
    assert len(ROWS) == 23_040
    wrong = [(row, got, want) for row in ROWS if (got := outcome(*row)) != (want := expected(*row))]
    assert wrong == []


@pytest.mark.parametrize(
    ("about", "is_one"),
    [
        ({}, True),
        ({"method": "none"}, True),
        ({"method": "password"}, True),
        ({"method": "device-token"}, True),
        ({"method": None}, False),
        ({"id": "cli"}, False),
        ({"mode": "cli"}, False),
        ({"locality": "remote"}, False),
        ({"locality": "proxied"}, False),
        ({"has_origin": True}, False),
    ],
)
def test_the_local_backend_meets_all_four_conditions(about: dict[str, Any], is_one: bool) -> None:
    meets: dict[str, Any] = {"id": "gateway-client", "mode": "backend", "method": "token"} | about
    params, method = connect(meets.pop("id"), meets.pop("mode")), meets.pop("method")
    assert is_local_backend(facts(params, **meets), method) is is_one


def test_no_remote_peer_of_the_table_is_local() -> None:
    assert {peer for peer in PEERS if is_loopback(peer)} == {peer for peer, local in PEERS.items() if local}


def by_device_token(**fields: Any) -> dict[str, Any]:
    params = connect("gateway-client", "backend", auth={"deviceToken": "device-token"}, **fields)
    return {"params": params, "shared": SharedAuth(failure="token_missing")}


def test_a_read_only_device_token_that_claims_backend_and_asks_for_admin() -> None:
    alone = by_device_token(scopes=[ADMIN])
    decision = decide(facts(**alone, device=paired(READ)))
    assert details(decision)["code"] == "AUTH_SCOPE_MISMATCH"
    assert not refused(decision).wrong_secret

    among = by_device_token(scopes=[ADMIN, READ, WRITE, "operator.sessions.read"])
    decision = admitted(decide(facts(**among, device=paired(READ))))
    assert decision.scopes == (READ, "operator.sessions.read")
    assert decision.device is not None
    assert decision.device.scopes == (READ,)
    assert decision.token == token(READ)


def test_a_token_wider_than_its_device_is_worth_nothing() -> None:
    device = paired(READ, tokens=(token(READ, ADMIN),))
    for asked in ([READ], [ADMIN]):
        assert (
            details(decide(facts(**by_device_token(scopes=asked), device=device)))["code"]
            == "AUTH_DEVICE_TOKEN_MISMATCH"
        )


def test_the_backend_may_ask_for_nothing() -> None:
    assert admitted(decide(facts(**by_device_token(scopes=[]), device=paired(READ)))).scopes == ()


def test_the_backends_record_is_refreshed_and_grows_by_nothing() -> None:
    params = connect("gateway-client", "backend", client_fields={"platform": "windows"}, scopes=[ADMIN])
    decision = admitted(decide(facts(params, device=paired(READ))))
    assert decision.scopes == (ADMIN,)
    assert decision.device == msgspec.structs.replace(paired(READ), last_seen_at_ms=NOW)
    assert decision.token == token(READ)


def test_who_has_no_device_is_told_what_is_missing() -> None:
    ui = refused(decide(facts(connect("openclaw-tui", "ui", device=False)))).error.shape
    assert (ui.code, ui.message) == (
        "INVALID_REQUEST",
        "control ui requires device identity (use HTTPS or localhost secure context)",
    )
    other = refused(decide(facts(connect(device=False), shared=SharedAuth(failure="token_missing")))).error.shape
    assert (other.code, other.message) == ("NOT_PAIRED", "device identity required")


@pytest.mark.parametrize(("client", "mode"), [("cli", "cli"), ("gateway-client", "backend")])
@pytest.mark.parametrize("device", [False, True])
def test_everybody_who_is_let_in_is_an_operator(client: str, mode: str, device: bool) -> None:
    assert admitted(decide(facts(connect(client, mode, device=device)))).role == "operator"


# Scopes -----------------------------------------------------------------------------------------------------------


def test_an_unknown_scope_connects_and_other_roles_scopes_do_not() -> None:
    params = connect("gateway-client", "backend", device=False, scopes=["operator.everything", "node.x", READ, READ])
    assert admitted(decide(facts(params))).scopes == ("operator.everything", READ)


@pytest.mark.parametrize("client", [("gateway-client", "backend"), ("cli", "cli")])
def test_nothing_is_kept_or_told_of_a_device_that_is_no_scope(client: tuple[str, str]) -> None:
    params = connect(*client, scopes=["operator.everything", READ])
    decision = admitted(decide(facts(params, device=paired(ADMIN))))
    assert decision.token is not None and decision.device is not None
    assert (decision.scopes, decision.token.scopes, decision.device.scopes) == ((READ,), (ADMIN,), (ADMIN,))
    new = admitted(decide(facts(params)))
    assert new.scopes == (READ,)
    assert new.device is None or (new.device.scopes, new.device.tokens[0].scopes) == ((READ,), (READ,))
    waiting = refused(decide(facts(params, locality="remote")))
    assert waiting.pending is not None and waiting.pending.scopes == (READ,)
    assert details(waiting)["requestedScopes"] == [READ]


@pytest.mark.parametrize(
    ("cap", "scopes"), [(None, (READ, ADMIN)), ((), ()), ((READ,), (READ,)), ((ADMIN,), (READ, ADMIN))]
)
def test_a_cap_narrows_whatever_was_decided(cap: tuple[str, ...] | None, scopes: tuple[str, ...]) -> None:
    for device in (False, True):
        decision = admitted(decide(facts(connect(device=device), scope_cap=cap)))
        assert decision.scopes == scopes


def test_a_cap_says_nothing_of_a_refusal() -> None:
    assert details(decide(facts(connect(), scope_cap=(), locality="remote")))["code"] == "PAIRING_REQUIRED"


def test_a_cap_holds_for_what_is_stored_and_handed_out_too() -> None:
    asked = connect(scopes=("operator.admin", "operator.read"))
    decision = admitted(decide(facts(asked, scope_cap=("operator.read",))))
    assert decision.device is not None and decision.token is not None
    assert (decision.scopes, decision.device.scopes, decision.token.scopes) == (("operator.read",),) * 3


# Guesses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("auth", "shared", "device", "code", "guess"),
    [
        ({"token": "x"}, "token_mismatch", True, "AUTH_TOKEN_MISMATCH", True),
        ({"token": "x"}, "token_mismatch", False, "AUTH_TOKEN_MISMATCH", True),
        ({"password": "x"}, "password_mismatch", True, "AUTH_PASSWORD_MISMATCH", True),
        ({"deviceToken": "x"}, "token_missing", True, "AUTH_DEVICE_TOKEN_MISMATCH", True),
        ({"token": "x", "deviceToken": "y"}, "token_mismatch", True, "AUTH_DEVICE_TOKEN_MISMATCH", True),
        ({"bootstrapToken": "x"}, "token_missing", True, "AUTH_BOOTSTRAP_TOKEN_INVALID", True),
        ({"token": "x", "bootstrapToken": "x"}, "token_mismatch", True, "AUTH_TOKEN_MISMATCH", True),
        ({}, "token_missing", True, "AUTH_TOKEN_MISSING", False),
        ({}, "token_missing", False, "DEVICE_IDENTITY_REQUIRED", False),
        ({"deviceToken": "x"}, "token_missing", False, "DEVICE_IDENTITY_REQUIRED", False),
    ],
)
def test_a_wrong_secret_is_told_and_counted_and_its_absence_is_not(
    auth: Any, shared: Any, device: bool, code: str, guess: bool
) -> None:
    offered = "token" in auth or "password" in auth
    decision = refused(
        decide(
            facts(
                connect(device=device, auth=auth),
                shared=SharedAuth(failure=shared, offered=offered),
                device=paired(READ) if device else None,
            )
        )
    )
    assert details(decision)["code"] == code
    assert decision.wrong_secret is guess
    assert decision.close_reason == str(decision.error)
    assert decision.pending is None


def test_a_device_token_in_the_tokens_place_works_with_its_device() -> None:
    wrong = SharedAuth(failure="token_mismatch", offered=True)
    decision = decide(facts(connect(auth={"token": "device-token"}, scopes=[READ]), shared=wrong, device=paired(READ)))
    assert admitted(decision).method == "device-token"


def test_a_device_tokens_own_field_comes_first() -> None:
    auth = {"token": "device-token", "deviceToken": "wrong"}
    wrong = SharedAuth(failure="token_mismatch", offered=True)
    decision = decide(facts(connect(auth=auth, scopes=[READ]), shared=wrong, device=paired(READ)))
    assert details(decision)["code"] == "AUTH_DEVICE_TOKEN_MISMATCH"


@pytest.mark.parametrize(
    "device",
    [
        paired(READ, tokens=(msgspec.structs.replace(token(READ), role="node"),)),
        paired(READ, roles=("node",)),
        paired(READ, tokens=()),
    ],
)
def test_a_token_of_a_role_that_the_device_does_not_have_is_worth_nothing(device: PairedDevice) -> None:
    decision = decide(facts(**by_device_token(scopes=[READ]), device=device))
    assert details(decision)["code"] == "AUTH_DEVICE_TOKEN_MISMATCH"


# Pairing ----------------------------------------------------------------------------------------------------------


def test_a_new_local_device_pairs_itself() -> None:
    params = connect(client_fields={"displayName": "mine", "deviceFamily": "desk"})
    decision = admitted(decide(facts(params)))
    assert decision.token is not None
    assert decision.token == DeviceToken(token=NEW_TOKEN, role="operator", scopes=(ADMIN, READ), created_at_ms=NOW)
    assert decision.token.issued_at_ms == NOW
    assert decision.device == PairedDevice(
        device_id="dev",
        public_key="key",
        client_id="cli",
        client_mode="cli",
        platform="linux",
        device_family="desk",
        display_name="mine",
        roles=("operator",),
        scopes=(READ, ADMIN),
        tokens=(decision.token,),
        remote_ip="127.0.0.1",
        approved_via="silent",
        created_at_ms=NOW,
        approved_at_ms=NOW,
        last_seen_at_ms=NOW,
    )


def test_local_approval_can_be_switched_off() -> None:
    for device in (None, paired(READ), paired(READ, ADMIN, roles=("node",))):
        decision = decide(facts(connect(), device=device, auto_approve_local=False))
        assert details(decision)["code"] == "PAIRING_REQUIRED"
    assert admitted(decide(facts(connect(), device=paired(READ, ADMIN), auto_approve_local=False))).scopes


def test_more_scopes_are_approved_silently_for_the_shared_secret() -> None:
    known = paired(READ, display_name="mine", operator_label="the phone")
    decision = admitted(decide(facts(connect(scopes=[WRITE]), device=known)))
    assert decision.scopes == (WRITE,)
    device = decision.device
    assert device is not None
    assert (device.scopes, device.approved_via, device.created_at_ms, device.approved_at_ms) == (
        (READ, WRITE),
        "silent",
        5,
        NOW,
    )
    assert (device.display_name, device.operator_label) == ("mine", "the phone")
    # The token is renewed, and can still what the last one could.
    assert decision.token is not None
    assert decision.token == DeviceToken(
        token=NEW_TOKEN, role="operator", scopes=(READ, WRITE), created_at_ms=5, rotated_at_ms=NOW
    )
    assert decision.token.issued_at_ms == NOW
    assert device.tokens == (decision.token,)


def test_a_covered_connect_changes_nothing_but_when_it_was_seen() -> None:
    stored = paired(ADMIN)
    decision = admitted(decide(facts(connect(), device=stored, locality="remote", address="203.0.113.7")))
    assert decision.scopes == (READ, ADMIN)
    assert decision.device == msgspec.structs.replace(stored, last_seen_at_ms=NOW, remote_ip="203.0.113.7")
    assert decision.token is not None
    assert decision.token is stored.tokens[0]
    assert decision.token.issued_at_ms == 5


def test_tokens_of_other_roles_are_kept() -> None:
    node = msgspec.structs.replace(token(), role="node")
    decision = admitted(decide(facts(connect(), device=paired(READ, ADMIN, tokens=(node,)))))
    assert decision.device is not None
    assert decision.device.tokens == (node, decision.token)


def test_a_revoked_token_is_replaced_and_hands_nothing_down() -> None:
    device = paired(READ, WRITE, ADMIN, tokens=(token(READ, WRITE, ADMIN, revoked_at_ms=9),))
    decision = admitted(decide(facts(connect(scopes=[READ]), device=device)))
    assert decision.token is not None
    assert (decision.token.token, decision.token.scopes, decision.token.revoked_at_ms) == (NEW_TOKEN, (READ,), None)


@pytest.mark.parametrize("role", ["role-upgrade"])
def test_a_paired_node_becomes_an_operator_on_this_machine_only(role: str) -> None:
    node = paired(READ, ADMIN, roles=("node",), tokens=())
    decision = admitted(decide(facts(connect(), device=node)))
    assert decision.device is not None
    assert decision.device.roles == ("node", "operator")
    refusal = decide(facts(connect(), device=node, locality="remote"))
    held = details(refusal)
    assert (held["reason"], held["approvedRoles"]) == (role, ["node"])
    assert refused(refusal).error.shape.message == (
        "pairing required: device is asking for a higher role than currently approved"
    )
    assert held["remediationHint"] == "Review the requested role, then approve the pending upgrade."


# Another platform or family

MOVED = {"platform": "windows"}
NATIVE = ["macos", "linux", "ios", "watchos", "android"]


@pytest.mark.parametrize(
    ("client", "mode", "about", "silent"),
    [
        ("cli", "cli", {}, True),
        ("cli", "cli", {"shared": SharedAuth("none")}, True),
        ("cli", "cli", {"auto_approve_local": False}, True),
        ("cli", "cli", {"locality": "remote"}, False),
        ("cli", "cli", {"has_origin": True}, False),
        ("openclaw-tui", "ui", {}, False),
        ("openclaw-control-ui", "ui", {}, False),
        ("webchat-ui", "ui", {}, False),
        ("test", "webchat", {}, False),
        *((f"openclaw-{native}", "ui", {"shared": SharedAuth(failure="token_missing")}, True) for native in NATIVE),
        ("openclaw-macos", "backend", {"shared": SharedAuth(failure="token_missing")}, False),
        ("cli", "ui", {"shared": SharedAuth(failure="token_missing")}, False),
        ("openclaw-macos", "ui", {"shared": SharedAuth(failure="token_missing"), "locality": "remote"}, False),
    ],
)
def test_a_device_that_changed_is_approved_again(client: str, mode: str, about: dict[str, Any], silent: bool) -> None:
    auth = {"deviceToken": "device-token"} if about.get("shared", SharedAuth("token")).method is None else {}
    params = connect(client, mode, client_fields=MOVED, auth=auth)
    decision = decide(facts(params, device=paired(READ, ADMIN), **about))
    if silent:
        device = admitted(decision).device
        assert device is not None
        assert (device.platform, device.approved_via) == ("windows", "silent")
    else:
        held = details(decision)
        assert held["reason"] == "metadata-upgrade"
        assert held["remediationHint"] == "Review the changed device details, then approve the pending request."
        assert (
            refused(decision).error.shape.message == "pairing required: device identity changed and must be re-approved"
        )


@pytest.mark.parametrize(
    ("known", "told", "changed"),
    [
        ({"platform": " Linux "}, {"platform": "linux"}, False),
        ({"device_family": "Desk"}, {"deviceFamily": "desk "}, False),
        ({"device_family": "desk"}, {}, True),
        ({"device_family": "desk"}, {"deviceFamily": "phone"}, True),
        ({"device_family": None}, {"deviceFamily": "phone"}, False),
    ],
)
def test_only_what_was_known_is_pinned(known: Any, told: Any, changed: bool) -> None:
    decision = decide(facts(connect(client_fields=told), device=paired(READ, ADMIN, **known), locality="remote"))
    assert isinstance(decision, Refuse) is changed


def test_the_first_thing_that_nobody_approved_is_named() -> None:
    params = connect(client_fields=MOVED)
    device = paired(READ, roles=("node",))
    assert details(decide(facts(params, device=device, locality="remote")))["reason"] == "metadata-upgrade"
    # What being local settles is no obstacle; what it does not settle is.
    assert details(decide(facts(params, device=device, auto_approve_local=False)))["reason"] == "role-upgrade"


# Tokens of web pages end with the shared secret


def page(**fields: Any) -> ConnectParams:
    return connect("openclaw-control-ui", "webchat", **fields)


def test_a_pages_token_is_bound_to_the_shared_secret() -> None:
    issued = admitted(decide(facts(page(), has_origin=True))).token
    assert issued is not None
    assert issued.issuer == "g1"
    device = paired(READ, ADMIN, tokens=(msgspec.structs.replace(issued, token=Secret("device-token")),))
    again = facts(
        page(auth={"deviceToken": "device-token"}),
        has_origin=True,
        shared=SharedAuth(failure="token_missing"),
        device=device,
    )
    assert admitted(decide(again)).token == device.tokens[0]
    rotated = msgspec.structs.replace(again, secret_generation="g2")
    assert details(decide(rotated))["code"] == "AUTH_DEVICE_TOKEN_MISMATCH"


@pytest.mark.parametrize(
    ("params", "shared", "stored", "renewed"),
    [
        (page(), "token", "g1", False),
        (page(), "token", None, True),
        (page(), "token", "g0", True),
        (page(), "password", None, True),
        (connect("webchat-ui", "ui"), "token", None, True),
        (connect("test", "webchat"), "token", None, True),
        (connect(), "token", None, False),
        (connect(), "token", "g1", True),
    ],
)
def test_a_token_with_another_issuer_is_renewed(
    params: ConnectParams, shared: Any, stored: str | None, renewed: bool
) -> None:
    device = paired(READ, ADMIN, tokens=(token(READ, ADMIN, issuer=stored),))
    issued = admitted(decide(facts(params, shared=SharedAuth(shared), device=device))).token
    assert issued is not None
    assert (issued.token is NEW_TOKEN) is renewed


def test_a_device_tokens_own_connect_never_renews_it() -> None:
    device = paired(READ, ADMIN, tokens=(token(READ, ADMIN, issuer="g1"),))
    about = {"shared": SharedAuth(failure="token_missing"), "device": device}
    assert admitted(decide(facts(connect(auth={"deviceToken": "device-token"}), **about))).token is device.tokens[0]


def test_without_a_secret_a_page_gets_an_unbound_token() -> None:
    issued = admitted(decide(facts(connect("test", "webchat"), shared=SharedAuth("none")))).token
    assert issued is not None
    assert issued.issuer is None


# Requests that wait


def held(**about: Any) -> Refuse:
    known: dict[str, Any] = {"params": connect(), "locality": "remote", "address": "203.0.113.7"}
    return refused(decide(facts(**known | about)))


def test_a_remote_device_is_held_and_told_how_to_be_let_in() -> None:
    decision = held(params=connect(client_fields={"displayName": "phone", "deviceFamily": "ios"}))
    assert decision.pending == PendingPairing(
        request_id="new-request",
        device_id="dev",
        public_key="key",
        display_name="phone",
        platform="linux",
        device_family="ios",
        client_id="cli",
        client_mode="cli",
        role="operator",
        roles=("operator",),
        scopes=(READ, ADMIN),
        remote_ip="203.0.113.7",
        ts=NOW,
    )
    assert decision.error.shape.code == "NOT_PAIRED"
    assert decision.close_reason == "pairing required: device is not approved yet (requestId: new-request)"
    assert details(decision) == {
        "code": "PAIRING_REQUIRED",
        "reason": "not-paired",
        "requestId": "new-request",
        "remediationHint": "Approve this device from the pending pairing requests.",
        "deviceId": "dev",
        "requestedRole": "operator",
        "requestedScopes": [READ, ADMIN],
    }
    assert not decision.wrong_secret


def test_a_request_says_false_where_it_is_false() -> None:
    shown = json.loads(msgspec.json.encode(held().pending))
    assert (shown["silent"], shown["isRepair"]) == (False, False)
    assert "displayName" not in shown


def test_a_control_ui_is_told_to_wait() -> None:
    told = details(held(params=page()))
    assert (told["recommendedNextStep"], told["retryable"], told["pauseReconnect"]) == ("wait_then_retry", True, False)
    assert "retryable" not in details(held())


def test_an_upgrade_names_what_is_approved() -> None:
    decision = held(device=paired(READ))
    assert decision.pending is not None
    assert decision.pending.is_repair
    assert decision.error.shape.message == (
        "pairing required: device is asking for more scopes than currently approved"
    )
    assert details(decision)["remediationHint"] == "Review the requested scopes, then approve the pending upgrade."
    assert details(decision)["approvedScopes"] == [READ]
    assert details(decision)["approvedRoles"] == ["operator"]


def test_a_remote_device_that_asks_for_more_is_held_whatever_it_knows() -> None:
    for shared in (SharedAuth("token"), SharedAuth("password"), SharedAuth("none")):
        assert details(held(device=paired(READ), shared=shared))["reason"] == "scope-upgrade"


def live_request(**about: Any) -> PendingPairing:
    pending = held().pending
    assert pending is not None
    return msgspec.structs.replace(pending, **{"request_id": "old", "ts": NOW - 299_999} | about)


def test_a_covered_request_refreshes_the_one_that_waits() -> None:
    waiting = live_request()
    for params in (connect(), connect(scopes=[WRITE]), connect(scopes=[])):
        assert held(params=params, pending=waiting).pending == msgspec.structs.replace(waiting, ts=NOW)


@pytest.mark.parametrize(
    "waiting",
    [
        live_request(scopes=(READ,)),
        live_request(ts=NOW - 300_000),
        live_request(public_key="other"),
        live_request(platform="elsewhere"),  # else an approval would pin what the client no longer says
        live_request(device_family="watch"),
    ],
)
def test_a_broader_late_or_strange_request_is_a_new_one(waiting: PendingPairing) -> None:
    pending = held(pending=waiting).pending
    assert pending is not None
    assert (pending.request_id, pending.scopes) == ("new-request", (READ, ADMIN))


def test_a_device_that_asks_for_more_waits_like_one_that_is_held() -> None:
    device = paired(READ, display_name="phone", device_family="ios", remote_ip="203.0.113.7")
    made = pairing_request(device, None, (READ, ADMIN, READ), now=NOW, new_id="new-request")
    params = connect(client_fields={"displayName": "phone", "deviceFamily": "ios"})
    assert made == held(params=params, device=device).pending
    assert pairing_request(device, made, (READ,), now=NOW + 1, new_id="other") == msgspec.structs.replace(
        made, ts=NOW + 1
    )
    assert (
        pairing_request(device, made, (WRITE, "operator.pairing"), now=NOW, new_id="other").request_id == "new-request"
    )
    assert pairing_request(paired(READ), live_request(scopes=(READ,)), (WRITE,), now=NOW, new_id="x").request_id == "x"
