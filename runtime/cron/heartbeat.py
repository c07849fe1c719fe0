"""Wakes and heartbeats: turns that the agent takes without being asked by a person.

A heartbeat costs tokens: there is none by itself unless the configuration asks for it. Knows no cron job.
"""

import re
from typing import Any, Literal
from uuid import uuid4

import trio

from triops.agents.messages import SystemMessage
from triops.runtime.bus import Bus
from triops.runtime.clock import Clock
from triops.runtime.config import HeartbeatConfig
from triops.runtime.cron.job import WakeMode
from triops.runtime.cron.scheduler import Runs
from triops.runtime.errors import Invalid, RuntimeFault
from triops.runtime.events import HeartbeatEvent
from triops.runtime.runs.state import RunState, Source, Submission
from triops.runtime.sessions import MAIN_KEY, canonical_key, is_subagent
from triops.runtime.store import cron as stored
from triops.runtime.store.sqlite import Store

PROMPT = (
    "Heartbeat. If something needs attention now, say it. Do not take up old tasks again. Otherwise reply NO_REPLY."
)
ACK_MAX_CHARS = 300
PREVIEW_CHARS = 200

_ACK = re.compile(r"^\W*HEARTBEAT_OK\b|\bHEARTBEAT_OK\W*$")


class Heartbeat:
    """One agent's heartbeat; `run` is its service."""

    def __init__(self, store: Store, bus: Bus, runs: Runs, *, config: HeartbeatConfig, clock: Clock) -> None:
        self._store = store
        self._bus = bus
        self._runs = runs
        self._config = config
        self._clock = clock

    async def wake(
        self, text: str, *, mode: WakeMode = "now", session_key: str = MAIN_KEY, run_id: str | None = None
    ) -> None:
        """Put a visible system message into a session; with mode `now` a run answers it there.

        Returns when it is on disk. `session_key` is canonical. `run_id` names the run: the same again is the same.

        Raises:
            Invalid: the session is a sub-agent's: its parent talks to it.
            RuntimeFault: the run was refused, or the store refuses.
        """
        if is_subagent(session_key):
            raise Invalid(f"a sub-agent's session cannot be woken: {session_key}; wake the session that spawned it")
        message = SystemMessage(text, self._clock(), source="wake")
        if mode == "next-heartbeat":
            await self._runs.append(session_key, message)
        else:
            await self._runs.submit(self._submission(session_key, message, "wake", run_id))

    async def beat(self) -> dict[str, Any]:
        """Take a turn now; returns, keeps and publishes the protocol's `heartbeat` payload when it is over.

        A run that fails or is refused is a payload too, of status `failed` or `skipped`. Cancelled: the run goes on
        and is not told as a heartbeat.
        """
        started = self._clock()
        key = canonical_key(self._config.session)
        message = SystemMessage(self._config.prompt or PROMPT, started, source="heartbeat")
        try:
            accepted = await self._runs.submit(self._submission(key, message, "heartbeat"))
            terminal = await self._runs.wait(accepted.run_id)
        except RuntimeFault as fault:
            outcome = {"status": "skipped", "reason": str(fault)}
        else:
            if terminal.state in (RunState.ERROR, RunState.ABORTED):
                outcome = {"status": "failed", "reason": terminal.error_message or f"aborted: {terminal.stop_reason}"}
            else:
                outcome = {"status": status_of(terminal.text), "preview": terminal.text[:PREVIEW_CHARS]}
        now = self._clock()
        payload: dict[str, Any] = {"ts": now, **outcome, "hasMedia": False, "durationMs": max(0, now - started)}
        await self._store.write(lambda db: stored.save_heartbeat(db, payload))
        self._bus.publish(HeartbeatEvent(payload=payload))
        return payload

    async def last(self) -> dict[str, Any] | None:
        """The payload of the last heartbeat, before a restart or after."""
        return await self._store.read(stored.last_heartbeat)

    async def run(self) -> None:
        """Beat as often as configured, until cancelled; returns at once when that is never."""
        while self._config.every > 0:
            await trio.sleep(self._config.every)
            await self.beat()

    def _submission(self, key: str, message: SystemMessage, source: Source, run_id: str | None = None) -> Submission:
        return Submission(
            run_id=run_id or f"{source}:{uuid4()}",
            session_key=key,
            message=message,
            source=source,
            queue_mode="followup",
            model=self._config.model if source == "heartbeat" else None,
        )


def status_of(reply: str) -> Literal["sent", "ok-empty", "ok-token"]:
    """What a reply says: nothing at all, that nothing needs attention (`NO_REPLY`; `HEARTBEAT_OK` at its start or end
    and at most 300 characters beside it), or something that somebody should see."""
    text = reply.strip()
    if not text:
        return "ok-empty"
    beside = len(_ACK.sub("", text).strip())
    acknowledged = _ACK.search(text) is not None and beside <= ACK_MAX_CHARS
    return "ok-token" if text == "NO_REPLY" or acknowledged else "sent"
