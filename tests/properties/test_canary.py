"""What looks for secrets at the end of the tests finds them."""

import tempfile
from pathlib import Path

import pytest
from tests.kit import canary

from triops.runtime.secrets import Secret

PLANTED = "a-canary-that-this-test-made"


def test_a_secret_that_left_its_home_is_found() -> None:
    Secret(PLANTED)
    token = "t" * 43
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for home in canary.HOMES:
            (folder / home).write_text(token if home == "gateway.token" else f'"{PLANTED}"')
        assert list(canary.leaks(folder)) == []
        (folder / "a.log").write_text(f"Bearer {PLANTED}")
        (folder / "triops.sqlite-wal").write_bytes(b"\x00\xff" + token.encode())
        assert sorted(canary.leaks(folder)) == [
            f"a.log shows the secret {PLANTED}",
            f"triops.sqlite-wal shows the secret {token}",
        ]
    with pytest.raises(AssertionError, match="an answer shows the secret"):
        canary.check(f'{{"token":"{PLANTED}"}}', "an answer")
