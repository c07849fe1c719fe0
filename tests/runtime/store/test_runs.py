from collections.abc import Generator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from triops.agents.messages import AssistantMessage, Message, SystemMessage, Text, Usage, UserMessage
from triops.runtime.errors import Conflict, NotFound
from triops.runtime.runs.state import RunState, Submission, Terminal
from triops.runtime.sessions import MAIN_KEY
from triops.runtime.store import runs, sessions
from triops.runtime.store.db import Db
from triops.runtime.testing import open_inline_store

NOW = 1_800_000_000_000
MAX_AGE = 600_000
FINAL = Terminal(state=RunState.FINAL, stop_reason="stop", text="yes", started_at=NOW, ended_at=NOW + 5)


@pytest.fixture
def db(tmp_path: Path) -> Generator[Db]:
    with open_inline_store(tmp_path / "triops.sqlite") as store:
        yield store.db


def submission(run_id: str, text: str = "", *, session: str = MAIN_KEY, **more: Any) -> Submission:
    message = UserMessage(text or f"say {run_id}", NOW)
    return Submission(**{"run_id": run_id, "session_key": session, "message": message} | more)


def accept(db: Db, run_id: str, *, start: bool = False, now: int = NOW, **more: Any) -> runs.Acceptance:
    return runs.accept(db, submission(run_id, **more), now, start=start)


def reply(text: str = "yes", usage: Usage | None = None) -> AssistantMessage:
    return AssistantMessage((Text(text),), NOW, usage=usage)


def found(db: Db, run_id: str) -> runs.Stored:
    stored = runs.find(db, run_id)
    assert stored is not None
    return stored


def words(db: Db, key: str = MAIN_KEY) -> list[object]:
    def said(message: Message) -> object:
        return message.text if isinstance(message, AssistantMessage) else message.content

    return [said(placed.message) for placed in sessions.transcript(db, key, limit=100).messages]


# -- accepting ---------------------------------------------------------------------------------------------------------


def test_a_run_that_waits_has_no_place_yet(db: Db) -> None:
    accepted = accept(db, "a")
    assert (accepted.fresh, accepted.state, accepted.placed, accepted.terminal) == (True, RunState.QUEUED, None, None)
    assert words(db) == []
    assert found(db, "a").submission == submission("a")


def test_a_run_that_starts_has_its_place_and_what_came_before_it(db: Db) -> None:
    first = accept(db, "a", start=True)
    runs.finish(db, first.session.sid, "a", FINAL, [reply()], NOW)
    second = accept(db, "b", start=True)
    assert second.state is RunState.RUNNING
    assert second.placed is not None and second.placed.seq == 3
    assert second.past is not None
    assert ["say a" in str(message.content) for message in second.past.followed_by(())[0]] == [True, False]
    assert words(db) == ["say a", "yes", "say b"]
    assert sessions.require(db, MAIN_KEY).status == "running"


def test_a_key_that_comes_again_tells_how_its_run_stands(db: Db) -> None:
    sid = accept(db, "a", start=True).session.sid
    again = accept(db, "a", now=NOW + 1000)
    assert (again.fresh, again.state, again.accepted_at, again.terminal) == (False, RunState.RUNNING, NOW, None)
    runs.finish(db, sid, "a", FINAL, [], NOW)
    again = accept(db, "a")
    assert (again.fresh, again.state, again.terminal) == (False, RunState.FINAL, FINAL)
    assert words(db) == ["say a"]


def test_a_key_that_comes_again_at_another_time_is_the_same(db: Db) -> None:
    accept(db, "a")
    later = submission("a", message=UserMessage("say a", NOW + 60_000))
    assert not runs.accept(db, later, NOW + 60_000, start=False).fresh


@pytest.mark.parametrize(
    "other", [{"text": "other words"}, {"session": "agent:main:else"}, {"message": SystemMessage("say a", NOW)}]
)
def test_a_key_stands_for_one_input(db: Db, other: dict[str, Any]) -> None:
    accept(db, "a")
    with pytest.raises(Conflict, match="already used") as conflict:
        runs.accept(db, submission("a", **other), NOW, start=False)
    assert conflict.value.details == {"reason": "chat-request-conflict"}


