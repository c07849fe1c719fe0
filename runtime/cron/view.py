"""How a cron job looks to clients: the protocol's CronJob and its read view. Pure."""

import base64
import hashlib
from typing import Any

import msgspec

from triops.runtime.cron.job import AgentTurn, Job, due_at

_PROGRESS = frozenset({"decidedMs", "retryMs", "runningAtMs", "last", "errors", "autoDisabled"})
"""Fields of a job that say what became of it; clients see them as its state."""


def view(job: Job, now_ms: int) -> dict[str, Any]:
    """The job as events carry it."""
    fields: dict[str, Any] = msgspec.to_builtins(job)
    shown = {key: value for key, value in fields.items() if key not in _PROGRESS}
    if isinstance(job.payload, AgentTurn):
        shown["scheduledToolPolicy"] = {"version": 1, "mode": "trusted"}
    return shown | {"state": _state(job, now_ms)}


def _state(job: Job, now_ms: int) -> dict[str, Any]:
    state: dict[str, Any] = {"nextRunAtMs": due_at(job, now_ms), "runningAtMs": job.running_at_ms}
    if job.last is not None:
        state |= {
            "lastRunAtMs": job.last.run_at_ms,
            "lastRunStatus": job.last.status,
            "lastStatus": job.last.status,
            "lastError": job.last.error,
            "lastErrorReason": job.last.error_reason,
            "lastDurationMs": job.last.duration_ms,
            "lastDelivered": job.last.delivered,
            "lastDeliveryStatus": job.last.delivery_status,
            "lastFailureNotificationDeliveryStatus": "not-requested",
            "consecutiveErrors": job.errors,
            "consecutiveSkipped": 0,
            "autoDisabled": msgspec.to_builtins(job.auto_disabled),
        }
    return {key: value for key, value in state.items() if value is not None}


def read_view(job: Job, now_ms: int) -> dict[str, Any]:
    """The job as methods answer with it."""
    shown = view(job, now_ms)
    above = ("nextRunAtMs", "lastRunAtMs", "lastRunStatus")
    asked = {key: value for key, value in shown.items() if key not in ("state", "createdAtMs", "updatedAtMs")}
    digest = hashlib.sha256(msgspec.json.encode(asked, order="sorted")).digest()
    shown["configRevision"] = "sha256:" + base64.urlsafe_b64encode(digest).decode().rstrip("=")
    return shown | {key: shown["state"][key] for key in above if key in shown["state"]}


def delivery_preview(job: Job) -> dict[str, str]:
    """Where results go, in words."""
    if job.delivery is None or job.delivery.mode == "none":
        return {"label": "not requested", "detail": "not requested"}
    where = "a session of its own each time" if job.session_target == "isolated" else f"session {job.session}"
    return {"label": "session", "detail": f"shown in {where}; there is no channel to announce it on"}
