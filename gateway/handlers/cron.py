"""`cron.*`: jobs and their receipts."""

from typing import Any, Literal

import msgspec

from triops.gateway.errors import WireError
from triops.gateway.methods import Call, NoParams, method
from triops.gateway.schema.chat import Str1
from triops.runtime.cron.scheduler import JobsQuery
from triops.runtime.store.cron import RunsQuery


class JobTarget(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """`id` and `jobId` mean the same."""

    id: Str1 | None = None
    job_id: Str1 | None = None

    def require(self, method_name: str) -> str:
        wanted = self.id or self.job_id
        if wanted is None:
            raise WireError("INVALID_REQUEST", f"invalid {method_name} params: must have required property 'id'")
        return wanted


class RunParams(JobTarget, frozen=True, rename="camel", forbid_unknown_fields=True):
    mode: Literal["due", "force", "if-enabled"] = "force"
    expected_process_instance_id: Str1 | None = None


class ListParams(JobsQuery, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Filters that no page needs yet are accepted and change nothing but the order of the list."""

    compact: bool = False
    include_delivery_previews: bool = False
    sort_by: Literal["nextRunAtMs", "updatedAtMs", "name"] | None = None
    sort_dir: Literal["asc", "desc"] | None = None
    enabled: Literal["all", "enabled", "disabled"] | None = None
    session_key: Str1 | None = None
    agent_id: Str1 | None = None
    query: str | None = None


@method("cron.add", scope="operator.admin", control_plane=True)
async def cron_add(call: Call, params: dict[str, Any]) -> Any:
    """Make a job. `sessionTarget: "current"` is the session of `sessionKey`; for a `systemEvent` else the main one."""
    return await call.services.runtime.cron.add(params)


@method("cron.list", scope="operator.read")
async def cron_list(call: Call, params: ListParams) -> Any:
    return await call.services.runtime.cron.list(params)


@method("cron.get", scope="operator.read")
async def cron_get(call: Call, params: JobTarget) -> Any:
    return await call.services.runtime.cron.get(params.require("cron.get"))


@method("cron.remove", scope="operator.admin", control_plane=True)
async def cron_remove(call: Call, params: JobTarget) -> Any:
    return await call.services.runtime.cron.remove(params.require("cron.remove"))


@method("cron.run", scope="operator.admin", control_plane=True)
async def cron_run(call: Call, params: RunParams) -> Any:
    """Start a job by hand."""
    mode = "due" if params.mode == "due" else "force"
    return await call.services.runtime.cron.run_now(params.require("cron.run"), mode)


@method("cron.runs", scope="operator.read")
async def cron_runs(call: Call, params: RunsQuery) -> Any:
    """Receipts, newest first."""
    return await call.services.runtime.cron.runs(params)


@method("cron.status", scope="operator.read")
async def cron_status(call: Call, params: NoParams) -> Any:
    return call.services.runtime.cron.status()
