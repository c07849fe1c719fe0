"""A session's messages, as a page or as a stream that goes on, and the end of its runs (protocol, HTTP §5)."""

from typing import Any

import trio

from triops.gateway import wire
from triops.gateway.handlers import intake
from triops.gateway.http.exchange import sse
from triops.gateway.http.openai import KEEP_ALIVE
from triops.gateway.http.table import Asked, route
from triops.gateway.methods import Call
from triops.gateway.schema.http import History
from triops.gateway.scopes import ADMIN, READ
from triops.runtime.events import SessionChanged, SessionMessage
from triops.runtime.store import sessions as stored
from triops.runtime.store.db import Db
from triops.runtime.store.sessions import Page

MAX_LIMIT = 1000
MAX_BEHIND = 256  # messages that a slow client may be behind; then it gets the page again


@route("GET", "/sessions/{key}/history", scope=READ, query=History, style="ok", streams=True)
async def history(asked: Asked) -> Any:
    """The messages of a session, oldest first; with `Accept: text/event-stream`, those to come as well."""
    query: History = asked.query
    key = intake.session_key(asked.call, asked.path["key"], query.agent_id)
    if "text/event-stream" in (asked.head.get(b"accept") or ""):
        await _follow(asked, key, query)
        return None
    return await _page(asked.call, key, query)


async def _page(call: Call, key: str, query: History) -> dict[str, Any]:
    limit = min(query.limit, MAX_LIMIT)

    def read(db: Db) -> Page:
        last = stored.require(db, key).last_seq
        offset = 0 if query.cursor is None else max(0, last + 1 - query.cursor)
        return stored.transcript(db, key, limit=limit, offset=offset)

    page = await call.services.runtime.store.read(read)
    items = [wire.shown_message(entry.message, entry.id, entry.seq, entry.run_id) for entry in page.messages]
    shown: dict[str, Any] = {"sessionKey": key, "items": items, "messages": items, "hasMore": page.has_more}
    return shown | ({"nextCursor": str(page.messages[0].seq)} if page.has_more and page.messages else {})


async def _follow(asked: Asked, key: str, query: History) -> None:
    """The page, then each message as it gets its place, until the client leaves."""
    behind: list[SessionMessage] = []
    whole, bell = True, trio.Event()

    def hear(event: SessionMessage | SessionChanged) -> None:
        nonlocal whole
        if isinstance(event, SessionMessage) and event.session_key == key:
            behind.append(event)
            whole = whole or len(behind) > MAX_BEHIND
        elif isinstance(event, SessionChanged) and event.session.key == key and event.reason == "reset":
            whole = True
        else:
            return
        if whole:
            behind.clear()
        bell.set()

    asked.call.park()
    with asked.call.services.runtime.bus.subscribe(hear, SessionMessage, SessionChanged):
        told, prefix = 0, b"retry: 1000\n\n"
        while True:
            out = b""
            if whole:
                whole = False
                page = await _page(asked.call, key, query)
                told = page["items"][-1]["__openclaw"]["seq"] if page["items"] else 0
                out = sse(page, "history")
            news, behind[:] = [event for event in behind if event.seq > told], []
            for event in news:
                told = event.seq
                shown = wire.shown_message(event.message, event.message_id, event.seq, event.run_id)
                about = {"messageId": event.message_id, "messageSeq": event.seq}
                out += sse({"sessionKey": key, "message": shown, **about}, "message")
            asked.stream.endless()
            await asked.stream.send(prefix + (out or b": keepalive\n\n"))
            prefix = b""
            with trio.move_on_after(KEEP_ALIVE):
                while not (whole or behind):
                    bell = trio.Event()
                    await bell.wait()


@route("POST", "/sessions/{key}/kill", scope=ADMIN, style="ok")
async def kill(asked: Asked) -> Any:
    """Stop what runs and waits in a session."""
    runtime = asked.call.services.runtime
    key = intake.session_key(asked.call, asked.path["key"])
    await runtime.store.read(lambda db: stored.require(db, key))
    killed = await runtime.runs.stop(runtime.runs.open_runs(key), "rpc")
    return {"ok": True, "killed": bool(killed)}
