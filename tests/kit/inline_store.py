"""A store without threads: each transaction runs where it is submitted. For tests with a mock clock, which would jump
ahead while a thread works."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import trio

from triops.runtime.store.db import Db, Transaction
from triops.runtime.store.migrations import migrate
from triops.runtime.store.sqlite import (
    Outcome,
    StoreStatistics,
    _Job,  # pyright: ignore[reportPrivateUsage] - the shape that commit_group takes
    commit_group,
    connect,
    run_job,
)

T = TypeVar("T")


class InlineStore:
    """The `Store` protocol over one connection. `done` is called on a later step, as the real one does."""

    def __init__(self, db: Db) -> None:
        self.db = db
        self.refusal: Exception | None = None
        """While set, every write fails with it and writes nothing: a disk that refuses."""
        self._commits = 0

    def submit(self, work: Transaction[T], done: Callable[[Outcome[T]], None]) -> None:
        job = _Job(work, done)
        if self.refusal is not None:
            job.outcome = Outcome(error=self.refusal)
        else:
            commit_group(self.db, [job])
            self._commits += 1
        trio.lowlevel.current_trio_token().run_sync_soon(done, job.outcome)

    async def write(self, work: Transaction[T]) -> T:
        outcome: list[Outcome[Any]] = []
        told = trio.Event()

        def done(result: Outcome[T]) -> None:
            outcome.append(result)
            told.set()

        self.submit(work, done)
        await told.wait()
        return outcome[0].unwrap()

    async def read(self, work: Transaction[T]) -> T:
        await trio.lowlevel.checkpoint()
        job = _Job(work, lambda _: None)
        run_job(self.db, job)
        return job.outcome.unwrap()

    def statistics(self) -> StoreStatistics:
        return StoreStatistics(commits=self._commits, transactions=self._commits, waiting=0)


@contextmanager
def open_inline_store(path: Path) -> Generator[InlineStore]:
    """Open (or make) the database at `path`; closing and opening it again is a restart."""
    db = connect(path)
    try:
        migrate(db)
        db.execute("PRAGMA synchronous=OFF")  # a test that kills kills the process, not the machine
        yield InlineStore(db)
    finally:
        db.close()
