"""Whatever these tests make a `Secret` is a canary: none may be seen outside of the files that are its home.

Looked through are logs, databases and all other files that tests leave, each event, refusal and error answer that the
tests' clients get, and the arguments and the standard error of the commands that they run.
"""

import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

import pytest

from triops.runtime.secrets import SHORTEST_SECRET, Secret

KNOWN: set[bytes] = set()
HOMES = {"triops.json", "openclaw.json", "gateway.token", "gateway.key", "vault.json"}
"""What holds secrets on purpose. Databases hold the devices' own tokens, too."""
_WORD = re.compile(rb"[\w-]{%d,}" % SHORTEST_SECRET)
_OF_A_DEVICE = re.compile(rb"[\w-]{43}")


def seen(data: bytes | str) -> list[str]:
    """The secrets that stand in `data`."""
    found = KNOWN.intersection(_WORD.findall(data if isinstance(data, bytes) else data.encode()))
    return sorted(word.decode() for word in found)


def check(data: bytes | str, where: str) -> None:
    """Fail if a secret stands in `data`."""
    assert not (found := seen(data)), f"{where} shows the secret {found[0]}"


@contextmanager
def watched() -> Generator[None]:
    """Know all secrets that are made in this process."""
    made = Secret.__init__

    def make(self: Secret, value: str) -> None:
        if len(value) >= SHORTEST_SECRET and value != "device-token":  # the name of a way in, too
            KNOWN.add(value.encode())
        made(self, value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Secret, "__init__", make)
        yield


def leaks(folder: Path) -> Iterable[str]:
    """The files below `folder` in which a secret stands that is not at home there."""
    tokens = {path.read_bytes().strip() for path in folder.rglob("gateway.token") if path.is_file()}
    KNOWN.update(tokens)
    for path in folder.rglob("*"):
        if path.name in HOMES or path.is_symlink() or not path.is_file():
            continue
        found = [word.encode() for word in seen(path.read_bytes())]
        if ".sqlite" in path.name:
            found = [word for word in found if word in tokens or not _OF_A_DEVICE.fullmatch(word)]
        yield from (f"{path.relative_to(folder)} shows the secret {word.decode()}" for word in found)
