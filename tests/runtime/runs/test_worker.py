"""Working a lane off: each turn's way out, what a disk that refuses does to it, and what a turn takes in."""

from typing import Any

import pytest
import trio
from tests.kit.stage import Act, Life, Played, Stage, settled, words
from trio.testing import MockClock

from triops.agents.messages import AssistantMessage, Text
from triops.runtime.errors import Unavailable
from triops.runtime.events import RunEnded, SessionChanged
from triops.runtime.runs.registry import Run
from triops.runtime.runs.state import RunState
from triops.runtime.runs.worker import RETRY, Desk, Draft
from triops.runtime.store import runs as stored_runs

DISK = Unavailable("disk full")


def note(text: str) -> AssistantMessage:
    return AssistantMessage((Text(text),), 1)


def nothing() -> None:
    """What a turn does when a step is on disk, if it does nothing."""


def steering(stage: Stage, *, finish: float = 0) -> Act:
    """A turn that is told to look for steering words by `release(<run>)`, and saves what it finds."""

    async def act(run: Run, desk: Desk) -> str:
        await stage.hold(run, desk)
        taken = desk.steer()
        heard = [other.submission.message for other in taken]
        await desk.save([note("step"), *heard], nothing)
        await trio.sleep(finish)
        return f"re: {' '.join([run.id, *(other.id for other in taken)])}"

    return act


# -- every way out of a turn -------------------------------------------------------------------------------------------


async def test_a_reply_is_on_disk_and_announced_before_its_run_ends(stage: Stage, autojump_clock: MockClock) -> None:
    stage.act = stage.hold
    async with stage.life() as life:
        await life.send("r1")
        stage.release("r1")
        terminal = await life.runs.wait("r1")
        events = stage.events.events
        end = next(place for place, event in enumerate(events) if isinstance(event, RunEnded))
        assert life.announced() == ["r1", "re: r1"]
        assert getattr(events[end - 1], "message", None) == note_of(events[end - 1])
        assert [event.phase for event in events if isinstance(event, SessionChanged)] == ["start", "end"]
        stored = await life.stored("r1")
        assert (stored.state, stored.terminal) == (RunState.FINAL, terminal)
        assert stored.session.status == "done"
        life.check_empty()


def note_of(event: Any) -> AssistantMessage:
    assert isinstance(event.message, AssistantMessage)
    return event.message


async def test_a_turn_that_fails_ends_its_run_as_an_error(stage: Stage, autojump_clock: MockClock) -> None:
    async def act(run: Run, desk: Desk) -> str:
        raise ZeroDivisionError("no")

    stage.act = act
    async with stage.life() as life:
        await life.send("r1")
        terminal = await life.runs.wait("r1")
        assert (terminal.state, terminal.error_message) == (RunState.ERROR, "no")
        assert (await life.stored("r1")).session.status == "failed"
        phases = [event.phase for event in stage.events.events if isinstance(event, SessionChanged)]
        assert phases == ["start", "error"]
        life.check_empty()


@pytest.mark.parametrize("asked", [None, 5.0])
async def test_a_turn_that_takes_too_long_ends_as_a_timeout(
    stage: Stage, autojump_clock: MockClock, asked: float | None
) -> None:
    async def act(run: Run, desk: Desk) -> str:
        await trio.sleep_forever()
        return ""

    stage.act = act
    async with stage.life(budget=60) as life:
        started = trio.current_time()
        await life.send("r1", deadline=asked)
        terminal = await life.runs.wait("r1")
        assert (terminal.state, terminal.error_kind) == (RunState.ERROR, "timeout")
        assert trio.current_time() - started == pytest.approx(asked or 60)
        stage.act = stage.echo
        await life.send("r2")
        assert (await life.runs.wait("r2")).state is RunState.FINAL
        life.check_empty()


async def test_the_deadline_counts_from_the_start_of_the_turn(stage: Stage, autojump_clock: MockClock) -> None:
    async def act(run: Run, desk: Desk) -> str:
        await trio.sleep(50)
        return "done"

    stage.act = act
    async with stage.life(budget=60) as life:
        for run_id in ("r1", "r2", "r3"):
            await life.send(run_id)
        await life.runs.wait("r3")
        assert set(stage.terminals().values()) == {"final"}


