"""Accepting: what is acknowledged is on disk, in order, once; and what is asked of the supervisor."""

from functools import partial

import pytest
import trio
from tests.kit.stage import Life, Stage, settled
from trio.testing import MockClock

from triops.agents.messages import SystemMessage, UserMessage
from triops.runtime.errors import Busy, Conflict, NotFound, Unavailable
from triops.runtime.events import RunEnded, RunEvent, RunStarted, RuntimeEvent, SessionMessage
from triops.runtime.runs.state import Accepted, RunState, Submission
from triops.runtime.runs.supervisor import INBOX_CAPACITY
from triops.runtime.store import sessions as stored_sessions

DISK = Unavailable("disk full")


def submission(run_id: str, session: str = "agent:main:main") -> Submission:
    return Submission(run_id=run_id, session_key=session, message=UserMessage(run_id, 1), queue_mode="followup")


# -- the ack -----------------------------------------------------------------------------------------------------------


async def test_a_run_is_on_disk_when_it_is_acknowledged_and_before_any_event(
    stage: Stage, autojump_clock: MockClock
) -> None:
    async with stage.life() as life:
        order: list[str] = []

        def acknowledge(accepted: Accepted) -> None:
            assert life.runs.open_run("r1") is None, "nobody can ask of a run before its ack"
            order.append("ack")

        def hear(event: RuntimeEvent) -> None:
            order.append(type(event).__name__)

        with life.bus.subscribe(hear):
            accepted = await life.runs.submit(submission("r1"), acknowledge=acknowledge)
            stored = await life.stored("r1")
            await life.runs.wait("r1")
        assert (accepted.run_id, accepted.session_key, accepted.message_seq) == ("r1", "agent:main:main", 1)
        assert (accepted.replay, accepted.terminal, accepted.interrupted) == (False, None, False)
        assert stored.accepted_at == accepted.accepted_at
        assert order[:3] == ["ack", "SessionMessage", "RunStarted"]
        assert order.count("ack") == 1


async def test_a_caller_that_leaves_loses_only_its_ack(stage: Stage, autojump_clock: MockClock) -> None:
    async with stage.life() as life:
        told: list[Accepted] = []
        with life.store.held():
            with trio.move_on_after(1):
                await life.runs.submit(submission("r1"), acknowledge=told.append)
            assert told == []
        assert (await life.runs.wait("r1")).state is RunState.FINAL
        assert [accepted.run_id for accepted in told] == ["r1"], "the ack is given to whom it was promised"
        again = await life.send("r1")
        assert again.replay
        assert stage.began == ["r1"]
        life.check_empty()


async def test_an_acknowledgement_that_fails_costs_the_run_nothing(stage: Stage, autojump_clock: MockClock) -> None:
    def fail(accepted: Accepted) -> None:
        raise ZeroDivisionError

    async with stage.life() as life:
        await life.runs.submit(submission("r1"), acknowledge=fail)
        assert (await life.runs.wait("r1")).state is RunState.FINAL
    assert [record.message for record in stage.log if record.level == "error"] == [
        "an acknowledgement could not be given"
    ]


# -- limits ------------------------------------------------------------------------------------------------------------


async def test_a_full_lane_is_busy_before_anything_is_written(stage: Stage, autojump_clock: MockClock) -> None:
    stage.act = stage.hold
    async with stage.life() as life:
        await life.send("r0")
        for place in range(1, 21):
            await life.send(f"r{place}")
        writes = life.store.writes
        with pytest.raises(Busy, match="agent:main:main has its fill of waiting messages") as refused:
            await life.send("r21")
        assert refused.value.retryable
        assert life.store.writes == writes
        await life.send("other", session="elsewhere")
        for place in range(21):
            stage.release(f"r{place}")
        await life.runs.wait("r20")
        await life.send("r21")
        stage.release("r21")
        stage.release("other")
        await life.runs.wait("r21")
        assert stage.began.index("r20") < stage.began.index("r21")


async def test_places_are_held_for_runs_that_are_being_stored(stage: Stage, autojump_clock: MockClock) -> None:
    stage.act = stage.hold
    async with stage.life(cap=2) as life:
        outcomes: list[str] = []

        async def send(run_id: str) -> None:
            try:
                await life.send(run_id)
                outcomes.append("accepted")
            except Busy:
                outcomes.append("busy")

        async with trio.open_nursery() as nursery:
            with life.store.held():
                for place in range(5):
                    nursery.start_soon(send, f"r{place}")
                    await settled()
        # One of them has its turn at once and takes a place only while it is stored.
        assert sorted(outcomes) == ["accepted", "accepted", "busy", "busy", "busy"]


