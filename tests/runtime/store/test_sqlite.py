import os
import stat
import sys
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import NoReturn, cast

import apsw
import pytest
import trio

from triops.runtime.errors import Conflict, Unavailable
from triops.runtime.paths import StateError
from triops.runtime.store import sessions
from triops.runtime.store.db import Db
from triops.runtime.store.migrations import VERSION, StateTooNew, migrate
from triops.runtime.store.sqlite import GROUP, Outcome, SqliteStore, Store, connect, open_store

SECONDS = 20.0
NAME = "triops.sqlite"


@asynccontextmanager
async def opened(folder: Path) -> AsyncGenerator[Store]:
    with trio.fail_after(SECONDS):
        async with open_store(folder / NAME) as store:
            yield store


def put(db: Db, key: str, value: str = "{}") -> str:
    db.execute("INSERT INTO kv (key, value) VALUES (?, ?)", (key, value))
    return key


def keys(db: Db) -> list[str]:
    return [row[0] for row in db.execute("SELECT key FROM kv")]


class Gate:
    """Holds the writer thread inside a transaction, so that what is submitted meanwhile waits together."""

    def __init__(self) -> None:
        self._open = threading.Event()

    def pass_through(self, db: Db) -> None:
        assert self._open.wait(SECONDS)

    def open(self) -> None:
        self._open.set()


