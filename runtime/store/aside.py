"""Ends that were told while the database could not take them.

They stand in a small file that has had its room from the start, so that a full disk takes them all the same, and no
later start contradicts what was told.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from triops.runtime.errors import Unavailable
from triops.runtime.paths import open_private
from triops.runtime.runs.state import Terminal

ROOM = 1 << 16
"""Bytes; past them the oldest end is given up."""
WORDS = 2_000
"""Characters of the text of an end that are kept."""

_decode = msgspec.json.Decoder(dict[str, Terminal]).decode


def open_aside(database: Path) -> "Aside":
    """The one beside the database.

    Raises:
        StateError: it cannot be opened or made.
        Unavailable: there is no room for it.
    """
    path = database.with_name(f"{database.name}-ends")
    try:
        return Aside(path)
    except OSError as error:
        raise Unavailable(f"cannot write {path}: {error.strerror}; make room, or correct its rights") from error


class Aside:
    """The file at `path`, held until `close`. The methods that write block, and belong to one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Open it, or make it.

        Raises:
            StateError: it cannot be opened.
            OSError: it cannot be given its room.
        """
        self._file = os.fdopen(open_private(path, os.O_RDWR), "r+b", buffering=0)
        try:
            self._ends = _decode(self._file.read().rstrip(b"\0") or b"{}")
        except msgspec.DecodeError:  # it was cut off while it was written
            self._ends = {}
        self._write()

    @property
    def ends(self) -> Mapping[str, Terminal]:
        """By run, the ends that wait for the database."""
        return self._ends

    def put(self, run_id: str, terminal: Terminal) -> None:
        """Keep an end. Raises OSError: the disk refuses even this."""
        text = terminal.text[:WORDS]
        self._ends[run_id] = msgspec.structs.replace(terminal, text=text, message=None, error_detail=None)
        self._write()

    def remove(self, *run_ids: str) -> None:
        """The database has taken them."""
        if [run_id for run_id in run_ids if self._ends.pop(run_id, None) is not None]:
            self._write()

    def close(self) -> None:
        self._file.close()

    def _write(self) -> None:
        while len(data := msgspec.json.encode(self._ends)) > ROOM:
            del self._ends[next(iter(self._ends))]
        self._file.seek(0)
        self._file.write(data.ljust(ROOM, b"\0"))
        os.fsync(self._file.fileno())
