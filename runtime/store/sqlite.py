"""The store: SQLite behind whole transactions. Knows how to commit, not what the tables mean.

A transaction is a function of one connection; the modules beside this one hold them all, and no SQL stands anywhere
else. They run in one writer thread. Those that wait at the same moment share one commit (group commit), each in its
own savepoint, so that one which fails takes nobody with it. Nothing is told to anybody before the commit has
returned: WAL with `synchronous=FULL` means that it is on disk then.

Readers have a connection and a thread of their own; a read that starts after a write was answered sees it.
"""

import os
import queue
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

import apsw
import msgspec
import trio

from triops.runtime.errors import RuntimeFault, Unavailable
from triops.runtime.paths import OTHER_FOLDER, open_private
from triops.runtime.store.db import Db, Transaction
from triops.runtime.store.migrations import migrate

T = TypeVar("T")

GROUP = 256
"""Transactions that may share one commit. More wait for the next, some milliseconds later."""

_ADVICE: dict[type[Exception], str] = {
    apsw.BusyError: "another program holds it: close that one, then try again",
    apsw.CorruptError: "it is damaged: put a backup in its place, or move it and its -wal aside to start afresh",
    apsw.FullError: "its disk is full: make room, then try again",
    apsw.ReadOnlyError: OTHER_FOLDER,
    apsw.CantOpenError: OTHER_FOLDER,
}


class Outcome(msgspec.Struct, Generic[T]):
    """What became of a transaction: a value, or an error and nothing written."""

    value: T | None = None
    error: Exception | None = None

    def unwrap(self) -> T:
        if self.error is not None:
            raise self.error
        return cast("T", self.value)


class StoreStatistics(msgspec.Struct, frozen=True):
    commits: int
    transactions: int
    waiting: int


class Store(Protocol):
    """Durable state. Every method belongs to the Trio thread."""

    def submit(self, work: Transaction[T], done: Callable[[Outcome[T]], None]) -> None:
        """Queue a transaction and return at once; `done` runs on the Trio thread after its commit.

        `done` is sync and runs whether or not anybody still waits. Transactions commit, and are told, in the order
        of submission.
        """
        ...

    async def write(self, work: Transaction[T], *, then: Callable[[T], None] | None = None) -> T:
        """Run a transaction and wait for its commit. Cancelled: it may or may not be committed.

        `then` (sync) gets its value once it is committed, before this returns and whether or not anybody still waits.

        Raises:
            Unavailable: the disk refuses; nothing was written.
            RuntimeFault: `work` raised it; nothing was written.
        """
        ...

    async def read(self, work: Transaction[T]) -> T:
        """Run a query against the last commit, without holding up writers."""
        ...

    def statistics(self) -> StoreStatistics: ...


class Job(msgspec.Struct, eq=False):
    """A transaction, whom to tell, and what became of it."""

    work: Transaction[Any]
    done: Callable[[Outcome[Any]], None]
    outcome: Outcome[Any] = msgspec.field(default_factory=Outcome[Any])


class Waiter(Generic[T]):
    """One task's wait for one outcome."""

    def __init__(self, then: Callable[[T], None] | None = None) -> None:
        self._then = then
        self._ready = trio.Event()
        self._outcome: Outcome[T] | None = None

    def settle(self, outcome: Outcome[T]) -> None:
        self._outcome = outcome
        self._ready.set()
        if self._then is not None and outcome.error is None:
            self._then(outcome.unwrap())

    async def wait(self) -> T:
        await self._ready.wait()
        assert self._outcome is not None
        return self._outcome.unwrap()


class SqliteStore:
    """The `Store` on this machine's disk; see `open_store`."""

    def __init__(self, path: Path, writer: Db, reader: Db, token: trio.lowlevel.TrioToken) -> None:
        self._path = path
        self._file = path.stat()
        self._writer = writer
        self._reader = reader
        self._token = token
        self._writes: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._reads: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._commits = 0
        self._transactions = 0
        self._waiting = 0

    def submit(self, work: Transaction[T], done: Callable[[Outcome[T]], None]) -> None:
        self._waiting += 1
        self._writes.put(Job(work, done))

    async def write(self, work: Transaction[T], *, then: Callable[[T], None] | None = None) -> T:
        waiter: Waiter[T] = Waiter(then)
        self.submit(work, waiter.settle)
        return await waiter.wait()

    async def read(self, work: Transaction[T]) -> T:
        waiter: Waiter[T] = Waiter()
        self._reads.put(Job(work, waiter.settle))
        return await waiter.wait()

    def statistics(self) -> StoreStatistics:
        return StoreStatistics(commits=self._commits, transactions=self._transactions, waiting=self._waiting)

    def write_loop(self) -> None:
        """The writer thread: take what waits, commit it together, tell the Trio thread once."""
        while (job := self._writes.get()) is not None:
            batch = [job]
            stop = False
            while len(batch) < GROUP:
                try:
                    following = self._writes.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    stop = True
                    break
                batch.append(following)
            if self._is_in_place():
                commit_group(self._writer, batch)
            else:
                words = f"the state at {self._path} was moved or removed; put it back, or start Triops again"
                for job in batch:
                    job.outcome = Outcome(error=Unavailable(f"{words}; nothing was changed"))
            self._tell(batch)
            if stop:
                return

    def read_loop(self) -> None:
        """The reader thread: one query after the other."""
        while (job := self._reads.get()) is not None:
            run_job(self._reader, job)
            try:
                self._token.run_sync_soon(job.done, job.outcome)
            except trio.RunFinishedError:
                return

    def _is_in_place(self) -> bool:
        """Whether the file is still the one that lies there: what is written to another is on no disk tomorrow."""
        try:
            return os.path.samestat(self._path.stat(), self._file)
        except OSError:
            return False

    def _tell(self, batch: list[Job]) -> None:
        try:
            self._token.run_sync_soon(self._settle, batch)
        except trio.RunFinishedError:
            pass  # nobody is left to be told; what was committed is on disk

    def _settle(self, batch: list[Job]) -> None:
        self._commits += 1
        self._transactions += len(batch)
        self._waiting -= len(batch)
        for job in batch:
            job.done(job.outcome)

    def close(self) -> None:
        """Let both threads finish what was submitted, then end."""
        self._writes.put(None)
        self._reads.put(None)


