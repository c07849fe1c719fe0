"""What the gateway says of itself: health, status, presence, logs, configuration."""

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
import trio

from triops.gateway.handlers import intake
from triops.gateway.methods import Call, NoParams, method
from triops.gateway.rows import model_runtime, session_defaults, session_row
from triops.gateway.schema.chat import Str1, Uint
from triops.gateway.scopes import ADMIN
from triops.gateway.services import Services
from triops.runtime.cron.heartbeat import ACK_MAX_CHARS, PROMPT
from triops.runtime.sessions import Session
from triops.runtime.store import sessions as stored
from triops.runtime.store.sessions import SessionFilter


class Health(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    probe: bool = False


class StatusParams(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    include_channel_summary: bool = False
    include_cli_projection: bool = False


class ChannelsStatus(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    probe: bool = False
    timeout_ms: Uint | None = None
    channel: str | None = None


class LogsTail(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    cursor: Uint | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=5000)] = 500
    max_bytes: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 250_000


class Wake(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    mode: Literal["now", "next-heartbeat"]
    text: Str1
    session_key: Str1 | None = None
    agent_id: Str1 | None = None


async def _sessions(
    services: Services, show: Callable[[Session], dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """How many sessions there are and the last used, in all and of each agent."""
    runtime = services.runtime
    now, path = runtime.clock(), str(runtime.paths.database)
    wanted = [SessionFilter(limit=5, agent_id=agent_id) for agent_id in (None, *runtime.agents)]
    total, *of_agents = [
        {
            "path": path,
            "count": count,
            "recent": [show(row) | {"age": now - row.updated_at} for row in rows],
        }
        for rows, count in await runtime.store.read(lambda db: [stored.listing(db, each) for each in wanted])
    ]
    return total, dict(zip(runtime.agents, of_agents, strict=True))


async def health_summary(services: Services) -> dict[str, Any]:
    """The `health` snapshot, as the method, `hello-ok` and the event carry it; the method adds the models."""
    runtime = services.runtime
    start = trio.current_time()
    sessions, by_agent = await _sessions(services, lambda row: {"key": row.key, "updatedAt": row.updated_at})
    heartbeat = runtime.config.agents.defaults.heartbeat
    every_ms = round(heartbeat.every * 1000)
    return {
        "ok": True,
        "ts": runtime.clock(),
        "durationMs": round((trio.current_time() - start) * 1000),
        "channels": {},
        "channelOrder": [],
        "channelLabels": {},
        "heartbeatSeconds": every_ms // 1000,
        "defaultAgentId": "main",
        "agents": [
            {
                "agentId": agent_id,
                "name": profile.name,
                "isDefault": agent_id == "main",
                "heartbeat": {
                    "enabled": every_ms > 0,
                    "every": f"{every_ms // 1000}s",
                    "everyMs": every_ms,
                    "prompt": heartbeat.prompt or PROMPT,
                    "target": "none",
                    "ackMaxChars": ACK_MAX_CHARS,
                },
                "sessions": by_agent[agent_id],
            }
            for agent_id, profile in runtime.agents.items()
        ],
        "sessions": sessions,
    }


def statistics(services: Services) -> dict[str, Any]:
    """How full everything that queues is."""
    runtime = services.runtime
    return {
        "runs": msgspec.to_builtins(runtime.runs.statistics()),
        "cron": msgspec.to_builtins(runtime.cron.statistics()),
        "warmup": msgspec.to_builtins(runtime.warmup.statistics()),
        "bus": msgspec.to_builtins(runtime.bus.statistics()),
        "store": msgspec.to_builtins(runtime.store.statistics()),
        "connections": [
            {"id": connection.id, **msgspec.to_builtins(connection.outbox.statistics())}
            for connection in services.fanout.connections()
        ],
    }


@method("health", scope=None)
async def health(call: Call, params: Health) -> dict[str, Any]:
    return await health_summary(call.services) | {"modelRuntime": model_runtime(call.services.runtime)}


@method("status", scope="operator.read")
async def status(call: Call, params: StatusParams) -> dict[str, Any]:
    """The whole picture: version, uptime, models and their warm-up, runs, sessions, clients, cron, statistics."""
    services = call.services
    runtime = services.runtime
    sessions, by_agent = await _sessions(services, lambda row: msgspec.to_builtins(session_row(runtime, row)))
    every_ms = round(runtime.config.agents.defaults.heartbeat.every * 1000)
    cron = runtime.cron.status()
    figures = statistics(services)
    return {
        "ok": True,
        "runtimeVersion": services.version,
        "pid": os.getpid(),
        "python": sys.version.split()[0],
        "ts": runtime.clock(),
        "uptimeMs": services.uptime_ms,
        "listening": services.listening,
        "configPending": runtime.watcher.pending if runtime.watcher is not None else "",
        "models": {
            "default": runtime.catalog.default,
            "why": runtime.catalog.default_why,
            "fault": runtime.catalog.default_fault,
            "providers": runtime.catalog.states(),
        },
        "modelRuntime": model_runtime(runtime),
        "runs": figures["runs"]["runs"],
        "sessions": {
            "paths": [sessions["path"]],
            "count": sessions["count"],
            "defaults": session_defaults(runtime),
            "recent": sessions["recent"],
            "byAgent": [{"agentId": agent_id, **of_agent} for agent_id, of_agent in by_agent.items()],
        },
        "clients": {"connected": len(services.fanout.connections())},
        "cron": cron,
        "heartbeat": {
            "defaultAgentId": "main",
            "agents": [
                {"agentId": "main", "enabled": every_ms > 0, "every": f"{every_ms // 1000}s", "everyMs": every_ms}
            ],
        },
        "channelSummary": [],
        "queuedSystemEvents": [],
        "degradedPlugins": [],
        "degradedSecretOwners": [],
        "statistics": figures,
    }


@method("channels.status", scope="operator.read")
async def channels_status(call: Call, params: ChannelsStatus) -> dict[str, Any]:
    """The web chat, which is always there; no other channel exists here."""
    return {
        "ts": call.services.runtime.clock(),
        "channelOrder": ["webchat"],
        "channelLabels": {"webchat": "Web chat"},
        "channelDetailLabels": {"webchat": "Web chat"},
        "channelSystemImages": {},
        "channelMeta": [{"id": "webchat", "label": "Web chat", "detailLabel": "Web chat"}],
        "channels": {"webchat": {"configured": True, "running": True, "connected": True}},
        "channelAccounts": {"webchat": []},
        "channelDefaultAccountId": {},
        "statusIssues": [],
    }


@method("config.get", scope="operator.read")
async def config_get(call: Call, params: NoParams) -> dict[str, Any]:
    """The configuration with every secret replaced; paths only for administrators."""
    runtime = call.services.runtime
    loaded = runtime.loaded
    shown = runtime.redacted_config()
    return {
        "path": str(runtime.paths.config) if ADMIN in call.peer.scopes else runtime.paths.config.name,
        "exists": loaded.exists,
        "raw": runtime.redacted_raw(),
        "parsed": shown,
        "valid": True,
        "config": shown,
        "sourceConfig": shown,
        "runtimeConfig": shown,
        "resolved": shown,
        "issues": [],
        "legacyIssues": [],
        "warnings": [{"path": notice.path, "message": notice.message} for notice in loaded.warnings],
        "hash": loaded.hash,
        "configRevisionHash": loaded.hash,
        "appliedConfigHash": loaded.hash,
    }


@method("system-presence", scope="operator.read")
async def system_presence(call: Call, params: NoParams) -> Any:
    return call.services.presence.entries()


@method("last-heartbeat", scope="operator.read")
async def last_heartbeat(call: Call, params: NoParams) -> dict[str, Any] | None:
    return await call.services.runtime.heartbeat.last()


@method("wake", scope="operator.write")
async def wake(call: Call, params: Wake) -> dict[str, Any]:
    """Tell a session something, and with mode `now` have it answer."""
    key = intake.session_key(call, params.session_key or "main", params.agent_id)
    await call.services.runtime.heartbeat.wake(params.text, mode=params.mode, session_key=key)
    return {"ok": True}


@method("logs.tail", scope="operator.read")
async def logs_tail(call: Call, params: LogsTail) -> Any:
    """The last lines of the log, or those since `cursor`."""
    file = call.services.runtime.log_file
    return await trio.to_thread.run_sync(
        lambda: file.tail(params.cursor, limit=params.limit, max_bytes=params.max_bytes)
    )
