from pathlib import Path

import pytest
from tests.kit.stage import Stage


@pytest.fixture
async def stage(tmp_path: Path) -> Stage:
    """Needs the test to ask for `autojump_clock`, too: a fixture cannot do that for it."""
    return Stage(tmp_path / "state")
