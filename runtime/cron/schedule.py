"""When a job is due: pure. Knows no clock, no store, and of a job only its id.

A *slot* is a moment at which a schedule says "now". Slots follow from the schedule alone, never from what happened,
so that a slot has one name for ever and can be claimed once. Times are milliseconds since the epoch.

Daylight saving, where minute and hour do not begin with `*` (and seconds are 0): what falls into the hour that spring
leaves out is due at the end of the gap, what falls into the hour that autumn repeats is due the first time. Others
(every five minutes) follow the hands of the clock through both.
"""

import hashlib
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Annotated, assert_never
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim, CronSimError

from triops.runtime.errors import Invalid

MIN_GAP_MS = 2_000
"""Two slots of one job are at least this far apart; those between are not slots."""
PAST_TOLERATED_MS = 60_000
FAR_MS = 10 * 366 * 86_400_000
TOP_OF_HOUR_STAGGER_MS = 300_000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Words = Annotated[str, msgspec.Meta(min_length=1)]
Millis = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class At(msgspec.Struct, frozen=True, tag_field="kind", tag="at"):
    """Once."""

    at: str
    """ISO 8601; without a zone it is UTC. Epoch milliseconds are taken too, and written as ISO."""


class Every(msgspec.Struct, frozen=True, tag_field="kind", tag="every", rename="camel", omit_defaults=True):
    """At `anchor + n * every`."""

    every_ms: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    anchor_ms: Millis | None = None
    """None: the time of creation."""


class Cron(msgspec.Struct, frozen=True, tag_field="kind", tag="cron", rename="camel", omit_defaults=True):
    """A cron expression of five fields, or six with the seconds first; days restricted twice mean either."""

    expr: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    tz: Words | None = None
    """IANA name; None: the zone of this machine."""
    stagger_ms: Annotated[int, msgspec.Meta(ge=0, le=86_400_000)] | None = None
    """The window over which jobs of the same moment are spread; None: 5 minutes for what is due at full hours."""


Schedule = At | Every | Cron


def completed(schedule: Schedule, *, now_ms: int, job_id: str) -> Schedule:
    """The schedule as it is kept: checked, with its anchor, `at` in UTC.

    Raises:
        Invalid: it cannot be read, would never fire, or lies too far ahead or behind.
    """
    match schedule:
        case At():
            at = instant(schedule.at)
            if at > now_ms + FAR_MS:
                raise Invalid(f"schedule.at is too far in the future: {iso(at)}; at most 10 years ahead are allowed")
            if at < now_ms - PAST_TOLERATED_MS:
                ago = (now_ms - at) // 60_000
                raise Invalid(f"schedule.at is in the past: {iso(at)} ({ago} minutes ago). Current time: {iso(now_ms)}")
            return At(iso(at))
        case Every():
            return Every(schedule.every_ms, now_ms if schedule.anchor_ms is None else schedule.anchor_ms)
        case Cron():
            if next_fire(schedule, after_ms=now_ms, job_id=job_id) is None:
                raise Invalid(_never(schedule.expr))
            return schedule
        case _:
            assert_never(schedule)


def next_fire(schedule: Schedule, *, after_ms: int, job_id: str) -> int | None:
    """The first slot after `after_ms`; None when there is none any more.

    Raises:
        Invalid: the expression or the zone cannot be read.
    """
    match schedule:
        case At():
            at = instant(schedule.at)
            return at if at > after_ms else None
        case Every():
            anchor = schedule.anchor_ms or 0
            if after_ms < anchor:
                return anchor
            return after_ms + schedule.every_ms - (after_ms - anchor) % schedule.every_ms
        case Cron():
            offset = stagger_of(schedule, job_id)
            slot = _next_match(schedule, after_ms - offset)
            return None if slot is None else slot + offset
        case _:
            assert_never(schedule)


def fires_between(schedule: Schedule, *, after_ms: int, until_ms: int, job_id: str, most: int) -> list[int]:
    """The slots after `after_ms`, up to `until_ms`, in order; of more than `most`, the oldest ones and the latest."""
    slots: list[int] = []
    slot = next_fire(schedule, after_ms=after_ms, job_id=job_id)
    while slot is not None and slot <= until_ms:
        if len(slots) == most - 1:
            slot = _latest(schedule, slot, until_ms, job_id)
        slots.append(slot)
        slot = next_fire(schedule, after_ms=slot + MIN_GAP_MS - 1, job_id=job_id)
    return slots