async def test_a_full_inbox_is_busy_and_nothing_is_written(stage: Stage, autojump_clock: MockClock) -> None:
    async with stage.life(cap=1000) as life:
        outcomes: list[str] = []

        async def send(run_id: str) -> None:
            try:
                await life.send(run_id, session=run_id)
                outcomes.append("accepted")
            except Busy:
                outcomes.append("busy")

        async with trio.open_nursery() as nursery:
            for place in range(INBOX_CAPACITY + 5):
                nursery.start_soon(send, f"r{place}")
        assert outcomes.count("accepted") >= INBOX_CAPACITY
        assert outcomes.count("busy") >= 1
        for run_id in {event.run.run_id for event in stage.events.events if isinstance(event, RunStarted)}:
            await life.runs.wait(run_id)
        rows = await life.store.read(lambda db: db.execute("SELECT count(*) FROM runs").fetchall())
        assert rows == [(outcomes.count("accepted"),)]
        life.check_empty()


async def test_a_lane_that_was_refused_everything_is_forgotten(stage: Stage, autojump_clock: MockClock) -> None:
    async with stage.life() as life:
        life.store.refusal = DISK
        for place in range(30):
            with pytest.raises(Unavailable):
                await life.send(f"r{place}", session=f"s{place % 3}")
        life.check_empty()
        life.store.refusal = None
        assert stage.terminals() == {}
        await life.send("r1", session="s1")
        assert (await life.runs.wait("r1")).state is RunState.FINAL


async def test_a_refused_submission_takes_nobody_behind_it_along(stage: Stage, autojump_clock: MockClock) -> None:
    async with stage.life() as life:
        life.store.refuse(1)
        refused: list[str] = []

        async def send(run_id: str) -> None:
            try:
                await life.send(run_id)
            except Unavailable:
                refused.append(run_id)

        async with trio.open_nursery() as nursery:
            for run_id in ("r1", "r2", "r3"):
                nursery.start_soon(send, run_id)
                await trio.lowlevel.checkpoint()
        for run_id in {"r1", "r2", "r3"} - set(refused):
            await life.runs.wait(run_id)
        assert len(refused) == 1
        assert len(stage.terminals()) == 2
        life.check_empty()


# -- the same key again ------------------------------------------------------------------------------------------------


async def test_a_key_that_comes_again_tells_how_its_run_stands(stage: Stage, autojump_clock: MockClock) -> None:
    stage.act = stage.hold
    async with stage.life() as life:
        await life.send("running")
        await life.send("queued")
        for run_id in ("running", "queued"):
            again = await life.send(run_id)
            assert (again.replay, again.terminal) == (True, None)
        life.abort("queued")
        await stage.events.terminal("queued")
        stage.release("running")
        await stage.events.terminal("running")
        for run_id, state in (("running", RunState.FINAL), ("queued", RunState.ABORTED)):
            again = await life.send(run_id)
            assert again.terminal is not None
            assert again.terminal.state is state
            assert again.terminal == stage.events.terminals()[run_id]
        assert stage.began == ["running"]
        stage.events.check(["running", "queued"])
        life.check_empty()


async def test_the_key_of_a_failed_run_tells_its_error(stage: Stage, autojump_clock: MockClock) -> None:
    async def fail(run: object, desk: object) -> str:
        raise ZeroDivisionError("no")

    stage.act = fail
    async with stage.life() as life:
        await life.send("r1")
        await life.runs.wait("r1")
        again = await life.send("r1")
        assert again.terminal is not None
        assert (again.terminal.state, again.terminal.error_message) == (RunState.ERROR, "no")


async def test_the_key_of_a_merged_run_tells_who_took_it(stage: Stage, autojump_clock: MockClock) -> None:
    stage.act = stage.hold
    async with stage.life() as life:
        await life.send("first", queue_mode="collect")
        await life.send("taker", queue_mode="collect")
        await life.send("merged", queue_mode="collect")
        stage.release("first")
        await stage.events.terminal("first")
        await settled()
        again = await life.send("merged", queue_mode="collect")
        assert (again.replay, again.terminal) == (True, None)
        assert not life.abort("merged"), "it is part of another run"
        stage.release("taker")
        await stage.events.terminal("merged")
        again = await life.send("merged", queue_mode="collect")
        assert again.terminal == stage.events.terminals()["merged"]
        assert again.terminal is not None
        assert (again.terminal.state, again.terminal.merged_into) == (RunState.MERGED, "taker")
        assert await life.runs.wait("merged") == again.terminal


