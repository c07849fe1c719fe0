"""What a client still gets, without any client."""

import json
import time
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from triops.agents.messages import Text
from triops.gateway.frames import encode_event
from triops.gateway.outbox import BATCH_BYTES, MAX_BYTES, MAX_FRAMES, SLOW, Delta, Outbox
from triops.gateway.schema.events import AgentEvent, ChatEvent, ShownMessage


def agent_delta(text: str, new: str, run: str = "r", seq: int = 1, index: int = 1) -> Delta:
    data = {"text": text, "delta": new, "itemId": f"{run}:{index}"}
    payload = AgentEvent(run_id=run, stream="assistant", data=data, session_key="k", agent_id="main", seq=seq, ts=seq)
    return Delta("agent", payload, encode_event("agent", payload))


def chat_delta(text: str, new: str, run: str = "r", *, replace: bool = False) -> Delta:
    message = ShownMessage((Text(text),), 1)
    payload = ChatEvent(
        run_id=run, session_key="k", seq=1, state="delta", delta_text=new, message=message, replace=replace
    )
    return Delta("chat", payload, encode_event("chat", payload))


def taken(outbox: Outbox) -> list[dict[str, Any]]:
    frames: list[dict[str, Any]] = []
    while batch := outbox.take():
        frames += map(json.loads, batch)
    return frames


def test_frames_leave_in_order_and_events_are_numbered_when_they_leave() -> None:
    outbox = Outbox(time.monotonic)
    outbox.put(b'{"n":1}')
    outbox.put_event(encode_event("tick", {"ts": 1}))
    outbox.put(b'{"n":2}')
    outbox.put_event(encode_event("tick", {"ts": 2}))
    frames = taken(outbox)
    assert [frame.get("n") or frame["payload"]["ts"] for frame in frames] == [1, 1, 2, 2]
    assert [frame["seq"] for frame in frames if "seq" in frame] == [1, 2]
    assert outbox.statistics().bytes == outbox.statistics().frames == 0


def test_deltas_that_wait_become_one_with_all_that_was_new() -> None:
    outbox = Outbox(time.monotonic)
    outbox.put_delta(chat_delta("ab", "ab"))
    outbox.put_delta(chat_delta("abc", "c"))
    outbox.put_delta(agent_delta("ab", "ab"))
    outbox.put_delta(agent_delta("abcd", "cd", seq=7))
    chat, agent = taken(outbox)
    assert chat["payload"]["deltaText"] == "abc"
    assert chat["payload"]["message"]["content"][0]["text"] == "abc"
    assert agent["payload"]["data"] == {"text": "abcd", "delta": "abcd", "itemId": "r:1"}
    assert agent["payload"]["seq"] == 7
    assert [chat["seq"], agent["seq"]] == [1, 2]
    assert outbox.statistics().merged == 2


def test_deltas_of_different_runs_stay_apart() -> None:
    outbox = Outbox(time.monotonic)
    outbox.put_delta(chat_delta("a", "a", "one"))
    outbox.put_delta(chat_delta("x", "x", "two"))
    outbox.put_delta(chat_delta("ab", "b", "one"))
    assert [(f["payload"]["runId"], f["payload"]["deltaText"]) for f in taken(outbox)] == [("one", "ab"), ("two", "x")]


def test_an_event_of_the_run_is_never_overtaken_by_its_text() -> None:
    outbox = Outbox(time.monotonic)
    outbox.put_delta(chat_delta("a", "a"))
    outbox.put_event(encode_event("agent", {"tool": 1}), run_id="r")
    outbox.put_delta(chat_delta("ab", "b"))
    names = [(frame["event"], frame["payload"].get("deltaText")) for frame in taken(outbox)]
    assert names == [("chat", "a"), ("agent", None), ("chat", "b")]


def test_a_delta_that_was_taken_is_not_merged_into() -> None:
    outbox = Outbox(time.monotonic)
    outbox.put_delta(chat_delta("a", "a"))
    assert len(taken(outbox)) == 1
    outbox.put_delta(chat_delta("ab", "b"))
    assert [frame["payload"]["deltaText"] for frame in taken(outbox)] == ["b"]


def test_a_merged_delta_still_says_that_it_replaces() -> None:
    outbox = Outbox(time.monotonic)
    outbox.put_delta(chat_delta("new", "new", replace=True))
    outbox.put_delta(chat_delta("newer", "er"))
    (only,) = taken(outbox)
    assert only["payload"]["replace"] is True
    assert only["payload"]["deltaText"] == "newer"


