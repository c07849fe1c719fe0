from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from triops.agents.messages import AssistantMessage, Message, SystemMessage, Text, ToolResultMessage, UserMessage
from triops.runtime.errors import Conflict, NotFound
from triops.runtime.history import STEP, WINDOW, Past
from triops.runtime.sessions import MAIN_KEY, Session
from triops.runtime.store import sessions
from triops.runtime.store.db import Db
from triops.runtime.store.sessions import SessionFilter
from triops.runtime.testing import open_inline_store

NOW = 1_800_000_000_000
OTHER = "agent:main:other"


@pytest.fixture
def db(tmp_path: Path) -> Generator[Db]:
    with open_inline_store(tmp_path / "triops.sqlite") as store:
        yield store.db


def say(db: Db, *texts: str, key: str = MAIN_KEY, now: int = NOW) -> Session:
    session = sessions.ensure(db, key, now)
    for text in texts:
        sessions.place(db, session.sid, UserMessage(text, now), now)
    return sessions.require(db, key)


def keys(db: Db, **wanted: Any) -> list[str]:
    return [session.key for session in sessions.listing(db, SessionFilter(**wanted))[0]]


def texts(page: sessions.Page) -> list[object]:
    return [placed.message.content for placed in page.messages]


# -- rows --------------------------------------------------------------------------------------------------------------


def test_a_session_is_made_once(db: Db) -> None:
    made = sessions.ensure(db, MAIN_KEY, NOW, created_via="cron", model="a/b")
    assert (made.agent_id, made.created_via, made.model, made.created_at) == ("main", "cron", "a/b", NOW)
    assert sessions.ensure(db, MAIN_KEY, NOW + 1) == made
    assert sessions.count(db) == 1
    assert sessions.find(db, OTHER) is None
    with pytest.raises(NotFound, match=OTHER):
        sessions.require(db, OTHER)


def test_a_label_names_one_session(db: Db) -> None:
    first = sessions.ensure(db, MAIN_KEY, NOW, label="notes")
    assert sessions.find_labelled(db, "notes") == first
    with pytest.raises(Conflict, match=f"'notes' is {MAIN_KEY}"):
        sessions.ensure(db, OTHER, NOW, label="notes")
    assert sessions.find(db, OTHER) is None
    assert sessions.ensure(db, MAIN_KEY, NOW, label="notes").label == "notes"


def test_label_and_model_of_a_session_can_be_set_later_and_stay(db: Db) -> None:
    made = sessions.ensure(db, MAIN_KEY, NOW)
    sessions.ensure(db, MAIN_KEY, NOW + 1, label="notes")
    changed = sessions.ensure(db, MAIN_KEY, NOW + 2, model="a/b")
    assert (changed.label, changed.model, changed.updated_at) == ("notes", "a/b", NOW + 2)
    assert (changed.sid, changed.session_id) == (made.sid, made.session_id)


def test_touching_keeps_a_session_fresh_and_makes_only_a_main_one(db: Db) -> None:
    assert sessions.touch(db, MAIN_KEY, NOW).last_interaction_at == NOW
    with pytest.raises(NotFound):
        sessions.touch(db, OTHER, NOW)
    say(db, "hi", key=OTHER)
    touched = sessions.touch(db, OTHER, NOW + 7)
    assert (touched.updated_at, touched.last_interaction_at) == (NOW + 7, NOW + 7)


# -- lists -------------------------------------------------------------------------------------------------------------


def test_the_last_used_session_is_listed_first_and_pages_say_how_many_there_are(db: Db) -> None:
    for number in range(5):
        say(db, "hi", key=f"agent:main:s{number}", now=NOW + number)
    say(db, "again", key="agent:main:s1", now=NOW + 100)
    order = [f"agent:main:s{number}" for number in (1, 4, 3, 2, 0)]
    assert keys(db) == order
    rows, total = sessions.listing(db, SessionFilter(limit=2, offset=3))
    assert ([row.key for row in rows], total) == (order[3:], 5)


def test_lists_are_filtered(db: Db) -> None:
    child, job = "agent:main:subagent:1", "agent:main:cron:job"
    say(db, "hello there", now=NOW)
    say(db, "hi", key="agent:work:main", now=NOW + 1)
    sessions.ensure(db, child, NOW + 2, label="helper", spawned_by=MAIN_KEY, spawn_depth=1)
    say(db, "tick", key=job, now=NOW + 3)
    assert keys(db, active_since=NOW + 2) == [job, child]
    assert keys(db, label="helper") == [child]
    assert keys(db, agent_id="work") == ["agent:work:main"]
    assert keys(db, spawned_by=MAIN_KEY) == [child]
    assert keys(db, exclude_subagents=True, exclude_cron=True) == ["agent:work:main", MAIN_KEY]
    assert keys(db, agent_id="main", search="hello") == [MAIN_KEY]
    assert keys(db, search="help") == [child]
    assert keys(db, search="cron:") == [job]


@pytest.mark.parametrize("search", ["%", "_", "\\", "100%", "a_b", "c\\d"])
def test_a_search_takes_every_character_as_it_is(db: Db, search: str) -> None:
    say(db, "100% of a_b and c\\d", key=OTHER)
    say(db, "100x of axb and cxd", key="agent:main:decoy")
    assert keys(db, search=search) == [OTHER]


