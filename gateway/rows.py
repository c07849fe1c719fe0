"""From the runtime's records to the rows that clients know. Pure, but for a look at what runs now."""

from typing import Any

from triops.agents.model import ModelInfo, ModelRef
from triops.gateway.schema.sessions import SessionRow
from triops.runtime.agents import AgentProfile
from triops.runtime.compose import Runtime
from triops.runtime.models import Resolved
from triops.runtime.runs.state import RunState
from triops.runtime.sessions import Session, is_main, is_subagent


def session_row(runtime: Runtime, session: Session) -> SessionRow:
    """The session as `sessions.list` and its relatives show it."""
    open_runs = runtime.runs.open_runs(session.key)
    running = [run for run in open_runs if run.state is RunState.RUNNING]
    resolved = _model_of(runtime, session)
    finished = session.ended_at is not None and session.started_at is not None and not running
    return SessionRow(
        key=session.key,
        session_id=session.session_id,
        agent_id=session.agent_id,
        classification="main" if is_main(session.key) else "direct",
        is_main=is_main(session.key),
        is_background=is_subagent(session.key),
        created_via=session.created_via,
        created_at=session.created_at,
        updated_at=session.updated_at,
        label=session.label,
        display_name=session.display_name,
        last_message_preview=session.last_preview,
        last_interaction_at=session.last_interaction_at,
        status="running" if running else "queued" if open_runs else session.status,
        started_at=session.started_at,
        ended_at=session.ended_at,
        runtime_ms=session.ended_at - session.started_at
        if finished and session.ended_at is not None and session.started_at is not None
        else None,
        aborted_last_run=session.status == "killed",
        last_run_id=session.last_run_id,
        last_run_error=session.last_run_error,
        spawned_by=session.spawned_by,
        parent_session_key=session.spawned_by,
        spawn_depth=session.spawn_depth,
        input_tokens=session.input_tokens,
        output_tokens=session.output_tokens,
        total_tokens=session.total_tokens,
        context_tokens=resolved.info.context_window if resolved else None,
        model_provider=resolved.info.ref.provider if resolved else None,
        model=resolved.info.ref.model if resolved else None,
        has_active_run=bool(open_runs),
        active_run_ids=tuple(run.id for run in running),
    )


def _model_of(runtime: Runtime, session: Session) -> Resolved | None:
    name = session.model or runtime.catalog.default
    return runtime.catalog.find(name) if name else None


def session_defaults(runtime: Runtime) -> dict[str, Any]:
    """The model that a session has unless it says otherwise."""
    resolved = runtime.catalog.find(runtime.catalog.default) if runtime.catalog.default else None
    if resolved is None:
        return {"modelProvider": None, "model": None, "contextTokens": None}
    info = resolved.info
    return {
        "modelProvider": info.ref.provider,
        "model": info.ref.model,
        "contextTokens": info.context_window,
        "modelSelectionTarget": "session",
    }


def model_runtime(runtime: Runtime) -> dict[str, Any]:
    """How the providers stand, as `health` and `status` show it."""
    providers = runtime.catalog.states()
    degraded = bool(runtime.catalog.default_fault) or any(each.state == "failed" for each in providers)
    return {"degraded": degraded, "pendingAgents": [], "providers": providers}


def model_tags(runtime: Runtime, agent: AgentProfile) -> dict[ModelRef, list[str]]:
    """What an agent's models are to it: `default`, `fallback#1`, …"""
    tags: dict[ModelRef, list[str]] = {}
    for place, name in enumerate((agent.primary or runtime.catalog.default, *agent.fallbacks)):
        if name and (known := runtime.catalog.find(name)) is not None:
            tags.setdefault(known.info.ref, []).append(f"fallback#{place}" if place else "default")
    return tags


def model_row(runtime: Runtime, info: ModelInfo, tags: dict[ModelRef, list[str]]) -> dict[str, Any]:
    """A model as `models.list` shows it."""
    state = runtime.catalog.state(info.ref.provider)
    mine = [*tags.get(info.ref, ()), *(["demo"] if info.demo else [])]
    row: dict[str, Any] = {
        "id": info.ref.model,
        "name": info.name or info.ref.model,
        "provider": info.ref.provider,
        "contextWindow": info.context_window,
        "input": list(info.input),
        "reasoning": info.reasoning,
        "supportsTools": info.compat.supports_tools and not info.demo,
        "available": state is not None and state.state != "failed",
    }
    if state is not None and state.kind == "auth":
        keyed = any(entry.key for entry in runtime.catalog.entries() if entry.provider.id == info.ref.provider)
        row["unavailableReason"] = "auth-failed" if keyed else "missing-auth"
    if alias := runtime.catalog.aliases_of(info.ref):
        row["alias"] = alias
    if mine:
        row["tags"] = mine
    return row