async def test_a_key_for_other_words_or_another_session_is_a_conflict(stage: Stage, autojump_clock: MockClock) -> None:
    stage.act = stage.hold
    async with stage.life() as life:
        await life.send("r1", text="one")
        for text, session in (("two", "main"), ("one", "other")):
            with pytest.raises(Conflict) as refused:
                await life.send("r1", session, text=text)
            assert refused.value.details == {"reason": "chat-request-conflict"}
        assert await life.messages("other") == []
        stage.release("r1")
        await life.runs.wait("r1")
        life.check_empty()


async def test_a_conflict_at_the_moment_when_its_run_begins_harms_nobody(
    stage: Stage, autojump_clock: MockClock
) -> None:
    """Another session's use of the key takes a slot for a moment, in which the run itself may ask for one."""
    stage.act = stage.hold
    async with stage.life(main=3) as life:
        for place in range(60):
            before, run_id = f"before{place}", f"r{place}"
            await life.send(before)
            await life.send(run_id)
            stage.release(before)
            stage.release(run_id)
            for _ in range(place % 6):
                await trio.lowlevel.checkpoint()
            with pytest.raises(Conflict):
                await life.send(run_id, session="other", text="other words")
            assert (await life.runs.wait(run_id)).state is RunState.FINAL
        life.check_empty()


async def test_a_session_that_must_exist_is_not_made(stage: Stage, autojump_clock: MockClock) -> None:
    async with stage.life() as life:
        with pytest.raises(NotFound, match="session not found: agent:main:gone"):
            await life.send("r1", session="gone", must_exist=True)
        assert await life.store.read(stored_sessions.count) == 0
        await life.send("r2", session="here")
        await life.send("r3", session="here", must_exist=True)
        await life.runs.wait("r3")
        life.check_empty()


# -- waiting for an end ------------------------------------------------------------------------------------------------


async def test_everybody_who_waits_hears_the_end_before_a_restart_and_after(
    stage: Stage, autojump_clock: MockClock
) -> None:
    stage.act = stage.hold
    async with stage.life() as life:
        await life.send("r1")
        heard: list[object] = []

        async def wait() -> None:
            heard.append(await life.runs.wait("r1"))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(wait)
            await settled()
            stage.release("r1")
        heard.append(await life.runs.wait("r1"))
    async with stage.life() as life:
        heard.append(await life.runs.wait("r1"))
        with pytest.raises(NotFound, match="unknown run: r2"):
            await life.runs.wait("r2")
    assert heard == [stage.events.terminals()["r1"]] * 5


async def test_a_wait_that_begins_before_the_ack_hears_the_end(stage: Stage, autojump_clock: MockClock) -> None:
    """The look at memory comes too early, the look at the disk finds a run without an end."""
    async with stage.life() as life:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(life.send, "r1")
            for _ in range(20):
                nursery.start_soon(_wait_if_known, life)
                await trio.lowlevel.checkpoint()
        life.check_empty()


async def _wait_if_known(life: Life) -> None:
    known = await life.runs.find("r1") is not None
    try:
        assert (await life.runs.wait("r1")).state is RunState.FINAL
    except NotFound:
        assert not known


# -- order -------------------------------------------------------------------------------------------------------------


async def test_messages_of_a_session_run_one_by_one_in_their_order(stage: Stage, autojump_clock: MockClock) -> None:
    at_work = 0

    async def act(run: object, desk: object) -> str:
        nonlocal at_work
        at_work += 1
        assert at_work == 1
        await trio.sleep(1)
        at_work -= 1
        return "done"

    stage.act = act
    async with stage.life() as life:
        for place in range(10):
            await life.send(f"r{place}")
        await life.runs.wait("r9")
        assert stage.began == life.started() == [f"r{place}" for place in range(10)]
        assert await life.messages() == [words for place in range(10) for words in (f"r{place}", "done")]
        life.check_empty()


async def test_sessions_do_not_wait_for_each_other(stage: Stage, autojump_clock: MockClock) -> None:
    stage.act = stage.hold
    async with stage.life() as life:
        await life.send("r1", session="a")
        await life.send("r2", session="b")
        stage.release("r2")
        await life.runs.wait("r2")
        stage.release("r1")
        await life.runs.wait("r1")


@pytest.mark.parametrize(
    ("source", "limit"), [("chat", 2), ("agent", 2), ("cron", 8), ("heartbeat", 8), ("tool", 8), ("spawn", 8)]
)
async def test_each_class_of_runs_is_limited(stage: Stage, autojump_clock: MockClock, source: str, limit: int) -> None:
    stage.act = stage.hold
    async with stage.life(main=2) as life:
        for place in range(limit + 3):
            await life.send(f"r{place}", session=f"s{place}", source=source, spawn_depth=1)
        await settled()
        assert life.started() == [f"r{place}" for place in range(limit)]
        stage.release("r0")
        await stage.events.wait_for(lambda event: isinstance(event, RunStarted) and event.run.run_id == f"r{limit}")
        for place in range(limit + 3):
            stage.release(f"r{place}")
            await life.runs.wait(f"r{place}")
        life.check_empty()


