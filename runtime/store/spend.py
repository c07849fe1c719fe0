"""What the answers in the transcripts cost."""

from triops.runtime.store.db import Db

LONGEST = 2 * 86_400_000
"""Milliseconds that a run may last, by default; what was accepted before can hardly have messages of today."""


def since(db: Db, *, start: int) -> tuple[int, float]:
    """Tokens and USD of all answers and summaries since `start`, in milliseconds.

    Reads the sessions that had runs, once a day.
    """
    row = db.execute(
        "SELECT coalesce(sum(json_extract(body, '$.usage.totalTokens')), 0),"
        " coalesce(sum(json_extract(body, '$.usage.cost.total')), 0.0) FROM messages"
        " WHERE sid IN (SELECT sid FROM runs WHERE accepted_at >= ?)"
        " AND json_extract(body, '$.role') IN ('assistant', 'system') AND json_extract(body, '$.timestamp') >= ?",
        (start - LONGEST, start),
    ).fetchone()
    return (row[0], row[1]) if row else (0, 0.0)
