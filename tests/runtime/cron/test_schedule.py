import os
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from croniter import CroniterBadDateError, croniter
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from triops.runtime.cron.schedule import (
    FAR_MS,
    MIN_GAP_MS,
    At,
    Cron,
    Every,
    Schedule,
    completed,
    fires_between,
    instant,
    iso,
    next_fire,
    stagger_of,
)
from triops.runtime.errors import Invalid

NOW = instant("2026-11-22T10:44:05.781Z")
DAY = 86_400_000
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo", "Asia/Kathmandu")

moments = st.integers(instant("2000-01-01"), instant("2037-01-01"))
fields = {
    "minute": st.sampled_from(["*", "0", "30", "*/15", "5,35", "10-20"]),
    "hour": st.sampled_from(["*", "0", "2", "3", "*/6", "1-5", "23"]),
    "day": st.sampled_from(["*", "1", "15", "31", "*/10"]),
    "month": st.sampled_from(["*", "3", "10,11", "1-6"]),
    "weekday": st.sampled_from(["*", "1", "5", "0,6"]),
}
expressions = st.builds(lambda **parts: " ".join(parts.values()), **fields)
schedules = st.one_of(
    st.builds(Every, every_ms=st.integers(1, 10**12), anchor_ms=st.integers(0, 2 * 10**12)),
    st.builds(Cron, expr=expressions, tz=st.sampled_from(ZONES), stagger_ms=st.sampled_from([None, 0, 90_000])),
    st.builds(lambda at: At(iso(at)), moments),
)


def fire(schedule: Schedule, after: int | str) -> int | None:
    return next_fire(schedule, after_ms=instant(after) if isinstance(after, str) else after, job_id="job")


def fires(schedule: Schedule, after: str, count: int) -> list[str]:
    """The next local times, in the zone of a cron schedule."""
    found: list[str] = []
    at: int | None = instant(after)
    for _ in range(count):
        assert at is not None
        at = next_fire(schedule, after_ms=at, job_id="job")
        assert at is not None
        zone = ZoneInfo(schedule.tz or "UTC") if isinstance(schedule, Cron) else UTC
        found.append(datetime.fromtimestamp(at / 1000, zone).strftime("%m-%d %H:%M %z"))
    return found


# -- every and at ------------------------------------------------------------------------------------------------------


def test_every_keeps_to_its_anchor() -> None:
    schedule = Every(180_000, NOW)
    assert fire(schedule, NOW) == NOW + 180_000
    assert fire(schedule, NOW + 179_999) == NOW + 180_000
    assert fire(schedule, NOW + 180_000) == NOW + 360_000


def test_every_begins_at_an_anchor_that_lies_ahead() -> None:
    assert fire(Every(1000, NOW + DAY), NOW) == NOW + DAY


def test_at_fires_once() -> None:
    schedule = At("2030-01-01T00:00:00.000Z")
    assert fire(schedule, NOW) == instant("2030-01-01")
    assert fire(schedule, instant("2030-01-01")) is None


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("2030-01-01T00:00:00Z", "2030-01-01T00:00:00.000Z"),
        ("2030-01-01 09:30", "2030-01-01T09:30:00.000Z"),
        ("2030-01-01T09:30:00.25+01:00", "2030-01-01T08:30:00.250Z"),
        ("1893456000000", "2030-01-01T00:00:00.000Z"),
    ],
)
def test_at_is_kept_as_iso_in_utc(text: str, kept: str) -> None:
    assert completed(At(text), now_ms=NOW, job_id="job") == At(kept)


def test_every_is_anchored_at_its_creation() -> None:
    assert completed(Every(1000), now_ms=NOW, job_id="job") == Every(1000, NOW)
    assert completed(Every(1000, 5), now_ms=NOW, job_id="job") == Every(1000, 5)


def test_at_in_the_past_is_refused_as_recorded() -> None:
    with pytest.raises(Invalid) as refusal:
        completed(At("2001-01-01T00:00:00Z"), now_ms=NOW, job_id="job")
    assert str(refusal.value) == (
        "schedule.at is in the past: 2001-01-01T00:00:00.000Z (13617284 minutes ago)."
        " Current time: 2026-11-22T10:44:05.781Z"
    )


