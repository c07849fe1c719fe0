"""`chat.send`, `chat.abort`, `chat.history`."""

from typing import Any

import msgspec

from triops.gateway import wire
from triops.gateway.errors import WireError
from triops.gateway.handlers import commands, intake
from triops.gateway.methods import Call, method
from triops.gateway.rows import session_defaults, session_row
from triops.gateway.schema.chat import ChatAbort, ChatHistory, ChatSend
from triops.runtime.runs.registry import Run
from triops.runtime.runs.state import RunState
from triops.runtime.store import sessions as stored
from triops.runtime.store.sessions import Placed

HISTORY_BYTES = 6 * 1024 * 1024


@method("chat.send", scope="operator.write")
async def chat_send(call: Call, params: ChatSend) -> Any:
    """Accept a message; the reply comes as events, or over HTTP with `?wait=final` as the answer."""
    if not params.session_key.strip():  # as recorded: it fits the schema and is refused by a code of its own
        details = {"code": "SESSION_MUTATION_TARGET_REQUIRED", "method": "chat.send"}
        raise WireError(
            "INVALID_REQUEST", "session mutation target is unavailable: sessionKey is empty", details=details
        )
    key = intake.session_key(call, params.session_key, params.agent_id)
    command = None if params.suppress_command_interpretation else commands.parse(params.message)
    if command is not None and command.name == "stop":
        return await _abort(call, key, None)
    message = intake.user_message(call, params.message, params.attachments, params.idempotency_key)
    wanted = intake.submission(
        call,
        key=key,
        spelled=params.session_key,
        run_id=params.idempotency_key,
        message=message,
        source="command" if command is not None else "chat",
        queue_mode=params.queue_mode,
        deadline=params.timeout_ms / 1000 if params.timeout_ms else None,
    )
    if command is None:
        return await intake.start_chat(call, wanted)
    known = await call.services.runtime.runs.find(wanted.run_id)  # what comes again does nothing again
    return await intake.start_chat(call, wanted, answer="" if known else await commands.answer(call, key, command))


@method("chat.abort", scope="operator.write")
async def chat_abort(call: Call, params: ChatAbort) -> dict[str, Any]:
    """Stop one run, or all of a session, waiting ones first. The terminals follow as events."""
    key = intake.session_key(call, params.session_key, params.agent_id)
    return await _abort(call, key, params.run_id)


async def _abort(call: Call, key: str, run_id: str | None) -> dict[str, Any]:
    runs = call.services.runtime.runs
    wanted: list[Run] = runs.open_runs(key)
    if run_id is not None:
        run = runs.open_run(run_id)
        if run is not None and run.session.key != key:
            raise WireError("INVALID_REQUEST", "runId does not match sessionKey")
        wanted = [run] if run is not None else []
    stopped = await runs.stop(wanted, "rpc")
    return {"ok": True, "aborted": bool(stopped), "runIds": [run.id for run in stopped]}


@method("chat.history", scope="operator.read")
async def chat_history(call: Call, params: ChatHistory) -> dict[str, Any]:
    """The last messages of a session, what waits, and what runs."""
    runtime = call.services.runtime
    key = intake.session_key(call, params.session_key, params.agent_id)
    page = await runtime.store.read(lambda db: stored.transcript(db, key, limit=params.limit, offset=params.offset))
    messages = _within([_shown(entry, params.max_chars) for entry in page.messages], params.max_bytes or HISTORY_BYTES)
    pending = [run for run in runtime.runs.open_runs(key) if run.state is RunState.QUEUED]
    running = [run for run in runtime.runs.open_runs(key) if run.state is RunState.RUNNING]
    result: dict[str, Any] = {"sessionKey": key, "messages": messages}
    if page.session is not None:
        result["sessionId"] = page.session.session_id
        result["sessionInfo"] = session_row(runtime, page.session)
    result["pendingInputs"] = {"items": [_pending(run) for run in pending], "total": len(pending)}
    dropped = len(page.messages) - len(messages)
    result["hasMore"] = page.has_more or dropped > 0
    result["totalMessages"] = page.total
    if result["hasMore"]:
        result["nextOffset"] = params.offset + len(messages)
    result["defaults"] = session_defaults(runtime)
    if running:
        run = running[0]
        result["inFlightRun"] = {
            "runId": run.id,
            "text": run.text,
            "startedAt": run.started_at,
            "sessionAbortable": True,
        }
    return result


def _shown(entry: Placed, max_chars: int | None) -> dict[str, Any]:
    shown = wire.shown_message(entry.message, entry.id, entry.seq, entry.run_id)
    if max_chars is not None:
        content = shown["content"]
        if isinstance(content, str):
            shown["content"] = content[:max_chars]
        else:
            for block in content:
                if "text" in block:
                    block["text"] = block["text"][:max_chars]
    return shown


def _within(messages: list[dict[str, Any]], max_bytes: int) -> list[dict[str, Any]]:
    """The newest messages that fit; at least one."""
    size = 0
    for index in range(len(messages) - 1, -1, -1):
        size += len(msgspec.json.encode(messages[index]))
        if size > max_bytes and index < len(messages) - 1:
            return messages[index + 1 :]
    return messages


def _pending(run: Run) -> dict[str, Any]:
    content = run.submission.message.content
    return {
        "runId": run.id,
        "text": content if isinstance(content, str) else "",
        "status": "queued",
        "acceptedAt": run.accepted_at,
        "queueMode": run.submission.queue_mode,
    }
