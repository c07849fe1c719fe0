"""Transactions on cron jobs and the receipts of their slots. A slot has one row, written before it runs."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec.structs import replace

from triops.runtime.cron.job import DeliveryStatus, Job, LogEntry, RunStatus
from triops.runtime.cron.receipt import Claim
from triops.runtime.store.db import Db, Value

KEEP_MS = 7 * 86_400_000
KEEP_ROWS = 2_000
KEEP_ISOLATED_MS = 86_400_000

_encode = msgspec.json.Encoder().encode
_decode_job = msgspec.json.Decoder(Job).decode


class RunsQuery(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The parameters of `cron.runs`."""

    id: str | None = None
    job_id: str | None = None
    scope: Literal["job", "all"] | None = None
    run_id: str | None = None
    status: Literal["all"] | RunStatus = "all"
    statuses: tuple[RunStatus, ...] = ()
    delivery_status: DeliveryStatus | None = None
    delivery_statuses: tuple[DeliveryStatus, ...] = ()
    query: str = ""
    sort_dir: Literal["asc", "desc"] = "desc"
    limit: Annotated[int, msgspec.Meta(ge=1, le=200)] = 50
    offset: Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)] = 0


_JOBS = (
    "SELECT j.job, (SELECT min(claimed_at) FROM cron_receipts r WHERE r.job_id = j.id AND finished_at IS NULL)"
    " FROM cron_jobs j"
)
_RECEIPT = (
    "INTO cron_receipts (run_id, job_id, slot_ms, claimed_at, finished_at, status, entry) VALUES (?, ?, ?, ?, ?, ?, ?)"
)


def load(db: Db) -> list[Job]:
    """Every job. Whether one runs is not stored with it: it follows from the open claims."""
    return [_job(*row) for row in db.execute(_JOBS)]


def find(db: Db, job_id: str) -> Job | None:
    row = db.execute(f"{_JOBS} WHERE j.id = ?", (job_id,)).fetchone()
    return _job(*row) if row else None


def _job(body: str, running_at_ms: int | None) -> Job:
    return replace(_decode_job(body), running_at_ms=running_at_ms)


def save(db: Db, job: Job) -> None:
    body = _encode(replace(job, running_at_ms=None)).decode()
    db.execute("REPLACE INTO cron_jobs (id, job) VALUES (?, ?)", (job.id, body))


def remove(db: Db, job_id: str) -> None:
    """Forget a job. An open claim keeps it in place of its entry: the receipt will tell of it."""
    db.execute(
        "UPDATE cron_receipts SET entry = (SELECT job FROM cron_jobs WHERE id = job_id)"
        " WHERE job_id = ? AND finished_at IS NULL",
        (job_id,),
    )
    db.execute("DELETE FROM cron_jobs WHERE id = ?", (job_id,))


def claim(db: Db, job: Job, taken: Claim, passed: Sequence[LogEntry]) -> bool:
    """Take a slot, give those in `passed` their receipts, and save the job, at once.

    False: the slot was taken before, and must not run again. One that was skipped can be taken: it never ran.
    """
    skip(db, job, passed)
    db.execute(
        "INSERT INTO cron_receipts (run_id, job_id, slot_ms, claimed_at) VALUES (?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET run_id = excluded.run_id, claimed_at = excluded.claimed_at,"
        " finished_at = NULL, status = NULL, entry = NULL WHERE status = 'skipped'",
        (taken.run_id, taken.job_id, taken.slot_ms, taken.claimed_at),
    )
    return db.changes() == 1


def finish(db: Db, job: Job | None, claimed: Claim, entry: LogEntry, passed: Sequence[LogEntry]) -> None:
    """Complete the receipt of a slot, and save the job; None is one that is gone, or goes now. Old receipts go too."""
    row = (claimed.run_id, claimed.job_id, claimed.slot_ms, claimed.claimed_at)
    db.execute(f"REPLACE {_RECEIPT}", (*row, entry.ts, entry.status, _encode(entry).decode()))
    if job is not None:
        skip(db, job, passed)
    else:
        remove(db, claimed.job_id)
    _prune(db, entry.ts)


