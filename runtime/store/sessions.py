"""Transactions on sessions and their transcripts. The only place that knows how a message gets its place."""

from typing import Any
from uuid import uuid4

import msgspec

from triops.agents.messages import AssistantMessage, Message, SystemMessage, UserMessage, decode_message, encode_message
from triops.agents.transcript import estimate
from triops.runtime.errors import Conflict, NotFound
from triops.runtime.history import Past, window
from triops.runtime.sessions import CreatedVia, Session, agent_of, is_main
from triops.runtime.store.db import Db, Row, Value

COLUMNS = ", ".join(Session.__struct_fields__)


class Placed(msgspec.Struct, frozen=True):
    """A message and its place."""

    seq: int
    id: str
    message: Message
    run_id: str | None = None


def session_of(row: Row) -> Session:
    """The session of a row of `COLUMNS`."""
    return Session(**dict(zip(Session.__struct_fields__, row, strict=True)))


def find(db: Db, key: str) -> Session | None:
    """The session of a canonical key."""
    row = db.execute(f"SELECT {COLUMNS} FROM sessions WHERE key = ?", (key,)).fetchone()  # noqa: S608 - our columns
    return session_of(row) if row else None


def find_labelled(db: Db, label: str) -> Session | None:
    row = db.execute(f"SELECT {COLUMNS} FROM sessions WHERE label = ?", (label,)).fetchone()  # noqa: S608 - our columns
    return session_of(row) if row else None


def require(db: Db, key: str) -> Session:
    """The session of a canonical key.

    Raises:
        NotFound: there is none.
    """
    session = find(db, key)
    if session is None:
        raise NotFound(f"session not found: {key}")
    return session


def ensure(
    db: Db,
    key: str,
    now: int,
    *,
    created_via: CreatedVia = "operator",
    label: str | None = None,
    model: str | None = None,
    spawned_by: str | None = None,
    spawn_depth: int = 0,
) -> Session:
    """The session of a canonical key, made if need be.

    Raises:
        Conflict: another session has that label.
    """
    session = find(db, key)
    if session is not None and label is None and model is None:
        return session
    if label is not None:
        holder = find_labelled(db, label)
        if holder is not None and holder.key != key:
            raise Conflict(f"label already in use: {label!r} is {holder.key}")
    if session is not None:
        db.execute(
            "UPDATE sessions SET label = coalesce(?, label), model = coalesce(?, model), updated_at = ? WHERE sid = ?",
            (label, model, now, session.sid),
        )
        return require(db, key)
    db.execute(
        "INSERT INTO sessions (key, agent_id, session_id, label, created_via, created_at, updated_at, model,"
        " spawned_by, spawn_depth, lifecycle_revision) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            key,
            agent_of(key),
            str(uuid4()),
            label,
            created_via,
            now,
            now,
            model,
            spawned_by,
            spawn_depth,
            str(uuid4()),
        ),
    )
    return require(db, key)


def place(db: Db, sid: int, message: Message, now: int, *, run_id: str | None = None) -> Placed:
    """Append a message to a transcript."""
    preview = preview_of(message)
    interaction = now if isinstance(message, UserMessage | SystemMessage) else None
    row = db.execute(
        "UPDATE sessions SET last_seq = last_seq + 1, updated_at = ?, last_preview = coalesce(?, last_preview),"
        " last_interaction_at = coalesce(?, last_interaction_at) WHERE sid = ? RETURNING last_seq",
        (now, preview, interaction, sid),
    ).fetchall()
    seq: int = row[0][0]
    message_id = str(uuid4())
    db.execute(
        "INSERT INTO messages (sid, seq, id, run_id, body) VALUES (?, ?, ?, ?, ?)",
        (sid, seq, message_id, run_id, encode_message(message).decode()),
    )
    return Placed(seq, message_id, message, run_id)


def preview_of(message: Message) -> str | None:
    """The first words of a message, for lists; None for what is not speech."""
    match message:
        case SystemMessage(source="compaction"):
            return None
        case UserMessage(content=str() as text) | SystemMessage(content=text):
            return text[:200].strip()
        case AssistantMessage() if message.text:
            return message.text[:200].strip()
        case _:
            return None


def past(db: Db, session: Session, *, before: int, known: Past | None = None) -> Past:
    """What a turn may show its model of what stands below seq `before`; only what `known` lacks is read."""
    start = max(window(before, session.reset_seq), session.kept_seq - 1)
    id, summary = session.session_id, session.summary_seq
    if known is None or (known.session_id, known.start, known.summary_seq) != (id, start, summary):
        known = Past(session_id=id, start=start, end=start, summary_seq=summary)
        for (body,) in db.execute("SELECT body FROM messages WHERE sid = ? AND seq = ?", (session.sid, summary)):
            first = decode_message(body)
            known = msgspec.structs.replace(known, closed=(first,), tokens=estimate(first), size=len(body))
    if known.end == before - 1:
        return known
    rows = db.execute(
        "SELECT body FROM messages WHERE sid = ? AND seq > ? AND seq < ? ORDER BY seq",
        (session.sid, known.end, before),
    ).fetchall()
    return known.grown(before - 1, [body for (body,) in rows])


class Page(msgspec.Struct, frozen=True):
    """A stretch of a transcript, oldest first."""

    session: Session | None
    messages: list[Placed]
    total: int
    has_more: bool


