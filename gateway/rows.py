"""From the runtime's records to the rows that clients know. Pure, but for a look at what runs now."""

from typing import Any

from triops.agents.model import ModelInfo, ModelRef
from triops.gateway.schema.sessions import SessionRow
from triops.runtime.agents import AgentProfile
from triops.runtime.compose import Runtime
from triops.runtime.runs.state import RunState
from triops.runtime.sessions import Session, is_main, is_subagent

_OWN = ("status", "model")  # what runs now, and the model that it comes to
_SAME = [name for name in SessionRow.__struct_fields__ if name in Session.__struct_fields__ and name not in _OWN]


def session_row(runtime: Runtime, session: Session) -> SessionRow:
    """The session as `sessions.list` and its relatives show it."""
    open_runs = runtime.runs.open_runs(session.key)
    running = [run for run in open_runs if run.state is RunState.RUNNING]
    name = session.model or runtime.catalog.default
    resolved = runtime.catalog.find(name) if name else None
    started, ended = session.started_at, session.ended_at
    return SessionRow(
        **{name: getattr(session, name) for name in _SAME},
        classification="main" if is_main(session.key) else "direct",
        is_main=is_main(session.key),
        is_background=is_subagent(session.key),
        last_message_preview=session.last_preview,
        status="running" if running else "queued" if open_runs else session.status,
        runtime_ms=None if running or started is None or ended is None else ended - started,
        aborted_last_run=session.status == "killed",
        parent_session_key=session.spawned_by,
        context_tokens=resolved.info.context_window if resolved else None,
        model_provider=resolved.info.ref.provider if resolved else None,
        model=resolved.info.ref.model if resolved else None,
        has_active_run=bool(open_runs),
        active_run_ids=tuple(run.id for run in running),
    )


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
