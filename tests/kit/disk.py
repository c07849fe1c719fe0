"""A disk in SQLite's hands that notes what is done to it, can be cut from its power, and fails when it is told to."""

import random
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import apsw

SECTOR = 512
Call = str
"""`read`, `write`, `sync` or `truncate`."""


class Operation(NamedTuple):
    """What was done to a file. A sync makes all that was done to its file before it durable."""

    call: Call
    file: str
    offset: int = 0
    data: bytes = b""


class Disk(apsw.VFS):
    """All of SQLite's files while it is open; see `open_disk`. Shared memory is no part of it: it is made anew."""

    def __init__(self, base: str) -> None:
        super().__init__("the disk of a test", base, makedefault=True)
        self.base = base
        self.operations: list[Operation] = []
        self.calls = 0
        """Reads, writes, syncs and truncations so far."""
        self.fault: Callable[[int, Call], apsw.Error | None] = lambda place, call: None
        """What a call fails with, by its number and kind."""

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        return _File(self, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        super().xDelete(filename, syncdir)
        self.operations.append(Operation("delete", Path(filename).name))

    def look(self, call: Call) -> None:
        self.calls += 1
        error = self.fault(self.calls, call)
        if error is not None:
            raise error

    def cut(self, at: int, folder: Path, chance: random.Random | None) -> None:
        """Write to `folder` what a power cut leaves after the first `at` operations.

        What was not synced is dropped; with `chance`, any sector of it may have reached the disk.
        """
        files: dict[str, bytearray] = {}
        pending: dict[str, list[Operation]] = {}
        for operation in self.operations[:at]:
            name = operation.file
            match operation.call:
                case "delete":
                    files.pop(name, None)
                    pending.pop(name, None)
                case "sync":
                    for done in pending.pop(name, ()):
                        _do(files, done)
                case _:
                    pending.setdefault(name, []).append(operation)
        if chance is not None:
            for waiting in pending.values():
                for operation in waiting:
                    for part in _sectors(operation):
                        if chance.random() < 0.5:
                            _do(files, part)
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)


class _File(apsw.VFSFile):
    def __init__(self, disk: Disk, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        super().__init__(disk.base, name, flags)  # type: ignore[arg-type] - None is a temporary file
        self._disk = disk
        whole = name.filename() if isinstance(name, apsw.URIFilename) else name or "temporary"
        self._name = Path(whole).name

    def xRead(self, amount: int, offset: int) -> bytes:
        self._disk.look("read")
        return super().xRead(amount, offset)

    def xWrite(self, data: bytes, offset: int) -> None:
        self._disk.look("write")
        super().xWrite(data, offset)
        self._disk.operations.append(Operation("write", self._name, offset, bytes(data)))

    def xSync(self, flags: int) -> None:
        self._disk.look("sync")  # and that is all: the machine's own disk has nothing to do with it
        self._disk.operations.append(Operation("sync", self._name))

    def xTruncate(self, newsize: int) -> None:
        self._disk.look("truncate")
        super().xTruncate(newsize)
        self._disk.operations.append(Operation("truncate", self._name, newsize))


def _do(files: dict[str, bytearray], operation: Operation) -> None:
    content = files.setdefault(operation.file, bytearray())
    end = operation.offset + len(operation.data)
    if operation.call == "truncate":
        del content[operation.offset :]
    else:
        content.extend(bytes(max(0, end - len(content))))
        content[operation.offset : end] = operation.data


def _sectors(operation: Operation) -> list[Operation]:
    """A write as the writes of its sectors."""
    if operation.call != "write":
        return [operation]
    parts, start, end = list[Operation](), operation.offset, operation.offset + len(operation.data)
    while start < end:
        stop = min(end, (start // SECTOR + 1) * SECTOR)
        parts.append(
            operation._replace(offset=start, data=operation.data[start - operation.offset : stop - operation.offset])
        )
        start = stop
    return parts


@contextmanager
def open_disk() -> Generator[Disk]:
    """The disk of every database that is opened inside the block."""
    before = apsw.vfs_names()[0]
    disk = Disk(before)
    try:
        yield disk
    finally:
        disk.unregister()
        apsw.set_default_vfs(before)
