"""Tools by which an agent sees and speaks to other sessions: list, history, send, spawn.

They call the supervisor, never a socket. A spawned run is a child of the run that asked: it is stopped with it, and
its session stays and can be spoken to again.
"""

from collections.abc import Callable
from typing import Annotated, Literal, Protocol
from uuid import uuid4

import msgspec
import trio

from triops.agents.errors import ToolError
from triops.agents.messages import AssistantMessage, SystemMessage, UserMessage
from triops.agents.tool import AnyTool, Tool, ToolContext, ToolResult, json_result
from triops.runtime.clock import Clock
from triops.runtime.errors import RuntimeFault
from triops.runtime.runs.registry import Run
from triops.runtime.runs.state import Accepted, RunState, Submission, Terminal
from triops.runtime.sessions import Session, agent_of, canonical_key
from triops.runtime.store import sessions as stored
from triops.runtime.store.db import Db
from triops.runtime.store.sessions import SessionFilter
from triops.runtime.store.sqlite import Store

MAX_DEPTH = 5
MAX_CHILDREN = 5
ACCEPT_LIMIT = 10.0  # seconds
CHILD_GRACE = 5.0  # seconds that a stopped child has to end


class Runs(Protocol):
    """What these tools ask of the supervisor."""

    async def submit(self, submission: Submission) -> Accepted: ...

    async def wait(self, run_id: str) -> Terminal: ...

    def open_run(self, run_id: str) -> Run | None: ...

    def open_runs(self, session_key: str | None = None) -> list[Run]: ...

    def abort(self, run: Run, reason: str) -> bool: ...


class ListArgs(msgspec.Struct, frozen=True, rename="camel"):
    limit: Annotated[int, msgspec.Meta(ge=1, le=200)] = 100
    search: str | None = None
    label: str | None = None
    active_minutes: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] | None = None


class HistoryArgs(msgspec.Struct, frozen=True, rename="camel"):
    session_key: str
    limit: Annotated[int, msgspec.Meta(ge=1, le=200)] = 50
    include_tools: bool = False


class SendArgs(msgspec.Struct, frozen=True, rename="camel"):
    message: str
    session_key: str | None = None
    label: str | None = None
    timeout_seconds: Annotated[float, msgspec.Meta(ge=0)] = 60


class SpawnArgs(msgspec.Struct, frozen=True, rename="camel"):
    task: str
    label: str | None = None
    runtime: Literal["subagent"] = "subagent"
    model: str | None = None
    run_timeout_seconds: Annotated[float, msgspec.Meta(ge=0)] = 0


