"""Slash commands of `chat.send` (agent-loop.md §11): the gateway answers, no model is asked.

A word after the slash that is nobody's command is a message like any other.
"""

import re
from collections.abc import Awaitable, Callable

import msgspec

from triops import __version__
from triops.gateway.handlers.sessions import begin_afresh
from triops.gateway.methods import Call
from triops.gateway.rows import session_row
from triops.gateway.scopes import ADMIN, require_scope
from triops.runtime.models import UnknownModel
from triops.runtime.sessions import Session
from triops.runtime.store import sessions as stored

_ALIASES = {"id": "whoami", "commands": "help", "models": "model list"}
_ELSEWHERE = re.compile(
    "think|thinking|verbose|trace|fast|reasoning|reason|elevated|elev|exec|queue|steer|tell|name|export-session"
    "|export-trajectory|session|login|goal|tasks|context|usage|diagnostics|dashboard|skill|learn|loop|allowlist|approve"
    "|btw|side|subagents|agents|acp|config|mcp|plugins|debug|restart|update|send|bash|tts|activation"
)
"""What OpenClaw knows and Triops does not: told, rather than asked of a model."""


class Command(msgspec.Struct, frozen=True):
    name: str
    argument: str = ""


def parse(text: str) -> Command | None:
    """The command that a message is; None for what is meant for the model."""
    if not text.lstrip().startswith("/"):
        return None
    name, _, argument = text.strip()[1:].partition(" ")
    name, _, more = _ALIASES.get(name.lower(), name.lower()).partition(" ")
    if name not in (*_COMMANDS, "stop") and not _ELSEWHERE.fullmatch(name):
        return None
    return Command(name, f"{more} {argument.strip()}".strip())


async def answer(call: Call, key: str, command: Command) -> str:
    """Do what a command says; what the person is told."""
    if command.name in ("new", "reset"):
        require_scope(ADMIN, call.peer.scopes)
    if command.name not in _COMMANDS:
        return f"Triops has no /{command.name}. /help lists its commands."
    return await _COMMANDS[command.name][1](call, key, command.argument)


async def _help(call: Call, key: str, argument: str) -> str:
    lines = [f"/{usage}" for usage, _ in _COMMANDS.values()]
    return "\n".join(["Commands", *lines, "/stop — stop what runs here", "Everything else is said to the model."])


async def _status(call: Call, key: str, argument: str) -> str:
    runtime = call.services.runtime
    session = await runtime.store.read(lambda db: stored.find(db, key))
    running = runtime.runs.open_runs(key)
    lines = [f"Triops {__version__}, up {call.services.uptime_ms // 1000} s", f"Model: {_model(call, session)}"]
    if session is not None:
        row = session_row(runtime, session)
        lines.append(f"Context: {row.total_tokens:,} of {row.context_tokens or 0:,} tokens")
    lines.append(f"Session: {key}, {len(running)} running or waiting")
    lines.append(f"Queue: {runtime.config.messages.queue.mode}")
    for each in runtime.catalog.states():
        lines.append(f"Provider {each.provider}: {each.state}{each.reason and f' ({each.reason})'}")
    return "\n".join(lines)


async def _switch(call: Call, key: str, argument: str) -> str:
    """`/model`, `/model status`, `/model list`, `/model default`, `/model <name> [-s]`."""
    runtime = call.services.runtime
    wish = argument.removesuffix("-s").strip()
    if wish == "list":
        known = [str(info.ref) for info in runtime.catalog.models()]
        return "\n".join(["Models", *known]) if known else "No models. `triops models list` says what was looked for."
    if wish in ("", "status"):
        session = await runtime.store.read(lambda db: stored.find(db, key))
        return (
            f"Current: {_model(call, session)}\nThis session: /model <provider/model>\n"
            "The default again: /model default\nBrowse: /models"
        )
    if wish.startswith("-") or " " in wish:
        return f"/model takes one model, for this session, not {argument!r}; the configuration has that of all others."
    chosen: str | None = None
    if wish != "default":
        try:
            chosen = str((await runtime.catalog.resolve(wish)).info.ref)
        except UnknownModel as error:
            return str(error)
    now = runtime.clock()
    session = await runtime.store.write(lambda db: stored.choose_model(db, key, chosen, now))
    runtime.runs.changed(session, reason="patch")
    return f"This session uses {_model(call, session)} from its next message on."


def _model(call: Call, session: Session | None) -> str:
    catalog = call.services.runtime.catalog
    own = session.model if session is not None else None
    why = catalog.default_fault
    return own or f"{catalog.default or 'none found yet'} (the default{why and f'; {why}'})"


async def _new(call: Call, key: str, argument: str) -> str:
    told = await _switch(call, key, argument) if argument else ""
    await begin_afresh(call, key, "new")
    return f"New session started. {told}".strip()


async def _reset(call: Call, key: str, argument: str) -> str:
    await begin_afresh(call, key, "reset")
    return "Session reset."


async def _compact(call: Call, key: str, argument: str) -> str:
    return "Nothing to do: when a conversation has no room any more, the model sums up the older part of it by itself."


async def _whoami(call: Call, key: str, argument: str) -> str:
    return f"{call.peer.actor}\nScopes: {', '.join(sorted(call.peer.scopes))}\nSession: {key}"


Answer = Callable[[Call, str, str], Awaitable[str]]
_COMMANDS: dict[str, tuple[str, Answer]] = {
    "help": ("help — this", _help),
    "status": ("status — model, context, session, providers", _status),
    "model": ("model [provider/model | default | list] — the model of this session", _switch),
    "new": ("new [model] — begin afresh; what was said stays on disk", _new),
    "reset": ("reset — the same", _reset),
    "compact": ("compact — make room in the context", _compact),
    "whoami": ("whoami — who you are to the gateway", _whoami),
}
