"""What plain HTTP serves on the port: probes, `POST /rpc/<method>`, and the few REST routes that users ask for.

Every route but the probes needs the bearer; all of them go through the same methods as the WebSocket.
"""

from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import parse_qs, unquote
from uuid import uuid4

import msgspec

from triops.gateway import metrics
from triops.gateway.door import Door, caller_of
from triops.gateway.errors import ErrorShape, WireError, error_shape, http_status
from triops.gateway.frames import Request, decode_params
from triops.gateway.handlers import intake
from triops.gateway.http.exchange import Answer, HttpResponse, Stream, error_body
from triops.gateway.http.head import Head
from triops.gateway.methods import ANSWERED, Call, NoParams, dispatch
from triops.gateway.rows import session_row
from triops.gateway.services import Services
from triops.runtime.errors import NotFound
from triops.runtime.sessions import MAIN_KEY
from triops.runtime.store import sessions as stored

PROBES = {"/health": "live", "/healthz": "live", "/ready": "ready", "/readyz": "ready"}


class HttpPeer(msgspec.Struct, frozen=True):
    """The caller of one request; a `methods.Peer`."""

    id: str
    scopes: frozenset[str]
    actor: str


class Routes:
    """Answers the requests of one connection, whose peer is at `address`."""

    def __init__(self, services: Services, door: Door, address: str, *, stopping: Callable[[], bool]) -> None:
        self._services = services
        self._door = door
        self._address = address
        self._stopping = stopping

    async def admit(self, head: Head) -> Answer | HttpResponse:
        """What the head alone decides: whether the caller is let in; a probe's answer."""
        caller = caller_of(self._address, head.headers)
        try:
            self._door.check_head(caller)
            if head.path in PROBES:
                return self._probe(head)
            scopes = await self._door.authorise(caller)
        except WireError as error:
            return _refusal(error.shape)
        return partial(self._answer, head, HttpPeer(str(uuid4()), scopes, caller.address))

    async def _answer(self, head: Head, peer: HttpPeer, body: bytes, stream: Stream) -> HttpResponse | None:
        """The response to one request: the request boundary of plain HTTP."""
        answers: list[Any] = []
        try:
            with self._services.parking.place() as park:
                query = _query(head)
                final = query.pop("wait", None) is not None
                if final:
                    park()
                call = Call(self._services, peer, answers.append, park=park, final=final)
                payload = await self._route(head, call, query, body)
        except Exception as error:  # noqa: BLE001 - the request boundary
            log_id = uuid4().hex[:12]
            payload = error_shape(error, log_id=log_id)
            if payload.code == "INTERNAL_ERROR":
                self._services.log.error("a request failed by our own fault", path=head.path, id=log_id, error=error)
        if payload is ANSWERED:
            payload = answers[0]
        if isinstance(payload, ErrorShape):
            payload = _refusal(payload)
        response = payload if isinstance(payload, HttpResponse) else HttpResponse(200, payload)
        if 400 <= response.status < 500:
            asked = f"{head.method} {head.path[:200]}"
            reason = response.payload
            self._services.log.refusal(
                "refused a call", level="info", call=asked, peer=peer.actor, status=response.status, reason=reason
            )
        return response

    def _probe(self, head: Head) -> HttpResponse:
        if head.method not in ("GET", "HEAD"):
            return _not_allowed("GET, HEAD")
        if PROBES[head.path] == "live":
            return HttpResponse(200, {"ok": True, "status": "live"})
        failing = ["the gateway is stopping"] if self._stopping() else []
        payload = {"ready": not failing, "failing": failing, "uptimeMs": self._services.uptime_ms}
        return HttpResponse(503 if failing else 200, payload)

    async def _route(self, head: Head, call: Call, query: dict[str, Any], body: bytes) -> Any:
        path = [unquote(part) for part in head.path.split("/")[1:]]
        if head.method == "POST":
            _nothing("query", query)
        match "GET" if head.method == "HEAD" else head.method, path:
            case "POST", ["rpc", method]:
                return await _rpc(call, method, body)
            case "GET", ["status"]:
                return await _rpc(call, "status", query)
            case "GET", ["metrics"]:
                _nothing("query", query)
                return HttpResponse(200, metrics.exposition(self._services.runtime.runs), content_type=metrics.TYPE)
            case "GET", ["sessions"]:
                return await _rpc(call, "sessions.list", query)
            case "GET", ["sessions", key]:
                _nothing("query", query)
                return await self._session(intake.session_key(call, key))
            case "POST", ["sessions", key, "ping"]:
                _nothing("body", body)
                return await self._ping(intake.session_key(call, key))
            case "GET", ["webchat", "messages"]:
                return await _rpc(call, "chat.history", {"sessionKey": MAIN_KEY, "limit": 50} | query)
            case "POST", ["webchat", "messages"]:
                return await _rpc(call, "chat.send", _said(body))
            case "GET", ["heartbeat"]:
                return await _rpc(call, "last-heartbeat", query)
            case "POST", ["heartbeat"]:
                _nothing("body", body)
                call.park()
                return await self._services.runtime.heartbeat.beat()
            case _, ["rpc", _] | ["sessions", _, "ping"]:
                return _not_allowed("POST")
            case _, ["status" | "sessions" | "metrics"] | ["sessions", _]:
                return _not_allowed("GET, HEAD")
            case _, ["webchat", "messages"] | ["heartbeat"]:
                return _not_allowed("GET, HEAD, POST")
            case _:
                return HttpResponse(404, error_body(f"no such route: {head.path[:200]}", "not_found"))

    async def _session(self, key: str) -> Any:
        runtime = self._services.runtime
        page = await runtime.store.read(lambda db: stored.transcript(db, key, limit=20))
        if page.session is None:
            raise NotFound(f"session not found: {key}")
        return {"session": session_row(runtime, page.session), "totalMessages": page.total}

    async def _ping(self, key: str) -> Any:
        """Keep a session fresh. The main session is made if need be; others must exist."""
        runtime = self._services.runtime
        now = runtime.clock()
        session = await runtime.store.write(lambda db: stored.touch(db, key, now))
        runtime.runs.changed(session, reason="ping")
        return {"ok": True, "key": session.key, "updatedAt": session.updated_at}


