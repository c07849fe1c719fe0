"""What a transaction sees of the database: the few calls of apsw that are used, with types."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
Value = str | bytes | int | float | None
Row = tuple[Any, ...]


class Rows(Protocol):
    """The rows of one statement, read while they are asked for."""

    def __iter__(self) -> Iterator[Row]: ...

    def fetchall(self) -> list[Row]: ...

    def fetchone(self) -> Row | None: ...


class Db(Protocol):
    """One connection, inside one transaction. Lives in its thread: nothing of it may leave the function."""

    @property
    def filename(self) -> str: ...

    @property
    def in_transaction(self) -> bool: ...

    def execute(self, statements: str, bindings: Sequence[Value] = (), /) -> Rows: ...

    def changes(self) -> int:
        """Rows that the last statement changed."""
        ...

    def close(self) -> None: ...


Transaction = Callable[[Db], T]
