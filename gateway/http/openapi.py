"""`GET /api/openapi.json`: the table of routes as OpenAPI 3.1, from the Structs that read the requests."""

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import msgspec

from triops.gateway.http.table import ROUTES, Asked, Route, route
from triops.gateway.scopes import READ
from triops.runtime.config import Config

_REF = "#/components/schemas/{name}"
_REFUSALS = (400, 401, 403, 404, 405, 408, 409, 413, 429, 500, 502, 503)


@route("GET", "/api/openapi.json", scope=READ)
async def openapi(asked: Asked) -> Any:
    """This page."""
    return page(asked.call.services.runtime.config, asked.call.services.version)


def page(config: Config, version: str) -> dict[str, Any]:
    """The routes that this configuration has."""
    routes = [entry for entry in ROUTES if entry.enabled(config)]
    used = [kind for entry in routes for kind in (entry.query, entry.body) if kind not in (None, bytes)]
    kinds = list({id(kind): kind for kind in used}.values())
    shown, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    schemas = {id(kind): _resolved(schema, components) for kind, schema in zip(kinds, shown, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for entry in routes:
        paths.setdefault(entry.path, {})[entry.method.lower()] = _operation(entry, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Triops", "version": version},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"bearer": []}],
    }


def _resolved(schema: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    return schema | {"schema": components[reference.rpartition("/")[2]]} if isinstance(reference, str) else schema


def _operation(entry: Route, schemas: dict[int, dict[str, Any]]) -> dict[str, Any]:
    answer: dict[str, Any] = {"application/json": {"schema": {}}}
    if entry.path == "/metrics":
        answer = {"text/plain": {"schema": {"type": "string"}}}
    if entry.streams:
        answer["text/event-stream"] = {"schema": {"type": "string"}}
    operation: dict[str, Any] = {
        "operationId": f"{entry.method.lower()}{re.sub(r'[^a-z0-9]+', '_', entry.path.lower())}".rstrip("_"),
        "summary": (entry.handler.__doc__ or "").partition("\n")[0],
        "parameters": [*_parameters(entry, schemas[id(entry.query)]["schema"])],
        "responses": {
            "202" if entry.path == "/v1/runs" else "200": {"description": "OK", "content": answer},
            **{str(status): {"description": HTTPStatus(status).phrase} for status in _REFUSALS},
        },
    }
    if entry.scope is not None:
        operation["x-scope"] = entry.scope
    if entry.body is not None:
        shape = {"type": "object"} if entry.body is bytes else {"$ref": schemas[id(entry.body)]["$ref"]}
        required = entry.body is not bytes
        operation["requestBody"] = {"required": required, "content": {"application/json": {"schema": shape}}}
    return operation


def _parameters(entry: Route, query: dict[str, Any]) -> Iterable[dict[str, Any]]:
    for name in re.findall(r"{(\w+)}", entry.path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}

    for name, shape in query["properties"].items():
        yield {"name": name, "in": "query", "required": name in query.get("required", ()), "schema": shape}
