import msgspec
import pytest

from triops.gateway.errors import ErrorShape, WireError, error_shape, http_status
from triops.runtime.errors import Busy, Conflict, Invalid, NotFound, RuntimeFault, Unavailable


def test_a_wire_error_is_told_as_it_is() -> None:
    error = WireError("FORBIDDEN", "no", details={"code": "X"}, retryable=True, retry_after_ms=5)
    assert msgspec.json.encode(error_shape(error, log_id="l")) == (
        b'{"code":"FORBIDDEN","message":"no","details":{"code":"X"},"retryable":true,"retryAfterMs":5}'
    )
    assert str(error) == "no"


def test_what_an_error_does_not_have_is_left_out() -> None:
    assert msgspec.json.encode(WireError("NOT_PAIRED", "m").shape) == b'{"code":"NOT_PAIRED","message":"m"}'


@pytest.mark.parametrize(
    ("fault", "shape", "status"),
    [
        (
            Invalid("bad", details={"path": "/x"}),
            ErrorShape(code="INVALID_REQUEST", message="bad", details={"path": "/x"}),
            400,
        ),
        (Invalid("big", details={"size": 2, "limit": 1}), None, 413),
        (NotFound("gone"), ErrorShape(code="INVALID_REQUEST", message="gone", details={"code": "NOT_FOUND"}), 404),
        (NotFound("no job", details={"code": "CRON_JOB_NOT_FOUND"}), None, 404),
        (NotFound("gone", details={"path": "/id"}), None, 404),
        (
            Conflict("again"),
            ErrorShape(code="INVALID_REQUEST", message="again", details={"reason": "chat-request-conflict"}),
            409,
        ),
        (Conflict("moved", details={"reason": "session-changed"}), None, 400),
        (
            Busy("full", retry_after=0.25),
            ErrorShape(code="UNAVAILABLE", message="full", retryable=True, retry_after_ms=250),
            503,
        ),
        (Unavailable("down"), ErrorShape(code="UNAVAILABLE", message="down", retryable=True), 503),
    ],
)
def test_a_fault_of_the_runtime_is_mapped(fault: RuntimeFault, shape: ErrorShape | None, status: int) -> None:
    told = error_shape(fault, log_id="l")
    assert shape is None or told == shape
    assert http_status(told) == status


def test_our_own_fault_says_only_where_the_log_has_it() -> None:
    for error in (
        RuntimeError("/home/user/secret"),
        RuntimeFault("inner"),
        ExceptionGroup("g", [ValueError("secret")]),
    ):
        told = error_shape(error, log_id="abc")
        assert (told.code, told.message) == ("INTERNAL_ERROR", "internal error (log id abc)")
        assert told.details == {"logId": "abc"}
        assert http_status(told) == 500


@pytest.mark.parametrize(
    ("code", "details", "retryable", "status"),
    [
        ("INVALID_REQUEST", {"code": "AUTH_TOKEN_MISMATCH"}, None, 401),
        ("INVALID_REQUEST", {"code": "AUTH_RATE_LIMITED"}, True, 429),
        ("UNAVAILABLE", {"method": "cron.add", "limit": "30 per 60s"}, True, 429),
        ("INVALID_REQUEST", {"code": "PROTOCOL_MISMATCH"}, None, 400),
        ("INVALID_REQUEST", {"code": "CONTROL_UI_ORIGIN_NOT_ALLOWED"}, None, 403),
        ("FORBIDDEN", {"code": "MISSING_SCOPE"}, None, 403),
        ("NOT_PAIRED", None, None, 403),
        ("APPROVAL_NOT_FOUND", None, None, 404),
    ],
)
def test_http_status_follows_the_details_before_the_code(
    code: str, details: dict[str, str], retryable: bool, status: int
) -> None:
    assert http_status(ErrorShape(code=code, message="m", details=details, retryable=retryable)) == status  # type: ignore[arg-type]  # codes come as text from the table
