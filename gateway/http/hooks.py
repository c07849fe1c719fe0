"""`POST /hooks/wake` and `/hooks/agent`: what programs may start that know the hooks' secret and nothing else
(protocol, HTTP §6). Mappings are not supported."""

import hashlib
from typing import Any
from uuid import uuid4

import msgspec

from triops.gateway.errors import WireError
from triops.gateway.handlers import intake
from triops.gateway.http.exchange import HttpResponse
from triops.gateway.http.openai import untrusted
from triops.gateway.http.table import Asked, hooks_place, route
from triops.gateway.methods import Call
from triops.gateway.schema.http import HookAgent, HookWake
from triops.runtime.config import Config
from triops.runtime.deliveries import told
from triops.runtime.runs.state import Delivery, RunState, Terminal
from triops.runtime.sessions import agent_of


def _on(config: Config) -> bool:
    return hooks_place(config) is not None


def _session(call: Call, asked_key: str | None, agent_id: str | None, default: str) -> str:
    """The session of a hook, as far as the configuration lets the request choose it.

    Raises:
        WireError: it does not.
    """
    config = call.services.runtime.config.hooks
    if asked_key is not None:
        if not config.allow_request_session_key:
            raise WireError("INVALID_REQUEST", "sessionKey: not taken from hooks; set hooks.allowRequestSessionKey")
        prefixes = config.allowed_session_key_prefixes
        if prefixes and not asked_key.startswith(prefixes):
            words = f"sessionKey: must begin with one of {', '.join(prefixes)} (hooks.allowedSessionKeyPrefixes)"
            raise WireError("INVALID_REQUEST", words)
    key = intake.session_key(call, asked_key or default, agent_id)
    allowed = config.allowed_agent_ids
    if allowed is not None and "*" not in allowed and agent_of(key) not in allowed:
        raise WireError("INVALID_REQUEST", f"agentId: {agent_of(key)!r} is not among hooks.allowedAgentIds")
    return key


@route("POST", "/hooks/wake", body=HookWake, style="hook", enabled=_on)
async def wake(asked: Asked) -> Any:
    """Put a system event into a session, and with mode `now` have it answered."""
    body: HookWake = asked.body
    if not body.text.strip():
        raise WireError("INVALID_REQUEST", "text required")
    key = _session(asked.call, body.session_key, body.agent_id, "main")
    await asked.call.services.runtime.heartbeat.wake(body.text, mode=body.mode, session_key=key)
    return {"ok": True, "mode": body.mode, "eventOutcome": "queued"}


@route("POST", "/hooks/agent", body=HookAgent, style="hook", enabled=_on)
async def agent(asked: Asked) -> Any:
    """Have an agent work on a message that nobody vouches for; its main session hears the end."""
    body: HookAgent = asked.body
    call, services = asked.call, asked.call.services
    if not body.message.strip():
        raise WireError("INVALID_REQUEST", "message required")
    if body.channel or body.to:
        raise WireError("INVALID_REQUEST", "channel, to: there are no channels here; the main session hears the end")
    config = services.runtime.config.hooks
    own_key = config.default_session_key or f"hook:{uuid4()}"
    given = asked.head.get(b"idempotency-key") or asked.head.get(b"x-openclaw-idempotency-key") or body.idempotency_key
    assert config.token is not None
    run_id = f"hook:{given or uuid4()}"
    known = await services.runtime.runs.find(run_id) if given else None
    if known is not None and body.session_key is None:
        own_key = known.session.key
    key = _session(call, body.session_key, body.agent_id, own_key)
    mark = hashlib.sha256(f"{config.token.reveal()}\0{run_id}".encode()).hexdigest()[:32]  # the same if it comes again
    message = intake.user_message(call, untrusted(f"{body.name}:\n{body.message}", mark), (), run_id)
    wanted = intake.submission(
        call,
        key=key,
        run_id=run_id,
        message=message,
        source="agent",
        queue_mode="followup",
        deadline=body.timeout_seconds or None,
        model=body.model,
    )
    if body.deliver:
        delivery = Delivery(f"agent:{agent_of(key)}:main", body.name, body.wake_mode)
        wanted = msgspec.structs.replace(wanted, delivery=delivery)
    if body.wait_for_completion:
        call.park()
    accepted = await services.runtime.runs.submit(wanted)
    answer: dict[str, Any] = {"ok": True, "runId": run_id}
    if not body.wait_for_completion:
        return answer
    terminal = accepted.terminal or await services.runtime.runs.wait(run_id)
    return answer | {"completion": _completion(terminal, delivered=body.deliver)}


@route("POST", "/hooks/{name}", body=bytes, style="hook", enabled=_on)
async def mapped(asked: Asked) -> Any:
    """There are no mappings: 404."""
    return HttpResponse(404, b"Not Found", content_type=b"text/plain; charset=utf-8")


def _completion(terminal: Terminal, *, delivered: bool) -> dict[str, Any]:
    text = told(terminal)
    silent = "silent" if terminal.text.strip() else "empty"
    completion = {
        "status": "ok" if terminal.state is RunState.FINAL else "error",
        "replyDisposition": "visible" if text else silent,
    }
    return completion | ({"delivered": bool(text)} if delivered else {})
