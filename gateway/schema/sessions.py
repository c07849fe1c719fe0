"""Params of `sessions.*` (protocol, methods §2.3), and the row by which clients know a session."""

from typing import Annotated, Any, Literal

import msgspec

from triops.gateway.schema.chat import Attachment, Key, Str1, Uint

Label = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]


class SessionsList(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, kw_only=True):
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100
    offset: Uint = 0
    active_minutes: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] | None = None
    label: Label | None = None
    search: str | None = None
    agent_id: Str1 | None = None
    spawned_by: Str1 | None = None
    exclude_subagents: bool = False
    exclude_cron: bool = False
    active_only: bool = False
    require_last_interaction: bool = False
    sort_by: Literal["updatedAt", "lastInteractionAt", "activity"] | None = None
    include_global: bool = False
    include_unknown: bool = False
    exclude_system: bool = False
    configured_agents_only: bool = False
    include_derived_titles: bool = False
    include_last_message: bool = False
    include_activity_summary: bool = False
    archived: bool | Literal["all"] = False
    pinned: bool | None = None
    group: str | None = None
    project_id: Any = None
    workspace_dir: Any = None
    board_face: Any = None
    has_board: Any = None
    creator_id: Any = None
    owner_id: Any = None
    owner_first: Any = None
    involving_me: Any = None
    profile_relation: Any = None
    involving_profile_id: Any = None
    include_people: Any = None


class SessionsCreate(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, kw_only=True):
    key: Key | None = None
    agent_id: Str1 | None = None
    label: Label | None = None
    display_name: str | None = None
    model: Str1 | None = None
    message: str | None = None
    task: str | None = None
    idempotency_key: Str1 | None = None
    parent_session_key: Str1 | None = None
    timeout_ms: Uint | None = None
    attachments: list[Attachment] = []
    title_source: Any = None
    category: Any = None
    thinking_level: Any = None
    fast_mode: Any = None
    emit_command_hooks: bool = False
    mentions: Any = None


class SessionsSend(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, kw_only=True):
    key: Key
    message: str
    agent_id: Str1 | None = None
    idempotency_key: Str1 | None = None
    timeout_ms: Uint | None = None
    attachments: list[Attachment] = []
    mentions: Any = None
    thinking: str | None = None


class SessionsReset(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, kw_only=True):
    key: Key
    agent_id: Str1 | None = None
    reason: Literal["new", "reset"] = "reset"
    expected_session_id: Str1 | None = None


class SessionTarget(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """`sessions.messages.subscribe` and `…unsubscribe`."""

    key: Key
    agent_id: Str1 | None = None
    include_approvals: bool = False


class SessionRow(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """What clients know of a session; absent means unchanged."""

    key: str
    session_id: str
    kind: str = msgspec.field(default_factory=lambda: "direct")
    agent_id: str
    classification: str
    is_main: bool = msgspec.field(default_factory=lambda: False)
    is_background: bool = msgspec.field(default_factory=lambda: False)
    chat_type: str = msgspec.field(default_factory=lambda: "direct")
    visibility: str = msgspec.field(default_factory=lambda: "shared")
    created_via: str
    created_at: int
    updated_at: int
    archived: bool = msgspec.field(default_factory=lambda: False)
    pinned: bool = msgspec.field(default_factory=lambda: False)
    unread: bool = msgspec.field(default_factory=lambda: False)
    label: str | None = None
    display_name: str | None = None
    last_message_preview: str | None = None
    last_interaction_at: int | None = None
    status: str | None = None
    started_at: int | None = None
    ended_at: int | None = None
    runtime_ms: int | None = None
    aborted_last_run: bool = msgspec.field(default_factory=lambda: False)
    last_run_id: str | None = None
    last_run_error: str | None = None
    spawned_by: str | None = None
    parent_session_key: str | None = None
    spawn_depth: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    total_tokens_fresh: bool = msgspec.field(default_factory=lambda: True)
    context_tokens: int | None = None
    model_provider: str | None = None
    model: str | None = None
    has_active_run: bool = msgspec.field(default_factory=lambda: False)
    active_run_ids: tuple[str, ...] = msgspec.field(default_factory=tuple[str, ...])