async def test_sub_agents_that_wait_for_their_own_never_wait_for_each_other(
    stage: Stage, autojump_clock: MockClock
) -> None:
    """Eight parents hold all slots of their depth while each waits for a child one deeper."""
    async with stage.life() as life:

        async def parent(run: object, desk: object) -> str:
            asked = getattr(run, "submission", None)
            assert isinstance(asked, Submission)
            if asked.spawn_depth >= 5:
                return "leaf"
            child = f"{asked.run_id}.c"
            await life.send(child, session=child, source="spawn", spawn_depth=asked.spawn_depth + 1)
            return (await life.runs.wait(child)).text

        stage.act = parent
        for place in range(12):
            await life.send(f"r{place}", session=f"s{place}", source="spawn", spawn_depth=1)
        with trio.fail_after(60):
            for place in range(12):
                assert (await life.runs.wait(f"r{place}")).text == "leaf"
        life.check_empty()


# -- queue modes -------------------------------------------------------------------------------------------------------


async def test_an_interrupting_message_stops_what_runs_and_goes_first(stage: Stage, autojump_clock: MockClock) -> None:
    stage.act = stage.hold
    async with stage.life() as life:
        await life.send("r1")
        await life.send("r2")
        accepted = await life.send("r3", queue_mode="interrupt")
        assert accepted.interrupted
        for run_id in ("r2", "r3"):
            stage.release(run_id)
        await life.runs.wait("r2")
        assert life.started() == ["r1", "r3", "r2"]
        assert stage.events.terminals()["r1"].stop_reason == "interrupt"
        assert stage.terminals() == {"r1": "aborted", "r3": "final", "r2": "final"}
        life.check_empty()


async def test_an_interrupting_message_replaces_the_ones_that_have_not_begun(
    stage: Stage, autojump_clock: MockClock
) -> None:
    async def stubborn(run: object, desk: object) -> str:
        try:
            await trio.sleep(60)
        finally:
            with trio.move_on_after(5, shield=True):
                await trio.sleep(2)
        return "slept"

    stage.act = stubborn
    async with stage.life() as life:
        await life.send("r1")
        await settled()
        await life.send("i1", queue_mode="interrupt")
        again = await life.send("i2", queue_mode="interrupt")
        assert not again.interrupted, "the one that runs was stopped before"
        await life.runs.wait("i2")
        assert stage.terminals() == {"r1": "aborted", "i1": "aborted", "i2": "final"}
        assert life.started() == ["r1", "i2"]
        assert await life.messages() == ["r1", "i1", "i2", "slept"], "what was said stays said"
        life.check_empty()


async def test_an_interrupting_message_to_an_idle_session_just_runs(stage: Stage, autojump_clock: MockClock) -> None:
    async with stage.life() as life:
        accepted = await life.send("r1", queue_mode="interrupt")
        assert not accepted.interrupted
        assert (await life.runs.wait("r1")).state is RunState.FINAL


async def test_an_interrupted_run_that_waits_for_its_slot_never_begins(stage: Stage, autojump_clock: MockClock) -> None:
    stage.act = stage.hold
    async with stage.life(main=1) as life:
        await life.send("holder", session="a")
        await life.send("r1")
        await settled()
        assert (await life.send("r2", queue_mode="interrupt")).interrupted
        await stage.events.terminal("r1")
        stage.release("holder")
        stage.release("r2")
        await life.runs.wait("r2")
        assert stage.began == ["holder", "r2"]
        life.check_empty()


async def test_messages_that_collect_share_one_turn(stage: Stage, autojump_clock: MockClock) -> None:
    heard: dict[str, list[str]] = {}

    async def act(run: object, desk: object) -> str:
        companions = getattr(run, "companions", [])
        heard[getattr(run, "id", "")] = [str(message.content) for message in companions]
        await trio.sleep(1)
        return "done"

    stage.act = act
    async with stage.life() as life:
        for run_id in ("r1", "r2", "r3", "r4"):
            await life.send(run_id, queue_mode="collect")
        await life.send("r5", queue_mode="followup")
        await life.runs.wait("r5")
        assert heard == {"r1": [], "r2": ["r3", "r4"], "r5": []}
        assert await life.messages() == ["r1", "done", "r2", "r3", "r4", "done", "r5", "done"]
        assert stage.terminals() == {
            "r1": "final",
            "r2": "final",
            "r3": "merged",
            "r4": "merged",
            "r5": "final",
        }
        stage.events.check()
        life.check_empty()