def test_a_session_that_must_exist_is_not_made(db: Db) -> None:
    with pytest.raises(NotFound, match="agent:main:gone"):
        accept(db, "a", session="agent:main:gone", must_exist=True)
    assert sessions.count(db) == 0
    assert runs.find(db, "a") is None


def test_a_spawned_run_makes_its_session_with_its_parent(db: Db) -> None:
    key = "agent:main:subagent:1"
    session = accept(db, "a", session=key, source="spawn", spawned_by=MAIN_KEY, spawn_depth=1, label="work").session
    assert (session.created_via, session.spawned_by, session.spawn_depth, session.label) == (
        "spawn",
        MAIN_KEY,
        1,
        "work",
    )


def test_an_answer_is_over_as_it_comes_and_once(db: Db) -> None:
    answered = runs.answer(db, submission("a"), FINAL, NOW)
    assert (answered.fresh, answered.placed, answered.session.last_seq) == (True, None, 0)
    assert (found(db, "a").state, found(db, "a").terminal) == (RunState.FINAL, FINAL)
    again = runs.answer(db, submission("a"), msgspec.structs.replace(FINAL, text="other"), NOW + 1)
    assert (again.fresh, again.terminal) == (False, FINAL)
    with pytest.raises(Conflict):
        runs.answer(db, submission("a", "other words"), FINAL, NOW)


# -- its way -----------------------------------------------------------------------------------------------------------


def test_a_run_is_claimed_once(db: Db) -> None:
    sid = accept(db, "a").session.sid
    _, placed, past = runs.claim(db, submission("a"), sid, NOW)
    assert (placed.seq, placed.run_id, past.end) == (1, "a", 0)
    assert found(db, "a").state is RunState.RUNNING
    with pytest.raises(AssertionError, match="not queued"):
        runs.claim(db, submission("a"), sid, NOW)


def test_what_a_run_took_in_ends_with_it(db: Db) -> None:
    sid = accept(db, "a", start=True).session.sid
    accept(db, "b")
    placed = runs.save(db, sid, "a", [submission("b").message], ["b"], NOW)
    assert [(entry.seq, entry.run_id) for entry in placed] == [(2, "a")]
    assert (found(db, "b").state, found(db, "b").terminal) == (RunState.MERGED, None)
    runs.finish(db, sid, "a", FINAL, [reply()], NOW)
    terminal = found(db, "b").terminal
    assert terminal is not None
    assert (terminal.state, terminal.merged_into, terminal.text) == (RunState.MERGED, "a", "")
    assert (terminal.stop_reason, terminal.ended_at) == ("stop", NOW + 5)
    assert accept(db, "b").terminal == terminal
    assert words(db) == ["say a", "say b", "yes"]


def test_the_end_of_a_run_stands_in_its_sessions_row(db: Db) -> None:
    sid = accept(db, "a", start=True).session.sid
    runs.finish(db, sid, "a", FINAL, [reply(usage=Usage(input=7, output=2, total_tokens=9))], NOW + 9)
    session = sessions.require(db, MAIN_KEY)
    assert (session.status, session.ended_at, session.last_run_id, session.last_preview) == (
        "done",
        NOW + 5,
        "a",
        "yes",
    )
    assert (session.input_tokens, session.output_tokens, session.total_tokens) == (7, 2, 9)
    accept(db, "b", start=True)
    failed = Terminal(state=RunState.ERROR, error_message="no model", ended_at=NOW + 20)
    runs.finish(db, sid, "b", failed, [], NOW + 20)
    session = sessions.require(db, MAIN_KEY)
    assert (session.status, session.last_run_error, session.total_tokens) == ("failed", "no model", 9)


def test_an_end_is_not_written_over(db: Db) -> None:
    sid = accept(db, "a", start=True).session.sid
    runs.finish(db, sid, "a", FINAL, [], NOW)
    runs.finish(db, sid, "a", Terminal(state=RunState.ABORTED, ended_at=NOW), [], NOW)
    assert found(db, "a").terminal == FINAL


