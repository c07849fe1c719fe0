"""`triops cron`: scheduled jobs."""

import re
from collections.abc import Callable
from typing import Any

import click

from triops.gateway.cli.output import parse_json, show, table, time_text
from triops.gateway.cli.rpc import Gateway, gateway_options

PLAIN = {"name": "name", "session": "sessionTarget", "wake": "wakeMode"}
SCHEDULES: dict[str, Callable[[str], dict[str, Any]]] = {
    "every": lambda text: {"kind": "every", "everyMs": _milliseconds(text)},
    "at": lambda text: {"kind": "at", "at": text},
    "expression": lambda text: {"kind": "cron", "expr": text},
}
PAYLOADS: dict[str, Callable[[str], dict[str, Any]]] = {
    "system_event": lambda text: {"kind": "systemEvent", "text": text},
    "message": lambda text: {"kind": "agentTurn", "message": text},
}
"""Options, and what they are on the wire."""

_UNITS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


@click.group(short_help="Add, list, run and remove scheduled jobs.")
def command() -> None:
    """Jobs that the gateway runs by itself."""


@command.command()
@click.option("--job", metavar="JSON", help="The whole job, as `cron.add` takes it; other options go over it.")
@click.option("--name", help="What to call it.")
@click.option("--every", metavar="TIME", help="Run each 30s, 5m, 2h or 1d.")
@click.option("--at", metavar="TIME", help="Run once, at an ISO time (without a zone: UTC).")
@click.option("--cron", "expression", metavar="EXPR", help='Run by a cron expression: "0 8 * * *".')
@click.option("--tz", help="Time zone of --cron: Europe/Berlin.")
@click.option("--system-event", metavar="TEXT", help="What it does: put TEXT into the session.")
@click.option("--message", metavar="TEXT", help="What it does: a turn of the assistant on TEXT.")
@click.option("--session", metavar="TARGET", help="Where: main, isolated, current or session:KEY.")
@click.option("--wake", type=click.Choice(["now", "next-heartbeat"]), help="When a system event is looked at.")
@gateway_options
def add(gateway: Gateway, job: str | None, **options: str | None) -> None:
    """Add a job, from JSON or from options.

    triops cron add --name tea --every 3h --system-event "Tea?"
    """
    params = parse_json(job, "--job") if job is not None else {}
    added = gateway.call("cron.add", params | _from_options(options))
    row = added.get("job", added)
    due = _next(row) or "no time"
    show(added, f"Added {row['name']} ({row['id']}), {due if due == 'disabled' else f'next at {due}'}.")


@command.command("list")
@click.option("--all", "with_disabled", is_flag=True, help="Disabled jobs too.")
@gateway_options
def list_(gateway: Gateway, with_disabled: bool) -> None:
    """List jobs, the next one first."""
    payload = gateway.call("cron.list", {"includeDisabled": True} if with_disabled else {})
    rows = [
        (job["id"], job["name"], _schedule(job["schedule"]), job["sessionTarget"], _next(job), _last(job))
        for job in payload["jobs"]
    ]
    show(payload, table(rows, "ID", "NAME", "SCHEDULE", "SESSION", "NEXT", "LAST") if rows else "No jobs.")


@command.command()
@click.argument("job_id")
@gateway_options
def run(gateway: Gateway, job_id: str) -> None:
    """Run a job now, due or not."""
    payload = gateway.call("cron.run", {"id": job_id})
    if payload.get("enqueued"):
        show(payload, f"Runs now ({payload.get('runId', job_id)}); how it ended: triops cron runs {job_id}")
    else:
        show(payload, f"Not run: {payload.get('reason', 'no reason given')}.")


@command.command()
@click.argument("job_id", required=False)
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True)
@gateway_options
def runs(gateway: Gateway, job_id: str | None, limit: int) -> None:
    """Show past runs of a job, or of all, the newest first."""
    payload = gateway.call("cron.runs", {"limit": limit} | ({"id": job_id} if job_id else {}))
    if job_id and not payload["entries"]:
        gateway.call("cron.get", {"id": job_id})  # a job that is not there is an error, no empty list
    rows = [
        (
            time_text(entry.get("runAtMs") or entry["ts"]),
            entry.get("jobName") or entry["jobId"],
            entry.get("status"),
            entry.get("durationMs"),
            entry.get("error") or entry.get("summary"),
        )
        for entry in payload["entries"]
    ]
    show(payload, table(rows, "AT", "JOB", "STATUS", "MS", "TEXT") if rows else "No runs.")


@command.command()
@click.argument("job_id")
@gateway_options
def rm(gateway: Gateway, job_id: str) -> None:
    """Remove a job."""
    show(gateway.call("cron.remove", {"id": job_id}), f"Removed {job_id}.")


def _from_options(options: dict[str, str | None]) -> dict[str, Any]:
    """The `cron.add` params that options name; what is not given is left to `--job` and the gateway."""
    given = {name: value for name, value in options.items() if value}
    params: dict[str, Any] = {wire: given[name] for name, wire in PLAIN.items() if name in given}
    for member, kinds in (("schedule", SCHEDULES), ("payload", PAYLOADS)):
        wanted = [make(given[name]) for name, make in kinds.items() if name in given]
        if len(wanted) > 1:
            raise click.UsageError("give one of --every, --at and --cron, and one of --system-event and --message")
        if wanted:
            params[member] = wanted[0]
    if "tz" in given:
        params["schedule"] = {**params.get("schedule", {}), "tz": given["tz"]}
    return params


def _milliseconds(text: str) -> int:
    if not (found := re.fullmatch(r"(\d+)\s*([smhd])", text.strip())):
        raise click.UsageError(f"--every {text}: write a number and s, m, h or d, such as 5m")
    return int(found[1]) * _UNITS[found[2]]


def _schedule(schedule: dict[str, Any]) -> str:
    match schedule:
        case {"kind": "every", "everyMs": int(ms)}:
            unit = next((unit for unit in "dhms" if ms % _UNITS[unit] == 0), None)
            return f"every {ms // _UNITS[unit]}{unit}" if unit else f"every {ms}ms"
        case {"kind": "at", "at": at}:
            return f"at {at}"
        case {"kind": "cron", "expr": expression}:
            return f"{expression} {schedule.get('tz', '')}".rstrip()
        case _:
            return str(schedule.get("kind"))


def _next(job: dict[str, Any]) -> str | None:
    if not job.get("enabled", True):
        return "disabled"
    return time_text(job.get("nextRunAtMs") or job.get("state", {}).get("nextRunAtMs"))


def _last(job: dict[str, Any]) -> str | None:
    return job.get("lastRunStatus") or job.get("state", {}).get("lastRunStatus")
