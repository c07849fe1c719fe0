from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.runtime.cron.conftest import EPOCH, Life, World
from trio.testing import MockClock

from triops.agents.messages import AssistantMessage, SystemMessage, Text, Usage, UserMessage
from triops.runtime.boundaries import supervise
from triops.runtime.bus import Bus
from triops.runtime.config import CronConfig
from triops.runtime.cron.schedule import iso
from triops.runtime.cron.scheduler import INBOX_CAPACITY, JobsQuery, open_scheduler
from triops.runtime.errors import Busy, Invalid, NotFound, Unavailable
from triops.runtime.events import CronEvent
from triops.runtime.logs import Log
from triops.runtime.runs.state import RunState, Terminal
from triops.runtime.store import cron as stored
from triops.runtime.store.sqlite import open_store
from triops.runtime.testing import FaultyStore

MINUTE = 60_000
DAY = 86_400_000
STORY: dict[str, Any] = {
    "name": "test",
    "schedule": {"kind": "every", "everyMs": 180000},
    "payload": {"kind": "systemEvent", "text": "test"},
    "sessionTarget": "current",
}


def story(**more: Any) -> dict[str, Any]:
    return STORY | more


def turn(**more: Any) -> dict[str, Any]:
    return {
        "schedule": STORY["schedule"],
        "payload": {"kind": "agentTurn", "message": "go"},
        "sessionTarget": "isolated",
    } | more


def once(at: int, **more: Any) -> dict[str, Any]:
    return story(schedule={"kind": "at", "at": iso(at)}, **more)


def failure(kind: str) -> Terminal:
    return Terminal(state=RunState.ERROR, error_message=f"it is {kind}", error_kind=kind)


# -- the story ---------------------------------------------------------------------------------------------------------


async def test_the_story_s_job_fires_into_its_session_with_a_receipt(world: World, autojump_clock: MockClock) -> None:
    async with world.life() as life:
        job = await life.cron.add(STORY)
        assert job["sessionTarget"] == "session:agent:main:main"
        assert job["deliveryPreview"] == {"label": "not requested", "detail": "not requested"}
        await trio.sleep(179.9)
        assert world.runs.submissions == []
        await trio.sleep(0.2)
        (submission,) = world.runs.submissions
        assert submission.session_key == "agent:main:main"
        assert submission.message == SystemMessage("test", EPOCH + 180_000, source=f"cron:{job['id']}")
        assert (submission.source, submission.queue_mode, submission.deadline) == ("cron", "followup", 600)
        assert await life.entries() == [
            {
                "ts": EPOCH + 180_000,
                "jobId": job["id"],
                "action": "finished",
                "status": "ok",
                "completionStatus": "succeeded",
                "summary": "test",
                "deliveryStatus": "not-requested",
                "sessionId": "session-id",
                "sessionKey": "agent:main:main",
                "runId": f"cron:{job['id']}:{EPOCH + 180_000}",
                "runAtMs": EPOCH + 180_000,
                "durationMs": 0,
                "nextRunAtMs": EPOCH + 360_000,
                "model": "mock-1",
                "provider": "mock",
                "jobName": "test",
            }
        ]
        state = (await life.cron.get(job["id"]))["state"]
        assert state == {
            "nextRunAtMs": EPOCH + 360_000,
            "lastRunAtMs": EPOCH + 180_000,
            "lastRunStatus": "ok",
            "lastStatus": "ok",
            "lastDurationMs": 0,
            "lastDeliveryStatus": "not-requested",
            "lastFailureNotificationDeliveryStatus": "not-requested",
            "consecutiveErrors": 0,
            "consecutiveSkipped": 0,
        }
        (told,) = [record.fields for record in world.log if record.message == "a job ran"]
        assert (told["job"], told["name"], told["slot"]) == (job["id"], "test", EPOCH + 180_000)
        assert (told["outcome"], told["error"]) == ("ok", None)


