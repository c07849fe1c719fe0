"""Which failure a provider's answer means: status, headers and words to one typed error. Pure; knows no wire format.

The classes are the protocol's (agent-loop.md section 8); the texts that mark an overflow or an empty account are those
that providers are known to send.
"""

import re
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, cast

import msgspec

from triops.agents.errors import ContextOverflow, ErrorKind, ProviderError

NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""All that decoding bytes which are not JSON can raise."""

_LATER = "try again later, or another model"
_ADVICE: dict[ErrorKind, str] = {
    "model_not_found": "check the model's id and baseUrl",
    "server_error": f"the fault is the provider's: {_LATER}",
    "overloaded": _LATER,
}
_LOCAL_ADVICE: dict[ErrorKind, str] = {
    **_ADVICE,
    "server_error": "that server's log says more; is there memory enough for this model?",
}
_STATUSES: dict[int, tuple[ErrorKind, str]] = {
    400: ("format", "request refused as malformed"),
    401: ("auth", "not authorised"),
    402: ("billing", "the account has no credit"),
    403: ("auth", "not allowed"),
    404: ("model_not_found", "not found"),
    408: ("timeout", "provider timed out"),
    422: ("format", "request refused as malformed"),
    429: ("rate_limit", "too many requests"),
    499: ("timeout", "provider timed out"),
    504: ("timeout", "provider timed out"),
    522: ("timeout", "provider timed out"),
    524: ("timeout", "provider timed out"),
    529: ("overloaded", "provider overloaded"),
}
_RETRYABLE: frozenset[ErrorKind] = frozenset({"timeout", "rate_limit", "overloaded", "server_error"})

_OVERFLOW = re.compile(
    r"context[_ ]length|context[_ ]size|context[_ ]window|maximum context|prompt is too long|input is too long"
    r"|tokens? to keep from the initial prompt|too many (?:input )?tokens|request_too_large",
    re.IGNORECASE,
)
_WINDOW = re.compile(
    r"(?:context[_ ](?:length|size|window)|model length)[^\d\"]{0,40}(\d{3,8})"
    r"|n_ctx\W{1,5}(\d{3,8})|> (\d{3,8}) maximum",
    re.IGNORECASE,
)
_NO_CREDIT = re.compile(r"insufficient_quota|insufficient (?:credits?|balance|funds)|credit balance", re.IGNORECASE)
_NO_MODEL = re.compile(r"model_not_found|(?:unknown|no such) model|model\b.{1,80}(?:not found|does not exist)", re.I)
_NO_TOOLS = re.compile(r"not support (?:tool|function)|tools? (?:param|is not supported|choice)|--jinja", re.IGNORECASE)
_NAMED_STATUSES = (
    ("overloaded", 529),
    ("rate_limit", 429),
    ("too_many", 429),
    ("quota", 429),
    ("auth", 401),
    ("api_key", 401),
    ("permission", 403),
    ("billing", 402),
    ("not_found", 404),
    ("too_large", 413),
    ("invalid", 400),
    ("timeout", 504),
)
_SECRETS = re.compile(r"(?:\bsk-|\bgsk_|\bxai-|\bAIza|\beyJ)[\w.*-]{6,}|\bbearer +[\w.~+/=*-]{6,}", re.IGNORECASE)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, as the provider asked; a date counts from the answer's own `date`, not from our clock."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    try:
        until, sent = parsedate_to_datetime(value), parsedate_to_datetime(headers.get("date", ""))
        return max(0.0, (until - sent).total_seconds())
    except (ValueError, TypeError):  # no date, or one with a zone and one without
        return None


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` without `secrets` and without what looks like a key or a token."""
    for secret in sorted(secrets, key=len, reverse=True):  # one may begin another
        text = text.replace(secret, "[redacted]")
    return _SECRETS.sub("[redacted]", text)


