"""A gateway in a process of its own: started so that it outlives us, and ended. The platforms differ here only."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from triops.runtime.paths import open_private

COMMAND = [sys.executable, "-m", "triops.gateway.cli.main"]

if sys.platform == "win32":
    FLAGS = subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP
    GRACEFUL = False
    """A process without a console gets no signal here: it is ended at once, and recovers at its next start."""
else:
    FLAGS = 0
    GRACEFUL = True


def spawn_detached(
    arguments: Sequence[str], *, output: Path, folder: Path, environ: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start `triops` with these arguments, away from this terminal; what it prints goes to `output`, emptied first."""
    descriptor = open_private(output, os.O_WRONLY | os.O_TRUNC)
    try:
        return subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            cwd=folder,
            env=environ,
            creationflags=FLAGS,
            start_new_session=True,
        )
    finally:
        os.close(descriptor)


def ask_to_end(pid: int) -> None:
    """Tell a process of ours to end: SIGTERM, or its end where there are no signals."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


def is_running(pid: int) -> bool:
    """Whether a process that was ours to end is still there; one that only waits for its parent's look is not."""
    if sys.platform == "win32":
        return False  # its end is at once, and there it is that frees the state folder
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    try:
        return b") Z" not in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return True  # macOS, where somebody always looks


def stop_signals() -> list[signal.Signals]:
    """What asks this process to stop: Ctrl-C, SIGTERM, Ctrl-Break (Windows), and SIGHUP unless `nohup` ignores it."""
    known = [getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP")]
    return [one for one in known if one and (one.name != "SIGHUP" or signal.getsignal(one) is not signal.SIG_IGN)]


def raise_descriptor_limit() -> int:
    """Let this process hold as many sockets as it may at all; how many. Windows has no such limit."""
    if sys.platform == "win32":
        return sys.maxsize
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1 << 16 if hard == resource.RLIM_INFINITY else hard  # macOS says "no limit" and takes no such number
    with suppress(ValueError, OSError):  # a limit that may not be changed
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
