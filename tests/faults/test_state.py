"""The state folder is damaged, taken, taken away or closed: what is said, and that nothing in it is ever deleted."""

import os
import random
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from pathlib import Path

import apsw
import pytest
from tests.kit.host import open_test_gateway
from tests.kit.process import Home
from tests.kit.wire import Refused

from triops.runtime.errors import Unavailable
from triops.runtime.paths import StateError
from triops.runtime.store.db import Db
from triops.runtime.store.sqlite import connect, open_store
from triops.runtime.testing import copy_state, open_inline_store

NAME = "triops.sqlite"
LOG = f"{NAME}-wal"


def filled(folder: Path) -> Path:
    """A state whose last writes lie in the log, as a kill leaves it."""
    living = folder / "living"
    living.mkdir()
    with open_inline_store(living / NAME) as store:
        store.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        for number in range(50):
            store.db.execute("INSERT INTO kv VALUES (?, ?)", (f"key-{number}", "x" * 300))
        copy_state(living, folder / "state")
    return folder / "state" / NAME


def noise(count: int) -> bytes:
    return random.Random(1).randbytes(count)


def garbage(path: Path) -> None:
    path.with_name(LOG).unlink()
    path.write_bytes(noise(path.stat().st_size))


def cut_short(path: Path) -> None:
    path.with_name(LOG).unlink()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garbage_in_the_log(path: Path) -> None:
    log = path.with_name(LOG)
    log.write_bytes(noise(log.stat().st_size))


def log_without_its_database(path: Path) -> None:
    path.unlink()


def newer(path: Path) -> None:
    with closing(apsw.Connection(str(path))) as db:
        db.execute("PRAGMA user_version=7")


AFRESH = "move it and its -wal aside to start afresh"
REFUSED: list[tuple[Callable[[Path], None], str]] = [
    (garbage, f"not a database; {AFRESH}"),
    (cut_short, f"malformed; it is damaged: put a backup in its place, or {AFRESH}"),
    (garbage_in_the_log, f"{LOG} does not belong to it; it is damaged"),
    (log_without_its_database, f"{LOG} does not belong to it; it is damaged"),
    (newer, "has version 7.*install a newer Triops"),
]


