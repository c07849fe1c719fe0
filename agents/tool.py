"""What a tool is: a name, a typed argument Struct, a coroutine. The model sees the Struct as a JSON Schema."""

from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar, cast

import msgspec

from triops.agents.messages import Text, UserBlock
from triops.agents.model import ToolSchema

Args = TypeVar("Args", bound=msgspec.Struct)

TOOL_DEADLINE = 1800.0
"""Seconds; what a tool gets that names no limit of its own (OpenClaw's `tools.exec.timeoutSeconds`)."""


class ToolResult(msgspec.Struct, frozen=True):
    """What a call gave. `details` is for clients, `content` is what the model reads."""

    content: tuple[UserBlock, ...]
    is_error: bool = False
    details: Any = None


def text_result(text: str, *, is_error: bool = False, details: Any = None) -> ToolResult:
    """A result of words only."""
    return ToolResult((Text(text),), is_error=is_error, details=details)


def json_result(value: Any, *, is_error: bool = False) -> ToolResult:
    """A result that the model reads as JSON and clients get as `details`."""
    plain = msgspec.to_builtins(value)
    return ToolResult((Text(msgspec.json.encode(plain).decode()),), is_error=is_error, details=plain)


class ToolContext(msgspec.Struct, frozen=True):
    """What a tool may know of the call it serves."""

    run_id: str
    session_key: str
    call_id: str
    update: Callable[[str], None]
    """Show progress; sync, never waits."""


class Tool(msgspec.Struct, Generic[Args], frozen=True):
    """A tool that the model may call.

    `run(args, context)` gets validated arguments. It returns a `ToolResult`, or raises `ToolError` whose words the
    model reads; any other exception becomes an error result too and is logged. It is cancelled with its run, and at
    its `deadline`.
    """

    name: str
    description: str
    args: type[Args]
    run: Callable[[Args, ToolContext], Awaitable[ToolResult]]
    deadline: float = TOOL_DEADLINE
    """Seconds."""
    parallel: bool = True
    """False: calls of this tool in one batch run one after the other, in source order."""

    @property
    def schema(self) -> ToolSchema:
        return ToolSchema(self.name, self.description, json_schema(self.args))


AnyTool = Tool[Any]


def json_schema(args: type[msgspec.Struct]) -> dict[str, Any]:
    """The JSON Schema of an argument Struct, with references inlined: some model servers cannot follow `$ref`."""
    (schema,), definitions = msgspec.json.schema_components([args], ref_template="#/$defs/{name}")
    inlined = _inline(schema, definitions)
    inlined.pop("title", None)
    inlined.setdefault("additionalProperties", False)
    return inlined


def _inline(node: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(node, dict):
        branch = cast("dict[str, Any]", node)
        reference = branch.get("$ref")
        if isinstance(reference, str):
            return _inline(definitions[reference.rpartition("/")[2]], definitions)
        return {key: _inline(value, definitions) for key, value in branch.items()}
    if isinstance(node, list):
        return [_inline(value, definitions) for value in cast("list[Any]", node)]
    return node
