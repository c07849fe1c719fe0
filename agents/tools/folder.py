"""Files below one folder, with no way out: not by `..`, absolute paths, links, devices, nor a link swapped in between.

Blocking; callers use a thread. Knows no tool. Links are not followed at all, not even those that stay inside. A hard
link is no way but a file of several names, which backups and package caches are full of: it is read like any other, and
writing gives this name a new file, so that what other names lead to stays as it is.

On POSIX each part of a path is opened relative to its parent's descriptor without following links, so that there is
no moment between a check and its use. Windows has no such calls: there the path is resolved, and again right before
it matters; a local process that swaps a junction in that instant would win, and needs the user's own rights for it.
"""

import errno
import os
import secrets
import stat
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import msgspec

from triops.agents.errors import ToolError

# Windows lacks most of these flags, POSIX the last one.
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)
_FILE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_LINK_ERRORS = frozenset({errno.ELOOP, errno.ENOTDIR})
"""What opening a link without following it says, by platform."""


class Place(msgspec.Struct, frozen=True):
    """An open folder: names in it are `prefix + name` relative to `fd`."""

    prefix: str
    fd: int | None
    verify: Callable[[str], None]
    """Raises `ToolError` if the named file is not where it should be (any more)."""

    def status(self, name: str) -> os.stat_result | None:
        """The name itself, a link not followed; None if there is none."""
        try:
            return os.stat(self.prefix + name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None


Enter = Callable[[str, Sequence[str], bool], AbstractContextManager[Place]]
"""Open the folder that lies at `parts` below a root, for the block; with True, make what is missing."""


@contextmanager
def walk(root: str, parts: Sequence[str], create: bool) -> Generator[Place]:
    """`Enter` by descriptors: for systems whose `os.open` takes `dir_fd`."""
    if create:  # the root, too: it may have been removed since the start
        os.makedirs(root, mode=0o700, exist_ok=True)
    at = os.open(root, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))  # the root itself may be a link: the user set it
    try:
        for name in parts:
            if create:
                with suppress(FileExistsError):
                    os.mkdir(name, dir_fd=at)
            below = os.open(name, _FOLDER, dir_fd=at)
            os.close(at)
            at = below
        yield Place("", at, lambda name: None)
    finally:
        os.close(at)


@contextmanager
def resolve(root: str, parts: Sequence[str], create: bool) -> Generator[Place]:
    """`Enter` by names: for Windows."""
    parent = os.path.join(os.path.realpath(root), *parts)

    def verify(name: str) -> None:
        path = os.path.normpath(os.path.join(parent, name))
        if os.path.normcase(os.path.realpath(path)) != os.path.normcase(path):
            raise ToolError(f"A part of the path is a link, and links are not followed: {path}.")

    if any(":" in part for part in parts):  # a drive, or a second stream of a file
        raise ToolError(f"No colon may be in a path: {parent}.")
    verify("")
    if create:
        os.makedirs(parent, exist_ok=True)
        verify("")
    yield Place(os.path.join(parent, ""), None, verify)


class Folder:
    """A folder and what lies below it. Every method blocks, and raises `ToolError` in words that a model can act on."""

    def __init__(self, root: Path, *, enter: Enter = walk if os.open in os.supports_dir_fd else resolve) -> None:
        self.root = os.path.abspath(root)
        self._enter = enter

    def locate(self, path: str) -> tuple[str, ...]:
        """The parts of `path` below the root; absolute paths may be used for what is inside. Touches no disk."""
        whole = os.path.normpath(os.path.join(self.root, os.path.expanduser(path)))
        inside = os.path.join(self.root, "")
        if "\0" in path or not os.path.normcase(whole).startswith(os.path.normcase(inside)):
            raise ToolError(f"Path is outside the workspace, or the workspace itself: {path!r}.")
        return tuple(whole[len(inside) :].split(os.sep))

    def read(self, path: str, *, at_most: int) -> tuple[bytes, int]:
        """The first `at_most` bytes of a regular file, and its size."""
        *parents, name = self.locate(path)
        with self._explained(path), self._enter(self.root, parents, False) as place:
            _regular(place.status(name))  # asked before it is opened: opening some devices does things
            descriptor = os.open(place.prefix + name, os.O_RDONLY | _FILE, dir_fd=place.fd)
            with open(descriptor, "rb") as file:
                size = _regular(os.fstat(descriptor)).st_size
                place.verify(name)
                return file.read(at_most), size

    def write(self, path: str, data: bytes) -> None:
        """Make `data` the content of a file, all or nothing; missing folders are made, the file's mode is kept."""
        *parents, name = self.locate(path)
        with self._explained(path), self._enter(self.root, parents, True) as place:
            mode = _writable_mode(place.status(name))
            temporary = f".{secrets.token_hex(8)}.tmp"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE
            descriptor = os.open(place.prefix + temporary, flags, 0o666 if mode is None else mode, dir_fd=place.fd)
            try:
                with open(descriptor, "wb") as file:
                    if mode is not None and place.fd is not None:
                        os.fchmod(descriptor, mode)  # the umask may have narrowed it
                    file.write(data)
                    file.flush()
                    os.fsync(descriptor)
                place.verify(name)
                os.replace(place.prefix + temporary, place.prefix + name, src_dir_fd=place.fd, dst_dir_fd=place.fd)
            except BaseException:
                with suppress(OSError):
                    os.unlink(place.prefix + temporary, dir_fd=place.fd)
                raise

    @contextmanager
    def _explained(self, path: str) -> Generator[None]:
        """Turn the system's errors into words that name the file."""
        whole = os.path.normpath(os.path.join(self.root, path))
        try:
            yield
        except FileNotFoundError:
            raise ToolError(f"File not found: {whole}.") from None
        except IsADirectoryError:
            raise ToolError(f"This is a folder, not a file: {whole}.") from None
        except PermissionError:
            raise ToolError(f"Permission denied: {whole}.") from None
        except OSError as error:
            if error.errno in _LINK_ERRORS:
                raise ToolError(
                    f"A part of the path is a link or no folder: {whole}. Links are not followed."
                ) from None
            raise ToolError(f"{error.strerror}: {whole}.") from None


def _regular(status: os.stat_result | None) -> os.stat_result:
    if status is None:
        raise FileNotFoundError
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError
    if stat.S_ISLNK(status.st_mode):
        raise OSError(errno.ELOOP, "is a link")
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "Not a regular file")
    return status


def _writable_mode(status: os.stat_result | None) -> int | None:
    """The permissions to keep, None for a new file. Replacing asks no permission of the old file, so we do."""
    if status is None:
        return None
    mode = _regular(status).st_mode & 0o777
    if not mode & stat.S_IWUSR:
        raise PermissionError
    return mode