async def test_a_turn_that_was_stopped_and_fails_on_its_way_out_is_aborted(
    stage: Stage, autojump_clock: MockClock
) -> None:
    async def act(run: Run, desk: Desk) -> str:
        try:
            await trio.sleep_forever()
        finally:
            raise ZeroDivisionError("the way out")
        return ""

    stage.act = act
    async with stage.life() as life:
        await life.send("r1")
        await settled()
        assert life.abort("r1")
        terminal = await life.runs.wait("r1")
        assert (terminal.state, terminal.stop_reason) == (RunState.ABORTED, "rpc")
        assert [record.message for record in stage.log if record.level == "error"] == [
            "a turn that was stopped failed on its way out"
        ]


async def test_a_turn_that_finishes_though_it_was_stopped_is_aborted(stage: Stage, autojump_clock: MockClock) -> None:
    """Who stopped it was told that it worked."""

    async def act(run: Run, desk: Desk) -> str:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 9):
            await stage.hold(run, desk)
        return "done"

    stage.act = act
    async with stage.life() as life:
        await life.send("r1")
        await settled()
        assert life.abort("r1")
        stage.release("r1")
        assert (await life.runs.wait("r1")).state is RunState.ABORTED


async def test_a_run_that_has_answered_is_not_aborted_while_its_end_goes_to_disk(
    stage: Stage, autojump_clock: MockClock
) -> None:
    stage.act = stage.hold
    async with stage.life() as life:
        await life.send("r1")
        await settled()
        with life.store.held():
            stage.release("r1")
            await settled()
            assert not life.abort("r1")
            assert stage.terminals() == {}
        assert (await life.runs.wait("r1")).state is RunState.FINAL


