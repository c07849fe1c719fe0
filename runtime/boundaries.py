"""The only two places that catch `Exception`: a boundary around one thing, and the restart of a named service.

Neither ever swallows `Cancelled`. A group that holds it is a `BaseExceptionGroup` and goes on up by itself.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType

import trio

from triops.runtime.logs import Log


class contain:  # a class, because a generator costs thrice as much on every event
    """Let no `Exception` out of the block: log it as `what`, and tell `failed` (sync) about it. May be entered again.

    Used at the five boundaries: connection, request, run, tool call, plugin hook.
    """

    __slots__ = ("_failed", "_log", "_what")

    def __init__(self, log: Log, what: str, *, failed: Callable[[Exception], None] | None = None) -> None:
        self._log = log
        self._what = what
        self._failed = failed

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if not isinstance(error, Exception):
            return False
        self._log.error(self._what, error=error)
        if self._failed is not None:
            self._failed(error)
        return True


async def supervise(
    name: str,
    service: Callable[[], Awaitable[None]],
    *,
    log: Log,
    restarts: int = 5,
    within: float = 60.0,
) -> None:
    """Run `service` for ever; start it again when it fails, but at most `restarts` times in `within` seconds.

    A service that returns is done. Past the limit its failure goes up, and the process ends loudly.
    """
    failures: deque[float] = deque()
    while True:
        try:
            await service()
            return
        except Exception as error:
            now = trio.current_time()
            failures.append(now)
            while failures and failures[0] <= now - within:
                failures.popleft()
            if len(failures) > restarts:
                log.error("service gave up", service=name, failures=len(failures), error=error)
                raise
            log.error("service failed, starting it again", service=name, failures=len(failures), error=error)
        await trio.sleep(min(0.1 * 2 ** len(failures), 5.0))
