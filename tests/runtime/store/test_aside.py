"""Ends beside the database: kept across a start, in the room that they have had from the start."""

from pathlib import Path

import pytest

from triops.runtime.paths import StateError
from triops.runtime.runs.state import RunState, Terminal
from triops.runtime.store.aside import ROOM, WORDS, open_aside

END = Terminal(state=RunState.ERROR, error_kind="not_stored", error_message="disk full", ended_at=7)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "triops.sqlite"


def test_an_end_is_there_after_a_start_until_the_database_has_it(database: Path) -> None:
    aside = open_aside(database)
    aside.put("a", END)
    aside.put("b", END)
    aside.close()
    again = open_aside(database)
    assert again.ends == {"a": END, "b": END}
    again.remove("a", "nobody")
    again.close()
    last = open_aside(database)
    assert list(last.ends) == ["b"]
    last.close()


def test_it_never_needs_more_room_than_it_had_from_the_start(database: Path) -> None:
    aside = open_aside(database)
    (path,) = database.parent.iterdir()
    assert path.stat().st_size == ROOM
    assert getattr(path.stat(), "st_blocks", ROOM) * 512 >= ROOM, "it has holes, for which a full disk has no room"
    for number in range(200):
        aside.put(f"r{number}", Terminal(state=RunState.ERROR, text="x" * 10 * WORDS, ended_at=number))
    assert path.stat().st_size == ROOM
    aside.close()
    again = open_aside(database)
    assert "r199" in again.ends and "r0" not in again.ends
    again.close()


@pytest.mark.parametrize("found", [b"", b"{", b"\xff" * 100, b'{"a": {"state": "nonsense"}}', b"{}" + b"\0" * 9])
def test_what_was_cut_off_is_no_end(database: Path, found: bytes) -> None:
    database.with_name("triops.sqlite-ends").write_bytes(found)
    aside = open_aside(database)
    assert aside.ends == {}
    aside.close()


def test_a_file_that_cannot_be_made_is_named(database: Path) -> None:
    database.with_name("triops.sqlite-ends").mkdir()
    with pytest.raises(StateError, match="sqlite-ends"):
        open_aside(database)
