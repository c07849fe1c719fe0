"""Every frame that a gateway sends to a client of this process in these tests is checked."""

from collections.abc import Generator

import pytest
from tests.kit.node import installed
from tests.kit.schema import Watch, watched


@pytest.fixture(autouse=True, scope="session")
def reference() -> None:
    """The published packages are there; where they cannot be had, it is tried and said once."""
    installed()


@pytest.fixture(autouse=True)
def frames(monkeypatch: pytest.MonkeyPatch) -> Generator[Watch]:
    with watched(monkeypatch) as watch:
        yield watch
    watch.check()
