"""`POST /v1/responses` (protocol, HTTP §3.4)."""

from collections.abc import Iterable
from typing import Any
from uuid import uuid4

from triops.agents.messages import ToolCall, Usage
from triops.agents.model import ToolSchema
from triops.gateway.errors import WireError
from triops.gateway.http import openai
from triops.gateway.http.exchange import sse
from triops.gateway.http.openai import DONE, Reply, Said
from triops.gateway.http.table import Asked, route
from triops.gateway.schema.openai import Item, Responses
from triops.gateway.scopes import WRITE
from triops.runtime.runs.state import Submission


@route(
    "POST",
    "/v1/responses",
    scope=WRITE,
    body=Responses,
    style="openai",
    streams=True,
    enabled=lambda config: config.gateway.http.endpoints.responses.enabled,
)
async def responses(asked: Asked) -> Any:
    """A reply to a conversation, as OpenAI's responses."""
    body: Responses = asked.body
    wanted = await submission(asked, body, f"resp_{uuid4()}", "openresponses")
    made = _Made(wanted.run_id, asked.call.services.runtime.clock() // 1000, body.model)
    stream = asked.stream if body.stream else None
    followed = await openai.answered(asked, wanted, stream, made.opening(), made.delta, made.failed)
    if followed is None:
        return None
    reply, text = followed
    if stream is None:
        return made.resource(reply, reply.text)
    await stream.send(made.ending(reply, text) + DONE)
    return None


async def submission(asked: Asked, body: Responses, run_id: str, prefix: str, session: str | None = None) -> Submission:
    """The run of a request."""
    agent = openai.agent_of(asked, body.model)
    tools = [
        ToolSchema(tool.name, tool.description or "", tool.parameters or {"type": "object"})
        for tool in body.tools or ()
    ]
    params = {"top_p": body.top_p}
    limit, warmth = body.max_output_tokens, body.temperature
    wishes = openai.wishes(tools, body.tool_choice, limit=limit, temperature=warmth, params=params)
    key = openai.session_key(asked, agent, body.user, prefix, session)
    if body.previous_response_id is not None:
        before = await asked.call.services.runtime.runs.find(body.previous_response_id)
        if before is None or before.session.agent_id != agent:
            raise openai.bad(f"previous_response_id: {body.previous_response_id!r} is no response of this agent")
        key = before.session.key
    said = [Said("system", body.instructions), *_said(body.input)]
    return openai.submission(asked, said, "input", key=key, run_id=run_id, wanted=wishes)


def _said(given: str | tuple[Item, ...]) -> Iterable[Said]:
    if isinstance(given, str):
        yield Said("user", given)
        return
    for item in given:
        if item.type == "message":
            yield Said(item.role, item.content)
        elif item.type == "function_call":
            yield Said("assistant", f"{item.name}({item.arguments})", f"Assistant called, as {item.call_id}")
        elif item.type == "function_call_output":
            yield Said("tool", item.output, f"Result of {item.call_id}")


class _Made:
    """One response while it is made: its events in their order."""

    def __init__(self, id: str, created: int, model: str) -> None:
        self._head: dict[str, Any] = {"id": id, "object": "response", "created_at": created}
        self._model = model
        self._item = f"msg_{uuid4()}"
        self._place: dict[str, Any] = {"item_id": self._item, "output_index": 0, "content_index": 0}
        self._events = 0
        self._speaks = False

    def opening(self) -> bytes:
        begun = self._resource("in_progress", [], None)
        return self._event("response.created", response=begun) + self._event("response.in_progress", response=begun)

    def delta(self, new: str) -> bytes:
        out = b""
        if not self._speaks:
            self._speaks = True
            item: dict[str, Any] = {
                "type": "message",
                "id": self._item,
                "role": "assistant",
                "content": [],
                "status": "in_progress",
            }
            out = self._event("response.output_item.added", output_index=0, item=item)
            out += self._event("response.content_part.added", **self._place, part=_part(""))
        return out + self._event("response.output_text.delta", **self._place, delta=new, logprobs=[])

    def ending(self, reply: Reply, text: str) -> bytes:
        out = b""
        response = self.resource(reply, text)
        if self._speaks:
            out += self._event("response.output_text.done", **self._place, text=text, logprobs=[])
            out += self._event("response.content_part.done", **self._place, part=_part(text))
            out += self._event("response.output_item.done", output_index=0, item=response["output"][0])
        for index in range(int(self._speaks), len(response["output"])):
            item = response["output"][index]
            begun = item | {"arguments": "", "status": "in_progress"}
            out += self._event("response.output_item.added", output_index=index, item=begun)
            about = {"item_id": item["id"], "output_index": index}
            arguments = item["arguments"]
            out += self._event("response.function_call_arguments.delta", **about, delta=arguments)
            out += self._event("response.function_call_arguments.done", **about, name=item["name"], arguments=arguments)
            out += self._event("response.output_item.done", output_index=index, item=item)
        return out + self._event(f"response.{response['status']}", response=response)

    def failed(self, error: WireError) -> bytes:
        about = {"error": {"code": "server_error", "message": str(error)}}
        return self._event("response.failed", response=self._resource("failed", [], None) | about)

    def resource(self, reply: Reply, text: str) -> dict[str, Any]:
        """The whole response."""
        status = "incomplete" if reply.cut else "completed"
        output: list[dict[str, Any]] = []
        if text or not reply.calls:
            output.append(
                {
                    "type": "message",
                    "id": self._item,
                    "role": "assistant",
                    "content": [_part(text or openai.EMPTY)],
                    "phase": "final_answer",
                    "status": status,
                }
            )
        output += map(_called, reply.calls)
        whole = self._resource(status, output, reply)
        return whole | {"incomplete_details": {"reason": "max_output_tokens"}} if reply.cut else whole

    def _resource(self, status: str, output: list[dict[str, Any]], reply: Reply | None) -> dict[str, Any]:
        return self._head | {"status": status, "model": self._model, "output": output, "usage": usage_of(reply)}

    def _event(self, kind: str, **fields: Any) -> bytes:
        payload = {"type": kind, "sequence_number": self._events, **fields}
        self._events += 1
        return sse(payload, kind)


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": []}


def _called(called: ToolCall) -> dict[str, Any]:
    return {
        "type": "function_call",
        "id": f"fc_{called.id}",
        "call_id": called.id,
        "name": called.name,
        "arguments": openai.arguments_of(called),
        "status": "completed",
    }


def usage_of(reply: Reply | None) -> dict[str, Any]:
    """`usage` of a response; zeros while it is made."""
    used = reply.usage if reply else Usage()
    read, written = openai.tokens_in(used), used.output
    cached = {"cached_tokens": used.cache_read, "cache_write_tokens": used.cache_write}
    return {
        "input_tokens": read,
        "input_tokens_details": cached,
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read + written,
    }
