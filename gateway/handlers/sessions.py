"""`sessions.*`: the list, creation, sending, reset, subscriptions."""

from typing import Any
from uuid import uuid4

import msgspec

from triops.gateway import wire
from triops.gateway.errors import WireError
from triops.gateway.handlers import intake
from triops.gateway.methods import ANSWERED, Call, NoParams, method
from triops.gateway.rows import session_defaults, session_row
from triops.gateway.schema.sessions import (
    SessionsCreate,
    SessionsList,
    SessionsReset,
    SessionsSend,
    SessionTarget,
)
from triops.runtime.errors import Conflict, RuntimeFault
from triops.runtime.runs.registry import info_of
from triops.runtime.runs.state import Accepted
from triops.runtime.sessions import Session
from triops.runtime.store import sessions as stored
from triops.runtime.store.sessions import SessionFilter

MISSED_MS = 10 * 60_000


@method("sessions.list", scope="operator.read")
async def sessions_list(call: Call, params: SessionsList) -> dict[str, Any]:
    """The sessions, last used first."""
    runtime = call.services.runtime
    now = runtime.clock()
    wanted = SessionFilter(
        limit=params.limit,
        offset=params.offset,
        active_since=now - params.active_minutes * 60_000 if params.active_minutes else None,
        label=params.label,
        search=params.search,
        agent_id=params.agent_id,
        spawned_by=params.spawned_by,
        exclude_subagents=params.exclude_subagents,
        exclude_cron=params.exclude_cron,
    )
    rows, total = await runtime.store.read(lambda db: stored.listing(db, wanted))
    following = params.offset + len(rows)
    return {
        "ts": now,
        "path": str(runtime.paths.database),
        "count": len(rows),
        "totalCount": total,
        "limitApplied": params.limit,
        "offset": params.offset,
        "nextOffset": following if following < total else None,
        "hasMore": following < total,
        "owners": [],
        "defaults": session_defaults(runtime),
        "sessions": [session_row(runtime, row) for row in rows],
    }


@method("sessions.create", scope="operator.write")
async def sessions_create(call: Call, params: SessionsCreate) -> dict[str, Any]:
    """Make a session; with `message` (or `task`) its first run starts."""
    runtime = call.services.runtime
    key = intake.session_key(call, params.key or f"dashboard:{uuid4()}", params.agent_id)
    if params.model is not None:
        await runtime.catalog.resolve(params.model)
    now = runtime.clock()
    session: Session = await runtime.store.write(
        lambda db: stored.ensure(
            db, key, now, label=params.label, model=params.model, spawned_by=params.parent_session_key
        )
    )
    runtime.runs.changed(session, reason="create")
    result: dict[str, Any] = {
        "ok": True,
        "key": key,
        "sessionId": session.session_id,
        "entry": _entry(session),
        "runStarted": False,
        "resolved": _resolved(call),
    }
    words = params.message if params.message is not None else params.task
    if words is None:
        return result
    run_id = params.idempotency_key or str(uuid4())
    try:
        message = intake.user_message(call, words, params.attachments, run_id)
        accepted: Accepted = await runtime.runs.submit(
            intake.submission(
                call,
                key=key,
                spelled=params.key or "",
                run_id=run_id,
                message=message,
                deadline=params.timeout_ms / 1000 if params.timeout_ms else None,
            )
        )
    except (RuntimeFault, WireError) as error:
        code = error.shape.code if isinstance(error, WireError) else "UNAVAILABLE"
        return result | {"runError": {"code": code, "message": str(error)}}
    started = wire.given(runStarted=True, runId=accepted.run_id, status="started", messageSeq=accepted.message_seq)
    return result | started


@method("sessions.send", scope="operator.write")
async def sessions_send(call: Call, params: SessionsSend) -> Any:
    """A message into a session that exists; answers as `chat.send` does."""
    key = intake.session_key(call, params.key, params.agent_id)
    run_id = params.idempotency_key or str(uuid4())
    return await intake.start_chat(
        call,
        intake.submission(
            call,
            key=key,
            spelled=params.key,
            run_id=run_id,
            message=intake.user_message(call, params.message, params.attachments, run_id),
            deadline=params.timeout_ms / 1000 if params.timeout_ms else None,
            must_exist=True,
        ),
    )


