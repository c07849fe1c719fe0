"""Every frame that a gateway sends to a client of this process in these tests is checked."""

from collections.abc import Generator

import pytest
from tests.kit.schema import Watch, watched


@pytest.fixture(autouse=True)
def frames(monkeypatch: pytest.MonkeyPatch) -> Generator[Watch]:
    with watched(monkeypatch) as watch:
        yield watch
    watch.check()
