"""The cron scheduler: sleeps until a slot is due, claims it, has it run, and writes its receipt.

A part with one inbox: what others ask for and the ends of its own slots come through it, so that one task changes
jobs. What it holds in memory is a copy of the store, read again at each start. Knows no wire and no model.

At most once: a slot's row is on disk before the slot runs. Never silent: each slot gets a receipt, also one that
passed while the process was down, the machine slept, or the job still ran. The wall clock may jump; it is looked at
every minute.
"""

from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NoReturn, Protocol, TypeVar
from uuid import uuid4

import msgspec
import trio
from msgspec.structs import replace

from triops.agents.messages import SystemMessage, UserMessage
from triops.runtime.bus import Bus
from triops.runtime.clock import Clock
from triops.runtime.config import CronConfig
from triops.runtime.cron import job as jobs
from triops.runtime.cron import receipt
from triops.runtime.cron.job import AgentTurn, Job, LogEntry, SystemEvent
from triops.runtime.cron.receipt import Claim
from triops.runtime.cron.schedule import At
from triops.runtime.cron.view import delivery_preview, read_view, view
from triops.runtime.errors import NotFound, RuntimeFault, Unavailable
from triops.runtime.events import CronEvent
from triops.runtime.logs import Log
from triops.runtime.runs.state import Accepted, Submission, Terminal
from triops.runtime.sessions import DEFAULT_AGENT
from triops.runtime.store import cron as stored
from triops.runtime.store.sqlite import Outcome, Store

T = TypeVar("T")
RunMode = Literal["due", "force"]

INBOX_CAPACITY = 64  # what people ask for and ends of slots; when full, the sender waits
MOST_RUNNING = 8  # slots at once; more wait unclaimed. One that is asked for by hand does not wait
LONGEST_SLEEP = 60.0  # seconds until the wall clock is looked at again
RETRY_STORE = 5.0  # seconds between tries to store what the disk refused
AGENT_TURN_SECONDS = 3_600.0
SYSTEM_EVENT_SECONDS = 600.0


class Runs(Protocol):
    """What the scheduler needs of the agent-run supervisor.

    `submit` has a run accepted or raises `RuntimeFault`; `wait` tells how a run ended, before a restart or after, and
    raises `NotFound` when it was never accepted; `append` shows a system message in a session without a run.
    """

    async def submit(self, submission: Submission) -> Accepted: ...

    async def wait(self, run_id: str) -> Terminal: ...

    async def append(self, session_key: str, message: SystemMessage) -> None: ...


