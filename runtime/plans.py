"""Plans: what does not change between turns, compiled once and kept while its sources stay the same.

A plan is keyed by model, agent, mode, the workspace's files and the day. A turn that finds its plan pays six stats.
"""

import os
import platform
import socket
from collections.abc import Callable, Mapping
from datetime import datetime, tzinfo
from fnmatch import fnmatchcase
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec

from triops.agents.model import ModelInfo
from triops.agents.prompt import AgentFacts, Mode, Plan, compile_plan
from triops.agents.tool import AnyTool
from triops.agents.workspace import Workspace, WorkspaceSnapshot
from triops.runtime.agents import AgentProfile, profiles
from triops.runtime.clock import Clock, InThread
from triops.runtime.config import Config, ToolsConfig, join, workspace_of
from triops.runtime.errors import NotFound
from triops.runtime.logs import Log
from triops.runtime.paths import Paths, StateError
from triops.runtime.runs.registry import Run
from triops.runtime.sessions import DEFAULT_AGENT, is_subagent

Toolset = Callable[[Path], tuple[AnyTool, ...]]
"""The tools of an agent whose workspace is that folder."""

KEPT_PLANS = 64
_NOT_FOR_SUBAGENTS = frozenset({"cron", "sessions_send"})
_GROUPS: dict[str, frozenset[str]] = {
    "group:fs": frozenset({"read", "write", "edit"}),
    "group:automation": frozenset({"cron"}),
    "group:sessions": frozenset({"sessions_list", "sessions_history", "sessions_send", "sessions_spawn"}),
}


class _Home(msgspec.Struct):
    """One agent's folder and tools, made when first needed."""

    workspace: Workspace
    tools: tuple[AnyTool, ...]


class Plans:
    """The plans of all agents. Belongs to the Trio thread."""

    def __init__(
        self,
        agents: Mapping[str, AgentProfile],
        *,
        config: Config,
        workspace_of: Callable[[str], Path],
        tools: Toolset,
        clock: Clock,
        in_thread: InThread,
        log: Log,
    ) -> None:
        self._agents = agents
        self._config = config
        self._workspace_of = workspace_of
        self._tools = tools
        self._clock = clock
        self._in_thread = in_thread
        self._log = log
        self._homes: dict[str, _Home] = {}
        self._plans: dict[object, Plan] = {}
        zone = config.agents.defaults.user_timezone
        self._zone: tzinfo | None = ZoneInfo(zone) if zone else None

    def reconfigure(self, agents: Mapping[str, AgentProfile], config: Config) -> None:
        """Forget what was compiled for another configuration. Folders and zones stay what they were."""
        self._agents, self._config = agents, config
        self._plans.clear()

    def models_of(self, agent_id: str) -> tuple[str | None, tuple[str, ...]]:
        """The agent's model and its fallbacks; None: the best that is found.

        Raises:
            NotFound: the configuration does not have that agent (any more).
        """
        profile = self._agents.get(agent_id)
        if profile is None:
            raise NotFound(f"there is no agent {agent_id!r}; the configuration has {', '.join(self._agents)}")
        return profile.primary, profile.fallbacks

    def tools_of(self, agent_id: str) -> tuple[AnyTool, ...]:
        """The tools that the agent may call in a session of its own."""
        return self._allowed(self._home(agent_id).tools, "full")

    async def of(self, run: Run, model: ModelInfo) -> Plan:
        """The plan of a turn."""
        mode: Mode = "minimal" if is_subagent(run.session.key) else "full"
        home = self._home(run.info.agent_id)
        snapshot = home.workspace.kept()
        if snapshot is None:
            snapshot = await self._in_thread(home.workspace.snapshot)
        return self._plan(run.info.agent_id, model, mode, snapshot)

    async def warm_prompt(self, model: ModelInfo) -> str:
        """The system prompt that the main session's next turn with this model will send."""
        home = self._home(DEFAULT_AGENT)
        snapshot = await self._in_thread(home.workspace.snapshot)
        return self._plan(DEFAULT_AGENT, model, "full", snapshot).system_for(f"agent:{DEFAULT_AGENT}:main")

    def _plan(self, agent_id: str, model: ModelInfo, mode: Mode, snapshot: WorkspaceSnapshot) -> Plan:
        today = datetime.fromtimestamp(self._clock() / 1000, self._zone).date()
        key = (agent_id, model.ref, mode, snapshot.revision, today)
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= KEPT_PLANS:
                self._plans.clear()
            tools = self._allowed(self._home(agent_id).tools, mode)
            plan = self._plans[key] = compile_plan(model, self._facts(agent_id), snapshot, tools, mode, today)
            for part in plan.left_out:
                self._log.info("left out of the prompt", agent=agent_id, model=model.ref, what=part)
        return plan

    def _home(self, agent_id: str) -> _Home:
        home = self._homes.get(agent_id)
        if home is None:
            root = self._workspace_of(agent_id)
            home = self._homes[agent_id] = _Home(Workspace(root), self._tools(root))
        return home

    def _allowed(self, tools: tuple[AnyTool, ...], mode: Mode) -> tuple[AnyTool, ...]:
        rules = self._config.tools
        return tuple(
            tool
            for tool in tools
            if is_allowed(tool.name, rules) and not (mode == "minimal" and tool.name in _NOT_FOR_SUBAGENTS)
        )

    def _facts(self, agent_id: str) -> AgentFacts:
        zone = self._config.agents.defaults.user_timezone or datetime.now().astimezone().tzname() or "UTC"
        return AgentFacts(
            id=agent_id,
            name=self._agents[agent_id].name,
            host=socket.gethostname(),
            os=f"{platform.system()} {platform.release()}",
            time_zone=zone,
            instructions=self._config.agents.defaults.system_prompt or "",
        )


def prepare_workspaces(config: Config, paths: Paths) -> None:
    """Make the folder of every agent. One that is lost later is made again by the first tool that writes in it.

    Raises:
        StateError: one cannot be made or written in; the message names its key in the configuration.
    """
    for id in profiles(config):
        folder = workspace_of(config, paths, id)
        own = id in config.agents.entries and config.agents.entries[id].workspace is not None
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            problem = "" if os.access(folder, os.R_OK | os.W_OK | os.X_OK) else "this user may not read and write in it"
        except FileExistsError:
            problem = "it is not a folder"
        except OSError as error:
            problem = f"it cannot be made: {error.strerror}"
        if problem:
            key = f"{join('agents.entries', id) if own else 'agents.defaults'}.workspace"
            raise StateError(f"{paths.config}: {key}: {folder}: {problem}; correct that, or name another folder")


def is_allowed(name: str, rules: ToolsConfig) -> bool:
    """Whether the configuration lets agents call a tool; `deny` wins."""
    if any(_matches(name, pattern) for pattern in rules.deny):
        return False
    return rules.allow is None or any(_matches(name, pattern) for pattern in rules.allow)


def _matches(name: str, pattern: str) -> bool:
    pattern = pattern.lower()
    return name in _GROUPS.get(pattern, ()) or fnmatchcase(name, pattern)
