"""Transactions on runs: accepted, claimed, saved, ended, recovered. Each leaves the disk in a state that a start
can go on from."""

import hashlib
from collections.abc import Mapping, Sequence

import msgspec

from triops.agents.messages import AssistantMessage, Message, StopReason, Usage
from triops.runtime.errors import Conflict
from triops.runtime.history import Past
from triops.runtime.runs.state import (
    Delivery,
    RunState,
    Submission,
    Terminal,
    decode_terminal,
    encode_input,
    encode_terminal,
    merged_terminal,
)
from triops.runtime.sessions import CreatedVia, Session, SessionStatus
from triops.runtime.store import sessions
from triops.runtime.store.db import Db, Value
from triops.runtime.store.sessions import Placed

KEEP_MS = 30 * 24 * 3600 * 1000
"""How long a run and its idempotency key are kept."""
TELL_MS = 2 * 24 * 3600 * 1000
"""How long after its acceptance the end of a run is still news."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Submission).decode
_decode_delivery = msgspec.json.Decoder(Delivery).decode
_CREATED_VIA: dict[str, CreatedVia] = {"cron": "cron", "spawn": "spawn", "heartbeat": "internal", "wake": "internal"}
_STATUS: dict[RunState, SessionStatus] = {
    RunState.FINAL: "done",
    RunState.ERROR: "failed",
    RunState.ABORTED: "killed",
}


class Acceptance(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a submission. `fresh` is False when the key was known."""

    session: Session
    fresh: bool
    state: RunState
    accepted_at: int
    placed: Placed | None = None
    past: Past | None = None
    """Of what started."""
    terminal: Terminal | None = None


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A run as it lies on disk."""

    submission: Submission
    session: Session
    state: RunState
    accepted_at: int
    terminal: Terminal | None = None


def digest(submission: Submission) -> bytes:
    """What must be the same when a key comes again: the session and the words."""
    message = msgspec.structs.replace(submission.message, timestamp=0)
    return hashlib.blake2b(submission.session_key.encode() + b"\0" + encode_input(message), digest_size=16).digest()


def accept(db: Db, submission: Submission, now: int, *, start: bool, known: Past | None = None) -> Acceptance:
    """The user's message, the run and its key, at once. With `start` it is running and its message has its place.

    Raises:
        Conflict: the key stands for other input.
        NotFound: the session must exist, and does not.
    """
    state = RunState.RUNNING if start else RunState.QUEUED
    accepted = _accept(db, submission, now, state)
    if not (start and accepted.fresh):
        return accepted
    session, placed, past = _begin(db, submission, accepted.session.sid, now, known)
    return msgspec.structs.replace(accepted, session=session, placed=placed, past=past)


def answer(db: Db, submission: Submission, terminal: Terminal, now: int) -> Acceptance:
    """A run that is over as it comes; nothing of it stands in the transcript. Raises as `accept`."""
    accepted = _accept(db, submission, now, RunState.QUEUED)
    if accepted.fresh:
        _end(db, submission.run_id, terminal)
    return accepted


def _accept(db: Db, submission: Submission, now: int, state: RunState) -> Acceptance:
    row = db.execute(
        "SELECT digest, state, accepted_at, message_seq FROM runs WHERE id = ?", (submission.run_id,)
    ).fetchone()
    if row is not None:
        if row[0] != digest(submission):
            raise Conflict(
                "This message ID was already used for different input. Check the conversation history and use a new"
                " message ID to send again.",
                details={"reason": "chat-request-conflict"},
            )
        stored = find(db, submission.run_id)
        assert stored is not None
        return Acceptance(
            session=stored.session,
            fresh=False,
            state=stored.state,
            accepted_at=stored.accepted_at,
            terminal=stored.terminal,
        )
    if submission.must_exist:
        sessions.require(db, submission.session_key)
    session = sessions.ensure(
        db,
        submission.session_key,
        now,
        created_via=_CREATED_VIA.get(submission.source, "operator"),
        label=submission.label,
        spawned_by=submission.spawned_by,
        spawn_depth=submission.spawn_depth,
    )
    db.execute(
        "INSERT INTO runs (id, sid, state, source, submission, digest, accepted_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            submission.run_id,
            session.sid,
            state,
            submission.source,
            _encode(submission).decode(),
            digest(submission),
            now,
        ),
    )
    return Acceptance(session=session, fresh=True, state=state, accepted_at=now)


def claim(
    db: Db, submission: Submission, sid: int, now: int, known: Past | None = None
) -> tuple[Session, Placed, Past]:
    """A queued run begins: it is running on disk, its message has its place; its session and past come back."""
    db.execute("UPDATE runs SET state = 'running' WHERE id = ? AND state = 'queued'", (submission.run_id,))
    assert db.changes() == 1, f"run {submission.run_id} was not queued"
    return _begin(db, submission, sid, now, known)


def _begin(db: Db, submission: Submission, sid: int, now: int, known: Past | None) -> tuple[Session, Placed, Past]:
    placed = sessions.place(db, sid, submission.message, now, run_id=submission.run_id)
    db.execute("UPDATE runs SET message_seq = ? WHERE id = ?", (placed.seq, submission.run_id))
    session = _update(
        db, "status = 'running', started_at = ?, ended_at = NULL, last_run_id = ?", now, submission.run_id, sid
    )
    return session, placed, sessions.past(db, session, before=placed.seq, known=known)


def save(db: Db, sid: int, run_id: str, messages: Sequence[Message], merged: Sequence[str], now: int) -> list[Placed]:
    """A step of a run: its messages in order; the runs in `merged` are part of it from now on."""
    placed = [sessions.place(db, sid, message, now, run_id=run_id) for message in messages]
    for other in merged:
        db.execute("UPDATE runs SET state = 'merged', merged_into = ? WHERE id = ?", (run_id, other))
    return placed


def _update(db: Db, changes: str, *values: Value) -> Session:
    """Change the session whose `sid` is the last of `values`; how it is now."""
    rows = db.execute(f"UPDATE sessions SET {changes} WHERE sid = ? RETURNING {sessions.COLUMNS}", values).fetchall()  # noqa: S608 - our words
    return sessions.session_of(rows[0])


def finish(
    db: Db, sid: int, run_id: str, terminal: Terminal, messages: Sequence[Message], now: int
) -> tuple[Session, list[Placed]]:
    """The end of a run that was running: its last messages, its terminal, its session."""
    placed = [sessions.place(db, sid, message, now, run_id=run_id) for message in messages]
    _end(db, run_id, terminal)
    usage = next((m.usage for m in reversed(messages) if isinstance(m, AssistantMessage) and m.usage), Usage())
    session = _update(
        db,
        "status = ?, ended_at = ?, last_run_error = ?, updated_at = ?, input_tokens = iif(?5, ?6, input_tokens),"
        " output_tokens = iif(?5, ?7, output_tokens), total_tokens = iif(?5, ?8, total_tokens)",
        _STATUS[terminal.state],
        terminal.ended_at,
        terminal.error_message,
        now,
        usage.input > 0,
        usage.input,
        usage.output,
        usage.total_tokens,
        sid,
    )
    return session, placed


def drop(db: Db, submission: Submission, sid: int, terminal: Terminal, now: int) -> Placed:
    """The end of a run that never ran. Its message still gets its place: somebody wrote it."""
    placed = sessions.place(db, sid, submission.message, now, run_id=submission.run_id)
    _end(db, submission.run_id, terminal)
    return placed


def _end(db: Db, run_id: str, terminal: Terminal) -> None:
    db.execute(
        "UPDATE runs SET state = ?, terminal = ? WHERE id = ? AND state IN ('queued', 'running')",
        (terminal.state, encode_terminal(terminal).decode(), run_id),
    )


def find(db: Db, run_id: str) -> Stored | None:
    """The run of a key; a merged one carries the terminal of the run that took it."""
    row = db.execute(
        "SELECT r.submission, s.key, r.state, r.accepted_at, coalesce(r.terminal, o.terminal), r.merged_into"
        " FROM runs r JOIN sessions s USING (sid) LEFT JOIN runs o ON o.id = r.merged_into WHERE r.id = ?",
        (run_id,),
    ).fetchone()
    if row is None:
        return None
    submission, key, state, accepted_at, terminal, merged_into = row
    decoded = decode_terminal(terminal) if terminal else None
    if decoded is not None and merged_into is not None:
        decoded = merged_terminal(decoded, merged_into)
    return Stored(
        submission=_decode(submission),
        session=sessions.require(db, key),
        state=RunState(state),
        accepted_at=accepted_at,
        terminal=decoded,
    )


def undelivered(db: Db) -> dict[str, tuple[Delivery, Terminal]]:
    """Of the last days' runs those that are over and whose ends are still to be told to somebody, the oldest first."""
    rows = db.execute(
        "SELECT id, submission -> '$.delivery', terminal FROM runs"
        " WHERE accepted_at >= (SELECT max(accepted_at) FROM runs) - ? AND terminal IS NOT NULL"
        " AND submission ->> '$.delivery' IS NOT NULL ORDER BY n",
        (TELL_MS,),
    ).fetchall()
    return {id: (_decode_delivery(delivery), decode_terminal(terminal)) for id, delivery, terminal in rows}


