"""The tool by which an agent sees, makes and removes scheduled jobs."""

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from triops.agents.errors import ToolError
from triops.agents.tool import Tool, ToolContext, ToolResult, json_result
from triops.runtime.cron.scheduler import CronScheduler, JobsQuery
from triops.runtime.errors import RuntimeFault
from triops.runtime.store.cron import RunsQuery

_WORDS = """Scheduled jobs. action: status, list, get, add, remove, run (now), runs (what became of them). \
get, remove and run need jobId. add needs job, for example {"name": "tea", "schedule": {"kind": "at", "at": \
"2027-01-31T16:00:00Z"}, "payload": {"kind": "systemEvent", "text": "Tea time"}, "sessionTarget": "current"} to be \
reminded here; schedule may be {"kind": "every", "everyMs": 3600000} or {"kind": "cron", "expr": "0 9 * * 1", "tz": \
"Europe/Berlin"}; payload {"kind": "agentTurn", "message": "…"} with sessionTarget "isolated" has an agent work."""


class CronArgs(msgspec.Struct, frozen=True, rename="camel"):
    action: Literal["status", "list", "get", "add", "remove", "run", "runs"]
    job: dict[str, Any] | None = None
    job_id: str | None = None
    include_disabled: bool = False


def cron_tool(scheduler: Callable[[], CronScheduler]) -> Tool[CronArgs]:
    """The tool, over the scheduler that is there once it is called."""

    async def run(args: CronArgs, context: ToolContext) -> ToolResult:
        try:
            return json_result(await _act(scheduler(), args, context))
        except RuntimeFault as error:
            raise ToolError(str(error)) from error

    return Tool("cron", _WORDS, CronArgs, run, parallel=False)


async def _act(cron: CronScheduler, args: CronArgs, context: ToolContext) -> Any:
    match args.action:
        case "status":
            return cron.status()
        case "list":
            return await cron.list(JobsQuery(include_disabled=args.include_disabled))
        case "runs":
            return await cron.runs(RunsQuery(id=args.job_id) if args.job_id else RunsQuery())
        case "add":
            if args.job is None:
                raise ToolError("add needs job: its name, schedule, payload and sessionTarget")
            return await cron.add(args.job, caller=context.session_key)
        case _:
            if args.job_id is None:
                raise ToolError(f"{args.action} needs jobId; action list shows the jobs")
    match args.action:
        case "get":
            return await cron.get(args.job_id)
        case "remove":
            return await cron.remove(args.job_id)
        case "run":
            return await cron.run_now(args.job_id)
