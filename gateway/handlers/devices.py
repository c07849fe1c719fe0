"""`device.*`: who asks to be let in, who is, and what operators decide; the gateway's own identity and token."""

import secrets
from functools import partial
from typing import Any
from uuid import uuid4

import msgspec
import trio

from triops.gateway import approvals
from triops.gateway.approvals import Approver
from triops.gateway.errors import WireError
from triops.gateway.identity import DeviceIdentity
from triops.gateway.methods import ANSWERED, Call, NoParams, method
from triops.gateway.records import (
    PENDING_TTL_MS,
    DeviceToken,
    PairedDevice,
    PendingPairing,
    load_all_pending,
    load_device,
    load_devices,
    load_pending,
    pairing_request,
    save_pending,
)
from triops.gateway.schema.devices import (
    DeviceTarget,
    Rename,
    RequestTarget,
    Rotate,
    ShownDevice,
    TokenTarget,
    Upgrade,
)
from triops.gateway.scopes import ADMIN, PAIRING, READ, check_known
from triops.runtime.secrets import Secret, replace_token, require_token_file
from triops.runtime.store.db import Db

WITHHELD = "withheld-cross-device"
INVALIDATED = 4001  # close code: what the connection stood on holds no more


def _approver(call: Call) -> Approver:
    return Approver(call.peer.scopes, call.subscriber.device if call.subscriber else None)


def _new_token() -> Secret:
    return Secret(secrets.token_urlsafe(32))


@method("device.pair.list", scope=PAIRING)
async def pair_list(call: Call, params: NoParams) -> dict[str, Any]:
    """Who waits and who is paired; a device that is no administrator sees itself only."""
    services, by = call.services, _approver(call)
    now = services.runtime.clock()
    pending, paired = await services.runtime.store.read(lambda db: (load_all_pending(db, now=now), load_devices(db)))
    own = None if ADMIN in by.scopes else by.device
    here = {socket.device for socket in services.sockets if socket.admitted}
    return {
        "pending": [asked for asked in pending if own in (None, asked.device_id)],
        "paired": [_shown(each, here) for each in paired if own in (None, each.device_id)],
    }


def _shown(device: PairedDevice, here: set[str | None] | None = None) -> ShownDevice:
    shown = msgspec.convert(device, ShownDevice, from_attributes=True)
    seen = "connect" if device.last_seen_at_ms else None
    connected = None if here is None else device.device_id in here
    return msgspec.structs.replace(shown, role=device.roles[0], last_seen_reason=seen, connected=connected)


@method("device.pair.approve", scope=PAIRING, control_plane=True)
async def pair_approve(call: Call, params: RequestTarget) -> dict[str, Any]:
    """Let a device in, or give it the more that it asked for: never more than the caller may."""
    services, by, token = call.services, _approver(call), _new_token()
    now = services.runtime.clock()

    def decided(done: tuple[PendingPairing, PairedDevice]) -> None:
        services.announcer.resolved(done[0], "approved")

    generation = services.door.generation
    work = partial(approvals.approve, request_id=params.request_id, by=by, now=now, token=token, generation=generation)
    asked, device = await services.runtime.store.write(work, then=decided)
    _log(call, "approved a device", asked.device_id, request=asked.request_id, scopes=asked.scopes)
    return {"requestId": asked.request_id, "device": _shown(device)}


@method("device.pair.reject", scope=PAIRING, control_plane=True)
async def pair_reject(call: Call, params: RequestTarget) -> dict[str, Any]:
    services = call.services
    work = partial(approvals.reject, request_id=params.request_id, by=_approver(call), now=services.runtime.clock())
    asked = await services.runtime.store.write(work, then=lambda asked: services.announcer.resolved(asked, "rejected"))
    _log(call, "rejected a device", asked.device_id, request=asked.request_id)
    return {"requestId": asked.request_id, "deviceId": asked.device_id}


@method("device.pair.remove", scope=PAIRING, control_plane=True)
async def pair_remove(call: Call, params: DeviceTarget) -> Any:
    """Forget a device and close its connections."""
    services, by = call.services, _approver(call)
    now = services.runtime.clock()

    def work(db: Db) -> PendingPairing | None:
        asked = next((each for each in load_all_pending(db, now=now) if each.device_id == params.device_id), None)
        approvals.remove(db, params.device_id, by)
        return asked

    def removed(asked: PendingPairing | None) -> None:
        if asked is not None:
            services.announcer.resolved(asked, "rejected")
        _took_back(call, params.device_id, "device-pair-removed", {"deviceId": params.device_id})

    await services.runtime.store.write(work, then=removed)
    _log(call, "removed a device", params.device_id)
    return ANSWERED


@method("device.pair.rename", scope=PAIRING, control_plane=True)
async def pair_rename(call: Call, params: Rename) -> dict[str, Any]:
    work = partial(approvals.rename, device_id=params.device_id, label=params.label, by=_approver(call))
    await call.services.runtime.store.write(work)
    return {"deviceId": params.device_id, "label": params.label}


@method("device.token.rotate", scope=PAIRING, control_plane=True)
async def token_rotate(call: Call, params: Rotate) -> Any:
    """Give a device a new token; it is told to that device only, and connections of the old one are closed."""
    services, by, token = call.services, _approver(call), _new_token()
    check_known(params.scopes or ())
    now = services.runtime.clock()

    def rotated(issued: DeviceToken) -> None:
        about = {"deviceId": params.device_id, "role": params.role, "scopes": issued.scopes, "rotatedAtMs": now}
        own = by.device == params.device_id
        delivery = {"token": token.reveal(), "tokenDelivery": "in-band"} if own else {"tokenDelivery": WITHHELD}
        _took_back(call, params.device_id, "device-token-rotated", about | delivery)

    target, generation = (params.device_id, params.role, params.scopes), services.door.generation
    await services.runtime.store.write(
        lambda db: approvals.rotate(db, *target, by, now=now, token=token, generation=generation), then=rotated
    )
    _log(call, "rotated a device's token", params.device_id)
    return ANSWERED


