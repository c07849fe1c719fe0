"""What the routes of OpenAI's clients share: which agent and session, from messages to one prompt, and following a run.
The wire of each API is its own file's."""

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from uuid import uuid4

import msgspec
import trio

from triops.agents.messages import AssistantMessage, Image, Text, ToolCall, Usage, UserBlock, UserMessage
from triops.agents.model import ToolSchema, Wishes
from triops.gateway.errors import WireError
from triops.gateway.feeds import Feed
from triops.gateway.handlers import intake
from triops.gateway.http.exchange import Stream
from triops.gateway.http.table import Asked
from triops.gateway.methods import Call
from triops.gateway.schema.chat import Attachment
from triops.gateway.schema.openai import Choice, ChosenTool, Content, Part
from triops.gateway.scopes import ADMIN, require_scope
from triops.runtime.events import RunDelta, RunEnded, RunTool
from triops.runtime.runs.state import RunState, Submission, Terminal
from triops.runtime.sessions import DEFAULT_AGENT
from triops.runtime.store import sessions as stored

KEEP_ALIVE = 15.0  # seconds of silence after which a stream gets a comment
ACCEPT_LIMIT = 10.0  # seconds
DONE = b"data: [DONE]\n\n"
EMPTY = "No response from OpenClaw."
_RESERVED = ("subagent:", "cron:", "acp:")
_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+);base64,(.*)", re.DOTALL)


def bad(message: str, **details: Any) -> WireError:
    return WireError("INVALID_REQUEST", message, details=details or None)


# -- which agent, which session ------------------------------------------------------------------------------------


def agent_of(asked: Asked, model: str) -> str:
    """The agent that a request means by its `model`, or by its header.

    Raises:
        WireError: it names none, or one that the configuration does not have.
    """
    if model in ("openclaw", "openclaw/default"):
        named = DEFAULT_AGENT
    elif found := re.fullmatch(r"(?:openclaw[/:]|agent:)([^/:]+)", model):
        named = found[1].lower()
    else:
        raise bad("Invalid `model`. Use `openclaw` or `openclaw/<agentId>`.")
    agent = asked.head.get(b"x-openclaw-agent-id") or named
    intake.known_agent(asked.call, agent)
    return agent


def session_key(asked: Asked, agent: str, user: str | None, prefix: str, spelled: str | None = None) -> str:
    """The session that a request means: the one that it or its header names, its user's, or a new one."""
    spelled = spelled or asked.head.get(b"x-openclaw-session-key")
    if spelled is None:
        return intake.session_key(asked.call, f"{prefix}-user:{user}" if user else f"{prefix}:{uuid4()}", agent)
    key = intake.session_key(asked.call, spelled, None if spelled.startswith("agent:") else agent)
    if key.split(":", 2)[2].startswith(_RESERVED):
        raise bad(f"session key {spelled!r} is one that programs may not choose")
    return key


# -- from messages to a prompt -------------------------------------------------------------------------------------


class Said(msgspec.Struct, frozen=True):
    """One message of a request."""

    role: str
    content: Content
    label: str = ""
    """What it is in the history, where the role does not say it."""


