"""Where things lie in the state folder, and that nobody else can read them. Knows nothing of what they hold.

Folders are 0700 and files 0600, made so from the first moment. Windows has no modes: there a file takes the access
list of the user's profile folder, which shuts other users out; a state folder elsewhere is as open as its parent.
"""

import os
import secrets
import stat
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

FOLDER_MODE = 0o700
FILE_MODE = 0o600
OTHER_FOLDER = "let this user write there, or set TRIOPS_STATE_DIR to another folder"


class StateError(Exception):
    """The state folder, or a file in it, cannot be used; the message says which, why and what to do."""


class Paths(msgspec.Struct, frozen=True):
    """The places of one runtime, all absolute."""

    state: Path
    """The folder of everything that is kept; `TRIOPS_STATE_DIR`, else `~/.triops`."""
    config: Path
    """The configuration file; `TRIOPS_CONFIG_PATH`, else `triops.json` in the state folder."""

    @property
    def workspace(self) -> Path:
        """The agent's folder unless one is configured; see `workspace_of`."""
        return self.state / "workspace"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def models(self) -> Path:
        """Weights of embedded models."""
        return self.state / "models"

    @property
    def database(self) -> Path:
        return self.state / "triops.sqlite"

    @property
    def token(self) -> Path:
        """The random gateway token of a first start."""
        return self.state / "gateway.token"

    @property
    def identity(self) -> Path:
        """The gateway's own Ed25519 key."""
        return self.state / "gateway.key"

    @property
    def discovery(self) -> Path:
        """Where a running gateway says how to reach it."""
        return self.state / "gateway.json"

    @property
    def lock(self) -> Path:
        """Held by the one process that runs on this state folder."""
        return self.state / "instance.lock"


def locate(environ: Mapping[str, str]) -> Paths:
    """The places that an environment names; touches no file. `~` is the home of the process's user.

    Raises:
        StateError: the home folder is needed and unknown.
    """
    try:
        state = Path(environ.get("TRIOPS_STATE_DIR") or "~/.triops").expanduser().absolute()
        config = environ.get("TRIOPS_CONFIG_PATH")
        return Paths(state, Path(config).expanduser().absolute() if config else state / "triops.json")
    except RuntimeError:
        raise StateError("the home folder is unknown; set TRIOPS_STATE_DIR to the folder for state") from None


def prepare_state(paths: Paths) -> tuple[str, ...]:
    """Make the state and log folders, and narrow what is wider than it should be; returns a warning for each.

    Raises:
        StateError: a folder cannot be made, or something in it belongs to another user.
    """
    warnings = [private_folder(paths.state), private_folder(paths.logs)]
    database = [paths.database.with_name(paths.database.name + suffix) for suffix in ("", "-wal", "-shm")]
    for file in (paths.token, paths.identity, paths.discovery, paths.lock, *database):
        warnings.append(_narrow(file, FILE_MODE))
    # A configuration that root owns is an administrator's or an immutable store's: whom we must trust anyway.
    warnings.append(_narrow(paths.config, FILE_MODE, or_root=True))
    return tuple(warning for warning in warnings if warning is not None)


def private_folder(path: Path) -> str | None:
    """Make a folder that only this user may enter; returns a warning if it was there and had to be narrowed.

    Raises:
        StateError: it cannot be made, is no folder, or belongs to another user.
    """
    try:
        path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    except FileExistsError:
        raise StateError(f"{path} is not a folder; move it away or set TRIOPS_STATE_DIR") from None
    except OSError as error:
        raise StateError(f"cannot make the folder {path}: {error.strerror}; {OTHER_FOLDER}") from error
    return _narrow(path, FOLDER_MODE)


def open_private(path: Path, flags: int) -> int:
    """`os.open` that makes a missing file 0600 from the first moment, never follows a link, and is not inherited.

    Raises:
        StateError: it cannot be opened.
    """
    with _explained("open", path):
        return os.open(path, flags | os.O_CREAT | _NO_LINK | _BINARY, FILE_MODE)


def write_new(path: Path, data: bytes) -> bool:
    """Make a private file that appears whole; False, and nothing written, if it is there already.

    Raises:
        StateError: it cannot be written.
    """
    with _temporary(path, data) as temporary:
        try:
            _give_name(temporary, path)
        except FileExistsError:
            return False
    return True


def replace_private(path: Path, data: bytes) -> None:
    """Write a private file that readers see whole: the old one or the new one.

    Raises:
        StateError: it cannot be written.
    """
    with _temporary(path, data) as temporary:
        temporary.replace(path)


@contextmanager
def _temporary(path: Path, data: bytes) -> Generator[Path]:
    """A file beside `path` that holds `data` on disk and is gone afterwards, unless it was given another name."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with _explained("write", path):
        descriptor = open_private(temporary, os.O_WRONLY | os.O_EXCL)
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _explained(what: str, path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise StateError(f"cannot {what} {path}: {error.strerror}; {OTHER_FOLDER}") from error


if sys.platform == "win32":
    _NO_LINK = 0
    _BINARY = os.O_BINARY

    def _narrow(path: Path, mode: int, *, or_root: bool = False) -> str | None:
        return None

    def _give_name(temporary: Path, path: Path) -> None:
        temporary.rename(path)  # refuses an existing file here, which it does not elsewhere
else:
    _NO_LINK = os.O_NOFOLLOW
    _BINARY = 0

    def _narrow(path: Path, mode: int, *, or_root: bool = False) -> str | None:
        """Take from `path` what goes beyond `mode`; a missing one is fine."""
        with _explained("look at", path):
            if not path.exists():
                return None
            status = path.stat()
        user = os.geteuid()
        if status.st_uid != user:
            if or_root and status.st_uid == 0:
                return None
            raise StateError(
                f"{path} belongs to user id {status.st_uid}, but this process runs as {user}; "
                f"run as its owner, give it over with chown, or set TRIOPS_STATE_DIR"
            )
        found = stat.S_IMODE(status.st_mode)
        if not found & ~mode:
            return None
        with _explained("narrow", path):
            path.chmod(found & mode)
        return f"{path} had mode {found:04o}, open to other users; narrowed to {found & mode:04o}"

    def _give_name(temporary: Path, path: Path) -> None:
        os.link(temporary, path)  # of all ways to give a file its name, the one that refuses an existing one