async def test_events_come_in_the_recorded_order_and_shape(world: World, autojump_clock: MockClock) -> None:
    world.runs.seconds = 2
    async with world.life() as life:
        job = await life.cron.add(STORY)
        await trio.sleep(200)
        await life.cron.remove(job["id"])
    assert world.actions == ["added", "started", "finished", "scheduled", "removed"]
    added, started, finished, scheduled, removed = world.events
    assert {event["jobId"] for event in world.events} == {job["id"]}
    assert added["nextRunAtMs"] == EPOCH + 180_000
    assert "configRevision" not in added["job"]
    assert started["runAtMs"] == EPOCH + 180_000
    assert started["job"]["state"]["runningAtMs"] == EPOCH + 180_000
    shown = {key: finished[key] for key in ("status", "completionStatus", "summary", "deliveryStatus", "runAtMs")}
    assert shown == {
        "status": "ok",
        "completionStatus": "succeeded",
        "summary": "test",
        "deliveryStatus": "not-requested",
        "runAtMs": EPOCH + 180_000,
    }
    assert (finished["durationMs"], finished["nextRunAtMs"]) == (2000, EPOCH + 360_000)
    assert "runningAtMs" not in finished["job"]["state"]
    assert scheduled["nextRunAtMs"] == EPOCH + 360_000
    assert removed["job"]["name"] == "test"


async def test_next_heartbeat_only_shows_the_message(world: World, autojump_clock: MockClock) -> None:
    async with world.life() as life:
        job = await life.cron.add(story(wakeMode="next-heartbeat"), caller="agent:main:work")
        await trio.sleep(181)
        assert world.runs.submissions == []
        ((key, message),) = world.runs.appended
        assert key == "agent:main:work"
        assert message == SystemMessage("test", EPOCH + 180_000, source=f"cron:{job['id']}")
        (entry,) = await life.entries()
        assert (entry["status"], entry["summary"]) == ("ok", "test")


async def test_each_run_of_an_isolated_turn_has_a_session_of_its_own(world: World, autojump_clock: MockClock) -> None:
    usage = Usage(input=8907, output=1, total_tokens=8908)
    said = AssistantMessage((Text("cronned"),), 0, usage=usage)
    world.runs.terminal = Terminal(state=RunState.FINAL, text="cronned", message=said, provider="mock", model="mock-1")
    async with world.life() as life:
        payload = {"kind": "agentTurn", "message": "go", "model": "a/b", "timeoutSeconds": 30}
        job = await life.cron.add(turn(payload=payload))
        await trio.sleep(181)
        (submission,) = world.runs.submissions
        assert submission.session_key == f"agent:main:cron:{job['id']}:run:{EPOCH + 180_000}"
        assert submission.message == UserMessage("go", EPOCH + 180_000)
        assert (submission.model, submission.deadline) == ("a/b", 30)
        (entry,) = await life.entries()
        assert (entry["summary"], entry["sessionKey"]) == ("cronned", submission.session_key)
        assert entry["usage"] == {"input_tokens": 8907, "output_tokens": 1, "total_tokens": 8908}
        assert (entry["delivered"], entry["deliveryStatus"]) == (False, "not-delivered")
        by_hand = (await life.cron.run_now(job["id"]))["runId"]
        await trio.sleep(1)
        assert world.runs.submissions[-1].session_key.endswith(":run:" + by_hand.removeprefix(f"manual:{job['id']}:"))


@pytest.mark.parametrize(("given", "deadline"), [({}, 3600), ({"timeoutSeconds": 0}, None)])
async def test_an_agent_turn_has_an_hour_unless_told_otherwise(
    world: World, autojump_clock: MockClock, given: dict[str, Any], deadline: float | None
) -> None:
    async with world.life() as life:
        await life.cron.add(turn(payload={"kind": "agentTurn", "message": "go", **given}))
        await trio.sleep(181)
        assert world.runs.submissions[0].deadline == deadline


# -- one-shots ---------------------------------------------------------------------------------------------------------


async def test_a_one_shot_fires_once_and_goes(world: World, autojump_clock: MockClock) -> None:
    async with world.life() as life:
        await life.cron.add(once(EPOCH + MINUTE))
        await trio.sleep(600)
        assert len(world.runs.submissions) == 1
        assert (await life.cron.list(JobsQuery(include_disabled=True)))["total"] == 0
        assert len(await life.entries()) == 1
    assert world.actions == ["added", "started", "finished", "removed"]