@method("device.token.revoke", scope=PAIRING, control_plane=True)
async def token_revoke(call: Call, params: TokenTarget) -> Any:
    """End a device's token and its connections; with the gateway's own secret it gets another."""
    services, by = call.services, _approver(call)
    now = services.runtime.clock()
    about = {"deviceId": params.device_id, "role": params.role, "revokedAtMs": now}
    await services.runtime.store.write(
        lambda db: approvals.revoke(db, params.device_id, params.role, by, now=now),
        then=lambda _: _took_back(call, params.device_id, "device-token-revoked", about),
    )
    _log(call, "revoked a device's token", params.device_id)
    return ANSWERED


def _took_back(call: Call, device_id: str, why: str, payload: Any) -> None:
    """Answer, then close the device's connections: the caller's may be one. Sync, and so not to be cancelled."""
    call.respond(payload)
    for socket in list(call.services.sockets):
        if socket.device == device_id:
            socket.close(INVALIDATED, f"client invalidated: {why}")


# -- a device that wants more ------------------------------------------------------------------------------------------


@method("device.scopes.requestUpgrade", scope=None)
async def request_upgrade(call: Call, params: Upgrade) -> dict[str, str]:
    """Ask operators for more scopes; `waitUpgrade` tells what they decide."""
    services, device_id = call.services, _own_device(call)
    check_known(params.scopes)
    now, request_id = services.runtime.clock(), str(uuid4())

    def work(db: Db) -> tuple[PendingPairing, PendingPairing | None]:
        device, old = _paired(db, device_id), load_pending(db, device_id)
        asked = pairing_request(device, old, params.scopes, now=now, new_id=request_id)
        save_pending(db, asked, now=now)
        return asked, old

    def stored(done: tuple[PendingPairing, PendingPairing | None]) -> None:
        asked, old = done
        if old is not None and old.request_id != asked.request_id:
            services.announcer.resolved(old, "rejected")
        if asked.request_id == request_id:
            services.announcer.requested(asked)

    asked, _ = await services.runtime.store.write(work, then=stored)
    return {"requestId": asked.request_id}


@method("device.scopes.waitUpgrade", scope=None)
async def wait_upgrade(call: Call, params: RequestTarget) -> dict[str, Any]:
    """Wait for the decision on this device's request; approved, it brings the token that has the scopes."""
    services, device_id, request_id = call.services, _own_device(call), params.request_id
    store, clock = services.runtime.store, services.runtime.clock
    pending = await store.read(lambda db: load_pending(db, device_id))
    waits = pending is not None and pending.request_id == request_id
    left = pending.ts + PENDING_TTL_MS - clock() if pending is not None and waits else 0
    if left > 0:
        call.park()
    decision = "expired"
    with trio.move_on_after(max(left, 0) / 1000):
        decision = await services.announcer.decision(request_id, device_id)
    answer: dict[str, Any] = {"status": decision, "requestId": request_id}
    if decision != "approved":
        return answer
    device = await store.read(lambda db: load_device(db, device_id))
    token = device.live_token(services.door.generation) if device else None
    if token is None:
        return answer | {"status": "rejected"}  # taken back in the meantime
    return answer | {"deviceToken": token.token.reveal(), "scopes": token.scopes[:8]}  # what the schema allows


def _own_device(call: Call) -> str:
    device_id = call.subscriber.device if call.subscriber else None
    if device_id is None:
        raise WireError("NOT_PAIRED", "device identity required", details={"code": "DEVICE_IDENTITY_REQUIRED"})
    return device_id


def _paired(db: Db, device_id: str) -> PairedDevice:
    device = load_device(db, device_id)
    if device is None:
        raise WireError("NOT_PAIRED", "this device is not paired: connect with the gateway's token first")
    return device


# -- the gateway itself ------------------------------------------------------------------------------------------------


@method("gateway.identity.get", scope=READ)
async def identity_get(call: Call, params: NoParams) -> dict[str, str]:
    """The public half of the gateway's own key, made when it is first asked for."""
    identity = await trio.to_thread.run_sync(DeviceIdentity.load, call.services.runtime.paths.identity)
    return {"deviceId": identity.id, "publicKey": identity.public_key}


@method("gateway.token.rotate", scope=ADMIN, control_plane=True)
async def gateway_token_rotate(call: Call, params: NoParams) -> Any:
    """Put a new token into the token file, and close the connections that stand on the old one. Ours alone."""
    services, runtime = call.services, call.services.runtime
    require_token_file(runtime.config.gateway.auth, runtime.paths)
    async with services.rotating:  # the last one in the file is the one that holds
        token = await trio.to_thread.run_sync(replace_token, runtime.paths)
        runtime.log.redactor.add([token])
        services.door.change_secret(token)
    call.respond({"ok": True, "tokenFile": str(runtime.paths.token)})
    for socket in list(services.sockets):
        if socket.by_secret:
            socket.close(INVALIDATED, "gateway auth changed")
    for scope in list(services.on_secret):
        scope.cancel(reason="gateway auth changed")
    services.log.info("rotated the gateway's token", by=call.peer.actor)
    return ANSWERED


def _log(call: Call, message: str, device_id: str, **about: Any) -> None:
    call.services.log.info(message, device=device_id, by=call.peer.actor, **about)
