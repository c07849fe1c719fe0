"""Session keys and what a session is. Pure: rows come from the store, which knows nothing of spelling.

Keys: the protocol's `agent:<agentId>:<rest>`, lower-cased; `main` is short for `agent:<agentId>:main`.
"""

import re
from typing import Literal

import msgspec

from triops.runtime.errors import Invalid

MAX_KEY = 512
DEFAULT_AGENT = "main"
MAIN_KEY = "agent:main:main"
MAX_SPAWN_DEPTH = 5
"""Sub-agents of sub-agents, at most."""

CreatedVia = Literal["operator", "spawn", "cron", "run", "internal"]
SessionStatus = Literal["queued", "running", "done", "failed", "killed", "timeout"]

_AGENT_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """One row; times are milliseconds since the epoch."""

    sid: int
    """The store's own number; never leaves the process."""
    key: str
    agent_id: str
    session_id: str
    """UUID of the transcript; a reset keeps it and moves `reset_seq`."""
    label: str | None = None
    display_name: str | None = None
    created_via: CreatedVia = "operator"
    created_at: int = 0
    updated_at: int = 0
    last_interaction_at: int | None = None
    status: SessionStatus | None = None
    started_at: int | None = None
    ended_at: int | None = None
    last_run_id: str | None = None
    last_run_error: str | None = None
    last_preview: str | None = None
    last_seq: int = 0
    reset_seq: int = 0
    """Messages up to this one are history, but not the model's context any more."""
    summary_seq: int = 0
    """The message that the model is shown in place of those before `kept_seq`; 0: none."""
    kept_seq: int = 0
    model: str | None = None
    """The session's own choice (`provider/model`); strict, no fallback."""
    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    spawned_by: str | None = None
    spawn_depth: int = 0
    lifecycle_revision: str = ""


def canonical_key(text: str, *, agent_id: str | None = None) -> str:
    """The one spelling under which a session is kept.

    Raises:
        Invalid: empty, too long, holds control characters, or names another agent than `agent_id`.
    """
    if len(text) > MAX_KEY:
        raise Invalid(f"session key has {len(text)} characters; at most {MAX_KEY} are allowed")
    wanted = agent_id.strip().lower() if agent_id is not None else None
    key = text.strip().lower()
    if not key:
        raise Invalid("session key is empty")
    if _CONTROL.search(key):
        raise Invalid("session key holds control characters")
    if not key.startswith("agent:"):
        key = f"agent:{wanted or DEFAULT_AGENT}:{key}"
    owner, _, rest = key.removeprefix("agent:").partition(":")
    if not _AGENT_ID.fullmatch(owner) or not rest:
        raise Invalid(f"session key {text!r} is not agent:<agentId>:<name>")
    if wanted and owner != wanted:
        raise Invalid(f"session key {text!r} belongs to agent {owner!r}, but agentId says {agent_id!r}")
    if len(key) > MAX_KEY:  # with its agent: what is handed out must be taken back
        raise Invalid(f"session key has {len(key)} characters; at most {MAX_KEY} are allowed")
    return key


def agent_of(key: str) -> str:
    """The agent id within a canonical key."""
    return key.split(":", 2)[1]


def is_main(key: str) -> bool:
    """Whether a canonical key is some agent's main session."""
    return key == f"agent:{agent_of(key)}:main"


def is_subagent(key: str) -> bool:
    """Whether a canonical key was made for a spawned run."""
    return key.split(":", 2)[2].startswith("subagent:")
