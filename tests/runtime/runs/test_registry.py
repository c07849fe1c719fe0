from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from triops.agents.messages import UserMessage
from triops.runtime.bus import Bus
from triops.runtime.events import RunDelta, RunEnded, RunStarted, RuntimeEvent
from triops.runtime.history import Past
from triops.runtime.logs import Log, Record
from triops.runtime.runs.registry import Registry, RegistryStatistics, Run
from triops.runtime.runs.state import RunState, Submission, Terminal
from triops.runtime.sessions import Session
from triops.runtime.testing import EventRecorder

NOW = 1_800_000_000_000


class Place:
    """A registry, and all that it told."""

    def __init__(self) -> None:
        self.log: list[Record] = []
        self.events = EventRecorder()
        self.bus = Bus(Log())
        self.registry = Registry(self.bus, lambda: NOW, Log(self.log.append))

    def run(self, run_id: str = "r1", *, session: str = "agent:main:main") -> Run:
        message = UserMessage("hi", NOW)
        row = Session(sid=1, key=session, agent_id="main", session_id="s")
        run = Run(Submission(run_id=run_id, session_key=session, message=message), row, NOW)
        self.registry.add(run)
        return run


@pytest.fixture
def place() -> Any:
    made = Place()
    with made.bus.subscribe(made.events.hear):
        yield made


def final(text: str = "done") -> Terminal:
    return Terminal(state=RunState.FINAL, stop_reason="stop", text=text, ended_at=NOW)


# -- the block: every way out has its one terminal ---------------------------------------------------------------------


async def test_a_block_that_sets_its_terminal_ends_with_it(place: Place) -> None:
    run = place.run()
    with place.registry.running(run):
        assert run.state is RunState.RUNNING
        assert place.registry.statistics() == RegistryStatistics(queued=0, running=1, ended=0)
        run.terminal = final()
    assert [type(event) for event in place.events.events] == [RunStarted, RunEnded]
    assert place.events.terminals() == {"r1": final()}
    assert run.state is RunState.FINAL
    assert run.ended.is_set()
    assert place.registry.statistics() == RegistryStatistics(queued=0, running=0, ended=1)
    assert place.registry.get("r1") is None


async def test_a_block_that_fails_ends_the_run_as_our_own_fault_and_goes_on(place: Place) -> None:
    run = place.run()
    with place.registry.running(run):
        raise ZeroDivisionError("secret words")
    terminal = place.events.terminals()["r1"]
    assert (terminal.state, terminal.error_kind) == (RunState.ERROR, "unknown")
    assert terminal.error_message == "internal error: ZeroDivisionError; the log says more (run r1)"
    assert [record.message for record in place.log] == ["a run failed by our own fault"]
    place.events.check(["r1"])


async def test_a_failure_after_the_terminal_does_not_change_it(place: Place) -> None:
    run = place.run()
    with place.registry.running(run):
        run.terminal = final()
        raise ZeroDivisionError
    assert place.events.terminals() == {"r1": final()}
    assert [record.level for record in place.log] == ["error"]


async def test_a_block_that_is_left_without_a_terminal_ends_aborted_with_what_arrived(place: Place) -> None:
    run = place.run()
    with place.registry.running(run):
        run.parts.append("half an ans")
    terminal = place.events.terminals()["r1"]
    assert (terminal.state, terminal.stop_reason, terminal.text) == (RunState.ABORTED, "restart", "half an ans")
    assert terminal.message is not None
    assert terminal.message.stop_reason == "aborted"


async def test_a_cancelled_block_ends_the_run_and_lets_the_cancellation_pass(place: Place) -> None:
    run = place.run()
    passed = False
    with trio.CancelScope() as scope:
        with place.registry.running(run):
            run.stop("rpc")
            scope.cancel()
            await trio.lowlevel.checkpoint()
        passed = True
    assert scope.cancelled_caught
    assert not passed
    terminal = place.events.terminals()["r1"]
    assert (terminal.state, terminal.stop_reason) == (RunState.ABORTED, "rpc")


async def test_a_task_that_is_cancelled_before_its_start_still_enters_and_leaves_the_block(place: Place) -> None:
    run = place.run()

    async def work() -> None:
        with place.registry.running(run):
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.cancel()
        nursery.start_soon(work)
    place.events.check(["r1"])


async def test_a_group_with_a_cancellation_in_it_is_not_swallowed(place: Place) -> None:
    run = place.run()

    async def fail() -> None:
        raise ZeroDivisionError

    async def work() -> None:
        with place.registry.running(run):
            async with trio.open_nursery() as inner:
                inner.start_soon(fail)
                await trio.sleep_forever()

    with pytest.RaisesGroup(KeyboardInterrupt):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            await trio.testing.wait_all_tasks_blocked()
            raise KeyboardInterrupt
    place.events.check(["r1"])