def run_job(db: Db, job: Job) -> None:
    """Run one transaction's function; its outcome stands in the job."""
    try:
        job.outcome = Outcome(value=job.work(db))
    except Exception as error:  # noqa: BLE001 - it is raised again in the task that asked
        job.outcome = Outcome(error=_refusal(db, error) if isinstance(error, apsw.Error) else error)


def commit_group(db: Db, batch: list[Job]) -> None:
    """Run `batch` in one transaction. After this each job has its outcome, and every value in it is on disk."""
    try:
        db.execute("BEGIN IMMEDIATE")
        for job in batch:
            db.execute("SAVEPOINT job")
            run_job(db, job)
            if job.outcome.error is not None and db.in_transaction:
                db.execute("ROLLBACK TO job")
            db.execute("RELEASE job")
        db.execute("COMMIT")
    except apsw.Error as error:
        # The disk is full or failing: SQLite may have rolled all of it back already.
        if db.in_transaction:
            db.execute("ROLLBACK")
        refusal = _refusal(db, error)
        for job in batch:
            if not isinstance(job.outcome.error, RuntimeFault):
                job.outcome = Outcome(error=refusal)


def _refusal(db: Db, error: apsw.Error) -> Unavailable:
    advice = _ADVICE.get(type(error), "try again")
    return Unavailable(f"the state at {db.filename} could not be used: {error}; nothing was changed; {advice}")


def connect(path: Path, *, readonly: bool = False) -> Db:
    """Open the database file with the settings that the promises need.

    Raises:
        apsw.Error: it cannot be used.
        StateError: it cannot be opened or made.
    """
    if not path.exists():
        os.close(open_private(path, os.O_RDWR))  # SQLite would let others read it; its WAL takes the file's mode
    log = path.with_name(f"{path.name}-wal")
    if log.exists() and log.stat().st_size:  # SQLite would delete or write over one that does not fit
        with log.open("rb") as file:
            if not path.stat().st_size or file.read(3) != b"\x37\x7f\x06":
                raise apsw.CorruptError(f"{log.name} does not belong to it")
    flags = apsw.SQLITE_OPEN_READWRITE | (0 if readonly else apsw.SQLITE_OPEN_CREATE)
    connection = apsw.Connection(str(path), flags=flags, statementcachesize=200)
    connection.set_busy_timeout(5000)
    # Without it SQLite prepares a query with a range anew each time that its values differ, at five times the cost.
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
    db = cast("Db", connection)
    # All rows are read: a statement that gives one back holds up those behind it.
    db.execute(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON; PRAGMA cache_size=-8192"
    ).fetchall()
    if readonly:
        db.execute("PRAGMA query_only=ON")
    return db


@asynccontextmanager
async def open_store(path: Path) -> AsyncGenerator[Store]:
    """Open (or make) the database at `path`, migrate it, and hold it until the block ends.

    What was submitted before the end of the block is committed.

    Raises:
        StateTooNew: a newer Triops wrote it.
        StateError: it cannot be opened or made.
        Unavailable: it is damaged, locked, or not a database. What lies there is left as it is.
    """
    try:
        writer = connect(path)
        migrate(writer)
        reader = connect(path, readonly=True)
    except apsw.Error as error:
        advice = _ADVICE.get(type(error), "move it and its -wal aside to start afresh")
        raise Unavailable(f"cannot open the state at {path}: {error}; {advice}") from error
    store = SqliteStore(path, writer, reader, trio.lowlevel.current_trio_token())
    threads = [
        threading.Thread(target=store.write_loop, name="triops-store-writer", daemon=True),
        threading.Thread(target=store.read_loop, name="triops-store-reader", daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        yield store
    finally:
        store.close()
        with trio.move_on_after(10, shield=True):
            for thread in threads:
                await trio.to_thread.run_sync(thread.join, abandon_on_cancel=True)
            reader.close()
            writer.close()
