"""The configuration as others may see it: every secret replaced, by the name of its key and by its look.

Errs on the side of hiding; writing the mark back means "as it was".
"""

import re
from typing import Any, cast

import msgspec

from triops.runtime.config_file import parse_json5
from triops.runtime.secrets import REDACTED, SHORTEST_SECRET

_NAME = (
    r"(?:[\w-]*(?:token|secret|passwo?r?d|passphrase|api[-_]?key|private[-_]?key|access[-_]?key|signing[-_]?key"
    r"|encryption[-_]?key|credential|authorization|cookie|bearer)s?|key|pass)"
)
_SECRET_NAME = re.compile(_NAME, re.IGNORECASE)
_OPEN_SECTIONS = frozenset({"headers", "env", "vars"})
"""Maps whose names are the user's own: every text in them is hidden."""
_LOOKS_SECRET = re.compile(
    r"(?<![\w-])(?:sk-|gh[opsu]_|github_pat_|glpat-|xox[abprs]-|AIza|hf_|tvly-|eyJ)[\w.-]{12,}"
    r"|(?<=[Bb]earer )[\w.~+/=-]{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"
    r"|(?<=://)[^/\s@:\"']*:[^/\s@\"']+(?=@)"
    r"|(?<=[?&]key=)[^&\s\"']+|(?<=[?&]token=)[^&\s\"']+"
)
_WRITTEN = re.compile(
    rf"""(?P<name>(?<![\w-])["']?{_NAME}["']?\s*[:=]\s*)(?P<value>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')""",
    re.IGNORECASE,
)


def redacted(parsed: dict[str, Any]) -> dict[str, Any]:
    """A copy with the mark in the place of each secret and each reference to one."""
    return cast("dict[str, Any]", _hide(parsed, False, []))


def redacted_raw(raw: str, parsed: dict[str, Any]) -> str:
    """The file's text with its comments, and the mark in the place of each secret.

    Where the text cannot be cleaned and still mean `redacted(parsed)`, that is written out instead.
    """
    hidden: list[str] = []
    wanted = _hide(parsed, False, hidden)
    text = _WRITTEN.sub(lambda match: f'{match["name"]}"{REDACTED}"', raw)
    for secret in sorted(set(hidden) - {""}, key=len, reverse=True):
        text = re.sub(rf"""(["']){re.escape(secret)}\1(?!\s*:)""", f'"{REDACTED}"', text)
    text = _LOOKS_SECRET.sub(REDACTED, text)
    try:
        if parse_json5(text) == wanted and not any(
            len(secret) >= SHORTEST_SECRET and secret in text for secret in hidden
        ):
            return text
    except ValueError:
        pass
    return msgspec.json.format(msgspec.json.encode(wanted), indent=2).decode() + "\n"


def _hide(value: Any, secret: bool, hidden: list[str]) -> Any:
    """`hidden` gets the texts that were replaced."""
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        if members.keys() >= {"source", "id"}:  # a reference: where a secret lies is nobody's business either
            return REDACTED
        return {key: _hide(item, secret or _is_secret(key, item), hidden) for key, item in members.items()}
    if isinstance(value, list):
        return [_hide(item, secret, hidden) for item in cast("list[Any]", value)]
    if isinstance(value, str):
        if secret:
            hidden.append(value)
            return REDACTED
        hidden += _LOOKS_SECRET.findall(value)
        return _LOOKS_SECRET.sub(REDACTED, value)
    return REDACTED if secret and isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _is_secret(key: str, value: object) -> bool:
    if isinstance(value, (int, float)) and key.lower().endswith("tokens"):  # a count
        return False
    return key in _OPEN_SECTIONS or _SECRET_NAME.fullmatch(key) is not None