async def test_a_one_shot_that_is_to_stay_is_disabled(world: World, autojump_clock: MockClock) -> None:
    async with world.life() as life:
        job = await life.cron.add(once(EPOCH + MINUTE, deleteAfterRun=False))
        await trio.sleep(600)
        assert len(world.runs.submissions) == 1
        assert (await life.cron.get(job["id"]))["enabled"] is False


async def test_a_one_shot_that_is_just_late_still_fires(world: World, autojump_clock: MockClock) -> None:
    async with world.life() as life:
        await life.cron.add(once(EPOCH - 30_000))
        await trio.sleep(1)
        assert len(world.runs.submissions) == 1


async def test_a_one_shot_is_tried_again_three_times_when_the_fault_passes(
    world: World, autojump_clock: MockClock
) -> None:
    world.runs.terminal = failure("rate_limit")
    async with world.life() as life:
        job = await life.cron.add(once(EPOCH + MINUTE))
        await trio.sleep(3600)
        times = [entry["runAtMs"] - EPOCH - MINUTE for entry in await life.entries()]
        assert times == [0, 30_000, 90_000, 390_000]
        shown = await life.cron.get(job["id"])
        assert (shown["enabled"], shown["state"]["lastErrorReason"]) == (False, "rate_limit")


async def test_a_one_shot_whose_fault_stays_is_disabled_and_kept(world: World, autojump_clock: MockClock) -> None:
    world.runs.terminal = failure("auth")
    async with world.life() as life:
        job = await life.cron.add(once(EPOCH + MINUTE))
        await trio.sleep(3600)
        assert len(world.runs.submissions) == 1
        assert (await life.cron.get(job["id"]))["enabled"] is False


# -- errors ------------------------------------------------------------------------------------------------------------


