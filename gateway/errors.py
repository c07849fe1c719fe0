"""What a client is told went wrong: the wire's codes, and the one mapping from our exceptions to them.

Knows no transport; `http_status` says which status the same body gets over plain HTTP.
"""

from typing import Any, Literal

import msgspec

from triops.runtime.errors import Busy, Conflict, Invalid, NotFound, Unavailable

Code = Literal["INVALID_REQUEST", "FORBIDDEN", "NOT_PAIRED", "UNAVAILABLE", "APPROVAL_NOT_FOUND", "INTERNAL_ERROR"]
"""Top-level codes (protocol §8); `INTERNAL_ERROR` is ours, for faults that are nobody's but ours."""


class ErrorShape(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """`error` of a response (protocol §2)."""

    code: Code
    message: str
    details: dict[str, Any] | None = None
    retryable: bool | None = None
    retry_after_ms: int | None = None


class WireError(Exception):
    """A refusal in the wire's own words. `details` may be read by any client: never a secret."""

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        details: dict[str, Any] | None = None,
        retryable: bool | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(message)
        self.shape = ErrorShape(
            code=code, message=message, details=details, retryable=retryable, retry_after_ms=retry_after_ms
        )


def error_shape(error: Exception, *, log_id: str) -> ErrorShape:
    """What the wire says of `error`. Of our own faults it says only `log_id`, under which the log has the cause."""
    match error:
        case WireError():
            return error.shape
        case Invalid():
            return ErrorShape(code="INVALID_REQUEST", message=str(error), details=error.details)
        case NotFound():
            details = {"code": "NOT_FOUND"} | (error.details or {})
            return ErrorShape(code="INVALID_REQUEST", message=str(error), details=details)
        case Conflict():
            details = {"reason": "chat-request-conflict"} | (error.details or {})
            return ErrorShape(code="INVALID_REQUEST", message=str(error), details=details)
        case Busy() | Unavailable():
            after = None if error.retry_after is None else round(error.retry_after * 1000)
            return ErrorShape(
                code="UNAVAILABLE", message=str(error), details=error.details, retryable=True, retry_after_ms=after
            )
        case _:
            return ErrorShape(
                code="INTERNAL_ERROR", message=f"internal error (log id {log_id})", details={"logId": log_id}
            )


_STATUS: dict[Code, int] = {
    "INVALID_REQUEST": 400,
    "FORBIDDEN": 403,
    "NOT_PAIRED": 403,
    "UNAVAILABLE": 503,
    "APPROVAL_NOT_FOUND": 404,
    "INTERNAL_ERROR": 500,
}


def http_status(error: ErrorShape) -> int:
    """The HTTP status for `error`: its details say more than its code, which the protocol keeps coarse."""
    details = error.details or {}
    detail: str = details.get("code", "")
    if detail == "RUN_FAILED":
        return 502
    if detail == "AUTH_RATE_LIMITED":
        return 429
    if "limit" in details:
        return 429 if error.retryable else 413
    if detail.startswith("AUTH_"):
        return 401
    if detail == "CONTROL_UI_ORIGIN_NOT_ALLOWED":
        return 403
    if detail.endswith("NOT_FOUND"):
        return 404
    if details.get("reason") == "chat-request-conflict":
        return 409
    return _STATUS[error.code]
