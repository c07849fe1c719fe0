"""Params of `chat.*` and `agent*` (protocol, methods §2.1–2.2). Closed objects: an unknown key is a fault.

Keys of OpenClaw that have no meaning here yet are accepted as `Any` and left alone, because real clients send them.
"""

from typing import Annotated, Any

import msgspec

from triops.gateway.frames import Str1
from triops.runtime.runs.state import QueueMode
from triops.runtime.sessions import MAIN_KEY

Key = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
PageSize = Annotated[int, msgspec.Meta(ge=1, le=1000)]
Uint = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]


class Attachment(msgspec.Struct, frozen=True, rename="camel"):
    """`content` is base64, a data URL's prefix is tolerated."""

    type: str | None = None
    mime_type: str | None = None
    file_name: str | None = None
    content: Any = None


class ChatSend(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, kw_only=True):
    session_key: Annotated[str, msgspec.Meta(max_length=512)]
    message: str
    idempotency_key: Str1
    agent_id: Str1 | None = None
    session_id: Str1 | None = None
    queue_mode: QueueMode | None = None
    timeout_ms: Uint | None = None
    attachments: list[Attachment] = []
    mentions: Any = None
    work_context: Any = None
    intent: Any = None
    thinking: str | None = None
    fast_mode: Any = None
    fast_auto_on_seconds: Any = None
    deliver: bool = False
    originating_channel: str | None = None
    originating_to: str | None = None
    originating_account_id: str | None = None
    originating_thread_id: str | None = None
    reply_to_id: Str1 | None = None
    tool_bindings: Any = None
    system_input_provenance: Any = None
    system_provenance_receipt: str | None = None
    suppress_command_interpretation: bool = False
    expected_leaf_entry_id: str | None = None
    expected_session_routing_contract: str | None = None
    expected_permission_mode: Any = None
    expected_tool_overrides: Any = None


class ChatAbort(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, kw_only=True):
    session_key: Key
    agent_id: Str1 | None = None
    run_id: Str1 | None = None
    preserve_side_runs: bool = False


class ChatHistory(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, kw_only=True):
    session_key: Key
    agent_id: Str1 | None = None
    limit: PageSize = 200
    offset: Uint = 0
    max_bytes: Annotated[int, msgspec.Meta(ge=1024)] | None = None
    max_chars: Annotated[int, msgspec.Meta(ge=1, le=500_000)] | None = None
    pending_before: Any = None
    input_run_ids: Any = None
    session_id: Str1 | None = None


class WebchatMessages(ChatHistory, frozen=True, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """Query of `GET /webchat/messages`."""

    session_key: Key = MAIN_KEY
    limit: PageSize = 50


class WebchatSend(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Body of `POST /webchat/messages`; `text` and `message` mean the same."""

    message: str = ""
    text: str = ""
    session_key: str = MAIN_KEY
    idempotency_key: str | None = None


class Agent(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, kw_only=True):
    message: Str1
    idempotency_key: Str1
    agent_id: Str1 | None = None
    session_key: Key | None = None
    session_id: str | None = None
    provider: str | None = None
    model: str | None = None
    timeout: Uint | None = None
    """Seconds."""
    extra_system_prompt: str | None = None
    label: Annotated[str, msgspec.Meta(min_length=1, max_length=512)] | None = None
    to: str | None = None
    reply_to: str | None = None
    thinking: str | None = None
    deliver: bool = False
    attachments: list[Any] = []
    channel: str | None = None
    reply_channel: str | None = None
    account_id: str | None = None
    reply_account_id: str | None = None
    thread_id: str | None = None
    group_id: str | None = None
    group_channel: str | None = None
    group_space: str | None = None
    best_effort_deliver: bool = False
    lane: str | None = None
    prompt_mode: str | None = None
    input_provenance: Any = None
    bootstrap_context_mode: Any = None
    bootstrap_context_run_kind: Any = None
    voice_wake_trigger: str | None = None


class AgentWait(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, kw_only=True):
    run_id: Str1
    timeout_ms: Uint = 30_000


class AgentIdentity(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, kw_only=True):
    agent_id: Str1 | None = None
    session_key: str | None = None
