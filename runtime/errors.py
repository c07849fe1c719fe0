"""Faults of the runtime with stable codes. The gateway maps them to the wire; nothing here knows a wire."""

from typing import Any, ClassVar


class RuntimeFault(Exception):
    """Something asked of the runtime cannot be done; the message says what was wrong, where and what to do."""

    code: ClassVar[str] = "fault"
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, *, details: dict[str, Any] | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.details = details
        self.retry_after = retry_after
        """Seconds."""


class Busy(RuntimeFault):
    """A bounded place is full; nothing was written. Try again."""

    code = "busy"
    retryable = True


class NotFound(RuntimeFault):
    """What was named does not exist."""

    code = "not_found"


class Conflict(RuntimeFault):
    """An idempotency key was used again for other input, or an expectation does not hold any more."""

    code = "conflict"


class Unavailable(RuntimeFault):
    """The store or a service cannot do it now; nothing was acknowledged. Try again."""

    code = "unavailable"
    retryable = True


class Invalid(RuntimeFault):
    """The caller's input is wrong."""

    code = "invalid"