# -- stopping ----------------------------------------------------------------------------------------------------------


async def test_a_waiting_run_is_aborted_at_once_and_its_words_stay(stage: Stage, autojump_clock: MockClock) -> None:
    stage.act = stage.hold
    async with stage.life() as life:
        await life.send("r1")
        await life.send("r2")
        await life.send("r3")
        assert life.abort("r2")
        assert not life.abort("r2"), "it was stopped before"
        terminal = await stage.events.terminal("r2")
        assert (terminal.state, terminal.stop_reason) == (RunState.ABORTED, "rpc")
        assert not life.abort("r2"), "it is over"
        for run_id in ("r1", "r3"):
            stage.release(run_id)
        await life.runs.wait("r3")
        assert stage.began == ["r1", "r3"]
        assert await life.messages() == ["r1", "r2", "re: r1", "r3", "re: r3"]
        assert (await life.stored("r2")).terminal == terminal
        stage.events.check(["r1", "r2", "r3"])
        life.check_empty()


async def test_a_running_run_is_aborted_once(stage: Stage, autojump_clock: MockClock) -> None:
    stage.act = stage.hold
    async with stage.life() as life:
        await life.send("r1")
        await settled()
        assert life.abort("r1")
        assert not life.abort("r1", "reset")
        terminal = await stage.events.terminal("r1")
        assert (terminal.state, terminal.stop_reason) == (RunState.ABORTED, "rpc")
        assert (await life.stored("r1")).terminal == terminal
        stage.events.check(["r1"])
        life.check_empty()


async def test_a_run_that_waits_for_its_slot_is_aborted_at_once(stage: Stage, autojump_clock: MockClock) -> None:
    stage.act = stage.hold
    async with stage.life(main=1) as life:
        await life.send("r1", session="a")
        await life.send("r2", session="b")
        await settled()
        assert life.abort("r2")
        await stage.events.terminal("r2")
        assert await life.messages("b") == ["r2"]
        stage.release("r1")
        await life.runs.wait("r1")
        assert stage.began == ["r1"]
        life.check_empty()


@pytest.mark.parametrize("steps", range(12))
async def test_an_abort_at_any_step_after_the_ack_has_one_end(
    stage: Stage, autojump_clock: MockClock, steps: int
) -> None:
    async with stage.life() as life:
        await life.send("r1")
        await life.send("r2")
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        stopped = [run_id for run_id in ("r1", "r2") if life.abort(run_id)]
        for run_id in ("r1", "r2"):
            terminal = await life.runs.wait(run_id)
            assert terminal.state is (RunState.ABORTED if run_id in stopped else RunState.FINAL)
        stage.events.check(["r1", "r2"])
        life.check_empty()


async def test_a_lane_that_is_reset_ends_all_its_runs_and_no_others(stage: Stage, autojump_clock: MockClock) -> None:
    stage.act = stage.hold
    async with stage.life() as life:
        for run_id in ("r1", "r2", "r3"):
            await life.send(run_id)
        await life.send("other", session="other")
        runs = life.runs.open_runs("agent:main:main")
        assert all(life.runs.abort(run, "reset") for run in runs)
        for run in runs:
            await run.ended.wait()
        await life.store.write(lambda db: stored_sessions.reset(db, "agent:main:main", stage.clock()))
        assert stage.terminals() == dict.fromkeys(("r1", "r2", "r3"), "aborted")
        stage.release("after")
        stage.release("other")
        await life.send("after")
        run = life.runs.open_run("after")
        assert run is not None
        await life.runs.wait("after")
        assert run.past is not None and run.past.followed_by(())[0] == ()
        await life.runs.wait("other")
        life.check_empty()


# -- other things asked ------------------------------------------------------------------------------------------------


async def test_a_system_message_is_appended_without_a_run(stage: Stage, autojump_clock: MockClock) -> None:
    async with stage.life() as life:
        await life.runs.append("agent:main:main", SystemMessage("it is noon", 1))
        assert await life.messages() == ["it is noon"] == life.announced()
        assert life.runs.open_runs() == []
        life.store.refusal = DISK
        with pytest.raises(Unavailable):
            await life.runs.append("agent:main:main", SystemMessage("it is one", 1))
        assert life.announced() == ["it is noon"]


async def test_what_is_appended_is_told_even_when_its_caller_left(stage: Stage, autojump_clock: MockClock) -> None:
    async with stage.life() as life:
        with life.store.held(), trio.move_on_after(1):
            await life.runs.append("agent:main:main", SystemMessage("it is noon", 1))
        await settled()
        assert await life.messages() == ["it is noon"] == life.announced()


