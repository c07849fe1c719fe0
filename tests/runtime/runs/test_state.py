from itertools import product

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triops.agents.messages import SystemMessage, UserMessage
from triops.runtime.runs.state import (
    TERMINAL,
    TRANSITIONS,
    RunChange,
    RunState,
    Terminal,
    decode_input,
    decode_terminal,
    encode_input,
    encode_terminal,
    merged_terminal,
    next_state,
)

ALLOWED = {
    ("queued", "start"): "running",
    ("queued", "abort"): "aborted",
    ("queued", "merge"): "merged",
    ("running", "finish"): "final",
    ("running", "fail"): "error",
    ("running", "abort"): "aborted",
}


@pytest.mark.parametrize(("state", "change"), list(product(RunState, RunChange)))
def test_a_run_changes_only_as_the_table_says(state: RunState, change: RunChange) -> None:
    following = ALLOWED.get((state.value, change.value))
    if following is not None:
        assert next_state(state, change) == following
    else:
        with pytest.raises(AssertionError, match=f"a run that is {state} cannot {change}"):
            next_state(state, change)


def test_nothing_leaves_a_terminal_state_and_everything_else_can_end() -> None:
    assert {state for state, _ in TRANSITIONS} == set(RunState) - TERMINAL
    assert set(TRANSITIONS.values()) == {*TERMINAL, RunState.RUNNING}


@given(st.lists(st.sampled_from(RunChange), max_size=6))
def test_no_history_of_a_run_ends_twice(changes: list[RunChange]) -> None:
    state, ends = RunState.QUEUED, 0
    for change in changes:
        try:
            state = next_state(state, change)
        except AssertionError:
            continue
        ends += state in TERMINAL
    assert ends <= 1


def test_a_merged_run_ends_with_its_taker_and_shows_nothing_of_its_own() -> None:
    taker = Terminal(
        state=RunState.ERROR, stop_reason="error", text="half", error_message="no", started_at=3, ended_at=7
    )
    assert merged_terminal(taker, "r1") == Terminal(
        state=RunState.MERGED, stop_reason="error", started_at=3, ended_at=7, merged_into="r1"
    )


def test_terminals_and_inputs_survive_the_disk() -> None:
    terminal = Terminal(state=RunState.FINAL, text="né\x00", ended_at=7, tools=("read",), error_detail={"a": [1, None]})
    assert decode_terminal(encode_terminal(terminal)) == terminal
    for message in (UserMessage("x", 1), SystemMessage("y", 2, source="wake")):
        assert decode_input(encode_input(message)) == message
    with pytest.raises(msgspec.ValidationError):
        decode_input(b'{"role":"assistant","content":[],"timestamp":1}')