async def _rpc(call: Call, method: str, params: bytes | dict[str, Any]) -> Any:
    """Any method, by its name."""
    raw = params if isinstance(params, bytes) else msgspec.json.encode(params)
    return await dispatch(call, Request("req", "http", method, msgspec.Raw(raw)))


def _query(head: Head) -> dict[str, Any]:
    """What stands behind the `?`, each name once; what should be a number and is none is left for the method to refuse.

    Raises:
        WireError: `wait`, which is there for what starts a run, is not `final`.
    """
    query: dict[str, Any] = {name: values[-1] for name, values in parse_qs(head.query, keep_blank_values=True).items()}
    for name in ("limit", "offset"):
        text = query.get(name, "")
        if text.isascii() and text.isdigit() and len(text) < 20:
            query[name] = int(text)
    if query.get("wait", "final") != "final" or ("wait" in query and head.method != "POST"):
        raise WireError("INVALID_REQUEST", "invalid query: at /wait: must be 'final', and goes with POST only")
    return query


def _nothing(where: str, given: bytes | dict[str, Any]) -> None:
    """Refuse what a route does not take."""
    raw = given if isinstance(given, bytes) else msgspec.json.encode(given)
    decode_params(where, _decode_nothing, msgspec.Raw(raw))


class _Said(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Body of `POST /webchat/messages`; `text` and `message` mean the same."""

    message: str = ""
    text: str = ""
    session_key: str = MAIN_KEY
    idempotency_key: str | None = None


_decode_said = msgspec.json.Decoder(_Said)
_decode_nothing = msgspec.json.Decoder(NoParams)


def _said(body: bytes) -> dict[str, str]:
    """The params of `chat.send` for a message."""
    said = decode_params("body", _decode_said, msgspec.Raw(body))
    return {
        "sessionKey": said.session_key,
        "message": said.message or said.text,
        "idempotencyKey": said.idempotency_key or str(uuid4()),
    }


def _refusal(shape: ErrorShape) -> HttpResponse:
    status = http_status(shape)
    headers = [(b"WWW-Authenticate", b"Bearer")] if status == 401 else []
    if shape.retry_after_ms is not None:
        headers.append((b"Retry-After", str(-(-shape.retry_after_ms // 1000)).encode()))
    return HttpResponse(status, {"error": shape}, tuple(headers))


def _not_allowed(allow: str) -> HttpResponse:
    body = error_body(f"Method Not Allowed; use {allow}", "method_not_allowed")
    return HttpResponse(405, body, ((b"Allow", allow.encode()),))
