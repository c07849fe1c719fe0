"""`POST /rpc/<method>`, and the few REST routes that users ask for."""

from typing import Any
from uuid import uuid4

import msgspec

from triops.gateway import metrics
from triops.gateway.frames import Request
from triops.gateway.handlers import intake
from triops.gateway.http.exchange import HttpResponse
from triops.gateway.http.table import Asked, route
from triops.gateway.methods import METHODS, dispatch
from triops.gateway.rows import session_row
from triops.gateway.schema.chat import WebchatMessages, WebchatSend
from triops.gateway.schema.sessions import SessionsList
from triops.gateway.scopes import READ, WRITE
from triops.runtime.errors import NotFound
from triops.runtime.store import sessions as stored


async def _call(asked: Asked, method: str, params: Any) -> Any:
    return await METHODS[method].handler(asked.call, params)


@route("POST", "/rpc/{method}", body=bytes)
async def rpc(asked: Asked) -> Any:
    """Any method of the protocol, by its name; the body is its params."""
    return await dispatch(asked.call, Request("req", "http", asked.path["method"], msgspec.Raw(asked.body)))


@route("GET", "/status", scope=READ)
async def status(asked: Asked) -> Any:
    """How everything stands."""
    return await rpc(msgspec.structs.replace(asked, path={"method": "status"}, body=b""))


@route("GET", "/metrics", scope=READ)
async def prometheus(asked: Asked) -> Any:
    """Numbers for Prometheus."""
    return HttpResponse(200, metrics.exposition(asked.call.services.runtime.runs), content_type=metrics.TYPE)


@route("GET", "/sessions", scope=READ, query=SessionsList)
async def sessions(asked: Asked) -> Any:
    """The sessions, last used first."""
    return await _call(asked, "sessions.list", asked.query)


@route("GET", "/sessions/{key}", scope=READ)
async def session(asked: Asked) -> Any:
    """One session."""
    runtime = asked.call.services.runtime
    key = intake.session_key(asked.call, asked.path["key"])
    page = await runtime.store.read(lambda db: stored.transcript(db, key, limit=1))
    if page.session is None:
        raise NotFound(f"session not found: {key}")
    return {"session": session_row(runtime, page.session), "totalMessages": page.total}


@route("POST", "/sessions/{key}/ping", scope=WRITE)
async def ping(asked: Asked) -> Any:
    """Keep a session fresh. The main session is made if need be; others must exist."""
    runtime = asked.call.services.runtime
    key = intake.session_key(asked.call, asked.path["key"])
    now = runtime.clock()
    touched = await runtime.store.write(lambda db: stored.touch(db, key, now))
    runtime.runs.changed(touched, reason="ping")
    return {"ok": True, "key": touched.key, "updatedAt": touched.updated_at}


@route("GET", "/webchat/messages", scope=READ, query=WebchatMessages)
async def messages(asked: Asked) -> Any:
    """The last messages of a session."""
    return await _call(asked, "chat.history", asked.query)


@route("POST", "/webchat/messages", scope=WRITE, body=WebchatSend)
async def say(asked: Asked) -> Any:
    """Say something; with `?wait=final` the answer is the reply."""
    said: WebchatSend = asked.body
    params = {
        "sessionKey": said.session_key,
        "message": said.message or said.text,
        "idempotencyKey": said.idempotency_key or str(uuid4()),
    }
    body = msgspec.json.encode(params)
    return await rpc(msgspec.structs.replace(asked, path={"method": "chat.send"}, body=body))


@route("GET", "/heartbeat", scope=READ)
async def last_heartbeat(asked: Asked) -> Any:
    """The last heartbeat."""
    return await _call(asked, "last-heartbeat", asked.query)


@route("POST", "/heartbeat", scope=WRITE)
async def beat(asked: Asked) -> Any:
    """Take a heartbeat's turn now; answers when it is over."""
    asked.call.park()
    return await asked.call.services.runtime.heartbeat.beat()
