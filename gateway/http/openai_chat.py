"""`POST /v1/chat/completions` (protocol, HTTP §3.3)."""

from collections.abc import Iterable
from typing import Any
from uuid import uuid4

import msgspec

from triops.agents.model import ToolSchema
from triops.gateway.errors import WireError
from triops.gateway.http import openai
from triops.gateway.http.exchange import sse
from triops.gateway.http.openai import DONE, Reply, Said
from triops.gateway.http.table import Asked, refusal, route
from triops.gateway.schema.openai import ChatCompletions, ChatMessage
from triops.gateway.scopes import WRITE

ARGUMENTS = 256  # characters of a call's arguments in one chunk


@route(
    "POST",
    "/v1/chat/completions",
    scope=WRITE,
    body=ChatCompletions,
    style="openai",
    streams=True,
    enabled=lambda config: config.gateway.http.endpoints.chat_completions.enabled,
)
async def chat_completions(asked: Asked) -> Any:
    """A reply to a conversation, as OpenAI's chat completions."""
    body: ChatCompletions = asked.body
    id = f"chatcmpl_{uuid4()}"
    agent = openai.agent_of(asked, body.model)
    tools = [
        ToolSchema(tool.function.name, tool.function.description or "", tool.function.parameters or {"type": "object"})
        for tool in body.tools or ()
    ]
    names = ("top_p", "frequency_penalty", "presence_penalty", "seed", "stop", "response_format")
    wishes = openai.wishes(
        tools,
        body.tool_choice,
        limit=body.max_completion_tokens or body.max_tokens,
        temperature=body.temperature,
        params={name: msgspec.to_builtins(getattr(body, name)) for name in names},
    )
    said = [one for message in body.messages for one in _said(message)]
    key = openai.session_key(asked, agent, body.user, "openai")
    wanted = openai.submission(asked, said, "messages", key=key, run_id=id, wanted=wishes)
    kind = "chat.completion.chunk" if body.stream else "chat.completion"
    head = {"id": id, "object": kind, "created": asked.call.services.runtime.clock() // 1000, "model": body.model}

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        return sse(head | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    stream = asked.stream if body.stream else None

    def failed(error: WireError) -> bytes:
        return sse(refusal(error.shape, "openai").payload)

    followed = await openai.answered(
        asked, wanted, stream, chunk({"role": "assistant"}), lambda new: chunk({"content": new}), failed
    )
    if followed is None:
        return None
    reply, _ = followed
    if stream is None:
        return head | {
            "choices": [{"index": 0, "message": _message(reply), "finish_reason": _finish(reply)}],
            "usage": _usage(reply),
        }
    rest = b"".join(map(chunk, _call_deltas(reply))) + chunk({}, _finish(reply))
    if body.stream_options and body.stream_options.include_usage:
        rest += sse(head | {"choices": [], "usage": _usage(reply)})
    await stream.send(rest + DONE)
    return None


def _said(message: ChatMessage) -> Iterable[Said]:
    if message.role in ("tool", "function"):
        yield Said("tool", message.content, f"Result of {message.name or message.tool_call_id or 'a tool'}")
        return
    if message.content or not message.tool_calls:
        yield Said(message.role, message.content)
    for called in message.tool_calls or ():
        asks = f"{called.function.name}({called.function.arguments})"
        yield Said("assistant", asks, f"Assistant called, as {called.id}")


def _message(reply: Reply) -> dict[str, Any]:
    if not reply.calls:
        return {"role": "assistant", "content": reply.text or openai.EMPTY}
    calls = [
        {
            "id": called.id,
            "type": "function",
            "function": {"name": called.name, "arguments": openai.arguments_of(called)},
        }
        for called in reply.calls
    ]
    return {"role": "assistant", "content": reply.text or None, "tool_calls": calls}


def _call_deltas(reply: Reply) -> Iterable[dict[str, Any]]:
    for index, called in enumerate(reply.calls):
        named = {"name": called.name, "arguments": ""}
        yield {"tool_calls": [{"index": index, "id": called.id, "type": "function", "function": named}]}
        text = openai.arguments_of(called)
        for start in range(0, len(text), ARGUMENTS):
            part = {"arguments": text[start : start + ARGUMENTS]}
            yield {"tool_calls": [{"index": index, "function": part}]}


def _finish(reply: Reply) -> str:
    return "tool_calls" if reply.calls else "length" if reply.cut else "stop"


def _usage(reply: Reply) -> dict[str, int]:
    used = openai.tokens_in(reply.usage)
    return {
        "prompt_tokens": used,
        "completion_tokens": reply.usage.output,
        "total_tokens": used + reply.usage.output,
    }
