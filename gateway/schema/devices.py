"""`device.*` on the wire: what the methods take, and how a paired device is shown (protocol methods §2.10)."""

from typing import Annotated, Literal

import msgspec

from triops.gateway.frames import Str1


class _Params(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    pass


class RequestTarget(_Params, frozen=True):
    request_id: Str1


class DeviceTarget(_Params, frozen=True):
    device_id: Str1


class Rename(DeviceTarget, frozen=True):
    label: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class TokenTarget(DeviceTarget, frozen=True):
    role: Str1


class Rotate(TokenTarget, frozen=True):
    scopes: tuple[Str1, ...] | None = None


class Upgrade(_Params, frozen=True):
    scopes: Annotated[tuple[Str1, ...], msgspec.Meta(min_length=1, max_length=8)]


class ShownToken(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What is known of a device's token; never the token."""

    role: str
    scopes: tuple[str, ...]
    created_at_ms: int
    rotated_at_ms: int | None = None
    revoked_at_ms: int | None = None


class ShownDevice(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A paired device as operators see it."""

    device_id: str
    public_key: str
    display_name: str | None = None
    operator_label: str | None = None
    platform: str
    device_family: str | None = None
    client_id: str
    client_mode: str
    role: str = ""
    roles: tuple[str, ...]
    scopes: tuple[str, ...]
    remote_ip: str | None = None
    approved_via: Literal["owner", "silent"]
    created_at_ms: int
    approved_at_ms: int
    last_seen_at_ms: int | None = None
    last_seen_reason: str | None = None
    connected: bool | None = None
    tokens: tuple[ShownToken, ...]