def test_at_may_be_a_minute_late_and_ten_years_ahead() -> None:
    for at in (NOW - 60_000, NOW + FAR_MS):
        completed(At(iso(at)), now_ms=NOW, job_id="job")
    for at in (NOW - 60_001, NOW + FAR_MS + 1):
        with pytest.raises(Invalid):
            completed(At(iso(at)), now_ms=NOW, job_id="job")


@pytest.mark.parametrize("text", ["tomorrow", "2030-13-01", "9" * 400, "99999999999999999", "²"])
def test_at_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="is not a time"):
        completed(At(text), now_ms=NOW, job_id="job")


# -- cron expressions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expr", ["0 0 31 2 *", "0 0 30 2 *", "0 0 31 4,6,9,11 *", "0 0 0 31 2 *"])
def test_an_expression_that_never_fires_is_refused(expr: str) -> None:
    with pytest.raises(Invalid, match="has no upcoming run time and would never fire"):
        completed(Cron(expr, "UTC"), now_ms=NOW, job_id="job")


@pytest.mark.parametrize(
    "expr", ["bad expr", "61 * * * *", "* * * *", " ", "0 0 32 * *", "@daily", "a b c d e", "1 2 3 4 5 6 7"]
)
def test_what_is_no_expression_is_refused(expr: str) -> None:
    with pytest.raises(Invalid, match="is not a cron expression"):
        completed(Cron(expr, "UTC"), now_ms=NOW, job_id="job")


@pytest.mark.parametrize("tz", ["Mars/Base", "../etc/passwd", "Europe", "/etc/localtime", "Europe/Berlin\0"])
def test_an_unknown_zone_is_refused(tz: str) -> None:
    with pytest.raises(Invalid, match="is not a time zone"):
        completed(Cron("0 7 * * *", tz), now_ms=NOW, job_id="job")


def test_a_recorded_job_is_due_when_the_recording_says() -> None:
    assert fire(Cron("0 7 * * *", "Europe/Berlin"), 1795344245676) == 1795413600000


def test_six_fields_begin_with_the_seconds() -> None:
    assert fire(Cron("15 30 4 * * *", "UTC"), "2026-01-01") == instant("2026-01-01T04:30:15Z")


def test_days_restricted_twice_mean_either() -> None:
    assert fires(Cron("0 9 13 * 5", "UTC"), "2026-03-01", 4) == [
        "03-06 09:00 +0000",
        "03-13 09:00 +0000",
        "03-20 09:00 +0000",
        "03-27 09:00 +0000",
    ]
    assert fires(Cron("0 9 13 * 5", "UTC"), "2026-04-05", 2) == ["04-10 09:00 +0000", "04-13 09:00 +0000"]