async def test_transactions_that_wait_together_share_a_commit_and_are_told_in_order(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        gate, told, last = Gate(), list[int](), trio.Event()
        store.submit(gate.pass_through, lambda _: None)
        for number in range(300):
            store.submit(
                lambda db, number=number: put(db, f"{number:03}"), lambda _, number=number: told.append(number)
            )
        store.submit(lambda _: None, lambda _: last.set())
        assert store.statistics().waiting == 302
        gate.open()
        await last.wait()
        assert told == list(range(300))
        statistics = store.statistics()
        assert (statistics.transactions, statistics.waiting) == (302, 0)
        assert statistics.commits <= 2 + 302 // GROUP + 1
        assert len(await store.read(keys)) == 300


async def test_one_that_fails_takes_nobody_with_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        gate, outcomes, last = Gate(), dict[str, Outcome[str]](), trio.Event()

        def conflict(db: Db) -> str:
            put(db, "half")
            raise Conflict("the caller's fault")

        def bug(db: Db) -> str:
            put(db, "half")
            raise ZeroDivisionError

        def refused(db: Db) -> str:
            put(db, "half")
            return put(db, "half")

        store.submit(gate.pass_through, lambda _: None)
        for name, work in {
            "before": lambda db: put(db, "before"),
            "conflict": conflict,
            "bug": bug,
            "refused": refused,
            "after": lambda db: put(db, "after"),
        }.items():
            store.submit(work, lambda outcome, name=name: outcomes.update({name: outcome}))
        store.submit(lambda _: None, lambda _: last.set())
        gate.open()
        await last.wait()
        assert (outcomes["before"].unwrap(), outcomes["after"].unwrap()) == ("before", "after")
        assert isinstance(outcomes["conflict"].error, Conflict)
        assert isinstance(outcomes["bug"].error, ZeroDivisionError)
        assert isinstance(outcomes["refused"].error, Unavailable)
        assert sorted(await store.read(keys)) == ["after", "before"]


async def test_a_fault_of_a_transaction_is_raised_where_it_was_asked_for(tmp_path: Path) -> None:
    def refuse(db: Db) -> NoReturn:
        raise Conflict("no")

    def fails(db: Db) -> list[tuple[object, ...]]:
        return db.execute("SELECT * FROM nothing").fetchall()

    async with opened(tmp_path) as store:
        heard: list[None] = []
        with pytest.raises(Conflict, match="no"):
            await store.write(refuse, then=heard.append)
        with pytest.raises(Conflict, match="no"):
            await store.read(refuse)
        with pytest.raises(Unavailable, match="nothing"):
            await store.read(fails)
        assert heard == []


async def test_a_full_disk_refuses_and_what_comes_after_it_is_stored(tmp_path: Path) -> None:
    def shrink(db: Db) -> None:
        ((pages,),) = db.execute("PRAGMA page_count").fetchall()
        db.execute(f"PRAGMA max_page_count={pages + 4}").fetchall()

    def widen(db: Db) -> None:
        db.execute("PRAGMA max_page_count=100000").fetchall()

    async with opened(tmp_path) as store:
        await store.write(lambda db: put(db, "before"))
        await store.write(shrink)
        with pytest.raises(Unavailable, match="disk is full: make room"):
            await store.write(lambda db: put(db, "much", "x" * 100_000))
        assert await store.write(lambda db: put(db, "small")) == "small"
        await store.write(widen)
        await store.write(lambda db: put(db, "much", "x" * 100_000))
        assert sorted(await store.read(keys)) == ["before", "much", "small"]


async def test_a_full_disk_refuses_one_of_a_group_and_tells_each_the_truth(tmp_path: Path) -> None:
    """SQLite may roll back the statement or the whole transaction; what is told must be what is there."""

    def shrink(db: Db) -> None:
        ((pages,),) = db.execute("PRAGMA page_count").fetchall()
        db.execute(f"PRAGMA max_page_count={pages + 4}").fetchall()

    async with opened(tmp_path) as store:
        await store.write(shrink)
        gate, outcomes, last = Gate(), dict[str, Outcome[str]](), trio.Event()
        store.submit(gate.pass_through, lambda _: None)
        for key, size in {"a": 2, "b": 100_000, "c": 2}.items():
            value = "x" * size
            store.submit(
                lambda db, key=key, value=value: put(db, key, value),
                lambda outcome, key=key: outcomes.update({key: outcome}),
            )
        store.submit(lambda _: None, lambda _: last.set())
        gate.open()
        await last.wait()
        stored = sorted(key for key, outcome in outcomes.items() if outcome.error is None)
        assert sorted(await store.read(keys)) == stored
        assert isinstance(outcomes["b"].error, Unavailable)


async def test_a_disk_that_fails_at_the_commit_refuses_the_whole_group(tmp_path: Path) -> None:
    """A deferred constraint is checked at the commit: the one failure there that needs no broken disk."""

    def prepare(db: Db) -> None:
        db.execute("CREATE TABLE parent (id INTEGER PRIMARY KEY)")
        db.execute("CREATE TABLE child (parent REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED)")

    def refuse(db: Db) -> NoReturn:
        raise Conflict("its own fault")

    async with opened(tmp_path) as store:
        await store.write(prepare)
        gate, outcomes, last = Gate(), dict[str, Outcome[object]](), trio.Event()
        store.submit(gate.pass_through, lambda _: None)
        for name, work in {
            "good": lambda db: put(db, "good"),
            "orphan": lambda db: db.execute("INSERT INTO child VALUES (7)").fetchall(),
            "own": refuse,
        }.items():
            store.submit(work, lambda outcome, name=name: outcomes.update({name: outcome}))
        store.submit(lambda _: None, lambda _: last.set())
        gate.open()
        await last.wait()
        assert isinstance(outcomes["good"].error, Unavailable)
        assert isinstance(outcomes["orphan"].error, Unavailable)
        assert isinstance(outcomes["own"].error, Conflict)
        assert await store.read(keys) == []
        assert await store.write(lambda db: put(db, "later")) == "later"


async def test_a_read_sees_every_write_that_was_answered(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        for number in range(50):
            await store.write(lambda db, number=number: put(db, str(number)))
            assert len(await store.read(keys)) == number + 1


async def test_a_reader_cannot_write(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        with pytest.raises(Unavailable, match="readonly"):
            await store.read(lambda db: put(db, "sneaked"))


async def test_the_end_of_a_write_is_told_when_nobody_waits_any_more(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        gate, heard = Gate(), list[str]()
        store.submit(gate.pass_through, lambda _: None)
        with trio.move_on_after(0) as scope:
            await store.write(lambda db: put(db, "left alone"), then=heard.append)
        assert scope.cancelled_caught
        gate.open()
        await store.write(lambda _: None)
        assert heard == ["left alone"]


async def test_closing_commits_what_was_submitted(tmp_path: Path) -> None:
    told: list[str] = []
    async with opened(tmp_path) as store:
        gate = Gate()
        store.submit(gate.pass_through, lambda _: None)
        for number in range(20):
            store.submit(lambda db, number=number: put(db, str(number)), lambda outcome: told.append(outcome.unwrap()))
        gate.open()
    async with opened(tmp_path) as store:
        assert len(await store.read(keys)) == 20
    assert len(told) == 20


async def test_closing_while_cancelled_commits_as_well(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        async with opened(tmp_path) as store:
            store.submit(lambda db: put(db, "last words"), lambda _: None)
            scope.cancel(reason="the test stops it")
    async with opened(tmp_path) as store:
        assert await store.read(keys) == ["last words"]


async def test_no_thread_outlives_the_store(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        assert isinstance(store, SqliteStore)
        assert {"triops-store-writer", "triops-store-reader"} <= {thread.name for thread in threading.enumerate()}
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("triops-store")]


def modes_in(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


# -- opening -----------------------------------------------------------------------------------------------------------


async def test_a_newer_state_is_refused_and_not_touched(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    db = connect(tmp_path / NAME)
    db.execute(f"PRAGMA user_version={VERSION + 1}")
    db.close()
    before = (tmp_path / NAME).read_bytes()
    with pytest.raises(StateTooNew, match=f"version {VERSION + 1}.*newer Triops"):
        async with opened(tmp_path):
            pass
    assert (tmp_path / NAME).read_bytes() == before


async def test_a_state_of_the_first_version_is_brought_to_this_one_and_keeps_what_it_holds(tmp_path: Path) -> None:
    db = connect(tmp_path / NAME)
    schema = resources.files("triops.runtime.store").joinpath("schema.sql").read_text("utf-8")
    db.execute(f"{schema}; PRAGMA user_version=1")
    db.execute(
        "INSERT INTO sessions (key, agent_id, session_id, created_via, created_at, updated_at, lifecycle_revision)"
        " VALUES ('agent:main:main', 'main', 's', 'operator', 1, 1, 'r')"
    )
    db.close()
    async with opened(tmp_path) as store:
        session = await store.read(lambda db: sessions.require(db, "agent:main:main"))
        assert (session.session_id, session.summary_seq, session.kept_seq) == ("s", 0, 0)
        assert await store.read(lambda db: db.execute("PRAGMA user_version").fetchall()) == [(VERSION,)]


@pytest.mark.parametrize("content", [b"These are my notes of the last summer.\n" * 100, b"short"])
async def test_what_is_no_database_is_refused_with_its_path_and_not_touched(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(Unavailable) as refusal:
        async with opened(tmp_path):
            pass
    assert str(tmp_path / NAME) in str(refusal.value)
    assert (tmp_path / NAME).read_bytes() == content


async def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"nowhere.*TRIOPS_STATE_DIR"):
        async with opened(tmp_path / "nowhere"):
            pass


async def test_a_schema_that_was_cut_off_is_made_at_the_next_start(tmp_path: Path) -> None:
    """A kill between the making of the file and the commit of the schema leaves an empty database."""
    db = connect(tmp_path / NAME)
    db.close()
    async with opened(tmp_path) as store:
        await store.write(lambda db: put(db, "fine"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file modes")
async def test_its_files_are_for_their_owner_alone_from_their_first_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: dict[str, int] = {}

    class Spying(apsw.Connection):
        def execute(self, *arguments: object, **more: object) -> apsw.Cursor:
            for name, mode in modes_in(tmp_path).items():
                modes.setdefault(name, mode)
            return super().execute(*arguments, **more)  # type: ignore[arg-type] - passed on as they came

    monkeypatch.setattr(apsw, "Connection", Spying)
    before = os.umask(0o022)
    try:
        async with opened(tmp_path) as store:
            await store.write(lambda db: put(db, "private"))
            modes |= {f"{name} in use": mode for name, mode in modes_in(tmp_path).items()}
    finally:
        os.umask(before)
    assert NAME in modes
    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o077} == {}


async def test_each_connection_keeps_the_promises(tmp_path: Path) -> None:
    names = ("journal_mode", "synchronous", "foreign_keys", "cache_size")

    def pragmas(db: Db) -> tuple[object, ...]:
        return tuple(db.execute(f"PRAGMA {name}").fetchall()[0][0] for name in names)

    async with opened(tmp_path) as store:
        assert await store.write(pragmas) == ("wal", 2, 1, -8192)
        assert await store.read(pragmas) == ("wal", 2, 1, -8192)


def test_a_query_is_prepared_once_whatever_its_values(tmp_path: Path) -> None:
    db = connect(tmp_path / NAME)
    migrate(db)
    session = sessions.ensure(db, "agent:main:main", now=1)
    prepared: list[object] = []

    def note(*what: object) -> int:
        prepared.append(what)
        return apsw.SQLITE_OK

    cast("apsw.Connection", db).authorizer = note
    sessions.past(db, session, before=2)
    once = len(prepared)
    for before in (3, 4, 5):
        sessions.past(db, session, before=before)
    db.close()
    assert once > 0
    assert len(prepared) == once