def delivered(db: Db, *, run_id: str) -> None:
    """The end of this run was told."""
    db.execute("UPDATE runs SET submission = json_remove(submission, '$.delivery') WHERE id = ?", (run_id,))


def recover(db: Db, now: int, *, max_age_ms: int, told: Mapping[str, Terminal]) -> tuple[list[Stored], list[Stored]]:
    """After a start: what was running is ended (as it was `told`, else `aborted`, `restart`), and what is queued too
    long.

    Returns:
        The runs ended here, each followed by those that it had taken in, and the queued ones to run, oldest first.
    """
    rows = db.execute("SELECT id FROM runs WHERE state IN ('queued', 'running') ORDER BY n").fetchall()
    ended: list[Stored] = []
    waiting: list[Stored] = []
    for (run_id,) in rows:
        stored = find(db, run_id)
        assert stored is not None
        if stored.state is RunState.QUEUED and now - stored.accepted_at <= max_age_ms:
            waiting.append(stored)
            continue
        terminal = told.get(run_id) or Terminal(state=RunState.ABORTED, stop_reason="restart", ended_at=now)
        if stored.state is RunState.RUNNING:
            reason: StopReason = "error" if run_id in told else "aborted"
            words = terminal.error_message or "The gateway stopped before this reply was finished."
            note = AssistantMessage((), now, stop_reason=reason, error_message=words)
            finish(db, stored.session.sid, run_id, terminal, [note], now)
        else:
            drop(db, stored.submission, stored.session.sid, terminal, now)
        ended.append(msgspec.structs.replace(stored, terminal=terminal))
        merged = db.execute("SELECT id FROM runs WHERE merged_into = ? ORDER BY n", (run_id,)).fetchall()
        ended += [other for (id,) in merged if (other := find(db, id)) is not None]
    db.execute("DELETE FROM runs WHERE accepted_at < ? AND state NOT IN ('queued', 'running')", (now - KEEP_MS,))
    return ended, waiting
