"""Whether a connect is let in, and with which scopes (protocol §5.4, §5.7, §6.2–6.4): one pure decision.

The caller has already refused a wrong `Host`, a `proxied` peer, a wrong `Origin` (`check_origin`) and a device's wrong
proof (`verify_proof`), in this order, and reads the device's records. It writes what the decision says, in the
transaction that read them. Scopes come from credentials and approvals, never from what a client says of itself.
"""

from typing import Any, Literal

import msgspec

from triops.gateway.auth import FailureReason, SharedAuth, unauthorized
from triops.gateway.devices import normalise_metadata
from triops.gateway.errors import WireError
from triops.gateway.locality import Locality
from triops.gateway.records import DeviceToken, PairedDevice, PendingPairing, issue_token, pairing_request
from triops.gateway.schema.connect import AuthMethod, ClientInfo, ConnectParams
from triops.gateway.scopes import SCOPES, covers, limited, operator_scopes
from triops.runtime.secrets import Secret

Reason = Literal["not-paired", "metadata-upgrade", "role-upgrade", "scope-upgrade"]

_NATIVE_APPS = frozenset(("openclaw-macos", "openclaw-linux", "openclaw-ios", "openclaw-watchos", "openclaw-android"))


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is known of a connect."""

    params: ConnectParams
    locality: Locality
    address: str
    """The peer's, normalised."""
    has_origin: bool
    shared: SharedAuth
    public_key: str | None = None
    """As `verify_proof` gave it."""
    device: PairedDevice | None = None
    pending: PendingPairing | None = None
    """The records of `params.device`."""
    scope_cap: tuple[str, ...] | None = None
    """From the request's `x-openclaw-scopes` header."""
    auto_approve_local: bool = True
    """`gateway.nodes.pairing.autoApproveLocal`."""
    secret_generation: str
    now_ms: int
    new_token: Secret
    """43 fresh characters, for a token that may have to be issued."""
    new_request_id: str


class Admit(msgspec.Struct, frozen=True, kw_only=True):
    """Let in. `device` is to be stored, and ends the device's pending request if it covers that; `token` goes into
    `hello-ok`."""

    method: AuthMethod
    role: str
    scopes: tuple[str, ...]
    device: PairedDevice | None = None
    token: DeviceToken | None = None


class Refuse(msgspec.Struct, frozen=True, kw_only=True):
    """Not let in: send `error`, close with 1008 and `close_reason`. `pending` is to be stored; it is new if it has the
    fresh id. `wrong_secret` says that a secret was guessed wrong, which the limiter counts."""

    error: WireError
    close_reason: str
    pending: PendingPairing | None = None
    wrong_secret: bool = False


def is_local_backend(facts: Facts, method: AuthMethod | None) -> bool:
    """Whether this is the gateway's own backend on this machine (§6.3), which needs no pairing.

    All four must hold: it calls itself so, its socket is loopback and no header says that it speaks for another, it
    is no web page, and it proved itself.
    """
    client = facts.params.client
    return (
        (client.id == "gateway-client" and client.mode == "backend")
        and facts.locality == "direct_local"
        and not facts.has_origin
        and method is not None
    )


def decide(facts: Facts) -> Admit | Refuse:
    """Decide on an operator's connect."""
    return _without_device(facts) if facts.params.device is None else _with_device(facts)


def _requested(facts: Facts) -> tuple[str, ...]:
    """What the client asks for, within its own cap: that is neither granted nor stored beyond it."""
    scopes = operator_scopes(facts.params.scopes)
    return scopes if facts.scope_cap is None else limited(scopes, facts.scope_cap)


def _without_device(facts: Facts) -> Admit | Refuse:
    client, method = facts.params.client, facts.shared.method
    if _is_control_ui(client):
        message = "control ui requires device identity (use HTTPS or localhost secure context)"
        details = {"code": "CONTROL_UI_DEVICE_IDENTITY_REQUIRED"}
        return _refuse(WireError("INVALID_REQUEST", message, details=details))
    if method is None:
        if facts.shared.offered:
            return _unauthorized(facts, facts.shared.failure)
        details = {"code": "DEVICE_IDENTITY_REQUIRED"}
        return _refuse(WireError("NOT_PAIRED", "device identity required", details=details))
    cli = client.id == "cli" and client.mode == "cli" and facts.locality == "direct_local" and not facts.has_origin
    keeps = cli or method == "none" or is_local_backend(facts, method)
    return Admit(method=method, role="operator", scopes=_requested(facts) if keeps else ())


