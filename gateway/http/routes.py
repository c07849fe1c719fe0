"""Who is let in over plain HTTP, and the boundary around each answer. The routes themselves are in `table.py`.

Every route but the probes needs the bearer, hooks their own; all of them go through the same methods as the WebSocket.
"""

from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import uuid4

import msgspec
import trio

from triops.gateway.door import Caller, caller_of
from triops.gateway.errors import ErrorShape, WireError
from triops.gateway.http import (
    basic,
    history,
    hooks,
    openai_chat,
    openai_models,
    openai_responses,
    openapi,
    runs,
    tools,
)
from triops.gateway.http.exchange import EVENT_STREAM, Answer, HttpResponse, Stream
from triops.gateway.http.head import Head
from triops.gateway.http.table import (
    Asked,
    Route,
    Style,
    find,
    not_allowed,
    placed,
    read_body,
    read_query,
    refusal,
)
from triops.gateway.methods import ANSWERED, Call
from triops.gateway.scopes import READ, SCOPES, WRITE, effective, limited, require_scope
from triops.gateway.services import Services

# Importing them fills the table.
_FILLED = (basic, history, hooks, openai_chat, openai_models, openai_responses, openapi, runs, tools)

PROBES = {"/health": "live", "/healthz": "live", "/ready": "ready", "/readyz": "ready"}

TOKEN_IN_QUERY = (
    b"Hook token must be provided via Authorization: Bearer <token> or X-OpenClaw-Token header"
    b" (query parameters are not allowed)."
)


class HttpPeer(msgspec.Struct, frozen=True):
    """The caller of one request; a `methods.Peer`."""

    id: str
    scopes: frozenset[str]
    actor: str
    generation: str | None
    """Of the secret that it was let in by; None: of another than the gateway's."""


_CHANGED = ErrorShape(
    code="INVALID_REQUEST",
    message="unauthorized: the gateway's secret was changed meanwhile",
    details={"code": "AUTH_TOKEN_MISMATCH"},
)


class Routes:
    """Answers the requests of one connection, whose peer is at `address`."""

    def __init__(self, services: Services, address: str, *, stopping: Callable[[], bool]) -> None:
        self._services = services
        self._door = services.door
        self._address = address
        self._stopping = stopping

    async def admit(self, head: Head) -> Answer | HttpResponse:
        """What the head alone decides: whether the caller is let in, a probe's answer, what there is not."""
        caller = caller_of(self._address, head.headers)
        given, is_hook = placed(head.path, self._services.runtime.config)
        found = find(head, given, self._services.runtime.config)
        style: Style = "openai" if head.path.startswith("/v1/") else "rpc"
        if not isinstance(found, HttpResponse):
            style = found[0].style
        try:
            self._door.check_head(caller)
            if head.path in PROBES:
                return self._probe(head)
            if is_hook:
                style = "hook"
                if (answer := await self._check_hook(head, caller)) is not None:
                    return answer
                scopes, generation = frozenset((READ, WRITE)), None
            else:
                scopes = await self._scopes(caller)
                generation = self._door.generation
            peer = HttpPeer(str(uuid4()), scopes, caller.address, generation)
            if isinstance(found, HttpResponse):
                return self._told(head, peer, found)
            if found[0].scope is not None:
                require_scope(found[0].scope, peer.scopes)
        except WireError as error:
            return refusal(error.shape, style)
        return partial(self._answer, head, peer, *found)

    async def _check_hook(self, head: Head, caller: Caller) -> HttpResponse | None:
        """Let in who knows the hooks' secret; a response for who writes it where it is logged.

        Raises:
            WireError: the secret is missing or wrong.
        """
        if "token=" in head.query:
            return HttpResponse(400, TOKEN_IN_QUERY, content_type=b"text/plain; charset=utf-8")
        secret = self._services.runtime.config.hooks.token
        assert secret is not None
        await self._door.check_hook(caller, caller.bearer or head.get(b"x-openclaw-token") or "", secret)
        return None

    async def _scopes(self, caller: Caller) -> frozenset[str]:
        scopes = await self._door.authorise(caller)
        if self._door.mode == "none" and caller.scope_cap is not None:  # a secret gives all, whatever that header says
            scopes = effective(limited(caller.scope_cap, SCOPES))
        return scopes

    async def _answer(
        self, head: Head, peer: HttpPeer, route: Route, path: dict[str, str], body: bytes, stream: Stream
    ) -> HttpResponse | None:
        """The response to one request: the request boundary of plain HTTP."""
        answers: list[Any] = []
        payload: Any = None
        scope = trio.CancelScope()
        if peer.generation not in (None, self._door.generation):  # its body came after another secret
            return self._told(head, peer, refusal(_CHANGED, route.style))
        try:
            with self._services.parking.place() as park:
                final = "wait=" in head.query
                query = read_query(head, route.query)
                if head.method == "HEAD" and route.streams:
                    return HttpResponse(200, b"", content_type=EVENT_STREAM)
                if final:
                    park()
                call = Call(self._services, peer, answers.append, park=park, final=final)
                asked = Asked(head, call, path, query, read_body(body, route), stream)
                if peer.generation is not None:
                    self._services.on_secret.add(scope)  # it ends when that changes, as if its client had left
                with scope:
                    payload = await route.handler(asked)
        except Exception as error:  # noqa: BLE001 - the request boundary
            payload = self._services.shape_of(error, path=head.path)
        finally:
            self._services.on_secret.discard(scope)
        if payload is ANSWERED:
            payload = answers[0]
        if payload is None and stream.begun:
            return None
        if scope.cancelled_caught:
            payload = _CHANGED
        if isinstance(payload, ErrorShape):
            payload = refusal(payload, route.style)
        return self._told(head, peer, payload if isinstance(payload, HttpResponse) else HttpResponse(200, payload))

    def _told(self, head: Head, peer: HttpPeer, response: HttpResponse) -> HttpResponse:
        """`response`, after a refusal has left its line."""
        if response.status >= 400 and response.status != 500:
            asked = f"{head.method} {head.path[:200]}"
            reason = response.payload
            self._services.log.refusal(
                "refused a call", level="info", call=asked, peer=peer.actor, status=response.status, reason=reason
            )
        return response

    def _probe(self, head: Head) -> HttpResponse:
        if head.method not in ("GET", "HEAD"):
            reason = f"{head.method} {head.path}: use GET or HEAD"
            self._services.log.refusal("refused a request", status=405, reason=reason, peer=self._address)
            return not_allowed("GET, HEAD")
        if PROBES[head.path] == "live":
            return HttpResponse(200, {"ok": True, "status": "live"})
        failing = ["the gateway is stopping"] if self._stopping() else []
        payload = {"ready": not failing, "failing": failing, "uptimeMs": self._services.uptime_ms}
        return HttpResponse(503 if failing else 200, payload)