def test_a_client_past_its_count_or_bytes_is_given_up_and_keeps_no_more() -> None:
    clock = [0.0]
    by_count = Outbox(lambda: clock[0])
    for _ in range(MAX_FRAMES + 10):
        by_count.put(b"{}")
    while by_count.take():
        pass
    by_count.put(b"{}")
    by_count.take()
    for _ in range(MAX_FRAMES + 1):
        by_count.put(b"{}")
    assert not by_count.overflowed, "a burst, and a write that has only begun"
    by_count.take()
    for _ in range(MAX_FRAMES):
        by_count.put(b"{}")
    clock[0] += SLOW + 0.1
    for _ in range(1000):
        by_count.put(b"{}")
    assert by_count.overflowed
    assert by_count.statistics().frames == MAX_FRAMES + 1
    for text in ("a", "ab", "abc"):
        by_count.put_delta(chat_delta(text, text[-1]))
    by_count.put_event(encode_event("tick", {}), run_id="r")
    assert by_count.statistics().frames == MAX_FRAMES + 1
    by_bytes = Outbox(time.monotonic)
    by_bytes.put(b"x" * MAX_BYTES)
    assert not by_bytes.overflowed
    by_bytes.put(b"x")
    assert by_bytes.overflowed
    by_bytes.put(b"x" * MAX_BYTES)
    assert by_bytes.statistics().bytes == MAX_BYTES + 1


def test_a_batch_is_bounded_but_takes_at_least_one_frame() -> None:
    outbox = Outbox(time.monotonic)
    outbox.put(b"x" * (2 * BATCH_BYTES))
    outbox.put(b"y" * (BATCH_BYTES // 2))
    outbox.put(b"y" * (BATCH_BYTES // 2))
    outbox.put(b"z")
    assert [len(batch) for batch in iter(outbox.take, [])] == [1, 2, 1]


def test_the_text_of_another_message_replaces_what_waits() -> None:
    outbox = Outbox(time.monotonic)
    outbox.put_delta(chat_delta("first", "st"))
    outbox.put_delta(chat_delta("sec", "sec", replace=True))
    outbox.put_delta(chat_delta("second", "ond"))
    outbox.put_delta(agent_delta("first", "st"))
    outbox.put_delta(agent_delta("second", "second", index=2))
    chat, agent = taken(outbox)
    assert (chat["payload"]["deltaText"], chat["payload"]["replace"]) == ("second", True)
    assert agent["payload"]["data"] == {"text": "second", "delta": "second", "itemId": "r:2"}


async def test_the_writer_wakes_for_a_frame_and_for_a_ring(autojump_clock: trio.testing.MockClock) -> None:
    outbox = Outbox(time.monotonic)
    for wake in (lambda: outbox.put(b"{}"), outbox.ring):
        with trio.fail_after(1):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(outbox.wait)
                await trio.testing.wait_all_tasks_blocked()
                assert len(nursery.child_tasks) == 1
                wake()
        outbox.take()


Step = st.tuples(st.sampled_from(["one", "two"]), st.sampled_from(["text", "event", "take", "answer"]))


@given(st.lists(Step, max_size=60))
def test_whatever_the_pace_of_the_reader_each_run_reads_whole_and_in_order(steps: list[tuple[str, str]]) -> None:
    outbox = Outbox(time.monotonic)
    said = {"one": "", "two": ""}
    expected: dict[str, list[str]] = {"one": [], "two": []}
    got: list[dict[str, Any]] = []
    for number, (run, what) in enumerate(steps):
        if what == "text":
            said[run] += (new := f"{number},")
            expected[run].append(new)
            outbox.put_delta(chat_delta(said[run], new, run))
        elif what == "event":
            expected[run].append("|")
            outbox.put_event(encode_event("agent", {"runId": run, "deltaText": "|"}), run_id=run)
        elif what == "take":
            got += map(json.loads, outbox.take())
        else:
            outbox.put(b'{"type":"res"}')
    got += taken(outbox)
    events = [frame for frame in got if frame.get("type") == "event"]
    assert [frame["seq"] for frame in events] == list(range(1, len(events) + 1))
    for run, wanted in expected.items():
        told = "".join(f["payload"]["deltaText"] for f in events if f["payload"]["runId"] == run)
        assert told == "".join(wanted)
    assert outbox.statistics().bytes == 0


@pytest.mark.parametrize("size", [0, 1, 200])
def test_bytes_are_counted_back_to_nothing_when_merged(size: int) -> None:
    outbox = Outbox(time.monotonic)
    for number in range(size):
        outbox.put_delta(chat_delta("x" * number, "x"))
    taken(outbox)
    assert outbox.statistics().bytes == 0
    assert outbox.statistics().frames == 0
