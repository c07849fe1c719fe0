"""From what happens in the runtime to what stands on the wire. Pure: events in, payloads out; who gets them is the
fan-out's business.

Shapes and their order are those of OpenClaw 2026.9.6: a status goes out as `chat` then `agent`, everything else as
`agent` then `chat`; a run's lifecycle end precedes its chat terminal.
"""

from typing import Any

import msgspec

from triops.agents.messages import Message, SystemMessage, Text
from triops.gateway.schema.events import AgentEvent, ChatEvent, ShownMessage
from triops.gateway.schema.sessions import SessionRow
from triops.runtime.events import RunCompaction, RunInfo, RunTool, SessionChanged
from triops.runtime.phases import Phases
from triops.runtime.runs.state import RunState, Terminal

_PHASES = {"first_token": "firstToken"}
"""How those are spelled here that are spelled otherwise."""

_ROW_FIELDS = [(field.name, field.encode_name) for field in msgspec.structs.fields(SessionRow) if field.name != "key"]


def agent_event(
    run: RunInfo, seq: int, ts: int, stream: str, data: dict[str, Any], *, with_session: bool = False
) -> AgentEvent:
    return AgentEvent(
        run_id=run.run_id,
        stream=stream,
        data=data,
        session_key=run.session_key,
        session_id=run.session_id if with_session else None,
        agent_id=run.agent_id,
        seq=seq,
        ts=ts,
        is_heartbeat=run.source == "heartbeat",
        spawned_by=run.spawned_by,
    )


def given(**members: Any) -> dict[str, Any]:
    """Those that are there, in their order: `None` stands for absence and is never on the wire."""
    return {name: value for name, value in members.items() if value is not None}


def _chat_event(run: RunInfo, seq: int, state: str, **about: Any) -> ChatEvent:
    return ChatEvent(
        run_id=run.run_id,
        session_key=run.session_key,
        agent_id=run.agent_id,
        spawned_by=run.spawned_by,
        seq=seq,
        state=state,
        **about,
    )


def status(run: RunInfo, seq: int, ts: int, phase: str, retry: dict[str, Any] | None) -> tuple[ChatEvent, AgentEvent]:
    """A run that has nothing to show yet says where it is."""
    chat = _chat_event(run, seq, "status", phase=phase)
    if retry is None:
        return chat, agent_event(run, seq, ts, "run_status", {"phase": phase})
    data = dict(retry)
    if data.pop("kind", "") == "rate_limit":  # clients know no other reason
        chat = msgspec.structs.replace(chat, retry={**data, "reason": "rate_limit"})
    return chat, agent_event(run, seq, ts, "run_status", {"phase": "retrying", **data})


def delta(
    run: RunInfo, seq: int, ts: int, index: int, new: str, text: str, *, replace: bool
) -> tuple[AgentEvent, ChatEvent]:
    """Text: `new` since the last one, `text` in all. `replace`: a new message begins, forget the last one's text."""
    data: dict[str, Any] = {"text": text, "delta": new, "itemId": f"{run.run_id}:{index}"}
    message = ShownMessage((Text(text),), ts)
    chat = _chat_event(run, seq, "delta", delta_text=new, replace=replace, message=message)
    return agent_event(run, seq, ts, "assistant", data), chat


def tool(event: RunTool) -> AgentEvent:
    """A tool call as its run's client sees it."""
    data: dict[str, Any] = {"phase": event.phase, "name": event.call.name, "toolCallId": event.call.id}
    match event.phase:
        case "start":
            data["args"] = event.call.arguments
        case "update":
            data["partialResult"] = {"content": [{"type": "text", "text": event.partial}]}
        case "result":
            assert event.result is not None
            data["isError"] = event.result.is_error
            data["result"] = given(content=event.result.content, details=event.result.details)
    return agent_event(event.run, event.seq, event.ts, "tool", data)


def compaction(event: RunCompaction) -> AgentEvent:
    """The start or the end of a summary."""
    data: dict[str, Any] = {"phase": event.phase}
    if event.phase == "end":
        data |= {"completed": event.completed, "willRetry": event.retry}
    return agent_event(event.run, event.seq, event.ts, "compaction", data)


