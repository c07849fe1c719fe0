"""Tells main sessions how runs ended that were started on their behalf. A restart forgets what it had still to tell."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

import msgspec
import trio

from triops.gateway.errors import WireError
from triops.runtime.boundaries import contain
from triops.runtime.compose import Runtime
from triops.runtime.cron.job import WakeMode
from triops.runtime.errors import RuntimeFault
from triops.runtime.logs import Log
from triops.runtime.runs.state import RunState, Terminal

MAX_WAITING = 64  # runs whose end is waited for; past it a caller is told to try again


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
        self._send, self._receive = trio.open_memory_channel[Delivery](MAX_WAITING)
        self._waiting: set[str] = set()

    @contextmanager
    def place(self, run_id: str) -> Generator[Callable[[Delivery], None]]:
        """A place for a run that is about to be accepted, and what takes it once it is; once a run.

        Raises:
            WireError: too many wait.
        """
        if len(self._waiting) >= MAX_WAITING:
            words = f"{MAX_WAITING} runs are waited for already; try again when one is over"
            raise WireError("UNAVAILABLE", words, retryable=True, retry_after_ms=1000)
        new = run_id not in self._waiting
        taken = False

        def take(delivery: Delivery) -> None:
            nonlocal taken
            if new:
                self._send.send_nowait(delivery)
                taken = True

        self._waiting.add(run_id)
        try:
            yield take
        finally:
            if new and not taken:
                self._waiting.discard(run_id)

    async def run(self) -> None:
        """Deliver until cancelled."""
        with self._receive:
            async with trio.open_nursery() as nursery:
                async for delivery in self._receive:
                    nursery.start_soon(self._deliver, delivery, name=f"deliver {delivery.run_id}")

    async def _deliver(self, delivery: Delivery) -> None:
        with contain(self._log, "the end of a run could not be delivered"):
            try:
                text = told(await self._runtime.runs.wait(delivery.run_id))
                if text:
                    await self._wake(delivery, f"{delivery.name}: {text}")
            finally:
                self._waiting.discard(delivery.run_id)

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
