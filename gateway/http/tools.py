"""`POST /tools/invoke`: one call of one of an agent's tools, without a model (protocol, HTTP §4)."""

from typing import Any
from uuid import uuid4

import msgspec

from triops.agents.messages import ToolCall
from triops.agents.tool import AnyTool
from triops.agents.toolbox import Toolbox
from triops.gateway.errors import WireError
from triops.gateway.handlers import intake
from triops.gateway.http.exchange import HttpResponse
from triops.gateway.http.table import Asked, route
from triops.gateway.schema.http import ToolInvoke
from triops.gateway.scopes import ADMIN, WRITE, require_scope
from triops.runtime.sessions import agent_of
from triops.runtime.store import sessions as stored

_COMMANDS = ("exec", "process", "bash", "shell", "spawn", "gateway", "nodes")
_WRITES = ("write", "edit", "fs_write", "fs_delete", "fs_move", "apply_patch")
DENIED = frozenset((*_COMMANDS, *_WRITES))
"""What nobody calls over HTTP: a bearer that leaks must not be a shell."""
OWNERS = frozenset({"cron", "sessions_send", "sessions_spawn"})
"""What only an administrator does: it lets agents work."""
MAX_RESULT = 1024 * 1024


@route("POST", "/tools/invoke", scope=WRITE, body=ToolInvoke, style="ok")
async def invoke(asked: Asked) -> Any:
    """Call a tool of an agent."""
    body: ToolInvoke = asked.body
    call, runtime = asked.call, asked.call.services.runtime
    name = body.tool or body.name
    if not name:
        raise WireError("INVALID_REQUEST", "tool required")
    key = intake.session_key(call, body.session_key, body.agent_id)
    tools = {tool.name: tool for tool in runtime.plans.tools_of(agent_of(key)) if tool.name not in DENIED}
    if name not in tools:
        raise WireError("INVALID_REQUEST", f"Tool not available: {name}", details={"code": "TOOL_NOT_FOUND"})
    if name in OWNERS:
        require_scope(ADMIN, call.peer.scopes)
    call.park()
    if name == "sessions_spawn" and key.endswith(":main"):
        now = runtime.clock()
        await runtime.store.write(lambda db: stored.ensure(db, key, now))
    return await _run(asked, tools[name], key)


async def _run(asked: Asked, tool: AnyTool, key: str) -> HttpResponse:
    body: ToolInvoke = asked.body
    faults: list[Exception] = []
    log, call_id = asked.call.services.log, body.idempotency_key or uuid4().hex
    toolbox = Toolbox(
        tools={tool.name: tool},
        run_id=f"http:{call_id}",
        session_key=key,
        limit=MAX_RESULT,
        emit=lambda _: None,
        report=lambda _, error: faults.append(error),
        now=asked.call.services.runtime.clock,
    )
    arguments = body.args | ({"action": body.action} if body.action is not None else {})
    (result,) = await toolbox.run([ToolCall(call_id, tool.name, arguments)], lambda: False)
    if faults:
        log.error("a tool failed by its own fault", tool=tool.name, error=faults[0])
        return _failed(500, "tool execution failed")
    if result.is_error:
        return _failed(400, result.text)
    shown: dict[str, Any] = {"content": msgspec.to_builtins(result.content)}
    return HttpResponse(200, {"ok": True, "result": shown | ({"details": result.details} if result.details else {})})


def _failed(status: int, message: str) -> HttpResponse:
    return HttpResponse(status, {"ok": False, "error": {"type": "tool_error", "message": message}})