def _with_device(facts: Facts) -> Admit | Refuse:
    requested, device = limited(_requested(facts), SCOPES), facts.device
    if device is not None and device.public_key != facts.public_key:
        device = None
    method, limit = facts.shared.method, requested
    if method is None:
        found = _by_device_token(facts, device)
        if isinstance(found, Refuse):
            return found
        method, limit = "device-token", found
    allowed = limited(requested, limit)
    backend = is_local_backend(facts, method)
    if requested and not allowed if backend else allowed != requested:
        return _unauthorized(facts, "scope_mismatch")
    if backend or (method == "none" and _is_control_ui(facts.params.client)):
        seen = device and msgspec.structs.replace(device, last_seen_at_ms=facts.now_ms)
        token = device.live_token(facts.secret_generation) if device else None
        return Admit(method=method, role="operator", scopes=allowed, device=seen, token=token)
    return _paired(facts, device, method, requested)


def _by_device_token(facts: Facts, device: PairedDevice | None) -> tuple[str, ...] | Refuse:
    """The scopes that the offered device token stands for."""
    auth = facts.params.auth
    candidate = auth.device_token or auth.token
    token = device.live_token(facts.secret_generation) if device else None
    if candidate and token is not None and token.token.matches(candidate):
        return token.scopes
    if auth.device_token:
        return _unauthorized(facts, "device_token_mismatch")
    if auth.bootstrap_token and not facts.shared.offered:
        return _unauthorized(facts, "bootstrap_token_invalid")
    return _unauthorized(facts, facts.shared.failure)


def _paired(
    facts: Facts, device: PairedDevice | None, method: AuthMethod, requested: tuple[str, ...]
) -> Admit | Refuse:
    reasons = _reasons(facts.params.client, device, requested)
    for reason in reasons:
        if not _silently(facts, reason, method):
            return _held(facts, device, reason, requested)
    if device is None or reasons:
        device = _approved(facts, device, requested)
    token = _token(facts, device, method, requested)
    device = msgspec.structs.replace(device.with_token(token), remote_ip=facts.address, last_seen_at_ms=facts.now_ms)
    return Admit(method=method, role="operator", scopes=requested, device=device, token=token)


def _reasons(client: ClientInfo, device: PairedDevice | None, requested: tuple[str, ...]) -> list[Reason]:
    """What somebody must approve before the device may connect like this."""
    if device is None:
        return ["not-paired"]
    reasons: list[Reason] = []
    pinned = ((device.platform, client.platform), (device.device_family, client.device_family))
    if any(known and normalise_metadata(known) != normalise_metadata(told) for known, told in pinned):
        reasons.append("metadata-upgrade")
    if "operator" not in device.roles:
        reasons.append("role-upgrade")
    if not covers(device.scopes, requested):
        reasons.append("scope-upgrade")
    return reasons


def _silently(facts: Facts, reason: Reason, method: AuthMethod) -> bool:
    """Whether being on this machine is approval enough (§6.4)."""
    client = facts.params.client
    if facts.locality != "direct_local" or (facts.has_origin and not _is_web(client)):
        return False
    if reason == "metadata-upgrade":
        native = client.id in _NATIVE_APPS and client.mode == "ui"
        return not _is_web(client) and not _is_control_ui(client) and (native or method != "device-token")
    # Not by a device token: who has only that was refused whatever goes beyond it.
    return facts.auto_approve_local