async def test_errors_space_a_job_out_and_the_tenth_disables_it(world: World, autojump_clock: MockClock) -> None:
    world.runs.terminal = failure("auth")
    async with world.life() as life:
        job = await life.cron.add(story(schedule={"kind": "every", "everyMs": 10_000}))
        await trio.sleep(8 * 3600)
        ran = await life.entries(status="error")
        times = [entry["runAtMs"] - EPOCH for entry in ran]
        waits = [(after - before) // 1000 for before, after in pairwise(times)]
        assert waits == [30, 60, 300, 900, 3600, 3600, 3600, 3600, 3600]
        shown = await life.cron.get(job["id"])
        assert shown["enabled"] is False
        assert shown["state"]["autoDisabled"] == {
            "reason": "consecutive-failures",
            "atMs": EPOCH + times[-1],
            "consecutiveErrors": 10,
        }
        assert world.actions[-2:] == ["finished", "updated"]


async def test_a_success_resets_the_count(world: World, autojump_clock: MockClock) -> None:
    world.runs.terminal = failure("server_error")
    async with world.life() as life:
        job = await life.cron.add(story(schedule={"kind": "every", "everyMs": 60_000}))
        await trio.sleep(61)
        assert (await life.cron.get(job["id"]))["state"]["consecutiveErrors"] == 1
        world.runs.terminal = Terminal(state=RunState.FINAL)
        await trio.sleep(60)
        state = (await life.cron.get(job["id"]))["state"]
        assert state["consecutiveErrors"] == 0
        assert "lastError" not in state


async def test_a_refused_run_is_an_error_with_a_receipt(world: World, autojump_clock: MockClock) -> None:
    world.runs.refusal = Busy("the session is full")
    async with world.life() as life:
        await life.cron.add(STORY)
        await trio.sleep(181)
        (entry,) = await life.entries()
        assert (entry["status"], entry["error"], entry["errorReason"]) == ("error", "the session is full", "overloaded")


@pytest.mark.parametrize(
    ("terminal", "error", "reason"),
    [
        (failure("connection"), "it is connection", "timeout"),
        (Terminal(state=RunState.ABORTED, stop_reason="rpc"), "aborted: rpc", "unknown"),
        (Terminal(state=RunState.ABORTED, stop_reason="timeout"), "aborted: timeout", "timeout"),
        (Terminal(state=RunState.MERGED, merged_into="other"), None, None),
    ],
)
async def test_each_end_of_a_run_has_its_receipt(
    world: World, autojump_clock: MockClock, terminal: Terminal, error: str | None, reason: str | None
) -> None:
    world.runs.terminal = terminal
    async with world.life() as life:
        await life.cron.add(STORY)
        await trio.sleep(181)
        (entry,) = await life.entries()
        assert (entry.get("error"), entry.get("errorReason")) == (error, reason)


# -- at most once, and never silent ------------------------------------------------------------------------------------


async def test_a_kill_between_claim_and_submit_leaves_one_receipt_and_no_second_run(
    world: World, autojump_clock: MockClock
) -> None:
    with trio.CancelScope() as kill:
        world.runs.before_submit = kill.cancel
        async with world.life() as life:
            await life.cron.add(STORY)
            await trio.sleep(600)
    assert kill.cancelled_caught
    assert world.runs.submissions == []
    world.runs.before_submit = lambda: None
    async with world.life() as life:
        await trio.sleep(1)
        (entry,) = await life.entries()
        assert entry["status"] == "error"
        assert entry["error"].startswith("interrupted")
        assert entry["runAtMs"] == EPOCH + 180_000
        await trio.sleep(180)
        assert [submission.run_id[-13:] for submission in world.runs.submissions] == [str(EPOCH + 360_000)]


async def test_a_kill_between_submit_and_end_leaves_one_receipt_and_no_second_run(
    world: World, autojump_clock: MockClock
) -> None:
    world.runs.seconds = 60
    async with world.life() as life:
        job = await life.cron.add(STORY)
        await trio.sleep(200)
        assert life.slots() == [(EPOCH + 180_000, None)]
    world.runs.restart()
    async with world.life() as life:
        assert "runningAtMs" in (await life.cron.get(job["id"]))["state"]
        await trio.sleep(1)
        (entry,) = await life.entries()
        assert (entry["status"], entry["error"]) == ("error", "interrupted: the process stopped while the job ran")
        assert "runningAtMs" not in (await life.cron.get(job["id"]))["state"]
    assert len(world.runs.submissions) == 1


async def test_a_run_that_was_queued_at_the_kill_and_ran_after_it_counts(
    world: World, autojump_clock: MockClock
) -> None:
    world.runs.seconds = 60
    async with world.life() as life:
        await life.cron.add(STORY)
        await trio.sleep(200)
    async with world.life() as life:  # the supervisor took it up again: it is not over yet
        await trio.sleep(1)
        assert await life.entries() == []
        await trio.sleep(60)
        assert [entry["status"] for entry in await life.entries()] == ["ok"]
    assert len(world.runs.submissions) == 1


async def test_an_interrupted_one_shot_that_never_ran_is_not_lost(world: World, autojump_clock: MockClock) -> None:
    with trio.CancelScope() as kill:
        world.runs.before_submit = kill.cancel
        async with world.life() as life:
            await life.cron.add(once(EPOCH + MINUTE))
            await trio.sleep(600)
    world.runs.before_submit = lambda: None
    async with world.life() as life:
        await trio.sleep(60)
        assert len(world.runs.submissions) == 1
        assert [entry["status"] for entry in await life.entries()] == ["error", "ok"]


@pytest.mark.parametrize("moments", [200])
async def test_a_kill_at_any_step_leaves_each_slot_with_one_receipt(
    world: World, autojump_clock: MockClock, moments: int
) -> None:
    world.runs.seconds = 1
    async with world.life() as life:
        await life.cron.add(story(schedule={"kind": "every", "everyMs": 5_000}))
    for kill in range(moments):
        async with world.life() as life:
            await trio.sleep(4.5 + kill % 40 / 20)
            for _ in range(kill % 13):
                await trio.lowlevel.checkpoint()
        world.runs.restart()
    async with world.life() as life:
        await trio.sleep(2)
        slots = life.slots()
        assert all(status for _, status in slots)
        ran = [submission.run_id for submission in world.runs.submissions]
        assert len(ran) == len(set(ran))
        assert len(ran) > moments / 4  # the others were interrupted before, and their errors space the job out
        known = [slot for slot, _ in slots]
        decided = int(life.db.execute("SELECT job ->> 'decidedMs' FROM cron_jobs").fetchall()[0][0])
        assert known == list(range(EPOCH + 5_000, decided + 1, 5_000))


async def test_missed_slots_run_once_and_the_others_have_their_receipt(world: World, autojump_clock: MockClock) -> None:
    async with world.life() as life:
        await life.cron.add(STORY)
    await trio.sleep(15 * 60 + 1)
    async with world.life() as life:
        await trio.sleep(1)
        assert [submission.run_id[-13:] for submission in world.runs.submissions] == [str(EPOCH + 15 * MINUTE)]
        entries = await life.entries()
        assert [entry["runAtMs"] for entry in entries[:4]] == [EPOCH + n * 180_000 for n in (1, 2, 3, 4)]
        assert [entry["status"] for entry in entries] == ["skipped"] * 4 + ["ok"]
        assert entries[0]["error"].startswith("missed")
        assert [status for _, status in life.slots()] == ["skipped"] * 4 + ["ok"]


async def test_missed_slots_are_left_out_when_configured_but_not_a_one_shot(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.life() as life:
        await life.cron.add(STORY)
        await life.cron.add(once(EPOCH + MINUTE))
    await trio.sleep(15 * 60 + 1)
    async with world.life(CronConfig(skip_missed_jobs=True)) as life:
        await trio.sleep(1)
        assert [submission.run_id[-13:] for submission in world.runs.submissions] == [str(EPOCH + MINUTE)]
        assert [entry["status"] for entry in await life.entries()].count("skipped") == 5
        await trio.sleep(179)
        assert len(world.runs.submissions) == 2


async def test_a_year_of_missed_slots_costs_a_hundred_receipts(world: World, autojump_clock: MockClock) -> None:
    async with world.life() as life:
        await life.cron.add(STORY)
    world.ahead_ms = 365 * DAY
    async with world.life() as life:
        await trio.sleep(1)
        assert len(world.runs.submissions) == 1
        assert len(life.slots()) == 101


async def test_slots_that_pass_while_the_job_runs_are_skipped(world: World, autojump_clock: MockClock) -> None:
    world.runs.seconds = 400
    async with world.life() as life:
        await life.cron.add(STORY)
        await trio.sleep(180 + 401)
        entries = await life.entries()
        assert [(entry["runAtMs"] - EPOCH, entry["status"]) for entry in entries] == [
            (180_000, "ok"),
            (360_000, "skipped"),
            (540_000, "skipped"),
        ]
        assert {entry["error"] for entry in entries if entry["status"] == "skipped"} == {"already-running"}
        await trio.sleep(140)
        assert [submission.run_id[-13:] for submission in world.runs.submissions][1:] == [str(EPOCH + 720_000)]


async def test_eight_slots_run_at_once_and_the_others_follow(world: World, autojump_clock: MockClock) -> None:
    world.runs.seconds = 10
    async with world.life() as life:
        for _ in range(20):
            await life.cron.add(once(EPOCH + MINUTE))
        await trio.sleep(65)
        assert len(world.runs.submissions) == 8
        assert life.cron.statistics().running == 8
        await trio.sleep(30)
        assert len(world.runs.submissions) == 20
        assert world.runs.most_at_once == 8


# -- clocks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [3_600_000, -3_600_000, 365 * DAY, -365 * DAY])
async def test_a_jump_of_the_wall_clock_neither_doubles_nor_silences(
    world: World, autojump_clock: MockClock, jump: int
) -> None:
    async with world.life() as life:
        await life.cron.add(STORY)
        await trio.sleep(400)
        assert len(world.runs.submissions) == 2
        world.ahead_ms = jump
        await trio.sleep(240)  # one look at the clock, and one slot
        assert 3 <= len(world.runs.submissions) <= 5
        world.ahead_ms = 0
        await trio.sleep(1000)
        assert 8 <= len(world.runs.submissions) <= 11  # the fake refuses a slot that comes twice
        assert all(status for _, status in life.slots())


async def test_slots_that_a_jump_skipped_run_when_the_clock_comes_back(world: World, autojump_clock: MockClock) -> None:
    async with world.life() as life:
        await life.cron.add(story(schedule={"kind": "every", "everyMs": DAY}))
        world.ahead_ms = 30 * DAY
        await trio.sleep(61)
        assert [status for _, status in life.slots()] == ["skipped"] * 29 + ["ok"]
        world.ahead_ms = 0
        await trio.sleep(2 * DAY / 1000)
        ran = [(int(submission.run_id[-13:]) - EPOCH) // DAY for submission in world.runs.submissions]
        assert ran == [30, 1, 2]


async def test_a_clock_that_went_back_while_the_process_was_down_does_not_silence(
    world: World, autojump_clock: MockClock
) -> None:
    world.ahead_ms = 30 * DAY
    async with world.life() as life:
        await life.cron.add(STORY)
        await trio.sleep(181)
    world.ahead_ms = 0
    async with world.life() as life:
        await trio.sleep(181)
        assert len(world.runs.submissions) == 2
        assert (await life.cron.list(JobsQuery()))["jobs"][0]["nextRunAtMs"] <= EPOCH + 600_000


@pytest.mark.slow
async def test_five_years_of_a_daily_job_in_three_zones(world: World, autojump_clock: MockClock) -> None:
    days = 5 * 365
    zones = ("Europe/Berlin", "America/New_York", "Pacific/Auckland")
    time = world.clock
    world.clock = lambda: EPOCH + (time() - EPOCH) * 1440  # a day a minute  # type: ignore[method-assign]
    async with world.life() as life:
        jobs = [
            await life.cron.add(story(schedule={"kind": "cron", "expr": "30 2 * * *", "tz": zone})) for zone in zones
        ]
        await trio.sleep(days * 60)
        for job in jobs:
            ran = [submission.run_id for submission in world.runs.submissions if job["id"] in submission.run_id]
            assert abs(len(ran) - days) <= 1
            slots = [int(run_id.rpartition(":")[2]) for run_id in ran]
            assert all(23 * 3_600_000 <= b - a <= 25 * 3_600_000 for a, b in pairwise(slots))
        assert len(life.slots()) <= stored.KEEP_ROWS + 3


# -- by hand -----------------------------------------------------------------------------------------------------------


async def test_a_job_run_by_hand_keeps_its_schedule_and_gets_a_receipt(world: World, autojump_clock: MockClock) -> None:
    world.runs.seconds = 5
    async with world.life() as life:
        job = await life.cron.add(story(enabled=False))
        answer = await life.cron.run_now(job["id"])
        assert answer["ok"] is True
        assert answer["enqueued"] is True
        assert answer["runId"] == f"manual:{job['id']}:{EPOCH}:1"
        again = await life.cron.run_now(job["id"])
        assert again == {
            "ok": True,
            "ran": False,
            "reason": "already-running",
            "processInstanceId": answer["processInstanceId"],
        }
        await trio.sleep(6)
        (entry,) = await life.entries(run_id=answer["runId"])
        assert entry["status"] == "ok"
        assert (await life.cron.run_now(job["id"]))["runId"].endswith(":2")
    assert "scheduled" not in world.actions


async def test_due_runs_only_what_is_due(world: World, autojump_clock: MockClock) -> None:
    async with world.life(CronConfig(enabled=False)) as life:
        job = await life.cron.add(STORY)
        assert (await life.cron.run_now(job["id"], "due"))["reason"] == "not-due"
        await trio.sleep(400)
        assert world.runs.submissions == []
        assert life.cron.status()["nextWakeAtMs"] is None
        answer = await life.cron.run_now(job["id"], "due")
        await trio.sleep(1)
        assert [submission.run_id for submission in world.runs.submissions] == [answer["runId"]]
        assert life.slots() == [(EPOCH + 180_000, "skipped"), (EPOCH + 360_000, "ok")]
        assert (await life.cron.run_now(job["id"], "due"))["reason"] == "not-due"


async def test_a_slot_that_is_due_during_a_run_by_hand_follows_it(world: World, autojump_clock: MockClock) -> None:
    world.runs.seconds = 10
    async with world.life() as life:
        job = await life.cron.add(STORY)
        await trio.sleep(175)
        await life.cron.run_now(job["id"])
        await trio.sleep(30)
        assert [entry["runAtMs"] - EPOCH for entry in await life.entries()] == [175_000, 185_000]


# -- the rest of the surface -------------------------------------------------------------------------------------------


async def test_an_unknown_job_is_not_found(world: World, autojump_clock: MockClock) -> None:
    async with world.life() as life:
        for asking in (life.cron.get, life.cron.remove, life.cron.run_now):
            with pytest.raises(NotFound, match="Automation not found: nope") as caught:
                await asking("nope")
            assert caught.value.details == {"code": "CRON_JOB_NOT_FOUND", "jobId": "nope"}


async def test_a_wrong_job_is_refused_before_anything_is_written(world: World, autojump_clock: MockClock) -> None:
    async with world.life() as life:
        with pytest.raises(Invalid, match="at /schedule"):
            await life.cron.add({**STORY, "schedule": {"kind": "stream"}})
        assert life.store.statistics().commits == 0


async def test_removing_a_job_that_runs_lets_it_end(world: World, autojump_clock: MockClock) -> None:
    world.runs.seconds = 60
    async with world.life() as life:
        job = await life.cron.add(STORY)
        await trio.sleep(200)
        assert await life.cron.remove(job["id"]) == {"ok": True, "removed": True}
        await trio.sleep(100)
        (entry,) = await life.entries()
        assert (entry["status"], entry["jobName"]) == ("ok", "test")
        assert "job" not in world.events[-1]
    async with world.life() as life:
        assert life.cron.statistics().jobs == 0


async def test_a_slot_of_a_removed_job_that_a_restart_cut_off_still_gets_its_receipt(
    world: World, autojump_clock: MockClock
) -> None:
    world.runs.seconds = 60
    async with world.life() as life:
        job = await life.cron.add(turn())
        await trio.sleep(200)
        await life.cron.remove(job["id"])
    world.runs.restart()
    async with world.life() as life:
        await trio.sleep(1)
        (entry,) = await life.entries()
        assert (entry["status"], entry["error"]) == ("error", "interrupted: the process stopped while the job ran")
        assert (entry["jobName"], entry["sessionKey"]) == ("go", world.runs.submissions[0].session_key)
        assert (world.events[-1]["action"], world.events[-1]["jobId"]) == ("finished", job["id"])
        assert life.cron.statistics().running == life.cron.statistics().jobs == 0


async def test_lists_come_in_the_order_of_their_next_run(world: World, autojump_clock: MockClock) -> None:
    async with world.life() as life:
        for minutes in (3, 1, 2):
            await life.cron.add(once(EPOCH + minutes * MINUTE, name=f"in {minutes}"))
        await life.cron.add(story(name="off", enabled=False))
        page = await life.cron.list(JobsQuery(limit=2))
        assert [job["name"] for job in page["jobs"]] == ["in 1", "in 2"]
        assert page["jobs"][0]["effectiveAgentId"] == "main"
        assert {key: page[key] for key in ("total", "offset", "limit", "hasMore", "nextOffset")} == {
            "total": 3,
            "offset": 0,
            "limit": 2,
            "hasMore": True,
            "nextOffset": 2,
        }
        rest = await life.cron.list(JobsQuery(include_disabled=True, offset=2))
        assert [job["name"] for job in rest["jobs"]] == ["in 3", "off"]
        assert rest["nextOffset"] is None


async def test_reading_writes_nothing(world: World, autojump_clock: MockClock) -> None:
    async with world.life() as life:
        job = await life.cron.add(STORY)
        before = life.store.statistics().commits
        world.ahead_ms = DAY
        await life.cron.get(job["id"])
        await life.cron.list(JobsQuery())
        await life.entries()
        life.cron.status()
        assert life.store.statistics().commits == before


async def test_the_status_is_as_recorded(world: World, autojump_clock: MockClock) -> None:
    async with world.life() as life:
        await life.cron.add(STORY)
        assert life.cron.status() == {
            "enabled": True,
            "triggersEnabled": False,
            "storePath": str(world.path),
            "storage": "sqlite",
            "sqlitePath": str(world.path),
            "jobs": 1,
            "nextWakeAtMs": EPOCH + 180_000,
        }
        statistics = life.cron.statistics()
        assert (statistics.inbox, statistics.inbox_capacity) == (0, INBOX_CAPACITY)


async def test_it_works_over_the_store_with_its_threads(world: World, tmp_path: Path) -> None:
    ended = trio.Event()
    bus = Bus(Log())
    with bus.subscribe(
        lambda event: ended.set() if isinstance(event, CronEvent) and "runId" in event.payload else None
    ):
        async with open_store(tmp_path / "real.sqlite") as store:
            with open_scheduler(
                store, bus, world.runs, config=CronConfig(), clock=world.clock, log=Log(), path=tmp_path
            ) as cron:
                async with trio.open_nursery() as nursery:
                    await nursery.start(cron.run)
                    with trio.fail_after(10):
                        await cron.add(once(EPOCH - 1000))
                        await ended.wait()
                        page = await cron.runs(stored.RunsQuery())
                    nursery.cancel_scope.cancel()
    assert [entry["status"] for entry in page["entries"]] == ["ok"]


# -- faults ------------------------------------------------------------------------------------------------------------


async def test_a_disk_that_refuses_delays_and_loses_nothing(world: World, autojump_clock: MockClock) -> None:
    async with world.life() as life:
        await life.cron.add(STORY)
        await trio.sleep(170)
        life.store.refusal = Unavailable("disk full")
        with pytest.raises(Unavailable, match="disk full"):
            await life.cron.add(STORY)
        await trio.sleep(30)
        assert world.runs.submissions == []
        life.store.refusal = None
        await trio.sleep(10)
        assert len(world.runs.submissions) == 1
        world.runs.seconds = 60
        await trio.sleep(180)
        life.store.refusal = Unavailable("disk full")
        await trio.sleep(60)
        assert life.slots()[-1] == (EPOCH + 360_000, None)
        life.store.refusal = None
        await trio.sleep(10)
        assert life.slots() == [(EPOCH + 180_000, "ok"), (EPOCH + 360_000, "ok")]


async def test_a_scheduler_that_failed_starts_again_and_goes_on(world: World, autojump_clock: MockClock) -> None:
    failures = 1

    def fail() -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise ZeroDivisionError

    world.runs.before_submit = fail
    async with world.store() as (store, bus), trio.open_nursery() as nursery:
        with open_scheduler(
            store, bus, world.runs, config=CronConfig(), clock=world.clock, log=Log(), path=world.path
        ) as cron:
            life = Life(cron, FaultyStore(store), store.db)
            nursery.start_soon(lambda: supervise("cron", cron.run, log=Log()))
            await cron.add(STORY)
            await trio.sleep(361)
            assert [entry["status"] for entry in await life.entries()] == ["error", "ok"]
            nursery.cancel_scope.cancel()


async def test_who_asks_a_scheduler_that_stops_is_told(world: World, autojump_clock: MockClock) -> None:
    async with world.store() as (store, bus):
        with open_scheduler(
            store, bus, world.runs, config=CronConfig(), clock=world.clock, log=Log(), path=world.path
        ) as cron:

            async def serve_a_moment() -> None:
                with trio.CancelScope() as scope:
                    store.submit = lambda work, done: scope.cancel()  # type: ignore[method-assign] - a commit that never ends
                    await cron.run()

            with pytest.RaisesGroup(Unavailable):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(serve_a_moment)
                    with trio.fail_after(10):
                        await cron.add(STORY)