async def test_statistics_count_what_waits_and_what_runs(stage: Stage, autojump_clock: MockClock) -> None:
    stage.act = stage.hold
    async with stage.life() as life:
        for run_id in ("r1", "r2"):
            await life.send(run_id)
        await settled()
        statistics = life.runs.statistics()
        assert (statistics.runs.queued, statistics.runs.running) == (1, 1)
        assert (statistics.lanes.lanes, statistics.lanes.queued) == (1, 1)
        assert (statistics.inbox, statistics.inbox_capacity) == (0, INBOX_CAPACITY)
        assert [run.id for run in life.runs.open_runs("agent:main:main")] == ["r1", "r2"]


async def test_nothing_grows_with_sessions_and_runs(stage: Stage, autojump_clock: MockClock) -> None:
    async with stage.life() as life:
        for place in range(60):
            await life.send(f"r{place}", session=f"s{place % 20}")
        for place in range(60):
            await life.runs.wait(f"r{place}")
        life.check_empty()
        assert life.runs.open_runs() == []


# -- the end of the process --------------------------------------------------------------------------------------------


async def test_runs_of_every_phase_survive_a_stop(stage: Stage, autojump_clock: MockClock) -> None:
    """What runs may finish within the grace, what outlasts it is aborted, what waits stays for the next start."""

    async def act(run: object, desk: object) -> str:
        await trio.sleep(5 if getattr(run, "id", "").startswith("short") else 500)
        return "done"

    stage.act = act
    async with stage.life(main=2, grace=10) as life:
        await life.send("short", session="a")
        await life.send("after-short", session="a")
        await life.send("long", session="b")
        await life.send("slotless", session="c")
        await settled()
        started = trio.current_time()
    assert trio.current_time() - started == pytest.approx(10)
    assert stage.terminals() == {"short": "final", "long": "aborted"}
    assert stage.events.terminals()["long"].stop_reason == "restart"
    stage.act = stage.echo
    async with stage.life() as life:
        for run_id in ("after-short", "slotless"):
            assert (await life.runs.wait(run_id)).state is RunState.FINAL
        assert (await life.runs.wait("long")).stop_reason == "restart"
        assert stage.began[:2] == ["short", "long"]
        assert sorted(stage.began[2:]) == ["after-short", "slotless"]
        life.check_empty()
    stage.events.check(["short", "long", "after-short", "slotless"])


async def test_a_run_that_is_being_accepted_when_the_process_stops_has_its_end(
    stage: Stage, autojump_clock: MockClock
) -> None:
    told: list[Accepted] = []
    async with trio.open_nursery() as nursery:
        async with stage.life(grace=5) as life:
            nursery.start_soon(partial(life.runs.submit, submission("r1"), acknowledge=told.append))  # noqa: ASYNC111 - it outlives the life on purpose
            while not life.store.writes > 1:  # the first one is the recovery  # noqa: ASYNC110 - nothing tells of it
                await trio.lowlevel.checkpoint()
    assert [accepted.run_id for accepted in told] == ["r1"]
    assert stage.terminals() == {"r1": "final"}


async def test_a_submission_that_lies_in_the_inbox_at_the_end_is_refused(
    stage: Stage, autojump_clock: MockClock
) -> None:
    outcomes: list[object] = []

    async def send(life: Life, run_id: str) -> None:
        try:
            outcomes.append(await life.send(run_id))
        except Unavailable as error:
            outcomes.append(error)

    async with trio.open_nursery() as nursery:
        async with stage.life() as life:
            drained = partial(life.runs.drain, 0)
            nursery.start_soon(drained)
            for place in range(3):
                nursery.start_soon(send, life, f"r{place}")  # noqa: ASYNC111 - it outlives the life on purpose
    assert len(outcomes) == 3
    for outcome in outcomes:
        assert isinstance(outcome, Accepted | Unavailable)
    with pytest.raises(Unavailable, match="the runtime is stopping"):
        await life.send("late")
    async with stage.life() as life:
        for outcome in outcomes:
            if isinstance(outcome, Accepted):
                await life.runs.wait(outcome.run_id)


