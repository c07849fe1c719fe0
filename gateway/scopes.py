"""What an operator may: the closed set of scopes and what implies what (protocol §4). Knows no methods."""

from collections.abc import Collection, Iterable

from triops.gateway.errors import WireError

ADMIN = "operator.admin"
READ = "operator.read"
WRITE = "operator.write"
PAIRING = "operator.pairing"

SCOPES = (
    ADMIN,
    READ,
    WRITE,
    "operator.sessions.read",
    "operator.sessions.write",
    "operator.approvals",
    "operator.questions",
    PAIRING,
    "operator.talk",
    "operator.talk.secrets",
)

_IMPLIED_BY = {
    READ: (WRITE,),
    "operator.talk": (WRITE,),
    "operator.sessions.write": (WRITE,),
    "operator.sessions.read": (READ, WRITE, "operator.sessions.write"),
}


def satisfied(scope: str, granted: Collection[str]) -> bool:
    """Whether `granted` covers `scope`. A scope outside the closed set covers only itself, so it opens nothing."""
    if scope in granted or (ADMIN in granted and scope in SCOPES):
        return True
    return any(other in granted for other in _IMPLIED_BY.get(scope, ()))


def covers(granted: Collection[str], scopes: Iterable[str]) -> bool:
    """Whether `granted` covers every one of `scopes`."""
    return all(satisfied(scope, granted) for scope in scopes)


def effective(granted: Collection[str]) -> frozenset[str]:
    """Every scope of the closed set that `granted` covers: what to look things up in, once a connection stands."""
    return frozenset(scope for scope in SCOPES if satisfied(scope, granted))


def limited(requested: Iterable[str], granted: Collection[str]) -> tuple[str, ...]:
    """Those of `requested` that `granted` covers, in their order."""
    return tuple(scope for scope in requested if satisfied(scope, granted))


def operator_scopes(requested: Iterable[str]) -> tuple[str, ...]:
    """`requested`, each once, without what could never be an operator's. Who has no device is told the others as it
    spelled them, as recorded; what is kept of a device is of the closed set."""
    return tuple(dict.fromkeys(scope for scope in requested if scope.startswith("operator.")))


def check_known(scopes: Iterable[str]) -> None:
    """Let pass what is asked for if it is of the closed set.

    Raises:
        WireError: one is not.
    """
    if unknown := [scope for scope in scopes if scope not in SCOPES]:
        raise WireError("INVALID_REQUEST", f"unknown scope: {unknown[0]}; there are {', '.join(SCOPES)}")


def parse_cap(header: str) -> tuple[str, ...]:
    """The scopes of an `x-openclaw-scopes` header; an empty value allows none."""
    return tuple(scope for part in header.split(",") if (scope := part.strip()))


def require_scope(scope: str, granted: Collection[str]) -> None:
    """Let a call that needs `scope` pass.

    Raises:
        WireError: `granted` does not cover it.
    """
    if not satisfied(scope, granted):
        raise WireError(
            "FORBIDDEN",
            f"missing scope: {scope}",
            details={"code": "MISSING_SCOPE", "missingScope": scope, "requiredScopes": [scope]},
        )