class Faults:
    """Makes the errors of one request: knows who was asked, what must not be repeated, and where the key can be set.

    What a `local` server says of its failure is shown to people in its own words.
    """

    def __init__(self, asked: str, secrets: Iterable[str] = (), key_hint: str = "", *, local: bool = False) -> None:
        self._asked = asked
        self._secrets = tuple(secrets)
        self._local = local
        self._key_hint = key_hint or "check the key or login of this provider"

    def answer(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        """The error that an HTTP answer means; `headers` has lower-case names."""
        text = body.decode(errors="replace")
        return self._fault(status, text, f"HTTP {status}", http_status=status, wait=retry_after(headers))

    def event(self, error: object) -> ProviderError:
        """From an error object inside a stream, whose name or code says what an HTTP status would have."""
        return self._fault(_named_status(error), msgspec.json.encode(error).decode(), "in its stream")

    def garbled(self, what: str, data: bytes) -> ProviderError:
        words = redact(data[:2000].decode(errors="replace"), self._secrets)
        return ProviderError("format", f"{self._asked} answered with {what}", detail=" ".join(words.split()))

    def cut(self) -> ProviderError:
        words = f"{self._asked} request failed (the stream ended before the reply did)"
        return ProviderError("connection", words, retryable=True)

    def refused(self) -> ProviderError:
        words = f"{self._asked} would not answer this (a content filter or the model refused); say it in other words"
        return ProviderError("refusal", words)

    def stuck(self, seconds: float) -> ProviderError:
        return ProviderError(
            "timeout", f"{self._asked} gave signs of life for {seconds:g} s, and nothing of its answer"
        )

    def empty(self, *, retryable: bool) -> ProviderError:
        return ProviderError("empty_response", f"{self._asked} answered with no content; {_LATER}", retryable=retryable)

    def _fault(
        self, status: int, text: str, where: str, *, http_status: int | None = None, wait: float | None = None
    ) -> ProviderError:
        detail = " ".join(redact(_words(text), self._secrets).split())
        if status == 413 or (status in (400, 422, 500) and _OVERFLOW.search(text)):
            said = _WINDOW.search(text)
            window = int(said[1] or said[2] or said[3]) if said else None
            takes = f", which takes {window} tokens" if window else ""
            advice = "begin a new session or shorten the message" + (
                f", and set contextWindow to {window}" * bool(window)
            )
            message = f"{self._asked} request failed (longer than the model's context{takes}, {where}); {advice}"
            return ContextOverflow(message, window=window, status=http_status, detail=detail)
        kind, phrase = _STATUSES.get(
            status,
            ("server_error", "provider internal error") if status >= 500 else ("unclassified", "unexpected answer"),
        )
        if kind in ("format", "auth", "rate_limit") and _NO_CREDIT.search(text):
            kind, phrase = _STATUSES[402]
        elif kind == "format" and _NO_MODEL.search(text):
            kind, phrase = _STATUSES[404]
        advice = self._key_hint if kind == "auth" else (_LOCAL_ADVICE if self._local else _ADVICE).get(kind)
        if kind == "format" and _NO_TOOLS.search(text):
            advice = (
                "set compat.supportsTools of this model to false, or start its server with tools (llama.cpp: --jinja)"
            )
        if wait and kind in _RETRYABLE:
            advice = f"it asks to wait {wait:g} s"
        message = f"{self._asked} request failed ({phrase}, {where})"
        if self._local and detail:
            message += f"; it says: {detail[:300].rstrip('.')}"
        if advice:
            message += f"; {advice}"
        return ProviderError(
            kind, message, retryable=kind in _RETRYABLE, retry_after=wait, status=http_status, detail=detail
        )


def _words(text: str) -> str:
    """What an error body says to people, whatever its shape."""
    try:
        value: Any = msgspec.json.decode(text)
    except NOT_JSON:
        return "an HTML page" if text.lstrip().startswith("<") else text
    for _ in range(4):
        if isinstance(value, list) and value:
            value = cast("list[Any]", value)[0]
        if not isinstance(value, dict):
            break
        fields = cast("dict[str, Any]", value)
        value = next((fields[name] for name in ("error", "message", "detail") if fields.get(name)), text)
    return value if isinstance(value, str) else text


def _named_status(error: object) -> int:
    if not isinstance(error, dict):
        return 500
    fields = cast("dict[str, Any]", error)
    names = [str(fields.get(name) or "") for name in ("code", "type", "status")]
    for name in names:
        if re.fullmatch(r"[45]\d\d", name):
            return int(name)
    joined = " ".join(names).lower()
    if _OVERFLOW.search(joined):
        return 400
    return next((status for part, status in _NAMED_STATUSES if part in joined), 500)