class JobsQuery(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The parameters of `cron.list`."""

    include_disabled: bool = False
    limit: Annotated[int, msgspec.Meta(ge=1, le=200)] = 200
    offset: Annotated[int, msgspec.Meta(ge=0)] = 0


class CronStatistics(msgspec.Struct, frozen=True):
    inbox: int
    inbox_capacity: int
    waiting_senders: int
    jobs: int
    running: int
    next_wake_at_ms: int | None


Work = Callable[[trio.Nursery], Awaitable[None]]
"""What lies in the inbox: done by the scheduler's own task, one after the other; the nursery is for slots."""


class _Reply(Generic[T]):
    """Where the one who asked waits; it hears of the end in every case."""

    def __init__(self) -> None:
        self._told = trio.Event()
        gone = Unavailable("the cron scheduler stopped meanwhile; look before trying again")
        self._outcome: Outcome[T] = Outcome(error=gone)

    async def settle(self, work: Callable[[trio.Nursery], Awaitable[T]], slots: trio.Nursery) -> None:
        try:
            self._outcome = Outcome(value=await work(slots))
        except RuntimeFault as fault:
            self._outcome = Outcome(error=fault)
        finally:
            self._told.set()

    async def wait(self) -> T:
        await self._told.wait()
        return self._outcome.unwrap()


class CronScheduler:
    """See the module; made by `open_scheduler`."""

    def __init__(
        self,
        store: Store,
        bus: Bus,
        runs: Runs,
        *,
        config: CronConfig,
        clock: Clock,
        log: Log,
        path: Path,
        inbox: tuple[trio.MemorySendChannel[Work], trio.MemoryReceiveChannel[Work]],
    ) -> None:
        self._store = store
        self._bus = bus
        self._runs = runs
        self._config = config
        self._clock = clock
        self._log = log
        self._path = str(path)
        self._send, self._receive = inbox
        self._instance = str(uuid4())
        self._by_hand = 0
        self._jobs: dict[str, Job] = {}
        self._due: dict[str, int] = {}
        """When each job is due that is enabled and does not run."""
        self._running: set[str] = set()
        """Run ids of the slots that are claimed and not over."""
        self._looked_at = 0

    # -- asked by others -----------------------------------------------------------------------------------------------

    async def add(self, params: dict[str, Any], *, caller: str | None = None) -> dict[str, Any]:
        """Make a job of the parameters of `cron.add`; `caller` is the canonical key of the session that asks.

        Returns the read view with its delivery preview. Cancelled: the job may have been made all the same.

        Raises:
            Invalid: a parameter is wrong; the message has its path.
            Unavailable: the store refuses.
        """
        job = jobs.new_job(params, job_id=str(uuid4()), now_ms=self._clock(), caller=caller)
        return await self._ask(partial(self._add, job))

    async def remove(self, job_id: str) -> dict[str, Any]:
        """Forget a job; `NotFound` if there is none.

        A slot of it that runs goes on, can be aborted as any run, and gets its receipt, after a restart too.
        """
        return await self._ask(partial(self._remove, job_id))

    async def run_now(self, job_id: str, mode: RunMode = "force") -> dict[str, Any]:
        """Start a job by hand (`cron.run`); returns when it is claimed, not when it has run.

        `due` runs it only if it is due, and uses that slot. An answer with `ran: false` gives the reason; `NotFound`
        is raised if there is no such job.
        """
        return await self._ask(partial(self._run_now, job_id, mode))

    async def get(self, job_id: str) -> dict[str, Any]:
        """The read view of a job; `NotFound` if there is none."""
        job = await self._store.read(lambda db: stored.find(db, job_id))
        if job is None:
            raise _missing(job_id)
        return read_view(job, self._clock())

    async def runs(self, query: stored.RunsQuery) -> dict[str, Any]:
        """A page of receipts."""
        entries, total = await self._store.read(lambda db: stored.runs(db, query))
        return {"entries": entries, **_page(len(entries), total, query.offset, query.limit)}

    async def list(self, query: JobsQuery) -> dict[str, Any]:
        """A page of jobs, the next one due first."""
        now = self._clock()
        found = [job for job in await self._store.read(stored.load) if job.enabled or query.include_disabled]
        found.sort(key=lambda job: (jobs.due_at(job, now) or float("inf"), job.created_at_ms))
        shown = found[query.offset : query.offset + query.limit]
        return {
            "jobs": [read_view(job, now) | {"effectiveAgentId": job.agent_id or DEFAULT_AGENT} for job in shown],
            **_page(len(shown), len(found), query.offset, query.limit),
            "deliveryPreviews": {job.id: delivery_preview(job) for job in shown},
        }

    def status(self) -> dict[str, Any]:
        """The payload of `cron.status`."""
        return {
            "enabled": self._config.enabled,
            "triggersEnabled": False,
            "storePath": self._path,
            "storage": "sqlite",
            "sqlitePath": self._path,
            "jobs": len(self._jobs),
            "nextWakeAtMs": self._next_wake(),
        }

    def statistics(self) -> CronStatistics:
        inbox = self._send.statistics()
        return CronStatistics(
            inbox=inbox.current_buffer_used,
            inbox_capacity=int(inbox.max_buffer_size),
            waiting_senders=inbox.tasks_waiting_send,
            jobs=len(self._jobs),
            running=len(self._running),
            next_wake_at_ms=self._next_wake(),
        )

    async def _ask(self, work: Callable[[trio.Nursery], Awaitable[T]]) -> T:
        reply = _Reply[T]()
        await self._send.send(partial(reply.settle, work))
        return await reply.wait()

    # -- done by its own task ------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Serve until cancelled; may be called again when it failed.

        Cancelled, the runs of its slots go on without it; the next `run` writes their receipts.
        """
        known, claims = await self._store.read(lambda db: (stored.load(db), stored.open_claims(db)))
        self._jobs, self._due = {}, {}
        self._running = {claim.run_id for claim, _ in claims}
        for job in known:
            await self._admit(job)
        async with trio.open_nursery() as slots:
            for claim, job in claims:
                slots.start_soon(self._resume, job, claim, name=f"resume {claim.run_id}")
            task_status.started()
            while True:
                pause = await self._fire_due(slots)
                work = None
                with trio.move_on_after(pause):
                    work = await self._receive.receive()
                if work is not None:
                    await work(slots)

    async def _admit(self, job: Job) -> None:
        """Plan a job that was there before the start."""
        now = self._clock()
        self._plan(jobs.rewound(job, now), now)
        due = self._due.get(job.id)
        if job.enabled and due is None and job.running_at_ms is None:
            self._log.error("a job has no next run; is its time zone known here?", job=job.id, schedule=job.schedule)
        if self._config.skip_missed_jobs and due is not None and due <= now and not isinstance(job.schedule, At):
            missed = jobs.due_slots(job, now)
            passed = [receipt.passed(job, slot, now, "missed: the scheduler was not running") for slot in missed]
            job = replace(job, decided_ms=missed[-1])
            await self._store.write(lambda db: stored.skip(db, job, passed))
            self._plan(job, now)

    def _plan(self, job: Job, now: int) -> None:
        self._jobs[job.id] = job
        self._due.pop(job.id, None)
        due = jobs.due_at(job, now) if job.running_at_ms is None else None
        if due is not None:
            self._due[job.id] = due

    def _next_wake(self) -> int | None:
        return min(self._due.values(), default=None) if self._config.enabled else None

    async def _fire_due(self, slots: trio.Nursery) -> float:
        """Start what is due; returns the seconds until there may be more."""
        now = self._clock()
        if now < self._looked_at:  # the wall clock went back
            for job in list(self._jobs.values()):
                self._plan(jobs.rewound(job, now), now)
        self._looked_at = now
        try:
            for _, job_id in sorted((due, job_id) for job_id, due in self._due.items() if due <= now):
                if self._config.enabled and len(self._running) < MOST_RUNNING:
                    await self._fire(self._jobs[job_id], now, slots)
        except Unavailable as fault:
            self._log.error("a slot could not be claimed, trying again", error=fault)
            return RETRY_STORE
        wake = self._next_wake()
        if wake is None or len(self._running) >= MOST_RUNNING:  # the end of a slot comes through the inbox
            return LONGEST_SLEEP
        return min(LONGEST_SLEEP, max(0, wake - self._clock()) / 1000)

    async def _fire(self, job: Job, now: int, slots: trio.Nursery, run_id: str | None = None) -> bool:
        """Start the latest slot of a job that is due; those before it were missed."""
        *missed, slot = jobs.due_slots(job, now)
        passed = [receipt.passed(job, earlier, now, "missed: a later slot ran in its place") for earlier in missed]
        claim = Claim(run_id or receipt.slot_run_id(job, slot), job.id, slot, now)
        return await self._start(replace(job, decided_ms=slot, retry_ms=None), claim, slots, passed)

    async def _start(self, job: Job, claim: Claim, slots: trio.Nursery, passed: Sequence[LogEntry] = ()) -> bool:
        claimed = await self._store.write(lambda db: stored.claim(db, job, claim, passed))
        if claimed:
            job = replace(job, running_at_ms=claim.claimed_at)
            self._running.add(claim.run_id)
            self._tell("started", job.id, job, runAtMs=claim.claimed_at)
            slots.start_soon(self._perform, job, claim, name=claim.run_id)
        self._plan(job, claim.claimed_at)
        return claimed

    async def _perform(self, job: Job, claim: Claim) -> None:
        """The child task of a slot: have it run, and bring its end to the inbox."""
        submission = _submission(job, claim)
        terminal = session_id = error = reason = None
        try:
            if job.wake_mode == "next-heartbeat" and isinstance(submission.message, SystemMessage):
                await self._runs.append(job.session, submission.message)
            else:
                session_id = (await self._runs.submit(submission)).session_id
                terminal = await self._runs.wait(claim.run_id)
        except RuntimeFault as fault:
            error, reason = str(fault), "overloaded" if fault.retryable else "unknown"
        entry = receipt.ended(job, claim, self._clock(), terminal, error=error, reason=reason, session_id=session_id)
        await self._send.send(partial(self._end, claim, entry))

    async def _resume(self, job: Job, claim: Claim) -> None:
        """A slot that was claimed before this start is never run again; if its run was accepted, its end counts."""
        terminal = error = None
        try:
            terminal = await self._runs.wait(claim.run_id)
        except NotFound:
            error = "interrupted: the process stopped before the run was accepted"
        entry = receipt.ended(job, claim, self._clock(), terminal, error=error, reason="server_error")
        await self._send.send(partial(self._end, claim, entry))

    async def _end(self, claim: Claim, entry: LogEntry, _slots: trio.Nursery) -> None:
        """A slot is over: its receipt, what it means for the job, and what passed meanwhile."""
        now, scheduled = self._clock(), claim.slot_ms is not None
        before = self._jobs.get(claim.job_id)
        job = before and receipt.settled(before, entry, scheduled=scheduled)
        passed: Sequence[LogEntry] = ()
        if job is not None and scheduled and not isinstance(job.schedule, At):
            passed = [receipt.passed(job, slot, now, "already-running") for slot in jobs.due_slots(job, now)]
            job = replace(job, decided_ms=passed[-1].run_at_ms) if passed else job
        spent = job is not None and receipt.is_spent(job, entry)
        entry = replace(entry, next_run_at_ms=jobs.due_at(job, now) if job else None)
        while True:
            try:
                await self._store.write(lambda db: stored.finish(db, None if spent else job, claim, entry, passed))
                break
            except Unavailable as fault:
                self._log.error("the receipt of a slot could not be stored, trying again", error=fault)
                await trio.sleep(RETRY_STORE)
        self._running.discard(claim.run_id)
        about = {"job": claim.job_id, "name": entry.job_name, "slot": claim.slot_ms, "run": claim.run_id}
        self._log.info("a job ran", **about, outcome=entry.status, error=entry.error, ms=entry.duration_ms)
        self._tell("finished", claim.job_id, job, **receipt.event_fields(entry))
        if before is None or job is None:
            return
        self._plan(job, now)
        if spent:
            del self._jobs[job.id]
            self._tell("removed", job.id, job)
        elif before.enabled and not job.enabled:
            self._tell("updated", job.id, job)
        elif scheduled:
            self._tell("scheduled", job.id, job)

    async def _add(self, job: Job, _slots: trio.Nursery) -> dict[str, Any]:
        await self._store.write(lambda db: stored.save(db, job))
        self._plan(job, self._clock())
        self._tell("added", job.id, job)
        return read_view(job, self._clock()) | {"deliveryPreview": delivery_preview(job)}

    async def _remove(self, job_id: str, _slots: trio.Nursery) -> dict[str, Any]:
        job = self._require(job_id)
        await self._store.write(lambda db: stored.remove(db, job_id))
        del self._jobs[job_id]
        self._due.pop(job_id, None)
        self._tell("removed", job.id, job)
        return {"ok": True, "removed": True}

    async def _run_now(self, job_id: str, mode: RunMode, slots: trio.Nursery) -> dict[str, Any]:
        job, now = self._require(job_id), self._clock()
        instance = {"processInstanceId": self._instance}
        if job.running_at_ms is not None:
            return {"ok": True, "ran": False, "reason": "already-running", **instance}
        self._by_hand += 1
        run_id = f"manual:{job_id}:{now}:{self._by_hand}"
        if mode != "due":
            await self._start(job, Claim(run_id, job_id, None, now), slots)
        elif self._due.get(job_id, now + 1) > now or not await self._fire(job, now, slots, run_id):
            return {"ok": True, "ran": False, "reason": "not-due", **instance}
        return {"ok": True, "enqueued": True, "runId": run_id, **instance}

    def _require(self, job_id: str) -> Job:
        if job_id not in self._jobs:
            raise _missing(job_id)
        return self._jobs[job_id]

    def _tell(self, action: str, job_id: str, job: Job | None, **more: Any) -> None:
        payload: dict[str, Any] = {"jobId": job_id, "action": action}
        if job is not None:
            payload["job"] = shown = view(job, self._clock())
            if action in ("added", "updated", "scheduled") and "nextRunAtMs" in shown["state"]:
                payload["nextRunAtMs"] = shown["state"]["nextRunAtMs"]
        self._bus.publish(CronEvent(payload=payload | more))


@contextmanager
def open_scheduler(
    store: Store, bus: Bus, runs: Runs, *, config: CronConfig, clock: Clock, log: Log, path: Path
) -> Generator[CronScheduler]:
    """The scheduler and its inbox, until the block ends; `run` is its service. `path` is where the store lies."""
    send, receive = trio.open_memory_channel[Work](INBOX_CAPACITY)
    with send, receive:
        yield CronScheduler(store, bus, runs, config=config, clock=clock, log=log, path=path, inbox=(send, receive))


def _submission(job: Job, claim: Claim) -> Submission:
    """The run of a slot: on its own in its session's lane, never steered into somebody's turn."""
    match job.payload:
        case SystemEvent():
            message = SystemMessage(job.payload.text, claim.claimed_at, source=f"cron:{job.id}")
            model, deadline = None, SYSTEM_EVENT_SECONDS
        case AgentTurn():
            message = UserMessage(job.payload.message, claim.claimed_at)
            model, seconds = job.payload.model, job.payload.timeout_seconds
            deadline = AGENT_TURN_SECONDS if seconds is None else seconds or None
    return Submission(
        run_id=claim.run_id,
        session_key=job.session_of(claim.run_id),
        message=message,
        source="cron",
        queue_mode="followup",
        model=model,
        deadline=deadline,
    )


def _missing(job_id: str) -> NotFound:
    return NotFound(
        f"Automation not found: {job_id}. List automations (`triops cron list`) and retry with a current job id.",
        details={"code": "CRON_JOB_NOT_FOUND", "jobId": job_id},
    )


def _page(count: int, total: int, offset: int, limit: int) -> dict[str, Any]:
    more = offset + count < total
    following = offset + count if more else None
    return {"total": total, "offset": offset, "limit": limit, "hasMore": more, "nextOffset": following}
