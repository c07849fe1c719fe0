"""Who the agents are: name and face, by id. Pure."""

from collections.abc import Mapping
from typing import Literal

import msgspec

from triops.runtime.config import AgentEntry, Config
from triops.runtime.sessions import DEFAULT_AGENT

NameSource = Literal["config", "default"]


class AgentProfile(msgspec.Struct, frozen=True, kw_only=True):
    """One agent, as it appears."""

    agent_id: str
    name: str
    name_source: NameSource
    emoji: str | None = None
    avatar: str | None = None
    primary: str | None = None
    """Its model; None: the best that is found."""
    fallbacks: tuple[str, ...] = ()


def profiles(config: Config) -> Mapping[str, AgentProfile]:
    """The configured agents; with none, `main`."""
    entries = config.agents.entries or {DEFAULT_AGENT: AgentEntry()}
    return {id: _profile(id, entry, config) for id, entry in ({DEFAULT_AGENT: AgentEntry()} | entries).items()}


def _profile(agent_id: str, entry: AgentEntry, config: Config) -> AgentProfile:
    name = entry.identity.name or entry.name
    own = entry.model if entry.model.primary is not None else config.agents.defaults.model
    return AgentProfile(
        agent_id=agent_id,
        name=name or "Assistant",
        name_source="config" if name else "default",
        emoji=entry.identity.emoji,
        avatar=entry.identity.avatar,
        primary=own.primary,
        fallbacks=own.fallbacks,
    )