async def test_a_disk_that_hangs_at_the_end_does_not_hold_the_process(stage: Stage, autojump_clock: MockClock) -> None:
    """What was acknowledged late is on disk and the next start's; nothing fails when it comes through."""
    told: list[Accepted] = []
    stage.act = stage.hold
    async with trio.open_nursery() as nursery:
        started = trio.current_time()
        async with stage.life() as life:
            await life.send("running", session="a")
            await settled()
            with life.store.held():
                nursery.start_soon(partial(life.runs.submit, submission("r1"), acknowledge=told.append))  # noqa: ASYNC111 - it outlives the life on purpose
                await settled()
                with trio.fail_after(60):
                    await life.runs.drain(1)
                assert told == []
            await settled()
        assert trio.current_time() - started < 30
    assert [accepted.run_id for accepted in told] == ["r1"]
    stage.act = stage.echo
    async with stage.life() as life:
        assert (await life.runs.wait("r1")).state is RunState.ABORTED
        assert (await life.runs.wait("running")).stop_reason == "restart"


async def test_draining_twice_is_draining_once(stage: Stage, autojump_clock: MockClock) -> None:
    async with stage.life() as life:
        await life.send("r1")
        await life.runs.drain(5)
        await life.runs.drain(5)
        assert stage.terminals() == {"r1": "final"}
        assert not any(life.abort(run_id) for run_id in ("r1", "r2"))


async def test_a_cancelled_host_still_stores_and_tells_the_ends(stage: Stage, autojump_clock: MockClock) -> None:
    stage.act = stage.hold
    with trio.CancelScope() as host:
        async with stage.life() as life:
            await life.send("r1")
            await life.send("r2")
            await settled()
            host.cancel()
            await trio.sleep_forever()
    assert stage.terminals() == {"r1": "aborted"}
    stage.act = stage.echo
    async with stage.life() as life:
        assert (await life.stored("r1")).terminal == stage.events.terminals()["r1"]
        assert (await life.runs.wait("r2")).state is RunState.FINAL


async def test_a_host_that_is_cancelled_while_it_opens_ends(stage: Stage, autojump_clock: MockClock) -> None:
    with trio.fail_after(60):
        for steps in range(12):
            with trio.CancelScope() as host:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_cancel_after, host, steps)
                    async with stage.life():
                        pass


async def _cancel_after(scope: trio.CancelScope, steps: int) -> None:
    with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
    scope.cancel()


# -- after a start -----------------------------------------------------------------------------------------------------


async def test_after_a_kill_what_ran_is_aborted_and_what_waited_runs_in_order(
    stage: Stage, autojump_clock: MockClock
) -> None:
    stage.act = stage.hold
    async with stage.life() as life:
        await life.send("r1")
        await life.send("m1", queue_mode="collect")
        await life.send("r2")
        await life.send("r3")
        await settled()
        stage.kill()
    stage.events.events.clear()
    stage.act = stage.echo
    async with stage.life() as life:
        for run_id in ("r1", "r2", "r3"):
            await life.runs.wait(run_id)
        assert stage.terminals() == {"r1": "aborted", "m1": "final", "r2": "final", "r3": "final"}
        assert stage.events.terminals()["r1"].stop_reason == "restart"
        assert stage.began == ["r1", "m1", "r2", "r3"]
        page = await life.store.read(lambda db: stored_sessions.transcript(db, "agent:main:main", limit=9))
        note = page.messages[1].message
        assert getattr(note, "error_message", "") == "The gateway stopped before this reply was finished."
        again = await life.send("r1")
        assert again.terminal == stage.events.terminals()["r1"]
        stage.events.check(["r1", "r2", "r3"])
        life.check_empty()


async def test_after_a_kill_an_interrupting_message_still_goes_first_and_replaces_the_one_before(
    stage: Stage, autojump_clock: MockClock
) -> None:
    async def stubborn(run: object, desk: object) -> str:
        with trio.move_on_after(5, shield=True):
            await trio.sleep_forever()
        return ""

    stage.act = stubborn
    async with stage.life() as life:
        await life.send("r1")
        await life.send("f1")
        await life.send("i1", queue_mode="interrupt")
        await life.send("f2")
        last = life.submission("i2", queue_mode="interrupt")
        await life.runs.submit(last, acknowledge=lambda _: stage.kill())
    stage.events.events.clear()
    stage.began.clear()
    stage.act = stage.echo
    async with stage.life() as life:
        await life.runs.wait("f2")
        assert stage.began == ["i2", "f1", "f2"]
        assert stage.events.terminals()["i1"].stop_reason == "interrupt"
        stage.events.check(["i1", "i2", "f1", "f2"])
        life.check_empty()


async def test_after_a_kill_messages_that_were_part_of_a_run_end_with_it(
    stage: Stage, autojump_clock: MockClock
) -> None:
    stage.act = stage.hold
    async with stage.life() as life:
        await life.send("first", queue_mode="collect")
        await life.send("taker", queue_mode="collect")
        await life.send("merged", queue_mode="collect")
        stage.release("first")
        await stage.events.terminal("first")
        await settled()
        stage.kill()
    stage.events.events.clear()
    async with stage.life() as life:
        assert [event.run.run_id for event in stage.events.events if isinstance(event, RunEnded)] == ["taker", "merged"]
        merged = stage.events.terminals()["merged"]
        assert (merged.state, merged.merged_into, merged.stop_reason) == (RunState.MERGED, "taker", "restart")
        assert await life.runs.wait("merged") == merged


