"""Tells main sessions how runs ended that were started on their behalf. What a run's end is for stands in its row, so
that a run that waited keeps it over a restart; a kill between the end and its delivery loses the latter."""

from collections.abc import Awaitable, Callable
from typing import NoReturn

import trio

from triops.runtime.boundaries import contain
from triops.runtime.errors import RuntimeFault
from triops.runtime.events import RunEnded
from triops.runtime.logs import Log
from triops.runtime.runs.state import Delivery, RunState, Terminal


class Deliveries:
    """Hears the ends from before the first run is recovered; `run` is the service that delivers them, in order."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._waiting: list[tuple[str, Delivery, str]] = []
        self._bell = trio.Event()

    def hear(self, event: RunEnded) -> None:
        """A listener of the bus."""
        if (delivery := event.run.delivery) and (text := told(event.terminal)):
            self._waiting.append((event.run.run_id, delivery, f"{delivery.name}: {text}"))
            self._bell.set()

    async def run(self, wake: Callable[..., Awaitable[None]]) -> NoReturn:
        """Deliver by `Heartbeat.wake` until cancelled."""
        while True:
            while self._waiting:
                run_id, delivery, words = self._waiting.pop(0)
                with contain(self._log, "the end of a run could not be delivered"):
                    try:
                        await wake(words, mode=delivery.mode, session_key=delivery.to)
                    except RuntimeFault as fault:  # there is no turn for it now: it waits there to be read
                        self._log.warning("the end of a run is told without a turn", run=run_id, reason=fault)
                        await wake(words, mode="next-heartbeat", session_key=delivery.to)
            self._bell = trio.Event()
            await self._bell.wait()


def told(terminal: Terminal) -> str:
    """How a run ended, in words; nothing for one that has nothing to say."""
    if terminal.state is RunState.ERROR:
        return f"failed: {terminal.error_message}"
    text = terminal.text.strip()
    return "" if text == "NO_REPLY" or terminal.state is RunState.ABORTED else text
