"""What a turn tells while it runs: the loop's events become the runtime's. Knows no store."""

from collections.abc import Sequence
from typing import Any, Literal

from triops.agents.events import (
    MessageEnd,
    MessageStart,
    TextChunk,
    ThinkingChunk,
    ToolEnd,
    ToolStart,
    ToolUpdate,
    TurnEvent,
    Waiting,
)
from triops.agents.messages import Message, UserMessage
from triops.agents.model import ModelInfo, RetryNotice
from triops.runtime.bus import Bus
from triops.runtime.clock import Clock
from triops.runtime.events import RunCompaction, RunDelta, RunModel, RunStatus, RunThinking, RunTool, RunUsage
from triops.runtime.runs.registry import Run
from triops.runtime.spend import Spend, Spent

MAX_LIVE_TEXT = 500_000
"""Characters of a reply that are kept for clients while it streams (protocol: the live buffer's cap)."""


class Progress:
    """What one turn has emitted so far; tells the bus, and remembers what is not on disk yet."""

    __slots__ = ("_bus", "_clock", "_live", "_run", "_spend", "heard", "model", "spent", "spoke", "tools", "unsaved")

    def __init__(self, bus: Bus, clock: Clock, run: Run, spend: Spend) -> None:
        self._bus = bus
        self._clock = clock
        self._run = run
        self._live = 0
        self._spend = spend
        self.spent = Spent()
        self.model: ModelInfo | None = None
        self.spoke = False
        """Something was shown or done, so that another model cannot begin afresh."""
        self.tools: list[str] = []
        self.heard: list[Message] = []
        """What people said while the turn ran, as far as it is on disk."""
        self.unsaved: list[TurnEvent] = []

    def saved(self, messages: Sequence[Message]) -> None:
        """All that was emitted is on disk, as `messages`."""
        self.unsaved.clear()
        self.heard += [message for message in messages if isinstance(message, UserMessage)]

    def status(self, phase: str, retry: dict[str, Any] | None = None) -> None:
        run = self._run
        self._bus.publish(RunStatus(run.info, run.next_seq(), self._clock(), phase, retry))

    def compaction(self, phase: Literal["start", "end"], completed: bool = False, retry: bool = False) -> None:
        run = self._run
        self._bus.publish(RunCompaction(run.info, run.next_seq(), self._clock(), phase, completed, retry))

    def chosen(self, info: ModelInfo) -> None:
        run = self._run
        self.model = info
        self._bus.publish(
            RunModel(run.info, run.next_seq(), self._clock(), info.ref.provider, info.ref.model, info.demo)
        )

    def emit(self, event: TurnEvent) -> None:
        """Hear the loop; sync."""
        run, now = self._run, self._clock()
        match event:
            case TextChunk(index, delta):
                self.spoke = True
                delta = delta[: MAX_LIVE_TEXT - self._live]
                if delta:
                    self._live += len(delta)
                    run.parts.append(delta)
                    self._bus.publish(RunDelta(run.info, run.next_seq(), now, index, delta))
            case ThinkingChunk(_, delta):
                self.spoke = True
                self._bus.publish(RunThinking(run.info, run.next_seq(), now, delta))
            case MessageStart(index):
                run.phases.enter("connect")
                if index > 1:
                    run.parts.clear()
            case MessageEnd(_, message):
                run.phases.enter("tools" if message.tool_calls else "commit")
                self.unsaved.append(event)
                if message.usage is not None:
                    self._spend.add(message.usage, self.spent)
                if message.usage is not None and message.stop_reason not in ("aborted", "error"):
                    self._bus.publish(RunUsage(run.info, run.next_seq(), now, message.usage.output))
            case ToolStart(call):
                self.spoke = True
                self._bus.publish(RunTool(run.info, run.next_seq(), now, "start", call))
            case ToolUpdate(call, text):
                self._bus.publish(RunTool(run.info, run.next_seq(), now, "update", call, partial=text))
            case ToolEnd(call, result):
                self.unsaved.append(event)
                if not result.is_error and call.name not in self.tools:
                    self.tools.append(call.name)
                self._bus.publish(RunTool(run.info, run.next_seq(), now, "result", call, result))
            case RetryNotice(attempt, most, reason, _, kind):
                run.phases.enter("connect")
                phase = "preparing_context" if kind == "context_overflow" else "starting_model"
                self.status(phase, {"attempt": attempt, "maxAttempts": most, "reason": reason, "kind": kind})
            case Waiting(reason):
                self.status("starting_model", {"reason": reason})
            case _:
                pass  # steered messages are told when they are stored
