import pytest

from triops.gateway.errors import WireError
from triops.gateway.scopes import (
    SCOPES,
    check_known,
    covers,
    effective,
    limited,
    operator_scopes,
    parse_cap,
    require_scope,
    satisfied,
)

IMPLIED = {
    "operator.admin": set(SCOPES),
    "operator.write": {
        "operator.write",
        "operator.read",
        "operator.talk",
        "operator.sessions.read",
        "operator.sessions.write",
    },
    "operator.read": {"operator.read", "operator.sessions.read"},
    "operator.sessions.write": {"operator.sessions.write", "operator.sessions.read"},
}


def test_each_scope_implies_what_the_protocol_says_and_nothing_else() -> None:
    rest = "approvals questions pairing talk talk.secrets sessions.read sessions.write"
    assert set(SCOPES) == {*IMPLIED, *(f"operator.{name}" for name in rest.split())}
    for granted in SCOPES:
        assert effective([granted]) == IMPLIED.get(granted, {granted})


def test_nothing_is_granted_by_nothing() -> None:
    assert effective([]) == frozenset()
    assert not satisfied("operator.read", [])


def test_an_unknown_scope_opens_nothing_but_itself() -> None:
    assert effective(["operator.everything", "operator.*", "*", "admin"]) == frozenset()
    assert satisfied("operator.everything", ["operator.everything"])
    assert not satisfied("operator.everything", ["operator.admin"])
    assert not satisfied("node.invoke", ["operator.admin"])


def test_covers_wants_every_one() -> None:
    assert covers(["operator.write"], ["operator.read", "operator.write"])
    assert not covers(["operator.read"], ["operator.read", "operator.write"])
    assert covers([], [])


def test_limited_keeps_order_and_never_adds() -> None:
    assert limited(["operator.admin", "operator.talk", "operator.read"], ["operator.write"]) == (
        "operator.talk",
        "operator.read",
    )


def test_only_operator_scopes_count_each_once() -> None:
    asked = ["operator.read", "node.invoke", "admin", "operator.read", "operator.everything"]
    assert operator_scopes(asked) == ("operator.read", "operator.everything")


def test_a_scope_that_is_none_is_named_with_those_that_there_are() -> None:
    check_known(SCOPES)
    with pytest.raises(WireError, match=r"unknown scope: operator\.x; there are operator\.admin, operator\.read, "):
        check_known(["operator.read", "operator.x"])


def test_an_empty_cap_allows_none() -> None:
    assert parse_cap("") == ()
    assert parse_cap(" operator.read , operator.write,") == ("operator.read", "operator.write")


def test_a_missing_scope_is_told_as_recorded() -> None:
    require_scope("operator.read", frozenset({"operator.write"}))
    with pytest.raises(WireError) as caught:
        require_scope("operator.write", frozenset({"operator.read"}))
    shape = caught.value.shape
    assert (shape.code, shape.message) == ("FORBIDDEN", "missing scope: operator.write")
    assert shape.details == {
        "code": "MISSING_SCOPE",
        "missingScope": "operator.write",
        "requiredScopes": ["operator.write"],
    }
