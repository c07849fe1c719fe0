"""`triops bench cron`: how late a job starts, and how late its answer is there, counted from its time."""

import time
from datetime import UTC, datetime

import msgspec
import trio

from triops.bench.driver import Driver, Frame, Turn, now
from triops.bench.scenario import open_subjects, timed
from triops.bench.subjects import Targets
from triops.bench.turns import Block, Record

AHEAD, APART, LIMIT = 1.5, 0.1, 30.0
"""Seconds: before the first job is due, between two jobs, after the last."""


class CronPayload(msgspec.Struct, frozen=True, rename="camel"):
    job_id: str = ""
    action: str = ""
    status: str = ""
    error: str = ""


class Job(msgspec.Struct, frozen=True):
    id: str


async def measure(targets: Targets, jobs: int, *, ahead: float = AHEAD) -> list[Block]:
    """Let `jobs` jobs, each a turn in a session of its own, come due one after the other.

    Raises:
        BenchFailed: a subject did not start, refused, or closed the connection.
    """
    blocks: list[Block] = []
    async with open_subjects(targets) as (_, subjects):
        for subject, driver in subjects:
            blocks.append(await timed(lambda s=subject, d=driver: let_fire(s.name, d, jobs, ahead)))
    return blocks


async def let_fire(subject: str, driver: Driver, jobs: int, ahead: float) -> list[Record]:
    """The records of `jobs` jobs, of which the first is due in `ahead` seconds."""
    turns: dict[str, Turn] = {}
    left, over = jobs, trio.Event()
    offset = time.time_ns() - now()  # the wall clock, in which jobs are due, over ours

    def listen(frame: Frame, stamp: int) -> None:
        nonlocal left
        told = msgspec.json.decode(frame.payload, type=CronPayload) if frame.event == "cron" else CronPayload()
        turn = turns.setdefault(told.job_id, Turn("", told.job_id))
        if told.action == "started":
            turn.acked = stamp
        elif told.action == "finished":
            turn.final, turn.error, left = stamp, told.error, left - 1
            turn.state = "final" if told.status == "ok" else "error"
            if not left:
                over.set()

    driver.listener = listen
    first = time.time_ns() // 1_000_000 + round(ahead * 1000)
    due: dict[str, int] = {}
    for number in range(jobs):
        at = first + round(number * APART * 1000)
        due[await _add(driver, at)] = at * 1_000_000 - offset
    with trio.move_on_after(ahead + jobs * APART + LIMIT):
        await over.wait()
    driver.listener = lambda frame, stamp: None
    return [_record(subject, turns.get(id, Turn("", id)), moment) for id, moment in due.items()]


def _record(subject: str, turn: Turn, due: int) -> Record:
    turn.sent = turn.due = due
    ends = {"started": turn.acked, "finished": turn.final}
    return Record(subject, "cron", turn, {name: (end - due) / 1e6 for name, end in ends.items() if end})


async def _add(driver: Driver, at: int) -> str:
    text = datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="milliseconds")
    job: dict[str, object] = {"name": "bench", "schedule": {"kind": "at", "at": text}, "sessionTarget": "isolated"}
    job |= {"payload": {"kind": "agentTurn", "message": "TOKENS:8"}, "delivery": {"mode": "none"}}
    return msgspec.json.decode(await driver.ask("cron.add", job), type=Job).id
