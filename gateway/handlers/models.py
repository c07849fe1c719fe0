"""`models.list` and `models.authStatus`."""

from typing import Any, Literal

import msgspec

from triops.gateway.handlers import intake
from triops.gateway.methods import Call, method
from triops.gateway.rows import model_row, model_tags
from triops.gateway.schema.chat import Str1
from triops.runtime.errors import Invalid
from triops.runtime.models import ModelCatalog, ProviderEntry, ProviderState
from triops.runtime.sessions import agent_of

EXPIRING_MS = 24 * 3_600_000
"""How long before its end a credential is called expiring."""


class ModelsList(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """One agent's models: `provider-config` are those that stand under `models.providers`, `configured` also those that
    the configuration names elsewhere; nothing here limits which may be used, so that `default` is `all`."""

    view: Literal["default", "configured", "provider-config", "all"] = "default"
    provider: Str1 | None = None
    agent_id: Str1 | None = None
    session_key: Str1 | None = None
    auth_profile_id: Str1 | None = None
    include_details: bool = False
    include_provider_capabilities: bool = False
    include_default_models: bool = False
    prepared_only: bool = False
    refresh: bool = False


class AuthStatus(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    refresh: bool = False
    agent_id: str | None = None


@method("models.list", scope="operator.read")
async def models_list(call: Call, params: ModelsList) -> dict[str, Any]:
    """Every model that is known now; with `refresh` after all providers were asked, and how that went."""
    runtime = call.services.runtime
    if params.refresh and params.prepared_only:
        raise Invalid("refresh and preparedOnly exclude each other; send one of them")
    if params.auth_profile_id is not None:
        raise Invalid(f"there is no auth profile {params.auth_profile_id!r}: a provider has one key; leave it out")
    agent = runtime.agents[agent_of(intake.session_key(call, params.session_key or "main", params.agent_id))]
    if params.refresh:
        await runtime.warmup.scan()
    catalog = runtime.catalog
    wanted = _view(catalog, params.view)
    tags = model_tags(runtime, agent)
    rows = [
        model_row(runtime, info, tags)
        for info in catalog.models()
        if params.provider in (None, info.ref.provider) and (wanted is None or info.ref in wanted)
    ]
    if not params.refresh:
        return {"models": rows}
    return {"models": rows, "providerOutcomes": [_outcome(state) for state in catalog.states()]}


def _view(catalog: ModelCatalog, view: str) -> set[Any] | None:
    if view in ("default", "all"):
        return None
    found = {info.ref for entry in catalog.entries() for info in entry.models}
    if view == "configured":
        found |= {known.info.ref for name in catalog.named if (known := catalog.find(name)) is not None}
    return found


def _outcome(state: ProviderState) -> dict[str, str]:
    failed = "auth-rejected" if state.kind == "auth" else "unavailable"
    return {"provider": state.provider, "status": failed if state.state == "failed" else "ready"}


@method("models.authStatus", scope="operator.read")
async def models_auth_status(call: Call, params: AuthStatus) -> dict[str, Any]:
    """With what each provider is asked, and whether it was refused; `refresh` asks them all first."""
    runtime = call.services.runtime
    intake.session_key(call, "main", params.agent_id)  # all agents use the same keys
    if params.refresh:
        await runtime.warmup.scan()
    now, states = runtime.clock(), runtime.catalog.states()
    rows = [_auth(entry, state, now) for entry, state in zip(runtime.catalog.entries(), states, strict=True)]
    return {"ts": now, "providers": rows}


def _auth(entry: ProviderEntry, state: ProviderState, now: int) -> dict[str, Any]:
    left = None if state.expires is None else state.expires - now
    row: dict[str, Any] = {"provider": state.provider, "authProvider": state.provider, "displayName": state.provider}
    if state.kind == "auth":
        row["status"] = "expired" if entry.key or left is not None else "missing"
        row["reason"] = state.reason
    else:
        row["status"] = (
            "static" if left is None else "ok" if left > EXPIRING_MS else "expiring" if left > 0 else "expired"
        )
    if state.expires is not None and left is not None:
        row["expiry"] = {"at": state.expires, "remainingMs": left}
    row["profiles"] = []
    if entry.key:
        row["apiKey"] = {"source": entry.key}
    return row