@pytest.mark.parametrize("way", [KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_what_is_no_exception_of_ours_passes_and_the_run_has_its_end(
    place: Place, way: type[BaseException]
) -> None:
    run = place.run()
    with pytest.raises(way), place.registry.running(run):
        raise way
    assert place.events.terminals()["r1"].state is RunState.ABORTED


# -- once --------------------------------------------------------------------------------------------------------------


async def test_a_second_terminal_is_an_assertion(place: Place) -> None:
    run = place.run()
    with place.registry.running(run):
        run.terminal = final()
    with pytest.raises(AssertionError):
        place.registry.drop(run, final())
    assert len(place.events.of("r1")) == 2


async def test_a_second_terminal_of_a_merged_run_is_an_assertion(place: Place) -> None:
    taker, other = place.run("r1"), place.run("r2")
    with place.registry.running(taker):
        place.registry.merge(other, taker)
        taker.terminal = final()
    with pytest.raises(AssertionError):
        place.registry.drop(other, final())
    assert len(place.events.of("r2")) == 1


async def test_a_run_that_ended_cannot_run_and_one_that_runs_cannot_run_again(place: Place) -> None:
    run = place.run()
    with place.registry.running(run):
        with pytest.raises(AssertionError), place.registry.running(run):
            raise NotImplementedError
        run.terminal = final()
    with pytest.raises(AssertionError), place.registry.running(run):
        raise NotImplementedError
    place.events.check(["r1"])


async def test_a_run_cannot_be_registered_twice(place: Place) -> None:
    place.run()
    with pytest.raises(AssertionError, match="registered twice"):
        place.run()


@pytest.mark.parametrize("state", [RunState.FINAL, RunState.ERROR])
async def test_a_run_that_never_ran_cannot_have_answered(place: Place, state: RunState) -> None:
    with pytest.raises(AssertionError):
        place.registry.drop(place.run(), Terminal(state=state, ended_at=NOW))


# -- order -------------------------------------------------------------------------------------------------------------


async def test_a_merged_run_ends_right_after_the_one_that_took_it(place: Place) -> None:
    taker, first, second = place.run("r1"), place.run("r2"), place.run("r3")
    with place.registry.running(taker):
        place.registry.merge(first, taker)
        place.registry.merge(second, taker)
        assert place.registry.statistics() == RegistryStatistics(queued=2, running=1, ended=0)
        assert not first.stop("rpc"), "it is part of another"
        taker.terminal = final()
    ended = [event.run.run_id for event in place.events.events if isinstance(event, RunEnded)]
    assert ended == ["r1", "r2", "r3"]
    assert place.events.terminals()["r3"] == Terminal(
        state=RunState.MERGED, stop_reason="stop", ended_at=NOW, merged_into="r1"
    )
    assert place.registry.statistics() == RegistryStatistics(queued=0, running=0, ended=3)


async def test_the_registry_has_forgotten_a_run_when_its_end_is_told(place: Place) -> None:
    seen: list[tuple[Run | None, bool]] = []
    run = place.run()

    def look(event: RuntimeEvent) -> None:
        if isinstance(event, RunEnded):
            seen.append((place.registry.get("r1"), run.ended.is_set()))

    with place.bus.subscribe(look), place.registry.running(run):
        run.terminal = final()
    assert seen == [(None, False)], "who is woken by it finds nothing in memory and everything on disk"


async def test_a_listener_that_fails_does_not_change_how_a_run_ends(place: Place) -> None:
    def fail(event: RuntimeEvent) -> None:
        raise ZeroDivisionError

    run = place.run()
    with place.bus.subscribe(fail), place.registry.running(run):
        run.terminal = final()
    place.events.check(["r1"])
    assert run.ended.is_set()


async def test_events_of_a_run_are_counted_through(place: Place) -> None:
    run = place.run()
    with place.registry.running(run):
        place.bus.publish(RunDelta(run.info, run.next_seq(), NOW, 1, "x"))
        run.terminal = final()
    assert [event.seq for event in place.events.of("r1")] == [1, 2, 3]


async def test_runs_of_a_session_come_oldest_first(place: Place) -> None:
    place.run("r2")
    place.run("r1")
    place.run("other", session="agent:main:x")
    assert [run.id for run in place.registry.of_session("agent:main:main")] == ["r2", "r1"]
    assert [run.id for run in place.registry.all()] == ["r2", "r1", "other"]


# -- being stopped -----------------------------------------------------------------------------------------------------


def _begin(run: Run) -> None:
    run.begin(run.session, 1, Past(session_id="", start=0, end=0))


def _nothing(run: Run) -> None:
    """It waits."""


@pytest.mark.parametrize("before", [_nothing, _begin])
async def test_a_run_is_stopped_once(place: Place, before: Callable[[Run], None]) -> None:
    run = place.run()
    before(run)
    assert run.stop("rpc")
    assert not run.stop("reset")
    assert run.stop_reason == "rpc"
    assert run.scope.cancel_called


async def test_a_run_that_was_stopped_before_it_has_its_place_is_still_stopped_then(place: Place) -> None:
    run = place.run()
    run.stop("rpc")
    run.begin(run.session, 1, Past(session_id="", start=0, end=0))
    assert run.begun
    assert run.scope.cancel_called


async def test_a_run_that_has_answered_cannot_be_stopped(place: Place) -> None:
    run = place.run()
    run.answered = True
    assert not run.stop("rpc")
    assert run.stop_reason is None