DST = [
    # zone, expression, from, the next three
    ("America/New_York", "30 2 * * *", "2026-03-07", ["03-07 02:30 -0500", "03-08 03:00 -0400", "03-09 02:30 -0400"]),
    (
        "America/New_York",
        "0 30 2 * * *",
        "2026-03-07T20:00",
        ["03-08 03:00 -0400", "03-09 02:30 -0400", "03-10 02:30 -0400"],
    ),
    (
        "America/New_York",
        "30 1 * * *",
        "2026-10-31T12:00",
        ["11-01 01:30 -0400", "11-02 01:30 -0500", "11-03 01:30 -0500"],
    ),
    (
        "America/New_York",
        "30 1 * * *",
        "2026-11-01T06:10",
        ["11-02 01:30 -0500", "11-03 01:30 -0500", "11-04 01:30 -0500"],
    ),
    (
        "America/New_York",
        "0,30 1 * * *",
        "2026-11-01T06:10",
        ["11-02 01:00 -0500", "11-02 01:30 -0500", "11-03 01:00 -0500"],
    ),
    (
        "America/New_York",
        "*/30 * * * *",
        "2026-11-01T05:10",
        ["11-01 01:30 -0400", "11-01 01:00 -0500", "11-01 01:30 -0500"],
    ),
    (
        "America/New_York",
        "*/30 * * * *",
        "2026-03-08T06:10",
        ["03-08 01:30 -0500", "03-08 03:00 -0400", "03-08 03:30 -0400"],
    ),
    ("Europe/Berlin", "0 2 * * *", "2026-03-28T12:00", ["03-29 03:00 +0200", "03-30 02:00 +0200", "03-31 02:00 +0200"]),
    (
        "Europe/Berlin",
        "30 2 * * *",
        "2026-10-24T12:00",
        ["10-25 02:30 +0200", "10-26 02:30 +0100", "10-27 02:30 +0100"],
    ),
    (
        "Australia/Lord_Howe",
        "0 3 * * *",
        "2026-04-04T00:00",
        ["04-05 03:00 +1030", "04-06 03:00 +1030", "04-07 03:00 +1030"],
    ),
    (
        "Australia/Lord_Howe",
        "0 0 3 * * *",
        "2026-04-04T00:00",
        ["04-05 03:00 +1030", "04-06 03:00 +1030", "04-07 03:00 +1030"],
    ),
    (
        "Australia/Lord_Howe",
        "15 2 * * *",
        "2026-10-03T00:00",
        ["10-04 02:30 +1100", "10-05 02:15 +1100", "10-06 02:15 +1100"],
    ),
    ("UTC", "0 12 29 2 *", "2026-01-01", ["02-29 12:00 +0000", "02-29 12:00 +0000", "02-29 12:00 +0000"]),
]


@pytest.mark.parametrize(("tz", "expr", "after", "expected"), DST)
def test_daylight_saving(tz: str, expr: str, after: str, expected: list[str]) -> None:
    assert fires(Cron(expr, tz, 0), after, 3) == expected


@given(expressions, st.sampled_from(["UTC", "Asia/Kathmandu"]), moments)
@settings(max_examples=150, deadline=None)
def test_a_second_opinion_agrees_where_clocks_do_not_change(expr: str, tz: str, after: int) -> None:
    after -= after % 1000
    start = datetime.fromtimestamp(after / 1000, ZoneInfo(tz))
    _, _, day, _, weekday = expr.split()
    assume(not (day == "*/10" and weekday != "*"))  # a day that begins with a star: here both must match, there either
    try:
        expected = croniter(expr, start).get_next(datetime)
    except CroniterBadDateError:  # it looks ahead less far
        assume(False)
    assert fire(Cron(expr, tz, 0), after) == int(expected.timestamp()) * 1000


@given(st.sampled_from(["0 7 * * *", "30 2 * * *", "0 12 * * 1", "15 3 1 * *"]), st.sampled_from(ZONES), moments)
@settings(max_examples=150, deadline=None)
def test_a_second_opinion_agrees_on_daily_jobs_in_every_zone(expr: str, tz: str, after: int) -> None:
    after -= after % 1000
    zone = ZoneInfo(tz)
    mine = fire(Cron(expr, tz, 0), after)
    theirs = int(croniter(expr, datetime.fromtimestamp(after / 1000, zone)).get_next(datetime).timestamp()) * 1000
    assert mine is not None
    local = datetime.fromtimestamp(theirs / 1000, zone)
    if local.replace(fold=0).utcoffset() == local.replace(fold=1).utcoffset():  # they take an hour that repeats twice
        assert mine == theirs


# -- what holds for all ------------------------------------------------------------------------------------------------


