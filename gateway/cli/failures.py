"""What ends a command: the exit codes, and what to say of an exception that got here. Prints nothing."""

import enum
import errno
from collections.abc import Mapping
from typing import Any, cast

START_HINT = "Start one: triops gateway start (its log: triops logs)"


AUTH_HINT = "Give this gateway's token, or its password, with --token; if its config changed, restart it."


class Exit(enum.IntEnum):
    """What a process of ours says at its end."""

    OK = 0
    FAILED = 1
    USAGE = 2
    RUNNING = 75
    PORT_TAKEN = 76
    CONFIG = 78
    INTERRUPTED = 130


class Failure(Exception):
    """Ends the command: `message` says what is wrong, `hint` what to do next, `error` is what `--json` prints."""

    def __init__(
        self, message: str, hint: str = "", *, code: int = Exit.FAILED, error: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code
        told = error or {"code": next((known.name for known in Exit if known == code), "FAILED")}
        self.error: dict[str, Any] = {**told, "message": message} | ({"hint": hint} if hint else {})


def remedy_of(details: Any) -> str:
    """What to do about a refusal: what this command lacks, and what the gateway says."""
    found = cast("dict[str, str]", details) if isinstance(details, dict) else {}
    told = found.get("remediationHint", "")
    code = str(found.get("code"))
    about_secret = code.startswith(("AUTH_", "DEVICE_IDENTITY_"))
    if about_secret and code not in ("AUTH_RATE_LIMITED", "AUTH_SCOPE_MISMATCH"):
        return f"{AUTH_HINT} {told}".strip()
    return told


def failure_of(error: BaseException) -> Failure:
    """What to say of an exception; one that nobody foresaw is raised again, with its traceback."""
    if isinstance(error, Failure):
        return error
    from triops.gateway.client import GatewayClosed, GatewayError
    from triops.gateway.server import PortTaken
    from triops.runtime.config_reader import ConfigError
    from triops.runtime.errors import Invalid, Unavailable
    from triops.runtime.instance import InstanceRunning
    from triops.runtime.paths import StateError

    first = error
    while isinstance(first, BaseExceptionGroup):  # of several, the first says enough
        first = cast("BaseExceptionGroup[BaseException]", first).exceptions[0]
    match first:
        case Failure():
            return first
        case GatewayError():
            told = {"code": first.code, "details": first.details, "retryable": first.retryable}
            return Failure(first.message, remedy_of(first.details), error=told)
        case GatewayClosed():
            return Failure(str(first), START_HINT, error={"code": "CLOSED", "closeCode": first.code})
        case InstanceRunning():
            return Failure(str(first), code=Exit.RUNNING)
        case PortTaken():
            return Failure(str(first), code=Exit.PORT_TAKEN)
        case StateError() | ConfigError() | Invalid() | Unavailable():
            return Failure(str(first), code=Exit.CONFIG)
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EFBIG | errno.EIO):
            return Failure(f"cannot write {first.filename or 'the output'}: {first.strerror}")
        case _:
            raise error
