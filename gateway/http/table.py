"""The table of plain HTTP's routes: `@route` enters one. Finding, 404, 405 and the OpenAPI page come out of it."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Literal, cast
from urllib.parse import parse_qs, unquote

import msgspec

from triops.gateway.errors import ErrorShape, WireError, http_status
from triops.gateway.frames import decode_params, fault_text
from triops.gateway.http.exchange import HttpResponse, Stream, error_body
from triops.gateway.http.head import Head
from triops.gateway.methods import Call, NoParams
from triops.runtime.config import Config

Style = Literal["rpc", "openai", "ok", "hook"]
"""How a route words its refusals: as the frames do, as OpenAI's API, `{ok:false,…}`, or as hooks do."""


class Asked(msgspec.Struct, frozen=True):
    """One request that was let in, its parts decoded."""

    head: Head
    call: Call
    path: dict[str, str]
    query: Any
    body: Any
    stream: Stream


class Route(msgspec.Struct, frozen=True):
    """One entry of the table."""

    method: Literal["GET", "POST"]
    path: str
    handler: Callable[[Asked], Awaitable[Any]]
    scope: str | None
    query: type
    body: Any
    """The Struct of the body, `bytes` for one that the handler reads, None where there is none."""
    style: Style
    streams: bool
    """Whether it may answer with server-sent events."""
    enabled: Callable[[Config], bool]
    """Whether this configuration has it."""


ROUTES: list[Route] = []
MAX_HOOK = 256 * 1024  # bytes of a hook's body


def route(
    method: Literal["GET", "POST"],
    path: str,
    *,
    scope: str | None = None,
    query: type = NoParams,
    body: Any = None,
    style: Style = "rpc",
    streams: bool = False,
    enabled: Callable[[Config], bool] = lambda _: True,
) -> Callable[[Callable[[Asked], Awaitable[Any]]], Callable[[Asked], Awaitable[Any]]]:
    """Enter the decorated coroutine; `{name}` in `path` is one segment. What it returns is JSON, an `HttpResponse`, or
    None when it streamed."""

    def enter(handler: Callable[[Asked], Awaitable[Any]]) -> Callable[[Asked], Awaitable[Any]]:
        ROUTES.append(Route(method, path, handler, scope, query, body, style, streams, enabled))
        return handler

    return enter


def placed(path: str, config: Config) -> tuple[list[str], bool]:
    """The one reading of a path: its segments as the table has them, and whether it is a hook's, whose credential is
    another. Hooks stand where the configuration wants them, and nowhere else."""
    given, place = [unquote(part) for part in path.split("/")], hooks_place(config)
    if place is not None and len(given) > len(place) and given[: len(place)] == place:
        return ["", "hooks", *given[len(place) :]], True
    return ([] if given[:2] == ["", "hooks"] else given), False


def find(head: Head, given: list[str], config: Config) -> tuple[Route, dict[str, str]] | HttpResponse:
    """The route of a request whose path has these segments, with what they name, or the 404 or 405."""
    here = [(entry, names) for entry in ROUTES if (names := _names(entry.path, given)) is not None]
    here = [(entry, names) for entry, names in here if entry.enabled(config)]
    method = "GET" if head.method == "HEAD" else head.method
    for entry, names in here:
        if entry.method == method:
            return entry, names
    if not here:
        return HttpResponse(404, error_body(f"no such route: {head.path[:200]}", "not_found"))
    methods = {entry.method for entry, _ in here}
    return not_allowed(", ".join((["GET, HEAD"] if "GET" in methods else []) + (["POST"] if "POST" in methods else [])))


def hooks_place(config: Config) -> list[str] | None:
    """The segments that the paths of hooks begin with; None where there are none, for there is no secret."""
    hooks = config.hooks
    return ["", *hooks.path.strip("/").split("/")] if hooks.enabled and hooks.token is not None else None


def _names(template: str, given: list[str]) -> dict[str, str] | None:
    wanted = template.split("/")
    if len(wanted) != len(given):
        return None
    names: dict[str, str] = {}
    for part, text in zip(wanted, given, strict=True):
        if part.startswith("{"):
            names[part[1:-1]] = text
        elif part != text:
            return None
    return names


def not_allowed(allow: str) -> HttpResponse:
    body = error_body(f"Method Not Allowed; use {allow}", "method_not_allowed")
    return HttpResponse(405, body, ((b"Allow", allow.encode()),))


def read_query(head: Head, kind: type) -> Any:
    """What stands behind the `?`, each name once.

    Raises:
        WireError: it does not fit.
    """
    given = {name: values[-1] for name, values in parse_qs(head.query, keep_blank_values=True).items()}
    if given.pop("wait", "final") != "final" or ("wait=" in head.query and head.method != "POST"):
        raise WireError("INVALID_REQUEST", "invalid query: at /wait: must be 'final', and goes with POST only")
    try:
        return cast("Any", msgspec.convert(given, kind, strict=False))
    except msgspec.ValidationError as error:
        raise WireError("INVALID_REQUEST", f"invalid query: {fault_text(str(error))}") from error


def read_body(body: bytes, entry: Route) -> Any:
    """The body as the route wants it.

    Raises:
        WireError: it does not fit.
    """
    if entry.style == "hook" and len(body) > MAX_HOOK:
        words = f"a hook's body has at most {MAX_HOOK} bytes, this one {len(body)}"
        raise WireError("INVALID_REQUEST", words, details={"limit": MAX_HOOK})
    if entry.body is bytes:
        return body
    return decode_params("body", msgspec.json.Decoder(entry.body or NoParams), msgspec.Raw(body))


_TYPES = {
    400: "invalid_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    409: "conflict",
    413: "invalid_request",
    429: "rate_limited",
    500: "internal_error",
    503: "unavailable",
}


def refusal(shape: ErrorShape, style: Style = "rpc") -> HttpResponse:
    """A refusal in the words of its route (protocol, HTTP §1.2)."""
    status = http_status(shape)
    headers = [(b"WWW-Authenticate", b"Bearer")] if status == 401 else []
    if shape.retry_after_ms is not None:
        headers.append((b"Retry-After", str(-(-shape.retry_after_ms // 1000)).encode()))
    if status >= 500 and not shape.retryable:
        headers.append((b"X-Should-Retry", b"false"))  # OpenAI's clients ask twice more unless told
    kind = _TYPES.get(status, "api_error")
    if style == "hook" and status in (401, 429):
        return HttpResponse(status, HTTPStatus(status).phrase.encode(), tuple(headers), b"text/plain; charset=utf-8")
    if style == "hook":
        return HttpResponse(status, {"ok": False, "error": shape.message}, tuple(headers))
    if style == "rpc":
        return HttpResponse(status, {"error": shape}, tuple(headers))
    if style == "openai" and kind not in ("unauthorized", "forbidden", "rate_limited"):
        kind = "invalid_request_error" if status < 500 else "api_error"
    error: dict[str, Any] = {"message": "Unauthorized" if status == 401 else shape.message, "type": kind}
    if style == "openai":
        error |= {"code": (shape.details or {}).get("code"), "param": None}
    if shape.details:
        error["details"] = shape.details
    plain = status in (401, 429) or (style == "openai" and status != 403)
    return HttpResponse(status, {"error": error} if plain else {"ok": False, "error": error}, tuple(headers))
