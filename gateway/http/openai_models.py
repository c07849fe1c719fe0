"""`GET /v1/models`: the agents, as OpenAI's clients list models (protocol, HTTP §3.2)."""

import re
from typing import Any

from triops.gateway.http.openai import bad
from triops.gateway.http.table import Asked, route
from triops.gateway.methods import Call
from triops.gateway.scopes import READ
from triops.runtime.config import Config


def _on(config: Config) -> bool:
    return config.gateway.http.endpoints.chat_completions.enabled or config.gateway.http.endpoints.responses.enabled


def _models(call: Call) -> list[str]:
    return ["openclaw", "openclaw/default", *(f"openclaw/{id}" for id in call.services.runtime.agents)]


def _model(id: str) -> dict[str, Any]:
    return {"id": id, "object": "model", "created": 0, "owned_by": "openclaw", "permission": []}


@route("GET", "/v1/models", scope=READ, style="openai", enabled=_on)
async def models(asked: Asked) -> Any:
    """The agents, as models."""
    return {"object": "list", "data": [_model(id) for id in _models(asked.call)]}


@route("GET", "/v1/models/{id}", scope=READ, style="openai", enabled=_on)
async def model(asked: Asked) -> Any:
    """One agent, as a model."""
    id = asked.path["id"]
    if not re.fullmatch(r"openclaw(?:/.+)?", id):
        raise bad("Invalid model id.")
    if id not in _models(asked.call):
        raise bad(f"Model '{id}' not found.", code="MODEL_NOT_FOUND")
    return _model(id)