def text_of(content: Content, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    files = (_file(part, where) for part in content if part.type == "input_file")
    return "\n".join([*(part.text or part.refusal for part in content if part.text or part.refusal), *files])


def _images(content: Content, where: str) -> Iterable[Image]:
    for part in content if isinstance(content, tuple) else ():
        if part.type in ("image_url", "input_image"):
            url = part.image_url if isinstance(part.image_url, str) else part.image_url.url if part.image_url else ""
            found = _DATA_URL.fullmatch(url)
            kind, data = (
                found.groups() if found else (part.source.media_type, part.source.data) if part.source else ("", "")
            )
            if not data:
                raise bad(f"{where}: an image must be a data: URL with base64; addresses are not fetched")
            yield intake.image(Attachment(mime_type=kind, content=data, file_name=where))


def _file(part: Part, where: str) -> str:
    """The text of a file, marked as what nobody vouches for."""
    source = part.source
    data = part.file_data or (source.data if source else "")
    found = _DATA_URL.fullmatch(data)
    try:
        text = base64.b64decode(found[2] if found else data, validate=True).decode()
    except (binascii.Error, ValueError):
        text = ""
    if not text:
        raise bad(f"{where}: a file must be text in base64; others are not read")
    return untrusted(text)


def untrusted(text: str, id: str = "") -> str:
    """`text` between marks that it cannot know."""
    id = id or uuid4().hex
    mark = "EXTERNAL_UNTRUSTED_CONTENT"
    return f'<<<{mark} id="{id}">>>\n{text}\n<<<END_{mark} id="{id}">>>'


def prompt(said: Sequence[Said], where: str) -> tuple[str, list[Image], str]:
    """The words of the turn, its images, and what is added to the system prompt.

    The last word of the user (or of a tool) is the turn's; what came before it is told with it.

    Raises:
        WireError: there is none.
    """
    spoken = [one for one in said if one.role not in ("system", "developer")]
    last = max((place for place, one in enumerate(spoken) if one.role in ("user", "tool")), default=-1)
    images = list(_images(spoken[last].content, where)) if last >= 0 else []
    now = text_of(spoken[last].content, where) if last >= 0 else ""
    if not now.strip() and not images:
        raise bad(f"Missing user message in `{where}`.")
    system = "\n\n".join(text_of(one.content, where) for one in said if one.role in ("system", "developer"))
    if spoken[last].label:
        now = f"{spoken[last].label}: {now}"
    before = [
        f"{one.label or one.role.capitalize()}: {text_of(one.content, where)}"
        for place, one in enumerate(spoken)
        if place != last
    ]
    if before:
        now = "\n".join(["[Earlier in this conversation]", *before, "", "[Now]", now])
    return now, images, system


def wishes(
    tools: Sequence[ToolSchema],
    choice: Choice | ChosenTool | None,
    *,
    limit: int | None,
    temperature: float | None,
    params: dict[str, Any],
) -> Wishes:
    """What the model is asked to keep to.

    Raises:
        WireError: the choice is a tool that was not given, or there is none to choose from.
    """
    must = choice not in (None, "auto", "none")
    if isinstance(choice, ChosenTool):
        name = choice.name or (choice.function.name if choice.function else "")
        tools = [tool for tool in tools if tool.name == name]
    if must and not tools:
        raise bad("tool_choice: there is no such tool among `tools`")
    return Wishes(
        tools=() if choice == "none" else tuple(tools),
        only_those=must,
        max_tokens=limit,
        temperature=temperature,
        params={name: value for name, value in params.items() if value is not None},
    )


def submission(asked: Asked, said: Sequence[Said], where: str, *, key: str, run_id: str, wanted: Wishes) -> Submission:
    """The run of a request."""
    text, images, system = prompt(said, where)
    override = asked.head.get(b"x-openclaw-model")
    if override is not None:
        require_scope(ADMIN, asked.call.peer.scopes)
    if wanted.only_those:
        system += f"\n\nAnswer by calling one of these tools: {', '.join(tool.name for tool in wanted.tools)}."
    size = len(system.encode()) + len(msgspec.json.encode(wanted))
    if size > intake.MAX_TEXT:
        raise bad(f"system messages and tools have {size} bytes; at most {intake.MAX_TEXT} are allowed")
    message = intake.user_message(asked.call, text or " ", (), run_id)
    if images:
        blocks: tuple[UserBlock, ...] = (Text(text), *images)
        message = UserMessage(blocks, message.timestamp, message.idempotency_key)
    made = intake.submission(
        asked.call,
        key=key,
        run_id=run_id,
        message=message,
        queue_mode="followup",
        model=override,
        extra_system=system.strip(),
    )
    return msgspec.structs.replace(made, wishes=wanted)


# -- following a run -----------------------------------------------------------------------------------------------


async def answered(
    asked: Asked,
    wanted: Submission,
    stream: Stream | None,
    opening: bytes,
    render: Callable[[str], bytes],
    failed: Callable[[WireError], bytes],
) -> tuple["Reply", str] | None:
    """Have a run accepted and follow it to its end: what it gave, and the words that were told. None when it failed
    after the first of them and the stream said so. Who leaves before its end stops it.

    Raises:
        WireError: it failed before.
    """
    call, runs = asked.call, asked.call.services.runtime.runs
    with call.services.feeds.follow(wanted.run_id) as feed:
        call.park()
        with trio.fail_after(ACCEPT_LIMIT, shield=True):  # cancelled here, nobody would stop a run that is accepted
            await runs.submit(wanted)
        try:
            terminal, text = await _tell(feed, stream, opening, render)
            reply = await _reply_of(call, wanted, feed, terminal)
        except WireError as error:
            if stream is None or not stream.begun:
                raise
            await stream.send(failed(error) + DONE)
            return None
        finally:
            run = runs.open_run(wanted.run_id)
            if run is not None:
                runs.abort(run, "rpc")
    if stream is not None and not stream.begun:
        await stream.send(opening)
    if stream is not None and not text and not reply.calls:
        text = EMPTY
        await stream.send(render(text))
    return reply, text


async def _tell(
    feed: Feed, stream: Stream | None, opening: bytes, render: Callable[[str], bytes]
) -> tuple[Terminal, str]:
    """Send a run's words as they come, however many are there, until its end; that, and all the words.

    Nothing is sent before there is something, so that a run that fails at once can be refused with a status.
    """
    place, message, text, current = 0, 0, "", ""
    while True:
        news = []
        with trio.move_on_after(KEEP_ALIVE):
            news = await feed.after(place)
        place += len(news)
        new, terminal = "", None
        for event in news:
            if isinstance(event, RunDelta):
                if message and event.index != message:
                    new, current = new + "\n\n", ""
                message = event.index
                new, current = new + event.delta, current + event.delta
            elif isinstance(event, RunEnded):
                terminal = event.terminal
                if terminal.text.startswith(current):  # what was too long to be told while it was written
                    new += terminal.text[len(current) :]
        text += new
        if stream is not None and (new or not news):
            await stream.send((b"" if stream.begun else opening) + (render(new) if new else b": keepalive\n\n"))
        if terminal is not None:
            return terminal, text


class Reply(msgspec.Struct, frozen=True):
    """How a run ended well, as these APIs see it."""

    text: str
    calls: tuple[ToolCall, ...]
    """Of the caller's own tools."""
    usage: Usage
    cut: bool
    """The model reached its limit of tokens."""


async def _reply_of(call: Call, wanted: Submission, feed: Feed, terminal: Terminal) -> Reply:
    """What the run gave.

    Raises:
        WireError: it failed or was stopped, or did not call a tool that it had to call.
    """
    message = terminal.message
    words = terminal.error_message or f"the run was stopped ({terminal.stop_reason})"
    calls: tuple[ToolCall, ...] = ()
    if terminal.state is RunState.FINAL and message is not None:
        names = {tool.name for tool in wanted.wishes.tools}
        calls = tuple(called for called in message.tool_calls if called.name in names)
        words = (
            "the model called none of the tools that it had to call" if wanted.wishes.only_those and not calls else ""
        )
    if words or message is None:
        retry = terminal.stop_reason == "restart" or None
        raise WireError("UNAVAILABLE", words, details={"code": "RUN_FAILED", "runId": wanted.run_id}, retryable=retry)
    usage = message.usage or Usage()
    if any(isinstance(event, RunTool) for event in feed.told):  # there were calls of the model before the last one
        usage = await _usage_of(call, wanted)
    return Reply(terminal.text.rstrip(), calls, usage, message.stop_reason == "length")


async def _usage_of(call: Call, wanted: Submission) -> Usage:
    page = await call.services.runtime.store.read(lambda db: stored.transcript(db, wanted.session_key, limit=400))
    told = [entry.message for entry in page.messages if entry.run_id == wanted.run_id]
    used = [message.usage for message in told if isinstance(message, AssistantMessage) and message.usage]
    return Usage(
        input=sum(one.input for one in used),
        output=sum(one.output for one in used),
        cache_read=sum(one.cache_read for one in used),
        cache_write=sum(one.cache_write for one in used),
    )


def tokens_in(usage: Usage) -> int:
    return usage.input + usage.cache_read + usage.cache_write


def arguments_of(called: ToolCall) -> str:
    return msgspec.json.encode(called.arguments).decode()
