"""The door: who may come in, over WebSocket and over plain HTTP. It reads what the pure decisions need, has them
decide, and writes what they say; it decides nothing itself."""

import hashlib
import secrets
from typing import Any
from uuid import uuid4

import msgspec
import trio

from triops.gateway.approvals import Announcer
from triops.gateway.auth import AuthMode, Matches, SharedAuth, check_shared, offers_secret, unauthorized
from triops.gateway.devices import verify_proof
from triops.gateway.errors import WireError
from triops.gateway.limiter import AuthLimiter, peer_key
from triops.gateway.locality import (
    Headers,
    Locality,
    check_host,
    check_origin,
    is_browser,
    is_loopback,
    locality,
    normalise_address,
    single_header,
)
from triops.gateway.pairing import Admit, Facts, Refuse, decide
from triops.gateway.records import PendingPairing, load_device, load_pending, save_device, save_pending
from triops.gateway.remedies import remedied
from triops.gateway.schema.connect import ConnectParams, Credentials
from triops.gateway.scopes import ADMIN, SCOPES, covers, parse_cap
from triops.runtime.compose import Runtime
from triops.runtime.logs import Log
from triops.runtime.secrets import Secret
from triops.runtime.store import devices
from triops.runtime.store.db import Db


class Caller(msgspec.Struct, frozen=True):
    """Where a request comes from, as its socket and its head say."""

    address: str
    """Normalised."""
    locality: Locality
    host: str | None
    origin: str | None
    headers: tuple[tuple[bytes, bytes], ...]

    @property
    def limiter_key(self) -> Any:
        return peer_key(self.address, loopback=is_loopback(self.address), origin=self.origin)

    @property
    def bearer(self) -> str:
        """The secret that it offers; empty without one."""
        kind, _, candidate = (single_header(self.headers, b"authorization") or "").partition(" ")
        return candidate.strip() if kind.lower() == "bearer" else ""

    @property
    def scope_cap(self) -> tuple[str, ...] | None:
        """The scopes that its own header limits it to."""
        cap = single_header(self.headers, b"x-openclaw-scopes")
        return None if cap is None else parse_cap(cap)


def caller_of(address: str, headers: Headers) -> Caller:
    """Read a request's head."""
    known = tuple(headers)
    return Caller(
        address=normalise_address(address),
        locality=locality(address, known),
        host=single_header(known, b"host"),
        origin=single_header(known, b"origin"),
        headers=known,
    )


LONG_TOKEN = 24  # characters; ours have 43


