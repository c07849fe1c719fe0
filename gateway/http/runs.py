"""`/v1/runs`: a run that goes on whether or not anybody listens, and its events for who comes, or comes back."""

from typing import Any
from uuid import uuid4

import trio

from triops.gateway.errors import WireError
from triops.gateway.feeds import Told
from triops.gateway.http import openai
from triops.gateway.http.exchange import HttpResponse, sse
from triops.gateway.http.openai_responses import submission
from triops.gateway.http.table import Asked, route
from triops.gateway.schema.openai import Runs
from triops.gateway.scopes import READ, WRITE
from triops.runtime.errors import NotFound
from triops.runtime.events import RunDelta, RunEnded, RunTool
from triops.runtime.runs.registry import info_of
from triops.runtime.runs.state import RunState, Terminal

_STATUS = {RunState.FINAL: "completed", RunState.ERROR: "failed", RunState.ABORTED: "cancelled"}


@route("POST", "/v1/runs", scope=WRITE, body=Runs, style="openai")
async def start(asked: Asked) -> Any:
    """Start a run; 202 when it is accepted. `input` is as in `/v1/responses`."""
    body: Runs = asked.body
    services = asked.call.services
    if body.stream or body.tools:
        raise openai.bad(
            "stream, tools: a run is followed at /v1/runs/{id}/events, and calls the agent's own tools only"
        )
    given = asked.head.get(b"idempotency-key") or body.idempotency_key
    run_id = given or f"run_{uuid4()}"
    known = await services.runtime.runs.find(run_id) if given else None
    session = body.session_key or (known.session.key if known is not None and not body.user else None)
    wanted = await submission(asked, body, run_id, "run", session)
    with services.feeds.follow(run_id):
        new = services.feeds.keep(run_id)  # before it is accepted, so that nothing is missed
        over = True
        try:
            accepted = await services.runtime.runs.submit(wanted)
            over = accepted.terminal is not None
        finally:
            if new and over:
                services.feeds.drop(run_id)
    state = "started" if accepted.terminal is None else _ended(accepted.terminal)
    return HttpResponse(202, {"run_id": run_id, "status": state, "session_key": accepted.session_key})


@route("GET", "/v1/runs/{id}", scope=READ, style="openai")
async def show(asked: Asked) -> Any:
    """How a run stands."""
    run_id = asked.path["id"]
    stored = await asked.call.services.runtime.runs.find(run_id)
    if stored is None:
        raise NotFound(f"unknown run: {run_id}")
    shown: dict[str, Any] = {"run_id": run_id, "session_key": stored.session.key, "status": "running"}
    return shown if stored.terminal is None else shown | _end(stored.terminal)


@route("GET", "/v1/runs/{id}/events", scope=READ, style="openai", streams=True)
async def events(asked: Asked) -> Any:
    """What a run tells, as server-sent events, to its end; after `Last-Event-ID`, what came later."""
    run_id, services = asked.path["id"], asked.call.services
    last = asked.head.get(b"last-event-id") or "0"
    if not (last.isascii() and last.isdigit() and len(last) < 16):
        raise openai.bad(f"Last-Event-ID must be the id of an event, not {last[:40]!r}")
    seen = int(last)
    asked.call.park()
    known = services.feeds.get(run_id) is not None
    with services.feeds.follow(run_id) as feed:
        run = services.runtime.runs.open_run(run_id)
        if run is None and not feed.over:
            stored = await services.runtime.runs.find(run_id)
            if stored is None:
                raise NotFound(f"unknown run: {run_id}")
            if stored.terminal is not None and not feed.over:
                over = RunEnded(info_of(stored.submission, stored.session), seen + 1, 0, stored.terminal)
                await asked.stream.send(_event(run_id, over))
                return None
        elif run is not None and not known and run.text:  # started elsewhere: what it has said so far
            await asked.stream.send(_event(run_id, RunDelta(run.info, run.seq, 0, 1, run.text)))
        place = 0
        while True:
            news: list[Told] = []
            with trio.move_on_after(openai.KEEP_ALIVE):
                news = await feed.after(place)
            place += len(news)
            shown = b"".join(_event(run_id, event) for event in news if event.seq > seen)
            if shown or not news or not asked.stream.begun:
                await asked.stream.send(shown or b": keepalive\n\n")
            if feed.over and place == len(feed.told):
                return None


@route("POST", "/v1/runs/{id}/stop", scope=WRITE, style="openai")
async def stop(asked: Asked) -> Any:
    """Stop a run; its end follows in its events."""
    run_id, runs = asked.path["id"], asked.call.services.runtime.runs
    run = runs.open_run(run_id)
    if run is None:
        return await show(asked)
    if not await runs.stop([run], "rpc"):
        raise WireError("INVALID_REQUEST", f"run {run_id} is being stopped already, or part of another one")
    return {"run_id": run_id, "status": "stopping"}


def _event(run_id: str, event: Told) -> bytes:
    told: dict[str, Any] = {"run_id": run_id}
    match event:
        case RunDelta(index=index, delta=delta):
            kind = "message.delta"
            told |= {"message": index, "delta": delta}
        case RunTool(phase="update", call=call, partial=text):
            kind = "tool.progress"
            told |= {"tool": call.name, "call_id": call.id, "text": text}
        case RunTool(result=result, call=call):
            kind = "tool.started" if result is None else "tool.completed"
            told |= {"tool": call.name, "call_id": call.id}
            told |= {"arguments": call.arguments} if result is None else {"error": result.is_error}
        case RunEnded(terminal=terminal):
            kind = f"run.{_ended(terminal)}"
            told |= _end(terminal)
    return sse({"event": kind, **told}, kind, event.seq)


def _ended(terminal: Terminal) -> str:
    return _STATUS.get(terminal.state, "completed")


def _end(terminal: Terminal) -> dict[str, Any]:
    end: dict[str, Any] = {"status": _ended(terminal), "output": terminal.text.rstrip()}
    if terminal.merged_into is not None:
        end["merged_into"] = terminal.merged_into
    if terminal.error_message is not None:
        end["error"] = {"message": terminal.error_message, "type": "api_error"}
    elif terminal.stop_reason is not None:
        end["stop_reason"] = terminal.stop_reason
    return end
