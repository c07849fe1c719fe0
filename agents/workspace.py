"""The workspace's bootstrap files: who the assistant is, for whom it works, what it should remember.

Read when they have changed, else kept. Knows no model; how much of them a prompt holds is `prompt.py`'s business.
"""

import os
from pathlib import Path

import msgspec

from triops.agents.errors import ToolError
from triops.agents.tools.folder import Folder

BOOTSTRAP_FILES = ("AGENTS.md", "SOUL.md", "IDENTITY.md", "USER.md", "BOOTSTRAP.md", "MEMORY.md")
"""In the order in which a prompt has them (agent-loop.md §4)."""
MAX_CHARACTERS = 20_000
MAX_USER_CHARACTERS = 4_000
"""Of `USER.md`: it is about one person."""

Revision = tuple[tuple[int, int, int], ...]
"""Which state of the files this is: their times (ns), sizes and inodes. Equal means unchanged; a key for caches."""


class BootstrapFile(msgspec.Struct, frozen=True):
    name: str
    text: str
    """At most the limit of its kind; what was cut says so."""


class WorkspaceSnapshot(msgspec.Struct, frozen=True):
    root: str
    revision: Revision
    files: tuple[BootstrapFile, ...]
    """Those that are there and not blank."""
    left_out: tuple[str, ...]
    """What could not be read or had to be cut, in words."""


class Workspace:
    """One agent's folder. Any thread may call its methods; no call of one spoils another."""

    def __init__(self, root: Path) -> None:
        self._folder = Folder(root)
        self._paths = [os.path.join(self._folder.root, name) for name in BOOTSTRAP_FILES]
        self._kept: WorkspaceSnapshot | None = None

    def kept(self) -> WorkspaceSnapshot | None:
        """The last snapshot if it is still true, else None: then call `snapshot`, in a thread.

        Six stats and nothing else, 12 µs on a local disk: cheap enough to ask in each turn, so it is never stale.
        """
        kept = self._kept
        return kept if kept is not None and kept.revision == self._revision() else None

    def snapshot(self) -> WorkspaceSnapshot:
        """The files as they are now. Blocks; reads only when something changed."""
        kept = self.kept()
        if kept is None:
            kept = self._kept = self._read()
        return kept

    def _revision(self) -> Revision:
        return tuple(_stamp(path) for path in self._paths)

    def _read(self) -> WorkspaceSnapshot:
        revision = self._revision()  # before the content: what changes in between is seen by the next check
        files: list[BootstrapFile] = []
        left_out: list[str] = []
        for name, (_, size, _) in zip(BOOTSTRAP_FILES, revision, strict=True):
            if size <= 0:
                continue
            limit = MAX_USER_CHARACTERS if name == "USER.md" else MAX_CHARACTERS
            try:
                data, size = self._folder.read(name, at_most=4 * limit + 4)  # UTF-8 has at most four bytes each
            except ToolError as error:
                left_out.append(f"{name}: {error}")
                continue
            text = data.decode("utf-8-sig", "replace").strip()
            if len(text) > limit:
                left_out.append(f"{name}: cut to {limit:,} characters of {size:,} bytes")
                text = cut(text, limit)
            if text:
                files.append(BootstrapFile(name, text))
        return WorkspaceSnapshot(self._folder.root, revision, tuple(files), tuple(left_out))


def cut(text: str, limit: int) -> str:
    """The beginning of `text`, marked as such."""
    return f"{text[:limit]}\n[cut here; read the file for the rest]"


def _stamp(path: str) -> tuple[int, int, int]:
    try:
        status = os.lstat(path)
    except OSError:
        return (0, 0, 0)
    return (status.st_mtime_ns, status.st_size, status.st_ino)
