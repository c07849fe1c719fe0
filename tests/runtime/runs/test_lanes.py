from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from triops.agents.messages import SystemMessage, UserMessage
from triops.agents.model import Wishes
from triops.runtime.runs.lanes import Lane, Lanes
from triops.runtime.runs.registry import Run
from triops.runtime.runs.state import QueueMode, Source, Submission
from triops.runtime.sessions import Session

KEY = "agent:main:main"


def run(run_id: str, mode: QueueMode = "steer", **asked: Any) -> Run:
    asked.setdefault("message", UserMessage(run_id, 1))
    session = Session(sid=1, key=KEY, agent_id="main", session_id="s")
    return Run(Submission(run_id=run_id, session_key=KEY, queue_mode=mode, **asked), session, 1)


def lane_of(*runs: Run) -> Lane:
    lane = Lane(KEY)
    lane.queue.extend(runs)
    return lane


def ids(runs: Any) -> list[str]:
    return [run.id for run in runs]


# -- who may join whom -------------------------------------------------------------------------------------------------


async def test_a_turn_takes_the_steering_words_at_the_head_and_no_further() -> None:
    lane = lane_of(run("a"), run("b"), run("c", "followup"), run("d"))
    assert ids(lane.take_steering()) == ["a", "b"]
    assert lane.take_steering() == []
    assert ids(lane.queue) == ["c", "d"]


async def test_what_is_taken_and_given_back_is_where_it_was() -> None:
    lane = lane_of(run("a"), run("b"), run("c", "followup"))
    lane.give_back(lane.take_steering())
    assert ids(lane.queue) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "asked",
    [
        {"message": SystemMessage("it is noon", 1)},
        {"model": "other/model"},
        {"extra_system": "Speak Latin."},
        {"wishes": Wishes(temperature=1)},
    ],
)
async def test_what_another_turn_lacks_gets_a_turn_of_its_own(asked: dict[str, Any]) -> None:
    assert lane_of(run("a", **asked)).take_steering() == []
    assert lane_of(run("b", "collect", **asked)).take_collected(run("a", "collect")) == []
    assert lane_of(run("b", "collect")).take_collected(run("a", "collect", **asked)) == []


async def test_a_run_that_was_stopped_joins_nobody() -> None:
    stopped = run("a")
    stopped.stop("rpc")
    assert lane_of(stopped).take_steering() == []


async def test_only_neighbours_that_collect_share_a_turn() -> None:
    lane = lane_of(run("b", "collect"), run("c", "collect"), run("d", "followup"), run("e", "collect"))
    assert ids(lane.take_collected(run("a", "collect"))) == ["b", "c"]
    assert lane_of(run("b", "collect")).take_collected(run("a", "followup")) == []


async def test_an_interrupting_run_goes_first_and_replaces_those_before_it() -> None:
    earlier = run("b", "interrupt")
    lane = lane_of(earlier, run("c"))
    assert lane.put_first(run("d", "interrupt")) == [earlier]
    assert ids(lane.queue) == ["d", "b", "c"]


# -- lanes -------------------------------------------------------------------------------------------------------------


async def test_a_lane_is_full_when_places_and_queue_reach_the_cap() -> None:
    lanes = Lanes(cap=3, main=1)
    lane = lanes.reserve(KEY)
    assert lane is not None
    assert lanes.reserve(KEY) is lane
    lane.places = 1
    lane.queue.extend([run("a"), run("b")])
    assert lanes.reserve(KEY) is None
    assert lanes.reserve("agent:main:other") is not None


async def test_a_lane_gives_turns_in_order_and_is_forgotten_at_the_end() -> None:
    lanes = Lanes(cap=3, main=1)
    lane = lanes.open(KEY)
    lane.queue.extend([run("a"), run("b")])
    turns = [advanced.id if (advanced := lanes.advance(lane)) else None for _ in range(3)]
    assert turns == ["a", "b", None]
    assert lanes.get(KEY) is None
    assert lanes.statistics().lanes == 0


@pytest.mark.parametrize("holding", ["places", "starting"])
async def test_a_lane_that_is_waited_for_is_not_forgotten(holding: str) -> None:
    lanes = Lanes(cap=3, main=1)
    lane = lanes.open(KEY)
    setattr(lane, holding, True)
    assert lanes.advance(lane) is None
    assert lanes.get(KEY) is lane


async def test_nobody_has_a_turn_while_one_is_starting_or_the_lanes_are_closed() -> None:
    lanes = Lanes(cap=3, main=1)
    lane = lanes.open(KEY)
    lane.queue.append(run("a"))
    lane.starting = True
    assert lanes.advance(lane) is None
    lane.starting = False
    lanes.closed = True
    assert lanes.advance(lane) is None
    assert ids(lane.queue) == ["a"]
    assert lanes.get(KEY) is lane


@given(st.lists(st.sampled_from(["send", "advance", "end", "store"]), max_size=40))
async def test_a_lane_is_known_exactly_while_it_has_something_to_do(steps: list[str]) -> None:
    lanes = Lanes(cap=5, main=1)
    for place, step in enumerate(steps):
        lane = lanes.get(KEY)
        if step == "send":
            wanted = lanes.reserve(KEY)
            if wanted is not None:
                wanted.places += 1
        elif lane is not None and step == "store" and lane.places:
            lane.places -= 1
            lane.queue.append(run(str(place)))
        elif lane is not None and (step == "end" or lane.active is None):
            lanes.advance(lane)
        lane = lanes.get(KEY)
        assert lane is None or not lane.idle
        assert lane is None or len(lane.queue) + lane.places <= 5


# -- slots -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "depth", "name"),
    [
        ("chat", 0, "main"),
        ("agent", 0, "main"),
        ("cron", 0, "cron"),
        ("heartbeat", 0, "cron"),
        ("wake", 0, "cron"),
        ("tool", 0, "tool"),
        ("spawn", 1, "spawn1"),
        ("spawn", 5, "spawn5"),
    ],
)
async def test_each_class_of_runs_has_slots_of_its_own(source: Source, depth: int, name: str) -> None:
    lanes = Lanes(cap=3, main=2)
    slots = lanes.slots_for(run("a", source=source, spawn_depth=depth).submission)
    assert Lane(KEY).take_slot_nowait(slots)
    limits = lanes.statistics().limits
    assert [known for known, used in limits.items() if used.startswith("1/")] == [name]
    assert limits["main"].endswith("/2")


async def test_a_lane_holds_at_most_one_slot_and_gives_it_back_once(autojump_clock: trio.testing.MockClock) -> None:
    slots = trio.CapacityLimiter(1)
    first, second = Lane("a"), Lane("b")
    assert first.take_slot_nowait(slots)
    assert not second.take_slot_nowait(slots)
    with trio.move_on_after(1) as waited:
        await second.take_slot(slots)
    assert waited.cancelled_caught
    second.free_slot()
    assert slots.borrowed_tokens == 1, "who has none gives none back"
    first.free_slot()
    first.free_slot()
    with trio.fail_after(1):
        await second.take_slot(slots)
    assert slots.borrowed_tokens == 1