class Door:
    """One a gateway; holds the limiter, and the secret to compare with. Its configuration is that of the start."""

    def __init__(self, runtime: Runtime, *, bind_host: str, log: Log, announcer: Announcer) -> None:
        self._config = runtime.config.gateway
        self._store = runtime.store
        self._clock = runtime.clock
        self._bind_host = bind_host
        self._log = log
        self._announcer = announcer
        self.mode: AuthMode = self._config.auth.mode
        self.port = 0
        """The real one, once it is open."""
        self.change_secret(runtime.gateway_secret)

    def change_secret(self, secret: Secret | None) -> None:
        """From now on compare with `secret`; what was proven by another one is its connections' business."""
        self._matches: Matches | None = secret.matches if secret is not None else None
        text = "" if secret is None else secret.reveal()
        self.generation = hashlib.sha256(f"generation:{text}".encode()).hexdigest() if text else ""
        """Which secret is the present one; another after it changed."""
        guessable = self.mode == "password" or len(text) < LONG_TOKEN
        self._limiter = AuthLimiter(trio.current_time, guessable=guessable)

    def check_head(self, caller: Caller) -> None:
        """What every request must pass before anything of it is looked at.

        Raises:
            WireError: a foreign `Host` (DNS rebinding), a proxy that nobody vouches for, a foreign `Origin`.
        """
        try:
            if caller.locality == "proxied":
                raise WireError(
                    "FORBIDDEN",
                    "this request says that it was forwarded, and no trusted proxy is configured",
                    details={"code": "PROXY_ATTRIBUTION_REQUIRED"},
                )
            if not check_host(caller.host, bind_host=self._bind_host):
                raise WireError(
                    "FORBIDDEN",
                    f"Host {caller.host!r} is not this gateway; use 127.0.0.1:{self.port}",
                    details={"code": "HOST_NOT_ALLOWED"},
                )
            check_origin(
                caller.origin,
                host=caller.host,
                locality=caller.locality,
                allowed=self._config.control_ui.allowed_origins,
                local_pages=self.mode != "none",
            )
        except WireError as error:
            self._refused("refused a request", error, caller)
            raise

    def _refused(self, message: str, error: WireError, caller: Caller, **about: Any) -> None:
        """Give a refusal its remedy, and log it."""
        shape = error.shape = remedied(error.shape)
        details = shape.details or {}
        self._log.refusal(
            message,
            cause=details.get("code", shape.code),
            reason=shape.message,
            details=shape.details,
            **about,
            requestId=details.get("requestId"),
            locality=caller.locality,
            peer=caller.address,
            host=caller.host,
            origin=caller.origin,
        )

    async def admit(self, params: ConnectParams, caller: Caller, *, nonce: str) -> Admit | Refuse:
        """Decide on a connect, and store what follows from it. That a secret was wrong is told with a delay."""
        delay = 0.0
        try:
            if is_browser(params.client.id, params.client.mode) and caller.origin is None:
                check_origin(None, host=caller.host, locality=caller.locality, browser=True)
            if not offers_secret(params.auth):
                decision = await self._decide(params, caller, nonce, self._check(params.auth, caller))
            else:
                with self._limiter.reserve(caller.limiter_key) as attempt:
                    shared = self._check(params.auth, caller)
                    if shared.method is not None:
                        attempt.succeeded()
                    decision = await self._decide(params, caller, nonce, shared)
                    if isinstance(decision, Admit):
                        attempt.succeeded()
                    elif decision.wrong_secret:
                        delay = attempt.failed()
        except WireError as error:
            decision = Refuse(error=error, close_reason=str(error))
        if isinstance(decision, Refuse):
            client, device = params.client, params.device and params.device.id
            about = {"clientId": client.id, "mode": client.mode, "deviceId": device}
            self._refused("refused a connect", decision.error, caller, **about)
            await trio.sleep(delay)
        return decision

    def _check(self, auth: Credentials, caller: Caller) -> SharedAuth:
        return check_shared(auth, self.mode, self._matches, locality=caller.locality)

    async def _decide(self, params: ConnectParams, caller: Caller, nonce: str, shared: SharedAuth) -> Admit | Refuse:
        now = self._clock()
        facts = Facts(
            params=params,
            locality=caller.locality,
            address=caller.address,
            has_origin=caller.origin is not None,
            shared=shared,
            scope_cap=caller.scope_cap,
            auto_approve_local=self._config.nodes.pairing.auto_approve_local,
            secret_generation=self.generation,
            now_ms=now,
            new_token=Secret(secrets.token_urlsafe(32)),
            new_request_id=str(uuid4()),
        )
        if params.device is None:
            return decide(facts)
        key = verify_proof(params, params.device, nonce=nonce, now_ms=now)
        decided = await self._store.write(lambda db: decide_with_records(db, facts, key), then=self._announce)
        decision = decided.decision
        if isinstance(decision, Admit) and decision.device is not None and decision.device.approved_at_ms == now:
            self._log.info(
                "approved a device of this machine",
                device=decision.device.device_id,
                client=params.client.id,
                scopes=decision.device.scopes,
                admin=ADMIN in decision.device.scopes,
                peer=caller.address,
            )
        return decision

    def _announce(self, decided: "_Decided") -> None:
        admitted = isinstance(decided.decision, Admit)
        if decided.settled is not None:
            self._announcer.resolved(decided.settled, "approved" if admitted else "rejected")
        if decided.requested is not None:
            self._announcer.requested(decided.requested)

    async def authorise(self, caller: Caller) -> frozenset[str]:
        """The scopes of a plain HTTP request, by its bearer token or password.

        Raises:
            WireError: `details.code` says why not.
        """
        auth = Credentials(token=caller.bearer or None)
        delay = 0.0
        try:
            if not auth.token:
                shared = self._check(auth, caller)
            else:
                with self._limiter.reserve(caller.limiter_key) as attempt:
                    shared = self._check(auth, caller)
                    if shared.method is None:
                        delay = attempt.failed()
                    else:
                        attempt.succeeded()
            if shared.method is None:
                raise unauthorized(shared.failure)
            return frozenset(SCOPES)
        except WireError as error:
            refused = error
        self._refused("refused a request", refused, caller)
        await trio.sleep(delay)
        raise refused

    async def check_hook(self, caller: Caller, offered: str, secret: Secret) -> None:
        """Let the caller of a hook pass. Knowing that secret does not excuse wrong guesses at the gateway's.

        Raises:
            WireError: the secret is another.
        """
        with self._limiter.reserve(caller.limiter_key) as attempt:
            if offered and secret.matches(offered):
                return
            delay = attempt.failed() if offered else 0.0
        error = WireError("INVALID_REQUEST", "Unauthorized", details={"code": "AUTH_HOOK_TOKEN_MISMATCH"})
        self._refused("refused a hook", error, caller)
        await trio.sleep(delay)
        raise error


class _Decided(msgspec.Struct, frozen=True):
    decision: Admit | Refuse
    settled: PendingPairing | None = None
    """The request that this ends: approved with it, or replaced by another."""
    requested: PendingPairing | None = None
    """The request that is new."""


def decide_with_records(db: Db, facts: Facts, public_key: str) -> _Decided:
    """Read the device's records, decide, and write what follows: one transaction, so that two connects cannot cross."""
    assert facts.params.device is not None
    device_id, now = facts.params.device.id, facts.now_ms
    device, pending = load_device(db, device_id), load_pending(db, device_id)
    decision = decide(msgspec.structs.replace(facts, public_key=public_key, device=device, pending=pending))
    if isinstance(decision, Admit):
        if (record := decision.device) is not None:
            save_device(db, record)
            if pending and record.approved_at_ms == now and covers(record.scopes, pending.scopes):
                devices.settle(db, device_id)
                return _Decided(decision, settled=pending)
    elif (asked := decision.pending) is not None:
        save_pending(db, asked, now=now)
        if pending is None or pending.request_id != asked.request_id:
            return _Decided(decision, settled=pending, requested=asked)
    return _Decided(decision)
