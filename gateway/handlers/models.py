"""`models.list`."""

from typing import Any, Literal

import msgspec

from triops.gateway.methods import Call, method
from triops.gateway.rows import model_row
from triops.gateway.schema.chat import Str1


class ModelsList(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """One user, one agent's models: the views differ in nothing but what is configured."""

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


@method("models.list", scope="operator.read")
async def models_list(call: Call, params: ModelsList) -> dict[str, Any]:
    """Every model that is known now, with the state of its provider's warm-up."""
    runtime = call.services.runtime
    rows = [
        model_row(runtime, info) for info in runtime.catalog.models() if params.provider in (None, info.ref.provider)
    ]
    return {"models": rows}
