"""What a cron job is, what may be asked for, and when its slots are due. Pure.

Knows neither clock nor store. Names and defaults are the protocol's (methods.md §2.4), but for session events: a
`systemEvent` may go to any named session, and `current` is the session of the caller.
"""

import re
from typing import Annotated, Any, Literal

import msgspec

from triops.runtime.cron import schedule as schedules
from triops.runtime.cron.schedule import MIN_GAP_MS, At, Every, Schedule, Words
from triops.runtime.errors import Invalid
from triops.runtime.sessions import DEFAULT_AGENT, MAIN_KEY, canonical_key

WakeMode = Literal["now", "next-heartbeat"]
RunStatus = Literal["ok", "error", "skipped"]
DeliveryStatus = Literal["delivered", "not-delivered", "unknown", "not-requested"]

SLOTS_LOGGED = 100
"""Slots that passed unused and get a receipt each; of more, the last receipt speaks for the rest."""
LONGEST_BACKOFF_MS = 3_600_000

_NAME_LENGTH = 60  # of a name made from the payload
_UNKNOWN_FIELD = re.compile(r"unknown field `([^`]*)`")
_SUPPORTED = {
    "/schedule/kind": "at, every, cron",
    "/payload/kind": "systemEvent, agentTurn",
    "/delivery/mode": "none, announce",
    "/wakeMode": "now, next-heartbeat",
}