async def test_what_waited_longer_than_it_may_is_aborted_with_its_words(
    stage: Stage, autojump_clock: MockClock
) -> None:
    stage.act = stage.hold
    async with stage.life() as life:
        await life.send("r1")
        await life.send("old")
        await trio.sleep(400)
        await life.send("young")
        stage.kill()
    stage.events.events.clear()
    await trio.sleep(300)
    stage.act = stage.echo
    async with stage.life(max_age=600) as life:
        await life.runs.wait("young")
        assert stage.terminals() == {"r1": "aborted", "old": "aborted", "young": "final"}
        assert stage.events.terminals()["old"].stop_reason == "restart"
        assert await life.messages() == ["r1", "", "old", "young", "re: young"]
        stage.events.check()


async def test_a_second_start_tells_nothing_again(stage: Stage, autojump_clock: MockClock) -> None:
    stage.act = stage.hold
    async with stage.life() as life:
        await life.send("r1")
        await settled()
        stage.kill()
    async with stage.life():
        pass
    stage.events.events.clear()
    async with stage.life() as life:
        assert [event for event in stage.events.events if isinstance(event, RunEvent | SessionMessage)] == []
        assert await life.messages() == ["r1", ""]


async def test_a_steering_message_that_waited_at_a_kill_gets_its_turn(stage: Stage, autojump_clock: MockClock) -> None:
    stage.act = stage.hold
    async with stage.life() as life:
        await life.send("r1")
        await life.send("r2", queue_mode="steer")
        await settled()
        stage.kill()
    stage.act = stage.echo
    async with stage.life() as life:
        assert (await life.runs.wait("r2")).text == "re: r2"


# -- what is over as it comes ------------------------------------------------------------------------------------------


async def test_an_answer_is_acknowledged_then_told_once_and_again_to_who_asks_again(
    stage: Stage, autojump_clock: MockClock
) -> None:
    async with stage.life() as life:
        order: list[str] = []
        with life.bus.subscribe(lambda event: order.append(type(event).__name__)):
            for text in ("words", "other words"):
                accepted = await life.runs.answer(
                    submission("r1"), text, acknowledge=lambda accepted: order.append(f"ack {accepted.replay}")
                )
                assert accepted.terminal is None or accepted.terminal.text == "words"
        assert order == ["ack False", "RunEnded", "ack True"]
        assert (await life.runs.wait("r1")).text == "words"


async def test_an_answer_that_the_disk_refuses_was_never_given(stage: Stage, autojump_clock: MockClock) -> None:
    async with stage.life() as life:
        told: list[object] = []
        life.store.refuse(1)
        with life.bus.subscribe(told.append):
            with pytest.raises(Unavailable):
                await life.runs.answer(submission("r1"), "words", acknowledge=told.append)
            assert told == []
            await life.runs.answer(submission("r1"), "words")
        assert len(told) == 1


async def test_who_stops_answers_nothing_more(stage: Stage, autojump_clock: MockClock) -> None:
    async with stage.life() as life:
        await life.runs.drain(1)
        with pytest.raises(Unavailable, match="stopping"):
            await life.runs.answer(submission("r1"), "words")


# -- being stopped -----------------------------------------------------------------------------------------------------


async def test_who_stops_what_waits_hears_of_it_when_it_is_on_disk(stage: Stage, autojump_clock: MockClock) -> None:
    stage.act = stage.hold
    async with stage.life() as life:
        for run_id in ("r1", "r2"):
            await life.send(run_id)
        stopped = await life.runs.stop(life.runs.open_runs(), "rpc")
        assert [run.id for run in stopped] == ["r2", "r1"]
        assert (await life.stored("r2")).state is RunState.ABORTED
        assert await life.runs.stop(stopped, "rpc") == []


async def test_who_stops_while_the_disk_refuses_is_told_to_ask_again(stage: Stage, autojump_clock: MockClock) -> None:
    stage.act = stage.hold
    async with stage.life() as life:
        for run_id in ("r1", "r2"):
            await life.send(run_id)
        life.store.refusal = DISK
        with pytest.raises(Unavailable, match="could not be stored yet"):
            await life.runs.stop(life.runs.open_runs(), "rpc")
        life.store.refusal = None
        assert (await life.runs.wait("r2")).state is RunState.ABORTED
