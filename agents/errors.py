"""What can go wrong in a turn, by whose fault it is. Knows nothing of runs, stores or wires."""

from typing import Literal

ErrorKind = Literal[
    "rate_limit",
    "overloaded",
    "server_error",
    "timeout",
    "auth",
    "billing",
    "format",
    "model_not_found",
    "context_overflow",
    "empty_response",
    "refusal",
    "tls_certificate",
    "connection",
    "unclassified",
]
"""Classes of provider failure; names as in the protocol's `failoverReason`, `connection` (a peer that cannot be
reached or hung up) and `refusal` (the model, or a filter before it, would not answer) being ours."""


class ProviderError(Exception):
    """A model provider failed.

    `retryable` says that the same request may succeed later; `retry_after` (seconds) is what the provider asked for.
    `status` is the HTTP status where there was one, `detail` the provider's own words (at most 300 characters, never
    a secret).
    """

    def __init__(
        self,
        kind: ErrorKind,
        message: str,
        *,
        retryable: bool = False,
        retry_after: float | None = None,
        status: int | None = None,
        detail: str = "",
    ) -> None:
        super().__init__(message)
        self.kind: ErrorKind = kind
        self.retryable = retryable
        self.retry_after = retry_after
        self.status = status
        self.detail = detail[:300]


class ContextOverflow(ProviderError):
    """The request does not fit the model's context; a smaller one may, the same one will not."""

    def __init__(self, message: str, *, window: int | None = None, status: int | None = None, detail: str = "") -> None:
        super().__init__("context_overflow", message, status=status, detail=detail)
        self.window = window
        """Tokens that the model takes, as far as the provider said it."""
        self.spoke = False
        """The reply had begun."""


class ToolError(Exception):
    """A tool refuses or fails in a way that the model should read and can act on."""


class LimitReached(Exception):
    """A turn reached a limit of its own (steps, tokens); the reply so far is kept."""