class SessionTools:
    """The four tools, over one runtime."""

    def __init__(self, store: Store, runs: Callable[[], Runs], clock: Clock) -> None:
        self._store = store
        self._runs = runs
        self._clock = clock

    def tools(self) -> tuple[AnyTool, ...]:
        """What an agent may call."""
        return (
            Tool("sessions_list", "List sessions, last used first.", ListArgs, self.listing),
            Tool("sessions_history", "Read the last messages of a session.", HistoryArgs, self.history),
            Tool(
                "sessions_send",
                "Send a message to another session, by sessionKey or label, and wait for its reply"
                " (timeoutSeconds 0: do not wait).",
                SendArgs,
                self.send,
            ),
            Tool(
                "sessions_spawn",
                "Give a task to a new sub-agent and get its answer. Its session stays and can be sent more messages.",
                SpawnArgs,
                self.spawn,
            ),
        )

    async def listing(self, args: ListArgs, context: ToolContext) -> ToolResult:
        since = self._clock() - args.active_minutes * 60_000 if args.active_minutes else None
        wanted = SessionFilter(limit=args.limit, search=args.search, label=args.label, active_since=since)
        rows, total = await self._store.read(lambda db: stored.listing(db, wanted))
        return json_result({"count": len(rows), "total": total, "sessions": [_row(row) for row in rows]})

    async def history(self, args: HistoryArgs, context: ToolContext) -> ToolResult:
        key = _canonical(args.session_key, context)
        page = await self._store.read(lambda db: stored.transcript(db, key, limit=args.limit))
        if page.session is None:
            raise ToolError(f"session not found: {key}; sessions_list shows what there is")
        spoken = (UserMessage, SystemMessage, AssistantMessage)
        messages = [
            {"seq": entry.seq, **msgspec.to_builtins(entry.message)}
            for entry in page.messages
            if args.include_tools or isinstance(entry.message, spoken)
        ]
        return json_result({"sessionKey": key, "messages": messages, "hasMore": page.has_more})

    async def send(self, args: SendArgs, context: ToolContext) -> ToolResult:
        key = await self._target(args, context)
        if key == context.session_key and args.timeout_seconds:
            raise ToolError("a session cannot wait for itself; use timeoutSeconds 0, or answer directly")
        run_id = f"{context.run_id}:send:{context.call_id}"
        message = UserMessage(args.message, self._clock())
        accepted = await self._submit(Submission(run_id=run_id, session_key=key, message=message, source="tool"))
        shown = {"runId": accepted.run_id, "sessionKey": accepted.session_key}
        if not args.timeout_seconds:
            return json_result(shown | {"status": "accepted"})
        terminal: Terminal | None = None
        with trio.move_on_after(args.timeout_seconds):
            terminal = await self._runs().wait(run_id)
        if terminal is None:
            return json_result(
                shown | {"status": "timeout", "note": "it goes on; sessions_history will have the reply"}
            )
        return _outcome(shown, terminal)

    async def spawn(self, args: SpawnArgs, context: ToolContext) -> ToolResult:
        if not args.task.strip():
            raise ToolError("invalid arguments: task is empty; say what the sub-agent is to do")
        parent = await self._store.read(lambda db: stored.require(db, context.session_key))
        if parent.spawn_depth >= MAX_DEPTH:
            raise ToolError(f"sub-agents may be {MAX_DEPTH} deep; do this task yourself")
        active = [run for run in self._runs().open_runs() if run.session.spawned_by == context.session_key]
        if len(active) >= MAX_CHILDREN:
            raise ToolError(f"{MAX_CHILDREN} sub-agents of this session are at work already; wait for one")
        key = f"agent:{agent_of(context.session_key)}:subagent:{uuid4()}"
        run_id = f"{context.run_id}:spawn:{context.call_id}"
        child = Submission(
            run_id=run_id,
            session_key=key,
            message=UserMessage(f"[Subagent Task] {args.task}", self._clock()),
            source="spawn",
            model=args.model,
            deadline=args.run_timeout_seconds or None,
            spawned_by=context.session_key,
            spawn_depth=parent.spawn_depth + 1,
            label=args.label,
        )
        with trio.fail_after(ACCEPT_LIMIT, shield=True):  # cancelled here, nobody would stop a child that is accepted
            accepted = await self._submit(child)
        terminal = await self._end_of_child(run_id)
        return _outcome({"status": "accepted", "runId": accepted.run_id, "childSessionKey": key}, terminal)

    async def _end_of_child(self, run_id: str) -> Terminal:
        """Wait for a child's end. Cancelled, it stops the child first: it never outlives the run that asked for it."""
        runs = self._runs()
        try:
            return await runs.wait(run_id)
        except trio.Cancelled:
            child = runs.open_run(run_id)
            if child is not None:
                runs.abort(child, "parent stopped")
                with trio.move_on_after(CHILD_GRACE, shield=True):
                    await child.ended.wait()
            raise

    async def _submit(self, submission: Submission) -> Accepted:
        try:
            return await self._runs().submit(submission)
        except RuntimeFault as error:
            raise ToolError(str(error)) from error

    async def _target(self, args: SendArgs, context: ToolContext) -> str:
        name = args.session_key or args.label
        if name is None:
            raise ToolError("say which session: sessionKey or label")

        def find(db: Db) -> str | None:
            session: Session | None = None
            if args.session_key is None:
                session = stored.find_labelled(db, name)
            key = session.key if session is not None else _canonical(name, context)
            known = session or stored.find(db, key)
            return key if known is not None or key.endswith(":main") else None

        key = await self._store.read(find)
        if key is None:
            raise ToolError(f"session not found: {name}; sessions_list shows what there is")
        return key


def _canonical(text: str, context: ToolContext) -> str:
    try:
        return canonical_key(
            text, agent_id=None if text.lower().startswith("agent:") else agent_of(context.session_key)
        )
    except RuntimeFault as error:
        raise ToolError(str(error)) from error


def _row(session: Session) -> dict[str, object]:
    row: dict[str, object] = {"key": session.key, "updatedAt": session.updated_at, "status": session.status}
    for name, value in (
        ("label", session.label),
        ("spawnedBy", session.spawned_by),
        ("lastMessagePreview", session.last_preview),
    ):
        if value is not None:
            row[name] = value
    return row


def _outcome(shown: dict[str, str], terminal: Terminal) -> ToolResult:
    match terminal.state:
        case RunState.ERROR:
            return json_result(shown | {"status": "error", "error": terminal.error_message}, is_error=True)
        case RunState.ABORTED:
            return json_result(shown | {"status": "aborted", "stopReason": terminal.stop_reason}, is_error=True)
        case RunState.MERGED:
            return json_result(shown | {"status": "ok", "note": f"taken into run {terminal.merged_into}"})
        case _:
            return json_result(shown | {"status": "ok", "reply": terminal.text})