@given(schedules, moments)
@settings(max_examples=300, deadline=None)
def test_the_next_slot_lies_ahead_and_its_name_does_not_depend_on_who_asks(schedule: Schedule, after: int) -> None:
    slot = fire(schedule, after)
    if slot is None:
        assert isinstance(schedule, At)
        return
    assert slot > after
    assert fire(schedule, slot - 1) == slot
    assert fire(schedule, (after + slot) // 2) == slot


@given(schedules, moments, st.integers(0, 400 * DAY), st.integers(2, 20))
@settings(max_examples=200, deadline=None)
def test_slots_between_are_in_order_and_end_with_the_latest(
    schedule: Schedule, after: int, span: int, most: int
) -> None:
    until = after + span
    found = fires_between(schedule, after_ms=after, until_ms=until, job_id="job", most=most)
    assert len(found) <= most
    assert all(after < slot <= until for slot in found)
    assert all(b > a for a, b in pairwise(found))
    assert all(b - a >= MIN_GAP_MS for a, b in pairwise(found[:-1]))
    if not found:
        following = fire(schedule, after)
        assert following is None or following > until
    elif len(found) == most:
        following = fire(schedule, found[-1])
        assert following is None or following > until


def test_a_year_of_slots_each_second_is_no_work() -> None:
    began = time.perf_counter()
    after = instant("2026-01-01")
    found = fires_between(Cron("* * * * * *", "UTC"), after_ms=after, until_ms=after + 365 * DAY, job_id="j", most=100)
    assert len(found) == 100
    assert found[-1] == after + 365 * DAY
    assert time.perf_counter() - began < 2  # a walk would take minutes


@pytest.mark.parametrize("tz", ["Europe/Berlin", "America/New_York", "Pacific/Auckland"])
def test_a_daily_job_has_one_slot_each_day_for_five_years(tz: str) -> None:
    at, days = instant("2026-01-01"), set[str]()
    for _ in range(5 * 365 + 1):
        at = fire(Cron("30 2 * * *", tz), at)
        assert at is not None
        days.add(datetime.fromtimestamp(at / 1000, ZoneInfo(tz)).date().isoformat())
    assert len(days) == 5 * 365 + 1


@pytest.mark.parametrize("jump", [3_600_000, -3_600_000, 365 * DAY, -365 * DAY])
def test_a_clock_that_jumped_meets_the_same_slots(jump: int) -> None:
    schedule = Cron("0 7 * * *", "Europe/Berlin")
    slot = fire(schedule, NOW + jump)
    assert slot is not None
    local = datetime.fromtimestamp(slot / 1000, ZoneInfo("Europe/Berlin"))
    assert (local.hour, local.minute) == (7, 0)
    assert timedelta(0) < local - datetime.fromtimestamp((NOW + jump) / 1000, UTC) <= timedelta(days=1, hours=1)


# -- stagger -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expr", "spread"),
    [
        ("0 * * * *", True),
        ("0 */2 * * *", True),
        ("0 0 * * * *", True),
        ("0 7 * * *", False),
        ("5 * * * *", False),
        ("*/5 * * * *", False),
        ("30 0 * * * *", False),
    ],
)
def test_jobs_of_the_full_hour_are_spread_over_five_minutes(expr: str, spread: bool) -> None:
    offsets = {stagger_of(Cron(expr), f"job-{n}") for n in range(50)}
    assert all(0 <= offset < 300_000 for offset in offsets)
    assert (len(offsets) > 40) is spread


def test_the_offset_is_the_first_four_bytes_of_the_digest_of_the_id() -> None:
    assert stagger_of(Cron("7 7 * * *", None, 1000), "abc") == 0xBA7816BF % 1000  # sha256("abc") begins so
    assert stagger_of(Cron("0 * * * *", None, 0), "abc") == 0


def test_a_staggered_slot_is_not_lost_between_the_hour_and_its_offset() -> None:
    schedule = Cron("0 * * * *", "UTC", 1_800_000)
    offset = stagger_of(schedule, "job")
    hour = instant("2026-05-05T05:00Z")
    assert fire(schedule, hour) == hour + offset
    assert fire(schedule, hour + offset) == hour + 3_600_000 + offset


# -- the zone of the machine -------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the C library of Windows has no tzset")
def test_without_a_zone_the_machine_s_own_rules_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        for _, expr, after, _ in DST:
            at = instant(after)
            for _ in range(6):
                mine, named = (
                    next_fire(Cron(expr, tz, 0), after_ms=at, job_id="j") for tz in (None, "America/New_York")
                )
                assert mine == named
                assert mine is not None
                at = mine
    finally:
        monkeypatch.undo()
        time.tzset()
    assert os.environ.get("TZ") != "America/New_York"
