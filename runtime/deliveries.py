"""Tells main sessions how runs ended that were started on their behalf. What a run's end is for stands in its row until
it was delivered, so that a run that waited, and an end that was not told yet, keep it over a restart."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import NoReturn

import trio

from triops.runtime.boundaries import contain
from triops.runtime.errors import RuntimeFault
from triops.runtime.events import RunEnded
from triops.runtime.logs import Log
from triops.runtime.runs.state import Delivery, RunState, Terminal
from triops.runtime.store import runs as stored
from triops.runtime.store.sqlite import Store


class Deliveries:
    """Hears the ends from before the first run is recovered; `run` is the service that delivers them, in order."""

    def __init__(self, store: Store, log: Log) -> None:
        self._store = store
        self._log = log
        self._waiting: dict[str, tuple[Delivery, Terminal]] = {}
        """By run; it goes when it is delivered, so that an end that is heard and read is one."""
        self._bell = trio.Event()

    def hear(self, event: RunEnded) -> None:
        """A listener of the bus."""
        if event.run.delivery:
            self._waiting[event.run.run_id] = event.run.delivery, event.terminal
            self._bell.set()

    async def run(self, wake: Callable[..., Awaitable[None]]) -> NoReturn:
        """Deliver by `Heartbeat.wake` what an earlier process did not and then what ends, until cancelled."""
        self._waiting = await self._store.read(stored.undelivered) | self._waiting
        while True:
            while self._waiting:
                run_id, (delivery, terminal) = next(iter(self._waiting.items()))
                with contain(self._log, "the end of a run could not be delivered"):
                    if text := told(terminal):
                        await self._deliver(wake, run_id, delivery, f"{delivery.name}: {text}")
                del self._waiting[run_id]
            self._bell = trio.Event()
            await self._bell.wait()

    async def _deliver(self, wake: Callable[..., Awaitable[None]], run_id: str, delivery: Delivery, words: str) -> None:
        """A kill before the last line tells it again: not what gets a turn, whose run has that one name."""
        try:
            await wake(words, mode=delivery.mode, session_key=delivery.to, run_id=f"wake:{run_id}")
        except RuntimeFault as fault:  # there is no turn for it now: it waits there to be read
            self._log.warning("the end of a run is told without a turn", run=run_id, reason=fault)
            await wake(words, mode="next-heartbeat", session_key=delivery.to)
        await self._store.write(partial(stored.delivered, run_id=run_id))


def told(terminal: Terminal) -> str:
    """How a run ended, in words; nothing for one that has nothing to say."""
    if terminal.state is RunState.ERROR:
        return f"failed: {terminal.error_message}"
    text = terminal.text.strip()
    return "" if text == "NO_REPLY" or terminal.state is RunState.ABORTED else text