def skip(db: Db, job: Job, passed: Sequence[LogEntry]) -> None:
    """Save a job, and give its slots that passed unused their receipts."""
    save(db, job)
    for entry in passed:
        row = (entry.run_id, entry.job_id, entry.run_at_ms, entry.ts)
        db.execute(f"INSERT OR IGNORE {_RECEIPT}", (*row, entry.ts, entry.status, _encode(entry).decode()))


def open_claims(db: Db) -> list[tuple[Claim, Job]]:
    """Slots that were claimed and not finished, with their jobs, which may be gone."""
    rows = db.execute(
        "SELECT coalesce(job, entry), run_id, job_id, slot_ms, claimed_at"
        " FROM cron_receipts LEFT JOIN cron_jobs ON id = job_id WHERE finished_at IS NULL"
    )
    return [(Claim(*claim), _decode_job(job)) for job, *claim in rows]


def runs(db: Db, query: RunsQuery) -> tuple[list[dict[str, Any]], int]:
    """A page of finished receipts, newest first unless asked otherwise, and how many there are in all."""
    statuses = query.statuses or (() if query.status == "all" else (query.status,))
    delivery = query.delivery_statuses or ((query.delivery_status,) if query.delivery_status else ())
    job_id = None if query.scope == "all" else query.id or query.job_id
    where, values = ["finished_at IS NOT NULL"], list[Value]()
    for column, wanted in (
        ("job_id", (job_id,) if job_id else ()),
        ("run_id", (query.run_id,) if query.run_id else ()),
        ("status", statuses),
        ("entry ->> 'deliveryStatus'", delivery),
    ):
        if wanted:
            where.append(f"{column} IN ({', '.join('?' * len(wanted))})")
            values.extend(wanted)
    if query.query:
        where.append("instr(lower(entry), lower(?)) > 0")
        values.append(query.query)
    found = f"FROM cron_receipts WHERE {' AND '.join(where)}"
    order = f"finished_at {query.sort_dir}, slot_ms {query.sort_dir}"
    ((total,),) = db.execute(f"SELECT count(*) {found}", values).fetchall()
    rows = db.execute(  # the words in it are ours, what was asked for is bound
        f"SELECT entry {found} ORDER BY {order} LIMIT ? OFFSET ?", [*values, query.limit, query.offset]
    )
    return [msgspec.json.decode(entry) for (entry,) in rows], total


def _prune(db: Db, now_ms: int) -> None:
    """Drop receipts older than seven days, and all but the newest 2,000. A claim is kept until it is finished.

    The session of an isolated run goes when nothing has happened in it for a day.
    """
    idle = db.execute(
        "SELECT sid, created_at, updated_at FROM sessions WHERE updated_at < ? AND created_via = 'cron'"
        " AND key GLOB 'agent:*:cron:*:run:*' AND status IS NOT 'running'",
        (now_ms - KEEP_ISOLATED_MS,),
    ).fetchall()
    for sid, since, until in idle:
        db.execute("DELETE FROM messages WHERE sid = ?", (sid,))
        db.execute("DELETE FROM runs WHERE sid = ? AND accepted_at BETWEEN ? AND ?", (sid, since, until))
        db.execute("DELETE FROM sessions WHERE sid = ?", (sid,))
    db.execute("DELETE FROM cron_receipts WHERE finished_at < ?", (now_ms - KEEP_MS,))
    db.execute(
        "DELETE FROM cron_receipts WHERE finished_at <= (SELECT finished_at FROM cron_receipts"
        " WHERE finished_at IS NOT NULL ORDER BY finished_at DESC LIMIT 1 OFFSET ?)",
        (KEEP_ROWS,),
    )


def save_heartbeat(db: Db, payload: dict[str, Any]) -> None:
    db.execute("REPLACE INTO kv (key, value) VALUES ('heartbeat', ?)", (_encode(payload).decode(),))


def last_heartbeat(db: Db) -> dict[str, Any] | None:
    row = db.execute("SELECT value FROM kv WHERE key = 'heartbeat'").fetchone()
    return msgspec.json.decode(row[0]) if row else None