@pytest.mark.parametrize("broken", ["failed", "stopped"])
async def test_a_turn_whose_end_cannot_be_told_ends_as_our_own_fault(
    stage: Stage, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fail(*_: object) -> Draft:
        raise ZeroDivisionError("cannot say")

    async def act(run: Run, desk: Desk) -> str:
        if broken == "failed":
            raise ValueError("no")
        await trio.sleep_forever()
        return ""

    monkeypatch.setattr(Played, broken, fail)
    stage.act = act
    async with stage.life(budget=5) as life:
        await life.send("r1")
        terminal = await life.runs.wait("r1")
        assert (terminal.state, terminal.error_kind) == (RunState.ERROR, "unknown")
        assert str(terminal.error_message).startswith("internal error: ZeroDivisionError")
        await settled()
        assert (await life.stored("r1")).terminal == terminal, "the next start says the same"
        stage.act = stage.echo
        await life.send("r2")
        assert (await life.runs.wait("r2")).state is RunState.FINAL
        life.check_empty()


async def test_a_reply_that_cannot_be_written_down_ends_as_our_own_fault(
    stage: Stage, autojump_clock: MockClock
) -> None:
    async def act(run: Run, desk: Desk) -> str:
        return "half a pair: \ud83d" if run.id == "r1" else "done"

    stage.act = act
    async with stage.life() as life:
        await life.send("r1")
        await life.send("r2")
        terminal = await life.runs.wait("r1")
        assert (terminal.state, terminal.error_kind) == (RunState.ERROR, "unknown")
        assert (await life.runs.wait("r2")).state is RunState.FINAL
        assert (await life.stored("r1")).terminal == terminal
        assert await life.messages() == ["r1", "", "r2", "done"]
        stage.events.check(["r1", "r2"])
        life.check_empty()


async def test_a_run_that_cannot_begin_by_our_own_fault_ends_and_its_lane_goes_on(
    stage: Stage, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stored_runs.claim

    def claim(db: Any, submission: Any, *rest: Any) -> Any:
        if submission.run_id == "r2":
            raise AssertionError("not queued")
        return real(db, submission, *rest)

    monkeypatch.setattr(stored_runs, "claim", claim)
    stage.act = stage.hold
    async with stage.life() as life:
        for run_id in ("r1", "r2", "r3"):
            await life.send(run_id)
            stage.release(run_id)
        await life.runs.wait("r3")
        assert stage.terminals() == {"r1": "final", "r2": "aborted", "r3": "final"}
        assert stage.events.terminals()["r2"].stop_reason == "internal error"
        assert (await life.stored("r2")).state is RunState.ABORTED
        assert len(stage.faults()) == 1
        life.check_empty()


# -- steering ----------------------------------------------------------------------------------------------------------


async def test_steering_words_are_part_of_the_running_turn_and_end_with_it(
    stage: Stage, autojump_clock: MockClock
) -> None:
    stage.act = steering(stage, finish=5)
    async with stage.life() as life:
        await life.send("r1")
        await life.send("s1", queue_mode="steer")
        await life.send("s2", queue_mode="steer")
        await settled()
        stage.release("r1")
        await trio.sleep(1)
        assert stage.terminals() == {}
        assert [(run.id, run.state) for run in life.runs.open_runs()] == [
            ("r1", RunState.RUNNING),
            ("s1", RunState.MERGED),
            ("s2", RunState.MERGED),
        ]
        assert (await life.runs.wait("r1")).text == "re: r1 s1 s2"
        ended = [event.run.run_id for event in stage.events.events if isinstance(event, RunEnded)]
        assert ended == ["r1", "s1", "s2"]
        for run_id in ("s1", "s2"):
            terminal = stage.events.terminals()[run_id]
            assert (terminal.state, terminal.merged_into) == (RunState.MERGED, "r1")
            assert (await life.stored(run_id)).terminal == terminal
        assert await life.messages() == ["r1", "step", "s1", "s2", "re: r1 s1 s2"]
        assert stage.began == ["r1"]
        stage.events.check(["r1", "s1", "s2"])
        life.check_empty()


async def test_steering_words_that_no_turn_takes_get_a_turn_of_their_own(
    stage: Stage, autojump_clock: MockClock
) -> None:
    stage.act = stage.hold
    async with stage.life() as life:
        await life.send("r1")
        await life.send("s1", queue_mode="steer")
        for run_id in ("r1", "s1"):
            stage.release(run_id)
        assert (await life.runs.wait("s1")).text == "re: s1"
        assert stage.terminals() == {"r1": "final", "s1": "final"}


async def test_steering_words_whose_save_is_refused_get_a_turn_of_their_own(
    stage: Stage, autojump_clock: MockClock
) -> None:
    async with stage.life() as life:
        stage.act = steering(stage)
        await life.send("r1")
        await life.send("s1", queue_mode="steer")
        await life.send("f1")
        await settled()
        life.store.refuse(1)
        stage.release("r1")
        terminal = await life.runs.wait("r1")
        assert (terminal.state, terminal.error_message) == (RunState.ERROR, "the test's disk refuses")
        for run_id in ("s1", "f1"):
            stage.release(run_id)
        await life.runs.wait("f1")
        assert stage.began == ["r1", "s1", "f1"]
        assert stage.terminals() == {"r1": "error", "s1": "final", "f1": "final"}
        life.check_empty()


@pytest.mark.parametrize("refused", [False, True])
async def test_an_abort_while_steering_words_are_saved_leaves_them_where_the_disk_has_them(
    stage: Stage, autojump_clock: MockClock, refused: bool
) -> None:
    """The save is cancelled and comes through all the same, or does not: memory must know which."""
    async with stage.life() as life:
        stage.act = steering(stage)
        await life.send("r1")
        await life.send("s1", queue_mode="steer")
        await settled()
        if refused:
            life.store.refuse(1)
        with life.store.held():
            stage.release("r1")
            await settled()
            assert life.abort("r1")
            await settled()
            assert stage.terminals() == {}, "whether s1 is part of r1 is not known yet"
        stage.release("s1")
        await life.runs.wait("r1")
        await life.runs.wait("s1")
        stage.events.check(["r1", "s1"])
        if refused:
            assert stage.terminals() == {"r1": "aborted", "s1": "final"}
            assert await life.messages() == ["r1", "s1", "step", "re: s1"]
        else:
            assert stage.terminals() == {"r1": "aborted", "s1": "merged"}
            assert await life.messages() == ["r1", "step", "s1"]
        assert stage.faults() == []
        life.check_empty()


async def test_a_turn_that_is_being_stopped_takes_nobody_in(stage: Stage, autojump_clock: MockClock) -> None:
    """Words that arrive after an abort would be answered by nobody."""

    async def act(run: Run, desk: Desk) -> str:
        if run.id == "r1":
            run.stop("rpc")
            assert desk.steer() == []
            await trio.sleep(1)
        return f"re: {run.id}"

    stage.act = act
    async with stage.life() as life:
        with life.store.held():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(life.send, "r1")
                await settled()
                nursery.start_soon(_send_steering, life)
                await settled()
                nursery.cancel_scope.cancel()
        assert (await life.runs.wait("s1")).text == "re: s1"
        assert stage.terminals() == {"r1": "aborted", "s1": "final"}


async def _send_steering(life: Life) -> None:
    await life.send("s1", queue_mode="steer")


async def test_who_aborts_words_that_a_run_is_taking_in_is_not_told_that_it_worked(
    stage: Stage, autojump_clock: MockClock
) -> None:
    async with stage.life() as life:
        stage.act = steering(stage)
        await life.send("r1")
        await life.send("s1", queue_mode="steer")
        await settled()
        with life.store.held():
            stage.release("r1")
            await settled()
            assert not life.abort("s1")
        await life.runs.wait("s1")
        assert stage.terminals() == {"r1": "final", "s1": "merged"}
        life.check_empty()


async def test_words_that_are_given_back_can_be_aborted(stage: Stage, autojump_clock: MockClock) -> None:
    async with stage.life() as life:
        stage.act = steering(stage)
        await life.send("r1")
        await life.send("s1", queue_mode="steer")
        await settled()
        life.store.refuse(1)
        with life.store.held():
            stage.release("r1")
            await settled()
            assert not life.abort("s1")
        await stage.events.terminal("r1")
        assert life.abort("s1")
        await stage.events.terminal("s1")
        assert stage.terminals() == {"r1": "error", "s1": "aborted"}
        life.check_empty()


# -- a disk that refuses -----------------------------------------------------------------------------------------------


async def test_a_queued_run_waits_until_the_disk_lets_it_begin(stage: Stage, autojump_clock: MockClock) -> None:
    stage.act = stage.hold
    async with stage.life() as life:
        for run_id in ("r1", "r2"):
            await life.send(run_id)
        life.store.refuse(*range(2, 62))  # not the end of r1, but a minute of tries to begin r2
        for run_id in ("r1", "r2"):
            stage.release(run_id)
        await life.runs.wait("r1")
        await trio.sleep(50)
        assert stage.began == ["r1"]
        assert "r2" not in stage.terminals()
        assert (await life.runs.wait("r2")).state is RunState.FINAL
        life.check_empty()


async def test_messages_that_would_share_a_turn_can_be_aborted_while_the_disk_refuses_it(
    stage: Stage, autojump_clock: MockClock
) -> None:
    async def act(run: Run, desk: Desk) -> str:
        await stage.hold(run, desk)
        return " ".join(str(message.content) for message in run.companions)

    stage.act = act
    async with stage.life() as life:
        await life.send("r1", queue_mode="collect")
        for run_id in ("r2", "r3", "r4"):
            await life.send(run_id, queue_mode="collect")
        life.store.refuse(2)  # the end of r1 is stored, the beginning of r2 is not
        stage.release("r1")
        await life.runs.wait("r1")
        await settled()
        assert life.abort("r3")
        stage.release("r2")
        assert (await life.runs.wait("r2")).text == "r4"
        assert stage.terminals() == {"r1": "final", "r2": "final", "r3": "aborted", "r4": "merged"}
        life.check_empty()


async def test_a_run_that_the_disk_does_not_let_begin_can_be_aborted(stage: Stage, autojump_clock: MockClock) -> None:
    stage.act = stage.hold
    async with stage.life() as life:
        for run_id in ("r1", "r2"):
            await life.send(run_id)
        life.store.refuse(*range(2, 1000))
        stage.release("r1")
        await life.runs.wait("r1")
        await trio.sleep(10)
        assert life.abort("r2")
        await trio.sleep(10)
        life.store.heal()
        with trio.fail_after(2 * RETRY):
            terminal = await stage.events.terminal("r2")
        assert (terminal.state, terminal.stop_reason) == (RunState.ABORTED, "rpc")


async def test_a_step_that_is_not_stored_ends_the_run_as_an_error(stage: Stage, autojump_clock: MockClock) -> None:
    saved: list[str] = []

    async def act(run: Run, desk: Desk) -> str:
        await desk.save([note("one")], lambda: saved.append("one"))
        await desk.save([note("two")], lambda: saved.append("two"))
        return "done"

    stage.act = act
    async with stage.life() as life:
        life.store.refuse(3)  # accepted, step one, step two
        await life.send("r1")
        terminal = await life.runs.wait("r1")
        assert (terminal.state, terminal.error_message) == (RunState.ERROR, "the test's disk refuses")
        assert saved == ["one"]
        assert await life.messages() == ["r1", "one"]
        life.check_empty()


async def test_an_end_that_is_not_stored_is_told_as_such_and_stored_later(
    stage: Stage, autojump_clock: MockClock
) -> None:
    stage.act = stage.hold
    async with stage.life() as life:
        await life.send("r1")
        await life.send("r2")
        await settled()
        life.store.refusal = DISK
        stage.release("r1")
        terminal = await life.runs.wait("r1")
        assert (terminal.state, terminal.error_kind, terminal.error_message) == (
            RunState.ERROR,
            "not_stored",
            "disk full",
        )
        stored = await life.stored("r1")
        assert (stored.state, stored.terminal) == (RunState.RUNNING, None)
        assert await life.runs.wait("r1") == terminal, "who asks meanwhile hears what was told"
        await trio.sleep(30)
        assert stage.began == ["r1"], "what comes next comes next on disk, too"
        life.store.refusal = None
        again = await life.send("r1")
        assert again.terminal == terminal, "also who asks before it is stored"
        stage.release("r2")
        await life.runs.wait("r2")
        assert (await life.stored("r1")).terminal == terminal
        assert (await life.stored("r1")).session.status == "done"
        assert await life.messages() == ["r1", "re: r1", "r2", "re: r2"], "nothing that was said is lost"
        stage.events.check(["r1", "r2"])
        life.check_empty()
    stage.events.events.clear()
    async with stage.life() as life:
        assert stage.events.events == [], "the next start has nothing to say"
        assert await life.runs.wait("r1") == terminal


async def test_words_that_were_taken_into_a_run_that_is_not_stored_end_with_it(
    stage: Stage, autojump_clock: MockClock
) -> None:
    stage.act = steering(stage, finish=5)
    async with stage.life() as life:
        await life.send("r1")
        await life.send("s1", queue_mode="steer")
        stage.release("r1")
        await trio.sleep(1)
        life.store.refusal = DISK
        merged = await life.runs.wait("s1")
        assert (merged.state, merged.stop_reason) == (RunState.MERGED, "not_stored")
        assert await life.runs.wait("s1") == merged, "it is over, though the disk does not know how"
        life.store.refusal = None
        await trio.sleep(2 * RETRY)
        assert (await life.stored("s1")).terminal == merged
        life.check_empty()


async def test_an_abort_of_what_waits_is_told_when_it_is_on_disk(stage: Stage, autojump_clock: MockClock) -> None:
    stage.act = stage.hold
    async with stage.life() as life:
        await life.send("r1")
        await life.send("r2")
        await settled()
        life.store.refusal = DISK
        assert life.abort("r2")
        await trio.sleep(60)
        assert "r2" not in stage.terminals(), "the next start would run it"
        life.store.refusal = None
        terminal = await stage.events.terminal("r2")
        assert (terminal.state, terminal.stop_reason, terminal.error_kind) == (RunState.ABORTED, "rpc", None)
        assert (await life.stored("r2")).terminal == terminal
        assert await life.messages() == ["r1", "r2"], "its words stand where it was written"
        stage.release("r1")
        await life.runs.wait("r1")
        life.check_empty()


async def test_a_disk_that_hangs_delays_an_end_and_does_not_change_it(stage: Stage, autojump_clock: MockClock) -> None:
    async with stage.life() as life:
        stage.act = stage.hold
        await life.send("r1")
        await settled()
        with life.store.held():
            stage.release("r1")
            await trio.sleep(600)
            assert stage.terminals() == {}
        assert (await life.runs.wait("r1")).state is RunState.FINAL
        assert (await life.stored("r1")).state is RunState.FINAL


async def test_a_process_that_ends_while_the_disk_refuses_ends_in_time(stage: Stage, autojump_clock: MockClock) -> None:
    stage.act = stage.hold
    async with stage.life() as life:
        await life.send("r1")
        await life.send("r2")
        await settled()
        life.store.refusal = DISK
        stage.release("r1")
        await life.runs.wait("r1")
        started = trio.current_time()
    assert trio.current_time() - started < 15
    stage.act = stage.echo
    async with stage.life() as life:
        terminal = await life.runs.wait("r1")
        assert (terminal.state, terminal.error_kind) == (RunState.ERROR, "not_stored"), "as it was told"
        assert list(stage.terminals()) == ["r1"], "and not again"
        assert (await life.runs.wait("r2")).state is RunState.FINAL


# -- what a turn is given ----------------------------------------------------------------------------------------------


async def test_a_run_is_given_what_was_said_before_it_and_no_more(stage: Stage, autojump_clock: MockClock) -> None:
    given: dict[str, list[str]] = {}

    async def act(run: Run, desk: Desk) -> str:
        assert run.past is not None
        given[run.id] = [words(message) for message in run.past.followed_by(())[0]]
        await trio.sleep(1)
        return "reply"

    stage.act = act
    async with stage.life() as life:
        for run_id in ("first", "second"):
            await life.send(run_id)
        await life.runs.wait("second")
        assert given["first"] == []
        assert given["second"] == ["first", "reply"]
