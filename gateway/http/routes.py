"""What plain HTTP serves on the port: probes, `POST /rpc/<method>`, and the few REST routes that users ask for.

Every route but the probes needs the bearer; all of them go through the same methods as the WebSocket.
"""

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, unquote
from uuid import uuid4

import msgspec

from triops.gateway.door import Caller, Door
from triops.gateway.errors import ErrorShape, WireError, error_shape, http_status
from triops.gateway.frames import Request
from triops.gateway.handlers import intake
from triops.gateway.http.exchange import HttpRequest, HttpResponse, error_body
from triops.gateway.methods import ANSWERED, Call, dispatch
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
    """Answers requests of one connection's caller."""

    def __init__(self, services: Services, door: Door, caller: Callable[[HttpRequest], Caller]) -> None:
        self._services = services
        self._door = door
        self._caller = caller

    async def answer(self, request: HttpRequest) -> HttpResponse:
        """The response to one request: the request boundary of plain HTTP."""
        try:
            caller = self._caller(request)
            self._door.check_head(caller)
            if request.path in PROBES:
                return self._probe(request)
            return await self._route(request, caller)
        except Exception as error:  # noqa: BLE001 - the request boundary
            return self._failure(request, error)

    def _failure(self, request: HttpRequest, error: Exception) -> HttpResponse:
        log_id = uuid4().hex[:12]
        shape = error_shape(error, log_id=log_id)
        if shape.code == "INTERNAL_ERROR":
            self._services.log.error("a request failed by our own fault", path=request.path, id=log_id, error=error)
        return _refusal(shape)

    def _probe(self, request: HttpRequest) -> HttpResponse:
        if request.method not in ("GET", "HEAD"):
            return _not_allowed("GET, HEAD")
        if PROBES[request.path] == "live":
            return HttpResponse(200, {"ok": True, "status": "live"})
        return HttpResponse(200, {"ready": True, "uptimeMs": self._services.uptime_ms})

    async def _route(self, request: HttpRequest, caller: Caller) -> HttpResponse:
        path = [unquote(part) for part in request.path.split("/")[1:]]
        query = {name: values[-1] for name, values in parse_qs(request.query).items()}
        match request.method, path:
            case "POST", ["rpc", method]:
                return await self._rpc(caller, method, request.body, final=query.get("wait") == "final")
            case "GET", ["status"]:
                return await self._rpc(caller, "status", b"")
            case "GET", ["sessions"]:
                return await self._rpc(caller, "sessions.list", msgspec.json.encode(_numbers(query, "limit", "offset")))
            case "GET", ["sessions", key]:
                return await self._session(caller, key)
            case "POST", ["sessions", key, "ping"]:
                return await self._ping(caller, key)
            case "GET", ["webchat", "messages"]:
                params = {"sessionKey": query.get("sessionKey", MAIN_KEY), "limit": 50} | _numbers(query, "limit")
                return await self._rpc(caller, "chat.history", msgspec.json.encode(params))
            case "POST", ["webchat", "messages"]:
                return await self._say(caller, request.body, final=query.get("wait") == "final")
            case "GET", ["heartbeat"]:
                return await self._rpc(caller, "last-heartbeat", b"")
            case "POST", ["heartbeat"]:
                return await self._beat(caller)
            case _, ["rpc", _] | ["sessions", _, "ping"]:
                return _not_allowed("POST")
            case _, ["status" | "sessions"] | ["sessions", _]:
                return _not_allowed("GET")
            case _, ["webchat", "messages"] | ["heartbeat"]:
                return _not_allowed("GET, POST")
            case _:
                return HttpResponse(404, error_body(f"no such route: {request.path}", "not_found"))

    async def _rpc(self, caller: Caller, method: str, body: bytes, *, final: bool = False) -> HttpResponse:
        """Any method, by its name; `?wait=final` answers with the end of the run instead of its acceptance."""
        scopes = await self._door.authorise(caller)
        answers: list[Any] = []
        peer = HttpPeer(str(uuid4()), scopes, caller.address)
        call = Call(self._services, peer, answers.append, final=final)
        payload = await dispatch(call, Request("req", "http", method, msgspec.Raw(body)))
        if payload is ANSWERED:
            payload = answers[0]
        if isinstance(payload, ErrorShape):
            return _refusal(payload)
        return HttpResponse(200, payload)

    async def _session(self, caller: Caller, key: str) -> HttpResponse:
        call = await self._reader(caller)
        runtime = self._services.runtime
        canonical = intake.session_key(call, key)
        page = await runtime.store.read(lambda db: stored.transcript(db, canonical, limit=20))
        if page.session is None:
            raise NotFound(f"session not found: {canonical}")
        return HttpResponse(200, {"session": session_row(runtime, page.session), "totalMessages": page.total})

    async def _ping(self, caller: Caller, key: str) -> HttpResponse:
        """Keep a session fresh. The main session is made if need be; others must exist."""
        call = await self._reader(caller)
        runtime = self._services.runtime
        canonical = intake.session_key(call, key)
        now = runtime.clock()
        session = await runtime.store.write(lambda db: stored.touch(db, canonical, now))
        runtime.runs.changed(session, reason="ping")
        return HttpResponse(200, {"ok": True, "key": session.key, "updatedAt": session.updated_at})

    async def _say(self, caller: Caller, body: bytes, *, final: bool) -> HttpResponse:
        said = _decode_said(body)
        params = {
            "sessionKey": said.session_key,
            "message": said.message or said.text,
            "idempotencyKey": said.idempotency_key or str(uuid4()),
        }
        return await self._rpc(caller, "chat.send", msgspec.json.encode(params), final=final)

    async def _beat(self, caller: Caller) -> HttpResponse:
        await self._reader(caller)
        return HttpResponse(200, await self._services.runtime.heartbeat.beat())

    async def _reader(self, caller: Caller) -> Call:
        scopes = await self._door.authorise(caller)
        return Call(self._services, HttpPeer(str(uuid4()), scopes, caller.address), lambda _: None)


class _Said(msgspec.Struct, frozen=True, rename="camel"):
    """Body of `POST /webchat/messages`; `text` and `message` mean the same."""

    message: str = ""
    text: str = ""
    session_key: str = MAIN_KEY
    idempotency_key: str | None = None


def _decode_said(body: bytes) -> _Said:
    try:
        return msgspec.json.decode(body or b"{}", type=_Said)
    except (ValueError, RecursionError) as error:
        raise WireError("INVALID_REQUEST", f"invalid body: {error}") from None


def _numbers(query: dict[str, str], *names: str) -> dict[str, int | str]:
    """Those of `names` that the query has; what is no number is left for the method to refuse by its name."""
    given = {name: query[name] for name in names if name in query}
    return {name: int(text) if text.isascii() and text.isdigit() else text for name, text in given.items()}


def _refusal(shape: ErrorShape) -> HttpResponse:
    status = http_status(shape)
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if shape.retry_after_ms is not None:
        headers = ((b"Retry-After", str(-(-shape.retry_after_ms // 1000)).encode()),)
    return HttpResponse(status, {"error": shape}, headers)


def _not_allowed(allow: str) -> HttpResponse:
    body = error_body(f"Method Not Allowed; use {allow}", "method_not_allowed")
    return HttpResponse(405, body, ((b"Allow", allow.encode()),))
