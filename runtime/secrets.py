"""Values that never print, and the gateway's random token. Knows nothing of what a secret opens."""

import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never

from triops.runtime.errors import Invalid
from triops.runtime.paths import Paths, StateError, replace_private, write_new

if TYPE_CHECKING:
    from triops.runtime.config import AuthConfig

REDACTED = "__OPENCLAW_REDACTED__"
"""What stands for a secret in everything that leaves the process; the protocol's mark."""


SHORTEST_SECRET = 12
"""Characters from which on a value is looked for in text. Placeholders such as `ollama` are no secrets, and hiding each
such word would spoil what is shown."""


class Secret:
    """A value that shows itself to nobody who does not ask for it by name.

    `repr`, `str`, formatting and `hide_secret` give the mark; pickling is refused. Two are equal if their values are.
    """

    __slots__ = ("_digest", "_value")

    def __init__(self, value: str) -> None:
        self._value = value
        self._digest = _digest(value)

    def reveal(self) -> str:
        """The value itself: for the wire and for nothing else."""
        return self._value

    def matches(self, candidate: str) -> bool:
        """Whether `candidate` is the value; the time taken tells neither where they differ nor how long it is."""
        return hmac.compare_digest(self._digest, _digest(candidate))

    def __repr__(self) -> str:
        return f"Secret({REDACTED})"

    def __str__(self) -> str:
        return REDACTED

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._digest, other._digest)

    def __hash__(self) -> int:
        return hash(self._digest)

    def __reduce__(self) -> Never:
        raise TypeError("a Secret is not pickled or copied")


class KeyCommand(Secret):
    """A key that a command says when it is needed; it has no value here."""

    def __init__(
        self, argv: tuple[str, ...], environ: Mapping[str, str], seconds: float, provider: str, id: str
    ) -> None:
        super().__init__("")
        self._digest = _digest(repr((argv, environ, seconds, provider, id)))  # two commands are not one secret
        self.argv = argv
        self.environ = environ
        self.seconds = seconds
        self.request = json.dumps({"protocolVersion": 1, "provider": provider, "ids": [id]}).encode()
        self.id = id

    def key_in(self, said: bytes) -> str:
        """The key in what the command said; "" if there is none."""
        text = said.decode("utf-8", "replace").strip()
        if text.startswith("{"):
            try:
                text = json.loads(text)["values"][self.id]
            except (ValueError, LookupError, TypeError):
                text = ""
        return text if isinstance(text, str) and text.isprintable() else ""


def read_secret(path: str, pointer: str | None) -> str:
    """The secret in a file: what a JSON pointer points at, or all there is.

    Raises:
        LookupError: there is none; the words name the file and the pointer, and quote nothing.
    """
    file = Path(path).expanduser()
    try:
        if not file.is_file():
            raise LookupError(f"there is no file {file}")
        text = file.read_text("utf-8").strip()
        found: Any = text if pointer is None else json.loads(text)
        for key in (pointer or "").split("/")[1:]:
            key = key.replace("~1", "/").replace("~0", "~")
            found = found[int(key) if isinstance(found, list) else key]
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        why = (
            error.strerror if isinstance(error, OSError) else f"has nothing at {pointer!r}" if pointer else "is no text"
        )
        raise LookupError(f"{file}: {why}") from None
    if not isinstance(found, str) or not found:
        raise LookupError(f"{file}: has no text" + (f" at {pointer!r}" if pointer else ""))
    return found


def _digest(value: str) -> bytes:
    return hashlib.sha256(value.encode("utf-8", "surrogatepass")).digest()


def hide_secret(value: object) -> str:
    """The `enc_hook` for msgspec that writes a `Secret` as the mark."""
    if isinstance(value, Secret):
        return REDACTED
    raise NotImplementedError(f"cannot encode {type(value).__name__}")


def read_token(paths: Paths) -> Secret | None:
    """The token that a start left in the state folder, or None.

    Raises:
        StateError: the file cannot be read or is empty.
    """
    try:
        text = paths.token.read_text("utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise StateError(f"cannot read the gateway token in {paths.token}: {error}") from None
    if not text:
        raise StateError(f"{paths.token} is empty; delete it and a new token is made at the next start")
    return Secret(text)


def require_token_file(auth: "AuthConfig", paths: Paths) -> None:
    """Refuse to change a token that does not lie in the token file.

    Raises:
        Invalid: says where it is changed.
    """
    if auth.mode != "token":
        raise Invalid(f"gateway.auth.mode is {auth.mode!r}: there is no token to change")
    if auth.token is not None:
        place = f"gateway.auth.token in {paths.config}, or TRIOPS_GATEWAY_TOKEN"
        raise Invalid(f"the token is set by {place}: change it there and restart the gateway")


def replace_token(paths: Paths) -> Secret:
    """Put a new random token in the place of the old one.

    Raises:
        StateError: it cannot be written.
    """
    token = Secret(secrets.token_urlsafe(32))
    replace_private(paths.token, f"{token.reveal()}\n".encode())
    return token


def load_or_create_token(paths: Paths) -> Secret:
    """The gateway's token: 256 random bits, made at the first start. Processes that race get the same one.

    The state folder must exist (`prepare_state`).

    Raises:
        StateError: it can be neither read nor written.
    """
    while (token := read_token(paths)) is None:
        write_new(paths.token, f"{secrets.token_urlsafe(32)}\n".encode())
    return token
