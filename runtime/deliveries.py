"""Tells main sessions how runs ended that were started on their behalf. What a run's end is for stands in its row, so
that a run that waited keeps it over a restart; a kill between the end and its delivery loses the latter."""

from collections.abc import Awaitable, Callable
from typing import NoReturn

import trio

from triops.runtime.boundaries import contain
from triops.runtime.errors import RuntimeFault
from triops.runtime.events import RunEnded, RuntimeEvent
from triops.runtime.logs import Log
from triops.runtime.runs.state import RunState, Terminal


class Deliveries:
    """Hears the ends from before the first run is recovered; `run` is the service that delivers them, in order."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._ended: list[RunEnded] = []
        self._bell = trio.Event()

    def hear(self, event: RuntimeEvent) -> None:
        """A listener of the bus."""
        if isinstance(event, RunEnded) and event.run.delivery is not None and told(event.terminal):
            self._ended.append(event)
            self._bell.set()

    async def run(self, wake: Callable[..., Awaitable[None]]) -> NoReturn:
        """Deliver by `Heartbeat.wake` until cancelled."""
        while True:
            while self._ended:
                with contain(self._log, "the end of a run could not be delivered"):
                    await self._deliver(self._ended.pop(0), wake)
            self._bell = trio.Event()
            await self._bell.wait()

    async def _deliver(self, ended: RunEnded, wake: Callable[..., Awaitable[None]]) -> None:
        delivery = ended.run.delivery
        assert delivery is not None
        words = f"{delivery.name}: {told(ended.terminal)}"
        try:
            await wake(words, mode=delivery.mode, session_key=delivery.to)
        except RuntimeFault as fault:  # there is no turn for it now: it waits there to be read
            self._log.warning("the end of a run is told without a turn", run=ended.run.run_id, reason=fault)
            await wake(words, mode="next-heartbeat", session_key=delivery.to)


def told(terminal: Terminal) -> str:
    """How a run ended, in words; nothing for one that has nothing to say."""
    if terminal.state is RunState.ERROR:
        return f"failed: {terminal.error_message}"
    text = terminal.text.strip()
    return "" if text == "NO_REPLY" or terminal.state is RunState.ABORTED else text
