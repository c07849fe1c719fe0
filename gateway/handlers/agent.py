"""`agent` (two responses under one id), `agent.wait`, `agent.identity.get`."""

from typing import Any

import trio

from triops.gateway import wire
from triops.gateway.errors import ErrorShape, WireError
from triops.gateway.handlers import intake
from triops.gateway.methods import ANSWERED, Call, method
from triops.gateway.schema.chat import Agent, AgentIdentity, AgentWait
from triops.gateway.scopes import ADMIN
from triops.runtime.errors import NotFound
from triops.runtime.runs.state import Accepted, RunState, Submission, Terminal
from triops.runtime.sessions import DEFAULT_AGENT, agent_of


@method("agent", scope="operator.write")
async def agent(call: Call, params: Agent) -> Any:
    """Accept a turn, answer `accepted`, and answer again under the same id when it is over."""
    runtime = call.services.runtime
    if (params.model or params.provider) and ADMIN not in call.peer.scopes:
        raise WireError("FORBIDDEN", "provider/model overrides are not authorized for this caller.")
    key = intake.session_key(call, params.session_key or "main", params.agent_id)
    model = params.model
    if model is not None and params.provider is not None:
        model = f"{params.provider}/{model}"
    wanted = intake.submission(
        call,
        key=key,
        spelled=params.session_key or "",
        run_id=params.idempotency_key,
        message=intake.user_message(call, params.message, (), params.idempotency_key),
        source="agent",
        deadline=params.timeout or None,
        model=model,
        extra_system=params.extra_system_prompt or "",
        label=params.label,
    )
    if call.final:
        return await intake.start_chat(call, wanted)

    def acknowledge(accepted: Accepted) -> None:
        if accepted.terminal is None or call.subscriber is None:
            call.respond(_ack(accepted))

    call.park()
    accepted = await runtime.runs.submit(wanted, acknowledge=acknowledge)
    if call.subscriber is None:  # plain HTTP has one answer: the ack
        return ANSWERED
    terminal = accepted.terminal or await runtime.runs.wait(accepted.run_id)
    call.respond(_result(wanted, accepted, terminal))
    return ANSWERED


def _ack(accepted: Accepted) -> Any:
    """The first answer."""
    if accepted.replay:
        return intake.ack(accepted)
    return {
        "runId": accepted.run_id,
        "sessionKey": accepted.session_key,
        "agentId": accepted.agent_id,
        "status": "accepted",
        "acceptedAt": accepted.accepted_at,
    }


def _result(wanted: Submission, accepted: Accepted, terminal: Terminal) -> Any:
    """The second answer."""
    status = intake.wait_status(terminal)
    if status == "error":
        words = terminal.error_message or "the run failed"
        details = {"runId": accepted.run_id, "status": "error", "summary": "failed", "errorKind": terminal.error_kind}
        return ErrorShape(code="UNAVAILABLE", message=words, details=details)
    usage = terminal.message.usage if terminal.message is not None else None
    meta: dict[str, Any] = {
        "aborted": terminal.state is RunState.ABORTED,
        "stopReason": terminal.stop_reason,
        "livenessState": wire.liveness(terminal),
        "agentMeta": {
            "sessionId": accepted.session_id,
            "provider": terminal.provider,
            "model": terminal.model,
        },
    }
    if terminal.started_at is not None:
        meta["durationMs"] = terminal.ended_at - terminal.started_at
    if usage is not None:
        meta["agentMeta"]["usage"] = {
            "input": usage.input,
            "output": usage.output,
            "cacheRead": usage.cache_read,
            "cacheWrite": usage.cache_write,
            "total": usage.total_tokens,
        }
    payload: dict[str, Any] = {
        "runId": accepted.run_id,
        "status": status,
        "summary": "aborted" if status == "timeout" else "completed",
        "result": {
            "payloads": [{"text": text, "mediaUrl": None}] if (text := wire.shown_text(terminal)) else [],
            "meta": meta,
        },
    }
    return payload | wire.given(stopReason=terminal.stop_reason, mergedInto=terminal.merged_into)


@method("agent.wait", scope="operator.write")
async def agent_wait(call: Call, params: AgentWait) -> dict[str, Any]:
    """How a run ended; `timeout` when it has not within the window, `pending` when it has not even begun."""
    runs = call.services.runtime.runs
    call.park()
    terminal: Terminal | None = None
    if runs.open_run(params.run_id) is None:  # outside the window: who gives it no time wants to know how it stands
        past = await runs.find(params.run_id)
        terminal = past.terminal if past is not None else None
    if terminal is None:
        with trio.move_on_after(params.timeout_ms / 1000):
            try:
                terminal = await runs.wait(params.run_id)
            except NotFound:
                await trio.sleep_forever()  # it may be submitted within the window, and asked for again
    if terminal is None:
        run = runs.open_run(params.run_id)
        if run is not None and run.state is RunState.QUEUED:
            return {"runId": params.run_id, "status": "pending", "timeoutPhase": "queue", "providerStarted": False}
        return {"runId": params.run_id, "status": "timeout"}
    payload = wire.given(
        runId=params.run_id,
        status=intake.wait_status(terminal),
        startedAt=terminal.started_at,
        endedAt=terminal.ended_at,
        error=terminal.error_message,
        stopReason=terminal.stop_reason,
        livenessState=wire.liveness(terminal),
        mergedInto=terminal.merged_into,
    )
    stored = await runs.find(params.run_id)
    if stored is not None and terminal.state is RunState.FINAL:
        payload |= wire.receipt_of(params.run_id, stored.session.session_id, terminal)
    return payload


@method("agent.identity.get", scope="operator.read")
async def agent_identity(call: Call, params: AgentIdentity) -> dict[str, Any]:
    """The assistant's name and face."""
    agent_id = params.agent_id or DEFAULT_AGENT
    if params.session_key:
        agent_id = agent_of(intake.session_key(call, params.session_key, params.agent_id))
    profile = intake.known_agent(call, agent_id)
    identity: dict[str, Any] = {
        "agentId": agent_id,
        "name": profile.name,
        "nameSource": profile.name_source,
        "avatar": profile.avatar or profile.name[:1].upper(),
    }
    if profile.emoji:
        identity["emoji"] = profile.emoji
    return identity
