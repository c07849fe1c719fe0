import pytest

from triops.gateway.cli.failures import failure_of
from triops.gateway.client import GatewayError


@pytest.mark.parametrize(
    ("code", "named"),
    [("AUTH_TOKEN_MISSING", True), ("DEVICE_IDENTITY_REQUIRED", True), ("PAIRING_REQUIRED", False), (None, False)],
)
def test_who_is_refused_for_a_missing_token_is_told_how_to_give_it(code: str | None, named: bool):
    error = GatewayError("INVALID_REQUEST", "refused", {"code": code})
    assert ("--token" in failure_of(error).hint) == named
