"""Tool calls: validate, run each under its deadline, make a result of whatever happens, in source order.

The tool-call boundary: no `Exception` of a tool gets past it. Knows no model and no transcript.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

import msgspec
import trio

from triops.agents.errors import ToolError
from triops.agents.events import ToolEnd, ToolStart, ToolUpdate, TurnEvent
from triops.agents.messages import Text, ToolCall, ToolResultMessage, UserBlock
from triops.agents.tool import AnyTool, ToolContext, ToolResult, text_result
from triops.agents.transcript import ABORTED, error_result

SKIPPED = "Skipped to process an incoming message."
MAX_ECHO = 2_000
"""Characters of its own arguments that a model is shown when they are at fault."""


def output_limit(context_window: int) -> int:
    """Characters of one result that a model of this window is given (agent-loop.md §5)."""
    if context_window < 100_000:
        return 16_000
    return 32_000 if context_window < 200_000 else 64_000


class Toolbox(msgspec.Struct, frozen=True, kw_only=True):
    """The tools of one turn, and whom to tell what becomes of their calls."""

    tools: Mapping[str, AnyTool]
    run_id: str
    session_key: str
    limit: int
    """Characters of one result that the model is given; what is cut says so."""
    emit: Callable[[TurnEvent], None]
    """Sync, never waits, never raises."""
    report: Callable[[ToolCall, Exception], None]
    """Told of a tool's own fault (an exception that is no `ToolError`), to log it; sync, never raises."""
    now: Callable[[], int]
    """Milliseconds since the epoch."""

    async def run(self, calls: Sequence[ToolCall], interrupted: Callable[[], bool]) -> list[ToolResultMessage]:
        """Run a batch; one result a call, in order.

        Neighbours that may run in parallel do; a tool that may not is a barrier, so that a read that stands after an
        edit sees it. `interrupted` is asked before each such group and each single call: once it is true, what has
        not started is skipped. Cancelled: each started call has had its `ToolEnd`.
        """
        results: dict[int, ToolResultMessage] = {}

        async def perform(index: int) -> None:
            results[index] = await self._perform(calls[index])

        for group in self._groups(calls):
            if interrupted():
                break
            if len(group) == 1:
                await perform(group[0])
                continue
            async with trio.open_nursery() as nursery:
                for index in group:
                    nursery.start_soon(perform, index, name=f"tool {calls[index].name}")
        return [
            results.get(index) or error_result(call, SKIPPED, self.now())  # a Struct is never false
            for index, call in enumerate(calls)
        ]

    def _groups(self, calls: Sequence[ToolCall]) -> list[list[int]]:
        """Indices of the calls that may run at the same time."""

        def barrier(index: int) -> int:
            tool = self.tools.get(calls[index].name)
            return -1 if tool is None or tool.parallel else index

        return [list(group) for _, group in groupby(range(len(calls)), barrier)]

    async def _perform(self, call: ToolCall) -> ToolResultMessage:
        result = _failure(ABORTED)
        self.emit(ToolStart(call))
        try:
            result = await self._outcome(call)
        finally:
            message = ToolResultMessage(
                call.id, call.name, result.content, self.now(), result.is_error, details=result.details
            )
            self.emit(ToolEnd(call, message))
        return message

    async def _outcome(self, call: ToolCall) -> ToolResult:
        tool = self.tools.get(call.name)
        if tool is None:
            known = ", ".join(sorted(self.tools)) or "none"
            return _failure(f"Tool {call.name} not found. Known tools: {known}")
        try:
            # Not strict: small models write "3", 3.0 and "true" where a number or a boolean is asked for.
            arguments = msgspec.convert(call.arguments, tool.args, strict=False)
        except msgspec.ValidationError as error:
            return _failure(_invalid(call, error))
        context = ToolContext(self.run_id, self.session_key, call.id, lambda text: self.emit(ToolUpdate(call, text)))
        try:
            with trio.move_on_after(tool.deadline):
                result = await tool.run(arguments, context)
                msgspec.json.encode(result)  # what no transcript can hold is the tool's fault, not the run's end
                return _cap(result, self.limit)
        except ToolError as error:
            return _cap(_failure(str(error)), self.limit)
        except Exception as error:  # noqa: BLE001 - the tool-call boundary
            self.report(call, error)
            return _cap(_failure(f"{call.name} failed: {type(error).__name__}: {error}"), self.limit)
        return _failure(f"{call.name} timed out after {tool.deadline:g} s")


def _failure(words: str) -> ToolResult:
    return text_result(words, is_error=True)


def _invalid(call: ToolCall, error: msgspec.ValidationError) -> str:
    received = msgspec.json.format(msgspec.json.encode(call.arguments), indent=2).decode()
    return f'Validation failed for tool "{call.name}":\n  - {error}\n\nReceived arguments:\n{_cut(received, MAX_ECHO)}'


def _cap(result: ToolResult, limit: int) -> ToolResult:
    """`result` with at most `limit` characters of text for the model; images and `details` stay."""
    if sum(len(block.text) for block in result.content if isinstance(block, Text)) <= limit:
        return result
    kept: list[UserBlock] = []
    left = limit
    for block in result.content:
        if not isinstance(block, Text):
            kept.append(block)
        elif left > 0:
            kept.append(Text(_cut(block.text, left)))
            left -= len(block.text)
    return msgspec.structs.replace(result, content=tuple(kept))


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    return f"{text[:limit]}\n[cut: {limit:,} of {len(text):,} characters shown]"
