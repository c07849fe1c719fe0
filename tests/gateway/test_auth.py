from typing import Any

import msgspec
import pytest

from triops.gateway.auth import (
    FailureReason,
    SharedAuth,
    check_shared,
    offers_secret,
    rate_limited,
    unauthorized,
)
from triops.gateway.schema.connect import ConnectParams, Credentials
from triops.runtime.secrets import Secret

RIGHT = Secret("right").matches


def connect(client: str = "gateway-client", mode: str = "backend", **fields: Any) -> ConnectParams:
    about = {"id": client, "version": "1", "platform": "linux", "mode": mode}
    return msgspec.convert({"minProtocol": 4, "maxProtocol": 4, "client": about} | fields, ConnectParams)


DEVICE = {"id": "i", "publicKey": "k", "signature": "s", "signedAt": 1, "nonce": "n"}


@pytest.mark.parametrize(
    ("mode", "auth", "outcome"),
    [
        ("token", Credentials(token="right"), SharedAuth("token", offered=True)),
        ("token", Credentials(password="right"), SharedAuth("token", offered=True)),
        ("token", Credentials(token="wrong"), SharedAuth(failure="token_mismatch", offered=True)),
        ("token", Credentials(token="wrong", password="right"), SharedAuth(failure="token_mismatch", offered=True)),
        ("token", Credentials(token="", password="right"), SharedAuth("token", offered=True)),
        ("token", Credentials(), SharedAuth(failure="token_missing")),
        ("token", Credentials(token=""), SharedAuth(failure="token_missing")),
        ("token", Credentials(device_token="right"), SharedAuth(failure="token_missing")),
        ("password", Credentials(password="right"), SharedAuth("password", offered=True)),
        ("password", Credentials(token="right"), SharedAuth("password", offered=True)),
        ("password", Credentials(token="right", password="x"), SharedAuth(failure="password_mismatch", offered=True)),
        ("password", Credentials(), SharedAuth(failure="password_missing")),
    ],
)
@pytest.mark.parametrize("place", ["direct_local", "remote", "proxied"])
def test_the_shared_secret_lets_in_from_anywhere(mode: Any, auth: Credentials, outcome: SharedAuth, place: Any) -> None:
    assert check_shared(auth, mode, RIGHT, locality=place) == outcome


@pytest.mark.parametrize("mode", ["token", "password"])
def test_without_a_secret_of_our_own_nothing_matches(mode: Any) -> None:
    reason = f"{mode}_missing_config"
    assert check_shared(Credentials(token="x"), mode, None, locality="direct_local").failure == reason
    assert check_shared(Credentials(token="x"), mode, None, locality="direct_local").offered
    assert not check_shared(Credentials(), mode, None, locality="direct_local").offered
    assert check_shared(Credentials(), mode, None, locality="direct_local").method is None


def test_mode_none_lets_in_this_machine_only() -> None:
    assert check_shared(Credentials(), "none", None, locality="direct_local") == SharedAuth("none")
    assert check_shared(Credentials(token="x"), "none", RIGHT, locality="remote") == SharedAuth()
    assert check_shared(Credentials(token="x"), "none", RIGHT, locality="proxied") == SharedAuth()
    assert SharedAuth() == SharedAuth(None, "unauthorized", offered=False)


def test_what_can_be_guessed_wrong_is_an_offer() -> None:
    assert not offers_secret(Credentials())
    assert not offers_secret(Credentials(token="", password=""))
    for field in ("token", "password", "device_token", "bootstrap_token"):
        assert offers_secret(Credentials(**{field: "x"}))