def shown_text(terminal: Terminal) -> str:
    """What a terminal shows, without white space at its end. As recorded, the transcript keeps that."""
    return terminal.text.rstrip()


def shown_state(terminal: Terminal) -> str:
    """A run that went into another is over for its client as any that ended well."""
    return "final" if terminal.state is RunState.MERGED else str(terminal.state)


def lifecycle_end(run: RunInfo, seq: int, terminal: Terminal) -> AgentEvent:
    """The end of a run as an `agent` event: phase `end`, or `error` when it failed."""
    data: dict[str, Any] = {"phase": "error" if terminal.state is RunState.ERROR else "end"}
    data["aborted"] = terminal.state is RunState.ABORTED
    data |= given(stopReason=terminal.stop_reason, startedAt=terminal.started_at)
    data |= {"endedAt": terminal.ended_at, "livenessState": liveness(terminal)}
    if terminal.state is RunState.ABORTED:
        data["status"] = "cancelled"
    if terminal.state is RunState.ERROR:
        data["error"] = terminal.error_message or "the run failed"
        data |= given(errorKind=terminal.error_kind, errorObservation=terminal.error_detail)
    data["executionSettled"] = True
    data.update(receipt_of(run.run_id, run.session_id, terminal))
    return agent_event(run, seq, terminal.ended_at, "lifecycle", data, with_session=True)


def with_phases(end: AgentEvent, phases: Phases | None) -> AgentEvent:
    """The same for who asks (cap `turn-phases`) where the time went: `phases`, in milliseconds."""
    if phases is None:
        return end
    spent = {_PHASES.get(phase, phase): round(seconds * 1000, 3) for phase, seconds in phases.spent().items()}
    return msgspec.structs.replace(end, data=end.data | {"phases": spent})


def liveness(terminal: Terminal) -> str:
    return "blocked" if terminal.state is RunState.ERROR else "working"


def receipt_of(run_id: str, session_id: str, terminal: Terminal) -> dict[str, Any]:
    """`terminalReply` and `terminalReceipt` of a run that ended well."""
    if terminal.state is not RunState.FINAL:
        return {}
    text = shown_text(terminal)
    disposition = "visible" if text else "silent"
    model = {"provider": terminal.provider, "model": terminal.model}
    return {
        "terminalReply": {"disposition": disposition, "text": text},
        "terminalReceipt": {
            "runId": run_id,
            "sessionId": session_id,
            "turnId": run_id,
            "requested": model,
            "effective": {**model, "responseModel": terminal.model},
            "successfulToolNames": list(terminal.tools),
            "rerouted": False,
            "terminalDisposition": disposition,
        },
    }


def chat_terminal(run: RunInfo, seq: int, terminal: Terminal) -> ChatEvent:
    """The one terminal of a run as a `chat` event."""
    text = shown_text(terminal)
    return _chat_event(
        run,
        seq,
        shown_state(terminal),
        stop_reason=terminal.stop_reason,
        message=ShownMessage((Text(text),), terminal.ended_at) if text else None,
        error_message=terminal.error_message,
        error_kind=terminal.error_kind,
        error_detail=terminal.error_detail,
    )


def session_changed(event: SessionChanged, row: SessionRow) -> dict[str, Any]:
    """Why, and the whole row, as `session` and once more beside it: there null says that a field is cleared."""
    payload: dict[str, Any] = {"sessionKey": row.key, "ts": event.ts, "session": row}
    payload |= given(reason=event.reason, phase=event.phase, runId=event.run_id)
    return payload | {wire_name: getattr(row, name) for name, wire_name in _ROW_FIELDS}


def shown_message(message: Message, message_id: str, seq: int, run_id: str | None) -> dict[str, Any]:
    """A transcript message with its place, as `chat.history` and `session.message` carry it."""
    shown: dict[str, Any] = msgspec.to_builtins(message)
    about = given(id=message_id, seq=seq, runId=run_id)
    if key := shown.get("idempotencyKey"):
        about["idempotencyKey"] = key
    if isinstance(message, SystemMessage) and message.source in ("reset", "compaction"):
        shown["content"] = [{"type": "text", "text": message.content}]
        about["kind"] = message.source
    shown["__openclaw"] = about
    return shown