@method("sessions.reset", scope="operator.admin")
async def sessions_reset(call: Call, params: SessionsReset) -> dict[str, Any]:
    """Begin afresh in the same session: its runs stop, its transcript stays, the model forgets it."""
    key = intake.session_key(call, params.key, params.agent_id)
    session = await begin_afresh(call, key, params.reason, expected_session_id=params.expected_session_id)
    return {"ok": True, "key": key, "entry": _entry(session), "resolved": _resolved(call)}


async def begin_afresh(call: Call, key: str, reason: str, *, expected_session_id: str | None = None) -> Session:
    """Stop a session's runs, and begin its transcript anew.

    Raises:
        Conflict: the session is another one than expected.
    """
    runtime = call.services.runtime
    for run in runtime.runs.open_runs(key):
        runtime.runs.abort(run, "reset")
    for run in runtime.runs.open_runs(key):
        await run.ended.wait()
    now = runtime.clock()

    def reset(db: stored.Db) -> Session:
        before = stored.find(db, key)
        if expected_session_id and (before is None or before.session_id != expected_session_id):
            raise Conflict(f"session {key} is another one by now", details={"reason": "session-changed"})
        return stored.reset(db, key, now)

    session = await runtime.store.write(reset)
    runtime.runs.changed(session, reason=reason)
    return session


@method("sessions.subscribe", scope="operator.read")
async def sessions_subscribe(call: Call, params: SessionsList) -> dict[str, Any]:
    """Hear of every session from now on; with parameters, the list as well."""
    call.require_subscriber("sessions.subscribe").all_sessions = True
    if params == SessionsList():
        return {"subscribed": True}
    return {"subscribed": True, "list": await sessions_list(call, params)}


@method("sessions.unsubscribe", scope="operator.read")
async def sessions_unsubscribe(call: Call, params: NoParams) -> dict[str, Any]:
    call.require_subscriber("sessions.unsubscribe").all_sessions = False
    return {"subscribed": False}


@method("sessions.messages.subscribe", scope="operator.read")
async def messages_subscribe(call: Call, params: SessionTarget) -> Any:
    """Hear of one session's messages and tools from now on.

    Who connected within ten minutes after the end of its last run may have lost its connection meanwhile, and hears
    that end again.
    """
    subscriber = call.require_subscriber("sessions.messages.subscribe")
    key = intake.session_key(call, params.key, params.agent_id)
    runtime = call.services.runtime
    session = await runtime.store.read(lambda db: stored.find(db, key))
    last = await runtime.runs.find(session.last_run_id) if session and session.last_run_id else None
    subscriber.session_keys.add(key)
    call.respond({"subscribed": True, "key": key})
    if last and last.terminal and 0 <= subscriber.since - last.terminal.ended_at <= MISSED_MS:
        info = msgspec.structs.replace(info_of(last.submission, last.session), spelled_key=key)
        call.services.fanout.repeat(subscriber.id, info, last.terminal)
    return ANSWERED


@method("sessions.messages.unsubscribe", scope="operator.read")
async def messages_unsubscribe(call: Call, params: SessionTarget) -> dict[str, Any]:
    key = intake.session_key(call, params.key, params.agent_id)
    call.require_subscriber("sessions.messages.unsubscribe").session_keys.discard(key)
    return {"subscribed": False, "key": key}


def _entry(session: Session) -> dict[str, Any]:
    return wire.given(
        sessionId=session.session_id,
        lifecycleRevision=session.lifecycle_revision,
        updatedAt=session.updated_at,
        createdVia=session.created_via,
        createdAt=session.created_at,
        spawnDepth=session.spawn_depth,
        label=session.label,
        parentSessionKey=session.spawned_by,
        model=session.model,
    )


def _resolved(call: Call) -> dict[str, Any]:
    defaults = session_defaults(call.services.runtime)
    return {"modelProvider": defaults["modelProvider"], "model": defaults["model"]}