class _Wire(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    pass


class SystemEvent(_Wire, frozen=True, tag_field="kind", tag="systemEvent", forbid_unknown_fields=True):
    """A visible system message."""

    text: Words


class AgentTurn(_Wire, frozen=True, tag_field="kind", tag="agentTurn", forbid_unknown_fields=True):
    """A question to the agent."""

    message: Words
    model: Words | None = None
    """`provider/model` or alias; strict."""
    timeout_seconds: Annotated[float, msgspec.Meta(ge=0)] | None = None
    """None: 60 minutes; 0: the budget of any run."""
    tools_allow: tuple[str, ...] = msgspec.field(default_factory=lambda: ("*",))  # a factory: it is always written


Payload = SystemEvent | AgentTurn


class Delivery(_Wire, frozen=True, forbid_unknown_fields=True):
    """Where a result should go. Kept; the session shows it in any case, and there is no channel to send it to yet."""

    mode: Literal["none", "announce"]
    channel: str | None = None
    to: str | None = None
    account_id: str | None = None
    thread_id: str | int | None = None
    best_effort: bool | None = None


class AutoDisabled(_Wire, frozen=True):
    reason: Literal["consecutive-failures"]
    at_ms: int
    consecutive_errors: Annotated[int, msgspec.Meta(ge=1)]


class Usage(msgspec.Struct, frozen=True):
    input_tokens: int
    output_tokens: int
    total_tokens: int


class LogEntry(_Wire, frozen=True, kw_only=True):
    """The protocol's CronRunLogEntry: one for each slot that is over."""

    ts: int
    job_id: str
    action: Literal["finished"] = msgspec.field(default_factory=lambda: "finished")  # a factory: it is always written
    status: RunStatus
    completion_status: Literal["succeeded", "failed"] | None = None
    error: str | None = None
    error_reason: str | None = None
    summary: str | None = None
    delivered: bool | None = None
    delivery_status: DeliveryStatus = msgspec.field(default_factory=lambda: "not-requested")
    session_id: str | None = None
    session_key: str | None = None
    run_id: str
    run_at_ms: int
    duration_ms: int | None = None
    next_run_at_ms: int | None = None
    model: str | None = None
    provider: str | None = None
    usage: Usage | None = None
    job_name: str


class Job(_Wire, frozen=True, kw_only=True):
    """One job, as it is stored; `view` is what clients see of it."""

    id: str
    name: str
    enabled: bool
    created_at_ms: int
    updated_at_ms: int
    schedule: Schedule
    session_target: str
    """`main`, `isolated` or `session:<canonical key>`."""
    wake_mode: WakeMode
    payload: Payload
    description: str | None = None
    delete_after_run: bool | None = None
    agent_id: str | None = None
    session_key: str | None = None
    delivery: Delivery | None = None
    decided_ms: int
    """Slots up to here are over: they ran, run, or have their receipt as skipped."""
    retry_ms: int | None = None
    """After an error: no slot before this; for `at`, a slot of its own."""
    running_at_ms: int | None = None
    last: LogEntry | None = None
    """The last slot that ran."""
    errors: int = 0
    """Since the last success."""
    auto_disabled: AutoDisabled | None = None

    @property
    def session(self) -> str:
        """The canonical key of the session in which it runs; of an isolated one, what its runs' keys begin with."""
        if self.session_target == "main":
            return MAIN_KEY
        if self.session_target == "isolated":
            return f"agent:{self.agent_id or DEFAULT_AGENT}:cron:{self.id}"
        return self.session_target.removeprefix("session:")

    def session_of(self, run_id: str) -> str:
        """The session of one slot: an isolated run knows nothing of those before it."""
        isolated = self.session_target == "isolated"
        return f"{self.session}:run:{run_id.partition(f'{self.id}:')[2]}" if isolated else self.session


class _Asked(_Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The parameters of `cron.add`, before defaults that depend on each other."""

    schedule: Schedule
    payload: Payload
    name: Words | None = None
    description: str | None = None
    enabled: bool = True
    delete_after_run: bool | None = None
    agent_id: Words | None = None
    session_key: Words | None = None
    session_target: Words | None = None
    wake_mode: WakeMode = "now"
    delivery: Delivery | None = None


_TOP_LEVEL = ", ".join(field.encode_name for field in msgspec.structs.fields(_Asked))


# -- from the wire -----------------------------------------------------------------------------------------------------


def new_job(params: dict[str, Any], *, job_id: str, now_ms: int, caller: str | None = None) -> Job:
    """The job that `cron.add` with these parameters makes. `caller` is the session that asks, if it is one.

    Raises:
        Invalid: a parameter is missing, wrong, or names something that is not supported; the message has its path.
    """
    asked = _decode(params)
    schedule = schedules.completed(asked.schedule, now_ms=now_ms, job_id=job_id)
    target = _target(asked, caller)
    is_turn = isinstance(asked.payload, AgentTurn)
    delivery = asked.delivery or (Delivery(mode="announce") if is_turn else None)
    if target == "main" and delivery is not None and delivery.mode == "announce":
        raise Invalid("delivery.mode announce needs an isolated, current or session:<key> target; main shows it anyway")
    once = isinstance(schedule, At)
    words = asked.payload.message if isinstance(asked.payload, AgentTurn) else asked.payload.text
    return Job(
        id=job_id,
        name=asked.name or " ".join(words.split())[:_NAME_LENGTH] or job_id,
        description=asked.description,
        enabled=asked.enabled,
        delete_after_run=asked.delete_after_run if asked.delete_after_run is not None or not once else True,
        created_at_ms=now_ms,
        updated_at_ms=now_ms,
        agent_id=asked.agent_id,
        session_key=canonical_key(asked.session_key) if asked.session_key else None,
        schedule=schedule,
        session_target=target,
        wake_mode=asked.wake_mode,
        payload=asked.payload,
        delivery=delivery,
        decided_ms=min(now_ms, schedules.instant(schedule.at) - 1) if isinstance(schedule, At) else now_ms,
    )


def _decode(params: dict[str, Any]) -> _Asked:
    raw = params
    match params:
        case {"schedule": {"kind": "at", "at": int(at)} as schedule}:
            raw = params | {"schedule": {**schedule, "at": str(at)}}
        case _:
            pass
    try:
        asked = msgspec.convert(raw, _Asked)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at ")
        path = place.strip("`").removeprefix("$").replace(".", "/")
        if unknown := _UNKNOWN_FIELD.search(what):
            path, what = f"{path}/{unknown[1]}", "not supported"
        supported = _TOP_LEVEL if unknown and path.count("/") == 1 else _SUPPORTED.get(path)
        raise _invalid(path, what + (f"; supported: {supported}" if supported else "")) from None
    if isinstance(asked.payload, AgentTurn) and asked.payload.tools_allow != ("*",):
        raise _invalid("/payload/toolsAllow", 'not supported; leave it out or write ["*"]')
    return asked


def _invalid(path: str, what: str) -> Invalid:
    return Invalid(f"invalid cron.add params: {f'at {path}: ' if path else ''}{what}", details={"path": path})


def _target(asked: _Asked, caller: str | None) -> str:
    """The target as it is kept: `current` is bound now, to the session that asks."""
    event = isinstance(asked.payload, SystemEvent)
    target = asked.session_target or ("main" if event else "current")
    if target == "current":
        session = asked.session_key or caller or (MAIN_KEY if event else None)
        target = f"session:{session}" if session else "isolated"
    if target.startswith("session:"):
        key = canonical_key(target.removeprefix("session:"), agent_id=asked.agent_id)
        return f"session:{key}"
    if target not in ("main", "isolated"):
        raise _invalid("/sessionTarget", f"{target!r} is not main, isolated, current or session:<key>")
    if event and target == "isolated":
        raise _invalid(
            "/sessionTarget", "isolated needs an agentTurn; a systemEvent goes to main, current or session:<key>"
        )
    if not event and target == "main":
        raise _invalid(
            "/sessionTarget", "main needs a systemEvent; an agentTurn goes to isolated, current or session:<key>"
        )
    if target == "main" and asked.agent_id not in (None, DEFAULT_AGENT):
        raise _invalid(
            "/agentId", f"main is the session of agent {DEFAULT_AGENT}; use session:agent:{asked.agent_id}:main"
        )
    return target


# -- slots -------------------------------------------------------------------------------------------------------------


def due_at(job: Job, now_ms: int) -> int | None:
    """When the job's next slot may run; None when it has none, is disabled, or its zone is not known any more."""
    if not job.enabled:
        return None
    if isinstance(job.schedule, At):
        at = schedules.instant(job.schedule.at)
        return at if at > job.decided_ms else job.retry_ms
    try:
        slot = schedules.next_fire(_schedule(job), after_ms=_decided(rewound(job, now_ms)), job_id=job.id)
    except Invalid:
        return None
    if slot is None:
        return None
    rested = min(job.last.run_at_ms, now_ms) + MIN_GAP_MS if job.last else 0
    return max(slot, rested, min(job.retry_ms or 0, now_ms + LONGEST_BACKOFF_MS))


def due_slots(job: Job, until_ms: int) -> list[int]:
    """The undecided slots up to `until_ms`: the last of them is the one to run, those before it were missed."""
    if isinstance(job.schedule, At):
        due = due_at(job, until_ms)
        return [due] if due is not None and due <= until_ms else []
    return schedules.fires_between(
        _schedule(job), after_ms=_decided(job), until_ms=until_ms, job_id=job.id, most=SLOTS_LOGGED + 1
    )


def rewound(job: Job, now_ms: int) -> Job:
    """The job after the wall clock went back: slots that lay behind lie ahead again. One that ran has its row."""
    return job if isinstance(job.schedule, At) else msgspec.structs.replace(job, decided_ms=min(job.decided_ms, now_ms))


def _schedule(job: Job) -> Schedule:
    """An anchor that lay ahead is a beginning, another one only a phase: the clock may go back behind it."""
    every = job.schedule
    if isinstance(every, Every) and every.anchor_ms is not None and every.anchor_ms <= job.created_at_ms:
        return Every(every.every_ms, every.anchor_ms % every.every_ms)
    return every


def _decided(job: Job) -> int:
    """From where to look for slots; two of them are not closer than the gap, beginning with the one that ran."""
    return job.decided_ms + (MIN_GAP_MS - 1 if job.last else 0)