def _approved(facts: Facts, device: PairedDevice | None, requested: tuple[str, ...]) -> PairedDevice:
    """The record grown by what was just approved silently."""
    client, proof = facts.params.client, facts.params.device
    assert proof is not None and facts.public_key is not None
    return PairedDevice(
        device_id=proof.id,
        public_key=facts.public_key,
        client_id=client.id,
        client_mode=client.mode,
        platform=client.platform,
        device_family=client.device_family,
        display_name=client.display_name or (device and device.display_name),
        operator_label=device and device.operator_label,
        roles=_union(device.roles if device else (), ("operator",)),
        scopes=_union(device.scopes if device else (), requested),
        tokens=device.tokens if device else (),
        approved_via="silent",
        created_at_ms=device.created_at_ms if device else facts.now_ms,
        approved_at_ms=facts.now_ms,
    )


def _token(facts: Facts, device: PairedDevice, method: AuthMethod, requested: tuple[str, ...]) -> DeviceToken:
    """The stored token if it still serves this connect, else a new one in its place (§5.7)."""
    live, old = device.live_token(facts.secret_generation), device.token_for("operator")
    web = _is_web(facts.params.client)
    issuer = facts.secret_generation if web and method in ("token", "password") else None
    if live is not None and covers(live.scopes, requested) and (method == "device-token" or live.issuer == issuer):
        return live
    # With what the last one could, so that two programs with one identity do not take turns in rotating it.
    scopes = tuple(sorted(_union(live.scopes if live else (), requested)))
    return issue_token(facts.new_token, scopes, now=facts.now_ms, old=old, issuer=issuer)


_REQUIREMENTS: dict[Reason, tuple[str, str]] = {
    "not-paired": ("device is not approved yet", "Approve this device from the pending pairing requests."),
    "role-upgrade": (
        "device is asking for a higher role than currently approved",
        "Review the requested role, then approve the pending upgrade.",
    ),
    "scope-upgrade": (
        "device is asking for more scopes than currently approved",
        "Review the requested scopes, then approve the pending upgrade.",
    ),
    "metadata-upgrade": (
        "device identity changed and must be re-approved",
        "Review the changed device details, then approve the pending request.",
    ),
}


def _held(facts: Facts, device: PairedDevice | None, reason: Reason, requested: tuple[str, ...]) -> Refuse:
    wanted = msgspec.structs.replace(_approved(facts, device, requested), remote_ip=facts.address)
    again, new_id = device is not None, facts.new_request_id
    pending = pairing_request(wanted, facts.pending, requested, now=facts.now_ms, new_id=new_id, is_repair=again)
    requirement, hint = _REQUIREMENTS[reason]
    message = f"pairing required: {requirement}"
    details: dict[str, Any] = {
        "code": "PAIRING_REQUIRED",
        "reason": reason,
        "requestId": pending.request_id,
        "remediationHint": hint,
    }
    if _is_control_ui(facts.params.client):
        details |= {"recommendedNextStep": "wait_then_retry", "retryable": True, "pauseReconnect": False}
    details |= {"deviceId": pending.device_id, "requestedRole": "operator", "requestedScopes": list(requested)}
    if device is not None:
        details |= {"approvedRoles": list(device.roles), "approvedScopes": list(device.scopes)}
    return Refuse(
        error=WireError("NOT_PAIRED", message, details=details),
        close_reason=f"{message} (requestId: {pending.request_id})",
        pending=pending,
    )


def _is_control_ui(client: ClientInfo) -> bool:
    return client.id in ("openclaw-control-ui", "openclaw-tui")


def _is_web(client: ClientInfo) -> bool:
    return client.id in ("openclaw-control-ui", "webchat-ui") or client.mode == "webchat"


def _unauthorized(facts: Facts, reason: FailureReason) -> Refuse:
    # A secret that was right for less than was asked is no guess.
    offered = facts.shared.offered or bool(facts.params.auth.device_token or facts.params.auth.bootstrap_token)
    return _refuse(unauthorized(reason, facts.params), wrong_secret=offered and reason != "scope_mismatch")


def _refuse(error: WireError, *, wrong_secret: bool = False) -> Refuse:
    return Refuse(error=error, close_reason=str(error), wrong_secret=wrong_secret)


def _union(scopes: tuple[str, ...], more: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*scopes, *more)))