def stagger_of(schedule: Cron, job_id: str) -> int:
    """How much later than its expression says this job is due: always the same for one job."""
    window = schedule.stagger_ms
    if window is None:
        fields = schedule.expr.split()
        on_the_hour = len(fields) in (5, 6) and set(fields[:-4]) == {"0"}
        hourly = on_the_hour and any(part == "*" or part.startswith("*/") for part in fields[-4].split(","))
        window = TOP_OF_HOUR_STAGGER_MS if hourly else 0
    digest = hashlib.sha256(job_id.encode()).digest()
    return int.from_bytes(digest[:4], "big") % window if window else 0


def instant(text: str) -> int:
    """Read a moment: ISO 8601 (UTC when it has no zone), or digits, which are epoch milliseconds.

    Raises:
        Invalid: it is neither.
    """
    try:
        moment = _EPOCH + timedelta(milliseconds=int(text)) if text.isdecimal() else datetime.fromisoformat(text)
        return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH) // timedelta(milliseconds=1)
    except (ValueError, OverflowError):
        raise Invalid(
            f"schedule.at is not a time: {text!r}; write ISO 8601 such as 2030-01-31T09:00:00Z, or epoch milliseconds"
        ) from None


def iso(ms: int) -> str:
    """`2030-01-01T00:00:00.000Z`"""
    return (_EPOCH + timedelta(milliseconds=ms)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _latest(schedule: Schedule, low: int, until_ms: int, job_id: str) -> int:
    """The last slot up to `until_ms`, given that `low` is one: by bisection, as there may be millions."""
    high = until_ms + 1  # no slot from here to the end
    while high - low > 1:
        middle = (low + high) // 2
        slot = next_fire(schedule, after_ms=middle - 1, job_id=job_id)
        if slot is not None and slot <= until_ms:
            low = slot
        else:
            high = middle
    return low


def _next_match(schedule: Cron, after_ms: int) -> int | None:
    start = datetime.fromtimestamp(after_ms // 1000, _zone(schedule.tz))
    fields = schedule.expr.split()
    # cronsim knows the rules of daylight saving for five fields only.
    expr = " ".join(fields[1:] if len(fields) == 6 and fields[0] == "0" else fields)
    try:
        for moment in CronSim(expr, start):
            slot = int(moment.timestamp()) * 1000
            if slot > after_ms:  # in the hour that comes twice, the first 01:30 may be behind us
                return slot
    except CronSimError as error:
        raise Invalid(_unreadable(fields, error)) from None
    return None


def _unreadable(fields: list[str], error: CronSimError) -> str:
    expr = " ".join(fields)
    try:  # a day that exists, but in none of the months asked for, is read with any month
        CronSim(" ".join([*fields[:-2], "*", *fields[-1:]]), _EPOCH)
    except CronSimError:
        return f"schedule.expr is not a cron expression: {expr!r} ({error}); write minute hour day month weekday"
    return _never(expr)


def _never(expr: str) -> str:
    return f"schedule.expr {expr!r} has no upcoming run time and would never fire"


def _zone(name: str | None) -> tzinfo:
    if name is None:
        return _HostZone()
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown; not a name; the name of a folder
        raise Invalid(f"schedule.tz is not a time zone: {name!r}; write an IANA name such as Europe/Berlin") from None


class _HostZone(tzinfo):
    """The zone of this machine: the C library knows its rules, but not always its name."""

    def utcoffset(self, dt: datetime | None) -> timedelta | None:
        return None if dt is None else dt.replace(tzinfo=None).astimezone().utcoffset()

    def dst(self, dt: datetime | None) -> timedelta | None:
        return None

    def tzname(self, dt: datetime | None) -> str:
        return "host"

    def fromutc(self, dt: datetime) -> datetime:
        local = dt.replace(tzinfo=UTC).astimezone()
        first = local.replace(tzinfo=self, fold=0)
        return first if first.utcoffset() == local.utcoffset() else first.replace(fold=1)