# -- transcripts -------------------------------------------------------------------------------------------------------


def test_messages_get_places_without_a_gap_and_a_row_that_tells_the_last_words(db: Db) -> None:
    session = say(db, "one")
    messages: list[Message] = [
        AssistantMessage((Text("two"),), NOW + 1),
        ToolResultMessage("c", "read", (Text("three"),), NOW + 2),
        SystemMessage("four", NOW + 3),
        AssistantMessage((), NOW + 4),
    ]
    placed = [sessions.place(db, session.sid, message, NOW + 9, run_id="r") for message in messages]
    assert [entry.seq for entry in placed] == [2, 3, 4, 5]
    assert len({entry.id for entry in placed}) == 4
    row = sessions.require(db, MAIN_KEY)
    assert (row.last_seq, row.last_preview, row.updated_at, row.last_interaction_at) == (5, "four", NOW + 9, NOW + 9)
    page = sessions.transcript(db, MAIN_KEY, limit=10)
    assert [entry.message for entry in page.messages][1:] == messages
    assert [entry.run_id for entry in page.messages] == [None, "r", "r", "r", "r"]


def test_a_transcript_is_read_from_its_end_in_pages(db: Db) -> None:
    say(db, *(str(number) for number in range(10)))
    say(db, "elsewhere", key=OTHER)
    last = sessions.transcript(db, MAIN_KEY, limit=4)
    assert (texts(last), last.total, last.has_more) == (["6", "7", "8", "9"], 10, True)
    middle = sessions.transcript(db, MAIN_KEY, limit=4, offset=4)
    assert (texts(middle), middle.has_more) == (["2", "3", "4", "5"], True)
    first = sessions.transcript(db, MAIN_KEY, limit=4, offset=8)
    assert (texts(first), first.has_more) == (["0", "1"], False)
    assert texts(sessions.transcript(db, MAIN_KEY, limit=4, offset=10)) == []
    assert sessions.transcript(db, "agent:main:none", limit=4) == sessions.Page(None, [], 0, False)


def said(past: Past) -> list[object]:
    return [message.content for message in past.followed_by(())[0]]


def test_a_reset_keeps_the_transcript_and_empties_the_context(db: Db) -> None:
    before = say(db, "old", "older")
    fresh = sessions.reset(db, MAIN_KEY, NOW + 5)
    assert (fresh.session_id, fresh.reset_seq, fresh.updated_at) == (before.session_id, 3, NOW + 5)
    assert fresh.lifecycle_revision != before.lifecycle_revision
    known = sessions.past(db, before, before=3)
    assert said(known) == ["old", "older"]
    assert said(sessions.past(db, fresh, before=4, known=known)) == []
    say(db, "new")
    assert said(sessions.past(db, fresh, before=5, known=known)) == ["new"]
    shown = sessions.transcript(db, MAIN_KEY, limit=9)
    assert (texts(shown), shown.total, shown.has_more) == (["Reset", "new"], 2, False)
    assert sessions.transcript(db, MAIN_KEY, limit=1).has_more
    assert texts(sessions.transcript(db, MAIN_KEY, limit=9, whole=True)) == ["old", "older", "Reset", "new"]


def test_a_turn_looks_back_a_window_that_moves_by_steps(db: Db) -> None:
    session = say(db, *(str(number) for number in range(1, WINDOW + STEP + 60)))
    assert said(sessions.past(db, session, before=WINDOW + STEP))[0] == "1"
    moved = said(sessions.past(db, session, before=WINDOW + STEP + 1))
    assert (moved[0], moved[-1]) == (str(STEP + 1), str(WINDOW + STEP))
    assert said(sessions.past(db, session, before=WINDOW + STEP + 50))[0] == str(STEP + 1)


def test_only_what_is_not_known_is_read(db: Db) -> None:
    session = say(db, "one", "two")
    known = sessions.past(db, session, before=3)
    db.execute("UPDATE messages SET body = 'no JSON' WHERE seq < 3")
    assert sessions.past(db, session, before=3, known=known) is known
    say(db, "three")
    assert said(sessions.past(db, session, before=4, known=known)) == ["one", "two", "three"]


def test_what_is_known_of_another_transcript_is_not_taken(db: Db) -> None:
    session, other = say(db, "one"), say(db, "elsewhere", key=OTHER)
    known = sessions.past(db, other, before=2)
    assert said(sessions.past(db, session, before=2, known=known)) == ["one"]


def test_a_message_without_a_run_is_appended(db: Db) -> None:
    session, placed = sessions.append(db, MAIN_KEY, SystemMessage("ding", NOW, source="wake"), NOW)
    assert (session.created_via, session.last_seq, session.last_preview) == ("internal", 1, "ding")
    assert (placed.seq, placed.run_id) == (1, None)


def test_values_are_kept_by_name(db: Db) -> None:
    assert sessions.get_value(db, "x") is None
    sessions.set_value(db, "x", {"a": [1]})
    sessions.set_value(db, "x", {"a": [2]})
    assert sessions.get_value(db, "x") == {"a": [2]}


@pytest.mark.parametrize("key", ["agent:work:main", "agent:work:cron:1"])
def test_every_session_has_the_main_one_of_its_agent(key: str) -> None:
    assert sessions.main_key_of(key) == "agent:work:main"