def contents(folder: Path) -> dict[str, bytes]:
    """What somebody wrote; not the index of the log, which is made anew, and not a log without a word in it."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith("-shm")}
    return {name: content for name, content in files.items() if content}


@pytest.mark.parametrize(("harm", "words"), REFUSED, ids=[harm.__name__ for harm, _ in REFUSED])
async def test_a_state_that_cannot_be_read_is_refused_and_left_as_it_is(
    tmp_path: Path, harm: Callable[[Path], None], words: str
) -> None:
    path = filled(tmp_path)
    harm(path)
    before = contents(path.parent)
    for _ in range(2):  # the second start hears the same
        with pytest.raises(Unavailable, match=words) as refusal:
            async with open_store(path):
                pass
        assert str(path) in str(refusal.value)
    assert contents(path.parent) == before


async def test_a_log_that_ends_in_garbage_keeps_what_is_before_it(tmp_path: Path) -> None:
    """As a power cut leaves it; nothing that was acknowledged is behind a write that was torn."""
    path = filled(tmp_path)
    with path.with_name(LOG).open("ab") as file:
        file.write(noise(10_000))
    async with open_store(path) as store:
        assert len(await store.read(keys)) == 50


def keys(db: Db) -> list[str]:
    return sorted(row[0] for row in db.execute("SELECT key FROM kv"))


def put(db: Db, key: str) -> None:
    db.execute("INSERT INTO kv VALUES (?, '{}')", (key,))


# -- while it runs -----------------------------------------------------------------------------------------------------


@contextmanager
def held_by_another_program(path: Path) -> Generator[None]:
    db = apsw.Connection(str(path))
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        db.execute("ROLLBACK")
        db.close()


async def test_a_database_that_another_program_holds_refuses_writes_until_it_lets_go(tmp_path: Path) -> None:
    async with open_store(tmp_path / NAME) as store:
        await store.write(lambda db: put(db, "before"))
        await store.write(lambda db: db.execute("PRAGMA busy_timeout=20").fetchall())  # five seconds in life
        with held_by_another_program(tmp_path / NAME):
            with pytest.raises(Unavailable, match=f"{NAME}.*locked.*another program holds it: close that one"):
                await store.write(lambda db: put(db, "meanwhile"))
            assert await store.read(keys) == ["before"]
        await store.write(lambda db: put(db, "after"))
        assert await store.read(keys) == ["after", "before"]


async def test_damaged_pages_are_named_and_the_rest_is_served(tmp_path: Path) -> None:
    mark = "somewhere in the middle of it"
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        await client.say(f"SAY:{'x' * 9000}{mark}{'x' * 9000}", key="one", session="one")
        await client.ended("one")
        path = host.runtime.paths.database
    content = path.read_bytes()
    while (place := content.find(mark.encode()) // 4096 * 4096) >= 0:
        content = content[:place] + noise(4096) + content[place + 4096 :]
    path.write_bytes(content)
    async with open_test_gateway(tmp_path, faulty=True) as host, host.client() as client:
        with pytest.raises(Refused, match=r"malformed.*it is damaged: put a backup in its place") as refusal:
            await client.request("chat.history", {"sessionKey": "one"})
        assert refusal.value.error["code"] == "UNAVAILABLE"
        assert len((await client.request("sessions.list"))["sessions"]) == 1
        assert (await client.request("health"))["ok"]


@pytest.mark.skipif(os.name == "nt", reason="Windows lets nobody move a file that is open")
async def test_a_state_folder_that_is_taken_away_refuses_writes_until_it_is_put_back(tmp_path: Path) -> None:
    """SQLite would go on writing to a file that has no name any more: acknowledged, and gone with the process."""
    async with open_test_gateway(tmp_path, faulty=True) as host, host.client() as client:
        await client.say("SAY:before", key="before")
        await client.ended("before")
        state = host.runtime.paths.state
        state.rename(tmp_path / "elsewhere")
        with pytest.raises(Refused, match=rf"UNAVAILABLE.*{NAME} was moved or removed; put it back"):
            await client.say("SAY:meanwhile", key="meanwhile")
        assert len((await client.request("chat.history", {"sessionKey": "main"}))["messages"]) == 2
        (tmp_path / "elsewhere").rename(state)
        await client.say("SAY:meanwhile", key="meanwhile")
        assert (await client.ended("meanwhile"))["state"] == "final"


@pytest.mark.skipif(os.name == "nt", reason="Windows lets nobody replace a file that is open")
async def test_another_file_in_the_place_of_the_database_is_not_taken_for_it(tmp_path: Path) -> None:
    async with open_store(tmp_path / NAME) as store:
        await store.write(lambda db: put(db, "before"))
        (tmp_path / NAME).rename(tmp_path / "aside")
        (tmp_path / NAME).touch()
        with pytest.raises(Unavailable, match="was moved or removed"):
            await store.write(lambda db: put(db, "lost"))


# -- a folder that is closed -------------------------------------------------------------------------------------------

read_only = pytest.mark.skipif(
    os.name == "nt" or os.geteuid() == 0, reason="modes do not bind the administrator, and Windows has none"
)


@read_only
async def test_a_read_only_state_folder_exits_78_and_says_what_to_do(tmp_path: Path) -> None:
    home = Home(tmp_path, {})
    home.paths.state.chmod(0o500)
    ran = await home.run("gateway", "run", "--port", "0")
    assert ran.code == 78
    assert f"cannot make the folder {home.paths.logs}: Permission denied; let this user write there" in ran.err


def test_a_file_that_cannot_be_written_says_which_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for those whom modes do not bind: a file system that is read-only."""

    def refuse(*_: object) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StateError, match=rf"cannot open .*{NAME}: Read-only file system; .*set TRIOPS_STATE_DIR"):
        connect(tmp_path / NAME)


@read_only
async def test_a_database_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    async with open_store(tmp_path / NAME):
        pass
    (tmp_path / NAME).chmod(0o400)
    async with open_store(tmp_path / NAME) as store:
        with pytest.raises(Unavailable, match=r"readonly database.*let this user write there"):
            await store.write(lambda db: put(db, "key"))
