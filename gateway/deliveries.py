"""Tells main sessions how runs ended that were started on their behalf. A restart forgets what it had still to tell."""

import msgspec
import trio

from triops.runtime.boundaries import contain
from triops.runtime.compose import Runtime
from triops.runtime.cron.job import WakeMode
from triops.runtime.errors import RuntimeFault
from triops.runtime.logs import Log
from triops.runtime.runs.state import RunState, Terminal

CAPACITY = 64  # its task takes them at once


class Delivery(msgspec.Struct, frozen=True):
    """The end of `run_id` goes to session `to` as a system event of `name`."""

    run_id: str
    to: str
    name: str
    mode: WakeMode


class Deliveries:
    """See the module; `run` is its task."""

    def __init__(self, runtime: Runtime, log: Log) -> None:
        self._runtime = runtime
        self._log = log
        self._send, self._receive = trio.open_memory_channel[Delivery](CAPACITY)

    async def add(self, delivery: Delivery) -> None:
        """Have an accepted run's end delivered."""
        await self._send.send(delivery)

    async def run(self) -> None:
        """Deliver until cancelled."""
        with self._receive:
            async with trio.open_nursery() as nursery:
                async for delivery in self._receive:
                    nursery.start_soon(self._deliver, delivery, name=f"deliver {delivery.run_id}")

    async def _deliver(self, delivery: Delivery) -> None:
        with contain(self._log, "the end of a run could not be delivered"):
            if text := told(await self._runtime.runs.wait(delivery.run_id)):
                await self._wake(delivery, f"{delivery.name}: {text}")

    async def _wake(self, delivery: Delivery, words: str) -> None:
        wake = self._runtime.heartbeat.wake
        try:
            await wake(words, mode=delivery.mode, session_key=delivery.to)
        except RuntimeFault as fault:  # there is no turn for it now: it waits there to be read
            self._log.warning("the end of a run is told without a turn", run=delivery.run_id, reason=fault)
            await wake(words, mode="next-heartbeat", session_key=delivery.to)


def told(terminal: Terminal) -> str:
    """How a run ended, in words; nothing for one that has nothing to say."""
    if terminal.state is RunState.ERROR:
        return f"failed: {terminal.error_message}"
    text = terminal.text.strip()
    return "" if text == "NO_REPLY" or terminal.state is RunState.ABORTED else text