def transcript(db: Db, key: str, *, limit: int, offset: int = 0, whole: bool = False) -> Page:
    """The last `limit` messages but `offset`, from the last reset on unless `whole`; nothing for an unknown session."""
    session = find(db, key)
    if session is None:
        return Page(None, [], 0, False)
    first = 0 if whole else session.reset_seq
    rows = db.execute(
        "SELECT seq, id, body, run_id FROM messages WHERE sid = ? AND seq >= ? ORDER BY seq DESC LIMIT ? OFFSET ?",
        (session.sid, first, limit, offset),
    ).fetchall()
    messages = [Placed(seq, id, decode_message(body), run_id) for seq, id, body, run_id in reversed(rows)]
    total = session.last_seq - max(first - 1, 0)
    return Page(session, messages, total, offset + len(messages) < total)


class SessionFilter(msgspec.Struct, frozen=True, kw_only=True):
    """What `sessions.list` may ask for."""

    limit: int = 100
    offset: int = 0
    active_since: int | None = None
    label: str | None = None
    search: str | None = None
    agent_id: str | None = None
    spawned_by: str | None = None
    exclude_subagents: bool = False
    exclude_cron: bool = False


def listing(db: Db, wanted: SessionFilter) -> tuple[list[Session], int]:
    """The wanted sessions, last used first, and how many there are in all."""
    conditions: list[str] = []
    values: list[Value] = []

    def only(condition: str, *bound: Value) -> None:
        conditions.append(condition)
        values.extend(bound)

    if wanted.active_since is not None:
        only("updated_at >= ?", wanted.active_since)
    if wanted.label is not None:
        only("label = ?", wanted.label)
    if wanted.agent_id is not None:
        only("agent_id = ?", wanted.agent_id)
    if wanted.spawned_by is not None:
        only("spawned_by = ?", wanted.spawned_by)
    if wanted.exclude_subagents:
        only("key NOT LIKE 'agent:%:subagent:%'")
    if wanted.exclude_cron:
        only("key NOT LIKE 'agent:%:cron:%'")
    if wanted.search:
        needle = "%" + wanted.search.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        only("(key LIKE ? ESCAPE '\\' OR label LIKE ? ESCAPE '\\' OR last_preview LIKE ? ESCAPE '\\')", *[needle] * 3)
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    ((total,),) = db.execute(f"SELECT count(*) FROM sessions {where}", values).fetchall()  # noqa: S608 - bound values
    rows = db.execute(
        f"SELECT {COLUMNS} FROM sessions {where} ORDER BY updated_at DESC, sid DESC LIMIT ? OFFSET ?",  # noqa: S608 - bound values
        [*values, wanted.limit, wanted.offset],
    ).fetchall()
    return [session_of(row) for row in rows], total


def compact(
    db: Db, sid: int, summary: SystemMessage, kept_seq: int, now: int, *, run_id: str
) -> tuple[Session, Placed]:
    """From now on turns are shown `summary` in place of what stands before seq `kept_seq`, which stays on disk."""
    placed = place(db, sid, summary, now, run_id=run_id)
    db.execute("UPDATE sessions SET summary_seq = ?, kept_seq = ? WHERE sid = ?", (placed.seq, kept_seq, sid))
    rows = db.execute(f"SELECT {COLUMNS} FROM sessions WHERE sid = ?", (sid,)).fetchall()  # noqa: S608 - our columns
    return session_of(rows[0]), placed


def reset(db: Db, key: str, now: int) -> Session:
    """Begin afresh, with a row that says so: what was before stays on disk, neither model nor people are shown it any
    more. Keeps `session_id`."""
    session = ensure(db, key, now)
    place(db, session.sid, SystemMessage("Reset", now, source="reset"), now)
    db.execute(
        "UPDATE sessions SET reset_seq = last_seq, summary_seq = 0, kept_seq = 0, updated_at = ?, status = NULL,"
        " input_tokens = 0, output_tokens = 0, total_tokens = 0, last_preview = NULL, lifecycle_revision = ?"
        " WHERE sid = ?",
        (now, str(uuid4()), session.sid),
    )
    return require(db, key)


def choose_model(db: Db, key: str, model: str | None, now: int) -> Session:
    """The session's own model from now on; None: the agent's."""
    session = ensure(db, key, now)
    db.execute("UPDATE sessions SET model = ?, updated_at = ? WHERE sid = ?", (model, now, session.sid))
    return require(db, key)


def append(
    db: Db, key: str, message: Message, now: int, *, created_via: CreatedVia = "internal"
) -> tuple[Session, Placed]:
    """A message without a run."""
    session = ensure(db, key, now, created_via=created_via)
    placed = place(db, session.sid, message, now)
    return require(db, key), placed


def count(db: Db) -> int:
    ((total,),) = db.execute("SELECT count(*) FROM sessions").fetchall()
    return total


def get_value(db: Db, name: str) -> Any:
    """A value kept under a name, or None."""
    row = db.execute("SELECT value FROM kv WHERE key = ?", (name,)).fetchone()
    return msgspec.json.decode(row[0]) if row else None


def set_value(db: Db, name: str, value: Any) -> None:
    db.execute(
        "INSERT INTO kv (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        (name, msgspec.json.encode(value).decode()),
    )


def main_key_of(key: str) -> str:
    """The main session of the agent that owns `key`."""
    return key if is_main(key) else f"agent:{agent_of(key)}:main"


def touch(db: Db, key: str, now: int) -> Session:
    """Keep a session fresh; a main session is made if need be.

    Raises:
        NotFound: another session that does not exist.
    """
    session = ensure(db, key, now) if is_main(key) else require(db, key)
    db.execute(
        "UPDATE sessions SET updated_at = ?1, last_interaction_at = ?1 WHERE sid = ?2",
        (now, session.sid),
    )
    return require(db, key)
