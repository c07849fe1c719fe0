"""What became of a slot: the claim, the entry of the log, and what both mean for the job. Pure."""

from typing import Any

import msgspec
from msgspec.structs import replace

from triops.runtime.cron.job import AutoDisabled, Job, LogEntry, SystemEvent, Usage
from triops.runtime.cron.schedule import At
from triops.runtime.runs.state import RunState, Terminal

BACKOFF_MS = (30_000, 60_000, 300_000, 900_000, 3_600_000)
"""After so many errors in a row; the last one repeats."""
ONE_SHOT_RETRIES = 3
GIVE_UP_AFTER = 10
"""Errors in a row after which a job is disabled."""

_SUMMARY_LENGTH = 2_000
_TRANSIENT = frozenset({"rate_limit", "overloaded", "timeout", "server_error"})


class Claim(msgspec.Struct, frozen=True):
    """A slot that is taken: on disk before it runs."""

    run_id: str
    job_id: str
    slot_ms: int | None
    """None: asked for by hand, beside the schedule."""
    claimed_at: int


def slot_run_id(job: Job, slot_ms: int) -> str:
    """The run of a slot: its name is its idempotency key, too."""
    return f"cron:{job.id}:{slot_ms}"


def passed(job: Job, slot_ms: int, now_ms: int, why: str) -> LogEntry:
    """The entry of a slot that did not run."""
    run_id = slot_run_id(job, slot_ms)
    return LogEntry(
        ts=now_ms, job_id=job.id, status="skipped", error=why, run_id=run_id, run_at_ms=slot_ms, job_name=job.name
    )


def ended(
    job: Job,
    claim: Claim,
    now_ms: int,
    terminal: Terminal | None = None,
    *,
    error: str | None = None,
    reason: str | None = None,
    session_id: str | None = None,
) -> LogEntry:
    """The entry of a slot that is over: how its run ended, if it needed one, or the `error` that kept it from that."""
    ran = terminal or Terminal(state=RunState.FINAL)
    if error is None:
        error, reason = _failure(ran)
    usage = ran.message.usage if ran.message else None
    words = job.payload.text if isinstance(job.payload, SystemEvent) else ran.text
    announced = job.delivery is not None and job.delivery.mode == "announce"
    return LogEntry(
        ts=now_ms,
        job_id=job.id,
        status="ok" if error is None else "error",
        completion_status="succeeded" if error is None else "failed",
        error=error,
        error_reason=reason,
        summary=words[:_SUMMARY_LENGTH] if error is None else None,
        delivered=None if isinstance(job.payload, SystemEvent) else False,
        delivery_status="not-delivered" if announced else "not-requested",
        session_id=session_id,
        session_key=job.session_of(claim.run_id),
        run_id=claim.run_id,
        run_at_ms=claim.claimed_at,
        duration_ms=max(0, now_ms - claim.claimed_at),
        model=ran.model or None,
        provider=ran.provider or None,
        usage=Usage(usage.input, usage.output, usage.total_tokens) if usage else None,
        job_name=job.name,
    )


def _failure(ran: Terminal) -> tuple[str | None, str | None]:
    """What went wrong in a run, and the protocol's class of it; nothing if it went well."""
    if ran.state is RunState.ERROR:
        # A peer that cannot be reached counts as a timeout, as on the wire.
        kind = "timeout" if ran.error_kind == "connection" else ran.error_kind
        return ran.error_message or "the run failed", kind or "unknown"
    if ran.state is not RunState.ABORTED:
        return None, None
    if ran.stop_reason in ("restart", "shutdown"):
        return "interrupted: the process stopped while the job ran", "unknown"
    return f"aborted: {ran.stop_reason}", "timeout" if ran.stop_reason == "timeout" else "unknown"


def event_fields(entry: LogEntry) -> dict[str, Any]:
    """What a `finished` event says of the slot, beside the job."""
    beside = ("ts", "jobId", "action", "jobName")
    fields: dict[str, Any] = msgspec.to_builtins(entry)
    return {key: value for key, value in fields.items() if key not in beside}


def settled(job: Job, entry: LogEntry, *, scheduled: bool) -> Job:
    """The job after a slot.

    A run by hand (`scheduled` False) is told in the state, and changes nothing about when the job is due.
    """
    errors = 0 if entry.status == "ok" else job.errors + 1
    job = replace(job, last=entry, errors=errors, running_at_ms=None, updated_at_ms=entry.ts)
    if not scheduled:
        return job
    retry = entry.ts + BACKOFF_MS[min(errors, len(BACKOFF_MS)) - 1] if errors else None
    if isinstance(job.schedule, At):
        again = 0 < errors <= ONE_SHOT_RETRIES and entry.error_reason in _TRANSIENT
        return replace(job, enabled=again, retry_ms=retry if again else None)
    if errors < GIVE_UP_AFTER:
        return replace(job, retry_ms=retry)
    given_up = AutoDisabled(reason="consecutive-failures", at_ms=entry.ts, consecutive_errors=errors)
    return replace(job, enabled=False, auto_disabled=given_up)


def is_spent(job: Job, entry: LogEntry) -> bool:
    """Whether a one-shot, settled by `entry`, has done what it was for and is to go."""
    return entry.status == "ok" and not job.enabled and isinstance(job.schedule, At) and bool(job.delete_after_run)