@pytest.mark.parametrize(
    ("reason", "code", "step", "message"),
    [
        ("unauthorized", "AUTH_UNAUTHORIZED", "review_auth_configuration", "unauthorized"),
        (
            "token_missing",
            "AUTH_TOKEN_MISSING",
            "update_auth_configuration",
            "unauthorized: gateway token missing (provide gateway auth token)",
        ),
        (
            "token_missing_config",
            "AUTH_TOKEN_NOT_CONFIGURED",
            "update_auth_configuration",
            "unauthorized: gateway token not configured on gateway (set gateway.auth.token)",
        ),
        (
            "token_mismatch",
            "AUTH_TOKEN_MISMATCH",
            "update_auth_credentials",
            "unauthorized: gateway token mismatch (provide gateway auth token)",
        ),
        (
            "password_missing",
            "AUTH_PASSWORD_MISSING",
            "update_auth_configuration",
            "unauthorized: gateway password missing (provide gateway auth password)",
        ),
        (
            "password_missing_config",
            "AUTH_PASSWORD_NOT_CONFIGURED",
            "update_auth_configuration",
            "unauthorized: gateway password not configured on gateway (set gateway.auth.password)",
        ),
        (
            "password_mismatch",
            "AUTH_PASSWORD_MISMATCH",
            "update_auth_credentials",
            "unauthorized: gateway password mismatch (provide gateway auth password)",
        ),
        (
            "bootstrap_token_invalid",
            "AUTH_BOOTSTRAP_TOKEN_INVALID",
            "review_auth_configuration",
            "unauthorized: bootstrap token invalid or expired (scan a fresh setup code)",
        ),
        (
            "device_token_mismatch",
            "AUTH_DEVICE_TOKEN_MISMATCH",
            "update_auth_credentials",
            "unauthorized: device token mismatch (rotate/reissue device token)",
        ),
        (
            "scope_mismatch",
            "AUTH_SCOPE_MISMATCH",
            "review_auth_configuration",
            "unauthorized: scope mismatch (the device token allows less than was asked for)",
        ),
        (
            "rate_limited",
            "AUTH_RATE_LIMITED",
            "wait_then_retry",
            "unauthorized: too many failed authentication attempts (retry later)",
        ),
    ],
)
def test_each_failure_has_its_code_step_and_words(reason: FailureReason, code: str, step: str, message: str) -> None:
    for params in (connect(), None):
        shape = unauthorized(reason, params).shape
        assert (shape.code, shape.message) == ("INVALID_REQUEST", message)
        assert shape.details == {
            "code": code,
            "authReason": reason,
            "canRetryWithDeviceToken": False,
            "recommendedNextStep": step,
        }
        assert shape.retryable is None


@pytest.mark.parametrize(
    ("client", "mode", "hint"),
    [
        ("cli", "cli", "use this gateway's gateway.auth.token or pair the device"),
        ("openclaw-control-ui", "webchat", "enter the gateway's token in the settings of the Control UI"),
        ("openclaw-tui", "ui", "provide gateway auth token"),
    ],
)
def test_the_hint_fits_the_program(client: str, mode: str, hint: str) -> None:
    assert unauthorized("token_mismatch", connect(client, mode)).shape.message.endswith(f"({hint})")
    assert unauthorized("token_missing", connect(client, mode)).shape.message.endswith(f"({hint})")


@pytest.mark.parametrize(
    ("reason", "auth", "device", "retry"),
    [
        ("token_mismatch", {"token": "x"}, DEVICE, True),
        ("token_mismatch", {"token": "x", "deviceToken": "y"}, DEVICE, False),
        ("token_mismatch", {"password": "x"}, DEVICE, False),
        ("token_mismatch", {"token": "x"}, None, False),
        ("device_token_mismatch", {"token": "x"}, DEVICE, False),
    ],
)
def test_a_device_token_is_suggested_where_one_was_not_tried(reason: Any, auth: Any, device: Any, retry: bool) -> None:
    details = unauthorized(reason, connect(auth=auth, device=device)).shape.details
    assert details is not None
    assert details["canRetryWithDeviceToken"] is retry
    assert (details["recommendedNextStep"] == "retry_with_device_token") is retry


def test_who_failed_too_often_learns_when_to_come_back() -> None:
    shape = rate_limited(2.5).shape
    assert (shape.retryable, shape.retry_after_ms) == (True, 2500)
    assert shape.details is not None
    assert shape.details["code"] == "AUTH_RATE_LIMITED"


def test_secrets_do_not_stand_in_refusals() -> None:
    params = connect(auth={"token": "canary", "deviceToken": "canary"}, device=DEVICE)
    assert "canary" not in repr(unauthorized("token_mismatch", params).shape)
