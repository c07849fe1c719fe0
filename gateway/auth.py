"""Who a client is, by the secrets it offers (protocol §5.1–5.5). Pure; knows no sockets and no store."""

from collections.abc import Callable
from typing import Literal

import msgspec

from triops.gateway.errors import WireError
from triops.gateway.locality import Locality, is_browser
from triops.gateway.schema.connect import AuthMethod, ConnectParams, Credentials

AuthMode = Literal["none", "token", "password"]
Matches = Callable[[str], bool]
"""Compares a candidate with the gateway's secret in constant time."""

FailureReason = Literal[
    "unauthorized",
    "token_missing",
    "token_missing_config",
    "token_mismatch",
    "password_missing",
    "password_missing_config",
    "password_mismatch",
    "bootstrap_token_invalid",
    "device_token_mismatch",
    "scope_mismatch",
    "rate_limited",
]


class SharedAuth(msgspec.Struct, frozen=True):
    """What the gateway's own secret said: `method` if it let the client in, else `failure`."""

    method: AuthMethod | None = None
    failure: FailureReason = "unauthorized"
    offered: bool = False
    """A token or password was there to be compared."""


def check_shared(auth: Credentials, mode: AuthMode, matches: Matches | None, *, locality: Locality) -> SharedAuth:
    """Compare what `auth` offers with the gateway's secret; `matches` is `None` where none is configured.

    The secret may come as token or as password; where both are there, the one named like the mode counts. Mode `none`
    lets in whoever is on this machine, and nobody else.
    """
    if mode == "none":
        return SharedAuth("none") if locality == "direct_local" else SharedAuth()
    own, other = (auth.token, auth.password) if mode == "token" else (auth.password, auth.token)
    candidate = own or other
    if matches is None:
        return SharedAuth(failure=_REASONS[mode][0], offered=bool(candidate))
    if not candidate:
        return SharedAuth(failure=_REASONS[mode][1])
    if not matches(candidate):
        return SharedAuth(failure=_REASONS[mode][2], offered=True)
    return SharedAuth(mode, offered=True)


_REASONS: dict[Literal["token", "password"], tuple[FailureReason, FailureReason, FailureReason]] = {
    "token": ("token_missing_config", "token_missing", "token_mismatch"),
    "password": ("password_missing_config", "password_missing", "password_mismatch"),
}


def offers_secret(auth: Credentials) -> bool:
    """Whether there is anything to guess wrong: such a connect goes through the limiter of failures first."""
    return any((auth.token, auth.password, auth.device_token, auth.bootstrap_token))


_CONFIGURE, _CREDENTIALS, _REVIEW = "update_auth_configuration", "update_auth_credentials", "review_auth_configuration"
_FAILURES: dict[FailureReason, tuple[str, str, str]] = {
    "unauthorized": ("AUTH_UNAUTHORIZED", _REVIEW, ""),
    "token_missing": ("AUTH_TOKEN_MISSING", _CONFIGURE, "gateway token missing"),
    "token_missing_config": ("AUTH_TOKEN_NOT_CONFIGURED", _CONFIGURE, "gateway token not configured on gateway"),
    "token_mismatch": ("AUTH_TOKEN_MISMATCH", _CREDENTIALS, "gateway token mismatch"),
    "password_missing": ("AUTH_PASSWORD_MISSING", _CONFIGURE, "gateway password missing"),
    "password_missing_config": (
        "AUTH_PASSWORD_NOT_CONFIGURED",
        _CONFIGURE,
        "gateway password not configured on gateway",
    ),
    "password_mismatch": ("AUTH_PASSWORD_MISMATCH", _CREDENTIALS, "gateway password mismatch"),
    "bootstrap_token_invalid": ("AUTH_BOOTSTRAP_TOKEN_INVALID", _REVIEW, "bootstrap token invalid or expired"),
    "device_token_mismatch": ("AUTH_DEVICE_TOKEN_MISMATCH", _CREDENTIALS, "device token mismatch"),
    "scope_mismatch": ("AUTH_SCOPE_MISMATCH", _REVIEW, "scope mismatch"),
    "rate_limited": ("AUTH_RATE_LIMITED", "wait_then_retry", "too many failed authentication attempts"),
}
"""Reason to `details.code`, `recommendedNextStep` and the words that clients look for in the message (§5.5)."""


def unauthorized(reason: FailureReason, params: ConnectParams | None = None) -> WireError:
    """The refusal of a connect for `reason`, with a hint that fits the program that asked."""
    code, step, text = _FAILURES[reason]
    retry = reason == "token_mismatch" and params is not None and _has_untried_device_token(params)
    hint = _hint(reason, params)
    return WireError(
        "INVALID_REQUEST",
        "unauthorized" + (f": {text}" if text else "") + (f" ({hint})" if hint else ""),
        details={
            "code": code,
            "authReason": reason,
            "canRetryWithDeviceToken": retry,
            "recommendedNextStep": "retry_with_device_token" if retry else step,
        },
    )


def rate_limited(retry_after: float) -> WireError:
    """The refusal of a peer that failed too often; `retry_after` in seconds."""
    error = unauthorized("rate_limited")
    error.shape = msgspec.structs.replace(error.shape, retryable=True, retry_after_ms=round(retry_after * 1000))
    return error


def _has_untried_device_token(params: ConnectParams) -> bool:
    return params.device is not None and bool(params.auth.token) and params.auth.device_token is None


def _hint(reason: FailureReason, params: ConnectParams | None) -> str:
    kind = reason.partition("_")[0]
    match reason:
        case "rate_limited":
            return "retry later"
        case "bootstrap_token_invalid":
            return "scan a fresh setup code"
        case "device_token_mismatch":
            return "rotate/reissue device token"
        case "scope_mismatch":
            return "the device token allows less than was asked for"
        case "unauthorized":
            return ""
        case "token_missing_config" | "password_missing_config":
            return f"set gateway.auth.{kind}"
        case _ if params is not None and params.client.id == "cli":
            return f"use this gateway's gateway.auth.{kind} or pair the device"
        case _ if params is not None and is_browser(params.client.id, params.client.mode):
            return f"enter the gateway's {kind} in the settings of the Control UI"
        case _:
            return f"provide gateway auth {kind}"
