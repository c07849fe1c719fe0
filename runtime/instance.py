"""One process per state folder, and how others on the machine find it. Knows nothing of what that process serves."""

import os
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager

import msgspec

from triops.runtime.paths import Paths, StateError, open_private, replace_private

LOCK_TRIES = 5
LOCK_PAUSE = 0.02
"""Seconds. A reader of the discovery file holds the lock for microseconds; a start must not take that for a rival."""


class InstanceRunning(Exception):
    """Another process runs on this state folder. `pid` is None in the moment before it has said who it is."""

    def __init__(self, paths: Paths, pid: int | None) -> None:
        who = "another process" if pid is None else f"process {pid}"
        super().__init__(
            f"{who} already runs on {paths.state}; use that one, or set TRIOPS_STATE_DIR to another folder"
        )
        self.pid = pid


class Discovery(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """How to reach a running gateway."""

    url: str
    """`http://host:port`, the port being the real one."""
    pid: int
    version: str
    token_file: str | None = None
    """The file that holds the token, if one was made; only this user may read it."""


class Instance:
    """The right to run on a state folder; only `hold_instance` gives it."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths

    @contextmanager
    def published(self, url: str, version: str, *, token_file: bool = True) -> Generator[Discovery]:
        """Let others find the gateway inside the block, and its token if that lies in the state folder.

        Raises:
            StateError: the discovery file cannot be written.
        """
        discovery = Discovery(url, os.getpid(), version, str(self._paths.token) if token_file else None)
        replace_private(self._paths.discovery, msgspec.json.encode(discovery) + b"\n")
        try:
            yield discovery
        finally:
            self._paths.discovery.unlink(missing_ok=True)


@contextmanager
def hold_instance(paths: Paths) -> Generator[Instance]:
    """Be the one process on this state folder inside the block. The system lets go when the process dies.

    The state folder must exist (`prepare_state`). A discovery file that a killed process left is removed. May block
    for a tenth of a second when the lock is taken: call it before there is a loop.

    Raises:
        InstanceRunning: another process, or another runtime of this one, is there.
        StateError: the lock file cannot be used.
    """
    descriptor = open_private(paths.lock, os.O_RDWR)
    try:
        for attempt in range(LOCK_TRIES):
            if _try_lock(descriptor):
                break
            if attempt == LOCK_TRIES - 1:
                raise InstanceRunning(paths, _read_pid(descriptor))
            time.sleep(LOCK_PAUSE)
        paths.discovery.unlink(missing_ok=True)  # first: its process id is still the one in the lock
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield Instance(paths)
    finally:
        os.close(descriptor)


def read_discovery(paths: Paths) -> Discovery | None:
    """The gateway that runs on this state folder, or None; what a dead one left behind does not count.

    The lock tells, not the process id: ids are used again, after a restart of the machine at once, and whoever trusts
    one hands the token to a stranger on the port.

    Raises:
        StateError: the lock file is there and cannot be opened.
    """
    try:
        discovery = msgspec.json.decode(paths.discovery.read_bytes(), type=Discovery)
    except (OSError, msgspec.MsgspecError):
        return None
    return discovery if _holder(paths) == discovery.pid else None


def _holder(paths: Paths) -> int | None:
    if not paths.lock.exists():
        return None
    descriptor = open_private(paths.lock, os.O_RDWR)
    try:
        return None if _is_free(descriptor) else _read_pid(descriptor)
    finally:
        os.close(descriptor)


def _read_pid(descriptor: int) -> int | None:
    os.lseek(descriptor, 0, os.SEEK_SET)
    text = os.read(descriptor, 32).decode("ascii", "replace").strip()
    return int(text) if text.isdigit() else None


if sys.platform == "win32":
    import msvcrt

    # Locked bytes cannot be read by others here, so the lock lies far behind the process id.
    LOCK_OFFSET = 1 << 20

    def _try_lock(descriptor: int) -> bool:
        os.lseek(descriptor, LOCK_OFFSET, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _is_free(descriptor: int) -> bool:
        for _ in range(2):  # there are no shared locks here: what holds it may be another reader, for microseconds
            if _try_lock(descriptor):
                os.lseek(descriptor, LOCK_OFFSET, os.SEEK_SET)
                msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
                return True
            time.sleep(LOCK_PAUSE)
        return False
else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        return _flock(descriptor, fcntl.LOCK_EX)

    def _is_free(descriptor: int) -> bool:
        return _flock(descriptor, fcntl.LOCK_SH)  # shared, so that two readers do not take each other for the holder

    def _flock(descriptor: int, kind: int) -> bool:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise StateError(f"the state folder's file system has no locks: {error.strerror}; move it") from error
        return True
