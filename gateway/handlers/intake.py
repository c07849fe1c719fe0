"""What all methods that start a run share: from a client's words to a submission, from its end to a payload."""

import base64
import binascii
from collections.abc import Sequence
from functools import partial
from typing import Any

import trio

from triops.agents.messages import Image, Text, UserBlock, UserMessage
from triops.gateway import wire
from triops.gateway.errors import ErrorShape, WireError
from triops.gateway.methods import ANSWERED, Call
from triops.gateway.schema.chat import Attachment
from triops.runtime.agents import AgentProfile
from triops.runtime.events import RunInfo
from triops.runtime.runs.state import Accepted, QueueMode, RunState, Source, Submission, Terminal
from triops.runtime.runs.supervisor import Supervisor
from triops.runtime.sessions import agent_of, canonical_key

MAX_TEXT = 1024 * 1024
MAX_IMAGE = 6 * 1024 * 1024


def session_key(call: Call, text: str, agent_id: str | None = None) -> str:
    """The canonical key of what a client wrote.

    Raises:
        Invalid: it is no key.
        WireError: it names an agent that the configuration does not have.
    """
    key = canonical_key(text, agent_id=agent_id)
    known_agent(call, agent_of(key))
    return key


def known_agent(call: Call, agent_id: str) -> AgentProfile:
    """An agent of the configuration. Raises `WireError` where it has none of this id."""
    profile = call.services.runtime.agents.get(agent_id)
    if profile is None:
        words = f'Agent "{agent_id}" no longer exists in configuration'
        raise WireError("INVALID_REQUEST", words, details={"code": "UNKNOWN_AGENT_ID"})
    return profile


def user_message(call: Call, text: str, attachments: Sequence[Attachment], key: str) -> UserMessage:
    """What a client says, with its images.

    Raises:
        WireError: there is nothing, it is too long, or an attachment is not an image.
    """
    size = len(text.encode())
    if size > MAX_TEXT:
        raise WireError("INVALID_REQUEST", f"message has {size} bytes; at most {MAX_TEXT} are allowed")
    if not text.strip() and not attachments:
        raise WireError("INVALID_REQUEST", "message or attachment required")
    images = [image(attachment) for attachment in attachments]
    content: str | tuple[UserBlock, ...] = (Text(text), *images) if images else text
    return UserMessage(content, call.services.runtime.clock(), idempotency_key=f"{key}:user")


def image(attachment: Attachment) -> Image:
    name = attachment.file_name or "attachment"
    kind = attachment.mime_type or ""
    if not kind.startswith("image/") or not isinstance(attachment.content, str):
        raise WireError("INVALID_REQUEST", f"{name}: only images are taken as attachments, this is {kind or 'untyped'}")
    data = attachment.content.rpartition("base64,")[2] if attachment.content.startswith("data:") else attachment.content
    if len(data) > MAX_IMAGE * 4 // 3 + 4:
        raise WireError("INVALID_REQUEST", f"{name}: the image is larger than {MAX_IMAGE} bytes")
    try:
        base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise WireError("INVALID_REQUEST", f"{name}: content is not base64") from None
    return Image(data, kind)


def submission(
    call: Call,
    *,
    key: str,
    spelled: str = "",
    run_id: str,
    message: UserMessage,
    source: Source = "chat",
    queue_mode: QueueMode | None = None,
    deadline: float | None = None,
    model: str | None = None,
    extra_system: str = "",
    must_exist: bool = False,
    label: str | None = None,
) -> Submission:
    """A run as this caller asks for it.

    Raises:
        WireError: the idempotency key is too long.
    """
    if len(run_id) > 256:
        raise WireError("INVALID_REQUEST", f"idempotencyKey has {len(run_id)} characters; at most 256 are allowed")
    subscriber = call.subscriber
    return Submission(
        run_id=run_id,
        session_key=key,
        spelled_key=spelled if spelled != key else "",
        message=message,
        source=source,
        queue_mode=queue_mode or call.services.runtime.config.messages.queue.mode,
        deadline=deadline,
        model=model,
        extra_system=extra_system,
        origin=subscriber.id if subscriber is not None else "",
        tool_events=subscriber is not None and subscriber.tool_events,
        must_exist=must_exist,
        label=label,
    )