def test_a_run_that_is_dropped_keeps_its_message(db: Db) -> None:
    sid = accept(db, "a").session.sid
    aborted = Terminal(state=RunState.ABORTED, stop_reason="rpc", ended_at=NOW)
    assert runs.drop(db, submission("a"), sid, aborted, NOW).seq == 1
    assert (found(db, "a").state, found(db, "a").terminal) == (RunState.ABORTED, aborted)
    assert words(db) == ["say a"]


def test_nothing_is_found_of_a_run_that_nobody_asked_for(db: Db) -> None:
    assert runs.find(db, "a") is None


# -- after a start -----------------------------------------------------------------------------------------------------


def test_a_start_ends_what_ran_and_gives_back_what_waits_in_order(db: Db) -> None:
    accept(db, "ran", start=True)
    for run_id in ("first", "second", "third"):
        accept(db, run_id, now=NOW + 10)
    accept(db, "over", session="agent:main:else")
    runs.drop(db, submission("over"), 2, Terminal(state=RunState.ABORTED, ended_at=NOW), NOW)
    ended, waiting = runs.recover(db, NOW + 100, max_age_ms=MAX_AGE, told={})
    assert [stored.submission.run_id for stored in ended] == ["ran"]
    assert [stored.submission.run_id for stored in waiting] == ["first", "second", "third"]
    terminal = found(db, "ran").terminal
    assert terminal is not None and terminal == ended[0].terminal
    assert (terminal.state, terminal.stop_reason, terminal.ended_at) == (RunState.ABORTED, "restart", NOW + 100)
    assert sessions.require(db, MAIN_KEY).status == "killed"
    *_, last = sessions.transcript(db, MAIN_KEY, limit=9).messages
    assert isinstance(last.message, AssistantMessage)
    assert (last.message.stop_reason, last.run_id) == ("aborted", "ran")


def test_what_waited_too_long_is_ended_by_a_start_and_keeps_its_message(db: Db) -> None:
    accept(db, "old", now=NOW - 1)
    accept(db, "young", now=NOW)
    ended, waiting = runs.recover(db, NOW + MAX_AGE, max_age_ms=MAX_AGE, told={})
    assert [stored.submission.run_id for stored in ended] == ["old"]
    assert [stored.submission.run_id for stored in waiting] == ["young"]
    assert words(db) == ["say old"]


def test_a_start_tells_the_end_of_what_a_run_had_taken_in(db: Db) -> None:
    sid = accept(db, "a", start=True).session.sid
    accept(db, "b")
    runs.save(db, sid, "a", [submission("b").message], ["b"], NOW)
    ended, waiting = runs.recover(db, NOW + 100, max_age_ms=MAX_AGE, told={})
    assert [stored.submission.run_id for stored in ended] == ["a", "b"]
    assert waiting == []
    assert ended[1].terminal == found(db, "b").terminal
    assert ended[1].terminal is not None
    assert (ended[1].terminal.state, ended[1].terminal.merged_into) == (RunState.MERGED, "a")


def test_a_second_start_finds_nothing_to_end(db: Db) -> None:
    accept(db, "a", start=True)
    runs.recover(db, NOW + 1, max_age_ms=MAX_AGE, told={})
    told = found(db, "a").terminal
    assert runs.recover(db, NOW + 2, max_age_ms=MAX_AGE, told={}) == ([], [])
    assert found(db, "a").terminal == told


def test_a_key_is_kept_for_its_time_and_an_open_run_for_ever(db: Db) -> None:
    sid = accept(db, "kept", start=True).session.sid
    runs.finish(db, sid, "kept", FINAL, [], NOW)
    runs.recover(db, NOW + runs.KEEP_MS, max_age_ms=MAX_AGE, told={})
    assert runs.find(db, "kept") is not None
    accept(db, "open", now=NOW)
    runs.recover(db, NOW + runs.KEEP_MS + 1, max_age_ms=2 * runs.KEEP_MS, told={})
    assert runs.find(db, "kept") is None
    assert found(db, "open").state is RunState.QUEUED
