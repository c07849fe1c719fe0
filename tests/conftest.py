"""For all tests: what they leave is looked through for their secrets at the end."""

from collections.abc import Generator

import pytest
from tests.kit import canary


@pytest.fixture(autouse=True, scope="session")
def secrets_stay_at_home(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    with canary.watched():
        yield
    leaks = list(canary.leaks(tmp_path_factory.getbasetemp()))
    assert not leaks, "\n".join(leaks)