async def start_chat(call: Call, wanted: Submission, *, answer: str | None = None) -> Any:
    """Have a chat run accepted and answer with its ack, before any of its events. With `answer` it is over with that.

    Over HTTP with `?wait=final` the answer is the end of the run, and a caller that leaves stops it.
    """
    runs = call.services.runtime.runs
    submit = runs.submit if answer is None else partial(runs.answer, text=answer)
    if call.final:
        accepted = await submit(wanted)
        return await _final(call, wanted, accepted)

    def acknowledge(accepted: Accepted) -> None:
        call.respond(ack(accepted))
        again = accepted.terminal if accepted.replay else None
        if again is not None and call.subscriber is not None:
            call.services.fanout.repeat(call.subscriber.id, run_info(wanted, accepted), again)

    await submit(wanted, acknowledge=acknowledge)
    return ANSWERED


async def _final(call: Call, wanted: Submission, accepted: Accepted) -> dict[str, Any]:
    run_id = wanted.run_id
    terminal = accepted.terminal or await _end_of(call.services.runtime.runs, run_id, mine=not accepted.replay)
    result: dict[str, Any] = {"runId": run_id, "sessionKey": wanted.spelled_key or accepted.session_key}
    result |= {"status": wait_status(terminal), "text": wire.shown_text(terminal)}
    return result | wire.given(
        state=wire.shown_state(terminal),
        stopReason=terminal.stop_reason,
        error=terminal.error_message,
        errorKind=terminal.error_kind,
        mergedInto=terminal.merged_into,
        provider=terminal.provider or None,
        model=terminal.model or None,
    )


async def _end_of(runs: Supervisor, run_id: str, *, mine: bool) -> Terminal:
    """Wait for a run's end; a caller that leaves stops what it started."""
    try:
        return await runs.wait(run_id)
    except trio.Cancelled:
        run = runs.open_run(run_id)
        if mine and run is not None:
            runs.abort(run, "rpc")
        raise


def ack(accepted: Accepted) -> dict[str, Any] | ErrorShape:
    """What `chat.send` answers: `started`, or for a key that is known how that run stands (protocol §10)."""
    payload: dict[str, Any] = {"runId": accepted.run_id}
    terminal = accepted.terminal
    if not accepted.replay:
        payload["status"] = "started"
        if accepted.message_seq is not None:
            payload["messageSeq"] = accepted.message_seq
        if accepted.interrupted:
            payload["interruptedActiveRun"] = True
    elif terminal is None:
        payload["status"] = "in_flight"
    elif terminal.state is RunState.ERROR:
        words = terminal.error_message or "the run failed"
        return ErrorShape(code="UNAVAILABLE", message=words, details={"runId": accepted.run_id})
    elif terminal.state is RunState.ABORTED:
        payload |= {"status": "timeout", "summary": "aborted", "endedAt": terminal.ended_at}
        payload |= wire.given(stopReason=terminal.stop_reason)
    else:
        payload["status"] = "ok"
    return payload


def wait_status(terminal: Terminal) -> str:
    """`ok`, `error` or `timeout`, as `agent.wait` and the second answer of `agent` say it."""
    match terminal.state:
        case RunState.ERROR:
            return "error"
        case RunState.ABORTED:
            return "timeout"
        case _:
            return "ok"


def run_info(wanted: Submission, accepted: Accepted) -> RunInfo:
    """What events of this run carry, for a terminal that is told again."""
    return RunInfo(
        run_id=accepted.run_id,
        session_key=accepted.session_key,
        spelled_key=wanted.spelled_key or accepted.session_key,
        session_id=accepted.session_id,
        agent_id=accepted.agent_id,
        source=wanted.source,
        origin=wanted.origin,
        tool_events=wanted.tool_events,
    )
