"""One chat turn: the model is resolved, the plan and the history make the request, the loop runs, the bus hears it.

What a turn leaves (`Draft`) is stored by the worker with the run's end. Knows no client.
"""

from collections.abc import Sequence
from typing import Any, cast

import msgspec
import trio

from triops.agents.compaction import COMPACTION, SUMMARY, divide, summary_request
from triops.agents.errors import ContextOverflow, ErrorKind, LimitReached, ProviderError
from triops.agents.events import Waiting
from triops.agents.loop import Turn as LoopTurn
from triops.agents.loop import run_turn
from triops.agents.messages import AssistantMessage, Message, SystemMessage, UserMessage
from triops.agents.model import Done, ModelInfo, ModelRequest, Provider, RetryNotice
from triops.agents.transcript import fit, settle
from triops.runtime.bus import Bus
from triops.runtime.clock import Clock
from triops.runtime.errors import RuntimeFault
from triops.runtime.logs import Log
from triops.runtime.models import ModelCatalog, Resolved, SilentProvider, UnknownModel
from triops.runtime.plans import Plans
from triops.runtime.progress import Progress
from triops.runtime.runs.registry import Run
from triops.runtime.runs.state import RunState, Terminal
from triops.runtime.runs.worker import Desk, Draft
from triops.runtime.spend import Spend
from triops.runtime.warmup import Warmup

SUMMARY_DEADLINE = 180.0
"""Seconds for a summary, as the protocol has it."""

_WIRE_KIND: dict[ErrorKind, str] = {
    "rate_limit": "rate_limit",
    "overloaded": "rate_limit",
    "timeout": "timeout",
    "context_overflow": "context_length",
    "refusal": "refusal",
}


class NoModel(RuntimeFault):
    """Nothing is configured, no key is in the environment, no local server answers, no demonstration model is there."""

    code = "no_model"


class ChatTurn:
    """Answers one run; implements the worker's `Turn`."""

    def __init__(
        self,
        run: Run,
        *,
        catalog: ModelCatalog,
        warmup: Warmup,
        plans: Plans,
        spend: Spend,
        bus: Bus,
        clock: Clock,
        log: Log,
        slow: set[str],
    ) -> None:
        self._run = run
        self._slow = slow
        """Sessions whose summary took too long; shared by all turns: people wait for it once."""
        self._catalog = catalog
        self._warmup = warmup
        self._plans = plans
        self._spend = spend
        self._clock = clock
        self._log = log
        self._progress = Progress(bus, clock, run, spend)
        self._before: list[str] = []
        """Why the models failed that were tried before the present one."""

    async def reply(self, desk: Desk) -> Draft:
        names, strict = await self._choice()
        for place, name in enumerate(names, 1):
            try:
                message = await self._ask(desk, await self._resolve(name), has_other=place < len(names))
            except (ProviderError, UnknownModel, SilentProvider) as error:
                if strict or place == len(names) or self._progress.spoke or isinstance(error, ContextOverflow):
                    raise
                self._log.warning("a model failed, trying the next", run=self._run.id, model=name, error=error)
                self._before.append(str(error))
                self._run.phases.enter("plan")
                self._progress.status("starting_model", {"reason": f"{error}; {names[place]} is asked now"})
            else:
                return self._final(message)
        raise AssertionError("there is always a model to try")

    async def _choice(self) -> tuple[Sequence[str], bool]:
        """The models to try, and whether they were somebody's explicit wish (then there is no other)."""
        run = self._run
        wish = run.submission.model or run.session.model
        if wish is not None:
            return (wish,), True
        primary, fallbacks = self._plans.models_of(run.info.agent_id)
        if primary is None:
            if self._catalog.default is None:
                self._progress.status("starting_model")
            primary = await self._warmup.default()
        if primary is None:
            raise NoModel(
                "there is no model to answer with: set agents.defaults.model in the configuration, or"
                " OPENAI_API_KEY or ANTHROPIC_API_KEY, or start Ollama, LM Studio or llama.cpp, or run"
                " `triops models add demo`; `triops models list` shows what was found"
            )
        return (primary, *fallbacks), False

    async def _resolve(self, name: str) -> Resolved:
        known = self._catalog.find(name)
        if known is not None:
            return known
        self._progress.status("starting_model")  # its provider is asked now, which takes a moment
        return await self._catalog.resolve(name)

    async def _ask(self, desk: Desk, resolved: Resolved, *, has_other: bool) -> AssistantMessage:
        run, info, progress = self._run, resolved.info, self._progress
        plan = await self._plans.of(run, info)
        progress.chosen(info)
        state = self._catalog.state(info.ref.provider)
        if state is not None and state.state in ("cold", "warming"):
            progress.status("starting_model")

        async def save(messages: Sequence[Message]) -> None:
            await desk.save(messages, lambda: progress.saved(messages))

        def steer() -> Sequence[UserMessage]:
            return [cast("UserMessage", other.submission.message) for other in desk.steer()]

        system = plan.system_for(run.session.key)
        if run.submission.extra_system:
            system = f"{system}\n\n{run.submission.extra_system}"
        assert run.past is not None
        messages, cost = run.past.followed_by((run.submission.message, *run.companions, *progress.heard))
        wishes = run.submission.wishes
        schemas = plan.schemas
        if wishes.tools and (info.demo or not info.compat.supports_tools):
            wishes = msgspec.structs.replace(wishes, tools=())
        if wishes.tools:
            own = {tool.name for tool in wishes.tools}
            kept = () if wishes.only_those else (tool for tool in schemas if tool.name not in own)
            schemas = (*kept, *wishes.tools)
        if wishes.params and info.api == "openai-completions":
            info = msgspec.structs.replace(info, params=(*info.params, *wishes.params.items()))
        if cost > plan.history_tokens:
            messages = await self._compact(desk, resolved.provider, info, messages, plan.history_tokens, retry=False)
            messages = fit(messages, plan.history_tokens)
        turn = LoopTurn(
            run_id=run.id,
            session_key=run.session.key,
            session_id=run.session.session_id,
            model=info,
            system=system,
            messages=messages,
            tools=plan.tools,
            schemas=schemas,
            wishes=wishes,
            has_other=has_other,
        )
        return await run_turn(
            turn,
            resolved.provider,
            emit=progress.emit,
            save=save,
            steer=steer,
            allow=lambda: self._spend.check(progress.spent),
            compact=lambda model, messages, budget: self._compact(
                desk, resolved.provider, model, messages, budget, retry=True
            ),
            report=lambda call, error: self._log.error("a tool failed by its own fault", tool=call.name, error=error),
            mark=run.phases.enter,
            now=self._clock,
        )

    async def _compact(
        self, desk: Desk, provider: Provider, model: ModelInfo, messages: Sequence[Message], budget: int, *, retry: bool
    ) -> Sequence[Message]:
        """`messages` with the older ones summarised by the model itself, for later turns too; else as they are."""
        run, progress, inputs = self._run, self._progress, UserMessage | SystemMessage
        own = next((at for at, message in enumerate(messages) if message is run.submission.message), 0)
        at = divide(messages, budget, own)
        if not at or model.demo or run.session.session_id in self._slow:
            return messages
        await self._spend.check(progress.spent)
        run.phases.enter("plan")
        progress.compaction("start")
        progress.status("preparing_context")
        completed = False
        try:
            with trio.fail_after(SUMMARY_DEADLINE):
                said = await self._said(provider, summary_request(model, messages[:at], budget))
            summary = SystemMessage(SUMMARY + said.text.strip(), self._clock(), source=COMPACTION, usage=said.usage)
            kept = sum(isinstance(message, inputs) for message in messages[at:own])
            assert run.past is not None and run.message_seq is not None
            await desk.compact(summary, run.past.inputs[-kept] if kept else run.message_seq)
            completed = True
            return (summary, *messages[at:])
        except (ProviderError, trio.TooSlowError) as error:
            if isinstance(error, trio.TooSlowError):
                self._slow.add(run.session.session_id)
            reason = str(error) or f"{model.ref} gave no summary within {SUMMARY_DEADLINE:.0f} s"
            progress.emit(Waiting(f"{reason}; the oldest messages are left out"))
            self._log.warning(
                "a conversation was not summarised, what is oldest is left out", run=run.id, reason=reason
            )
            return messages
        finally:
            progress.compaction("end", completed, retry)

    async def _said(self, provider: Provider, request: ModelRequest) -> AssistantMessage:
        message: AssistantMessage | None = None
        emit = self._progress.emit

        def late(words: str) -> None:
            emit(Waiting(words))

        request = msgspec.structs.replace(request, late=late)
        async with provider.stream(request) as batches:
            async for batch in batches:
                for event in batch:
                    if isinstance(event, RetryNotice):
                        emit(event)
                    elif isinstance(event, Done):
                        message = event.message
        if message is not None and message.usage is not None:
            self._spend.add(message.usage, self._progress.spent)
        if message is None or not message.text.strip():
            raise ProviderError("empty_response", f"{request.model.ref} said nothing")
        return message

    # -- how it ends ---------------------------------------------------------------------------------------------------

    def _final(self, message: AssistantMessage) -> Draft:
        model = self._progress.model
        assert model is not None
        self._warmup.answered(model.ref.provider)
        terminal = Terminal(
            state=RunState.FINAL,
            stop_reason=message.stop_reason,
            text=message.text,
            message=message,
            started_at=self._run.started_at,
            ended_at=self._clock(),
            tools=tuple(self._progress.tools),
            provider=model.ref.provider,
            model=model.ref.model,
        )
        return Draft(terminal, [message])

    def failed(self, error: Exception) -> Draft:
        run_id = self._run.id
        words = str(error) or type(error).__name__
        kind, detail = "unknown", None
        match error:
            case ProviderError():
                kind, detail = _WIRE_KIND.get(error.kind, "unknown"), self._detail(error)
                self._log.warning("a model failed", run=run_id, kind=error.kind, reason=words, detail=error.detail)
            case LimitReached() | RuntimeFault():
                self._log.warning("a run could not be answered", run=run_id, reason=words)
            case _:
                self._log.error("a run failed by our own fault", run=run_id, error=error)
                words = f"internal error: {type(error).__name__}; the log has it under run {run_id}"
        words += "".join(f"; before it, {other}" for other in self._before)
        return self._cut(RunState.ERROR, "error", words, kind, detail)

    def stopped(self) -> Draft:
        reason = self._run.stop_reason
        if reason is not None:
            return self._cut(RunState.ABORTED, reason, None, None, None)
        words = "the run took longer than it may and was stopped"
        return self._cut(RunState.ERROR, "timeout", words, "timeout", None)

    def _cut(
        self, state: RunState, reason: str, words: str | None, kind: str | None, detail: dict[str, Any] | None
    ) -> Draft:
        """The end of a turn that did not reach its own: what of it arrived is kept, every call with a result."""
        now, model = self._clock(), self._progress.model
        messages = list(settle(self._progress.unsaved))
        if words is not None and not (messages and isinstance(messages[-1], AssistantMessage)):
            messages.append(AssistantMessage((), now, stop_reason="error", error_message=words))
        terminal = Terminal(
            state=state,
            stop_reason=reason,
            text=self._run.text,
            error_message=words,
            error_kind=kind,
            error_detail=detail,
            started_at=self._run.started_at,
            ended_at=now,
            provider=model.ref.provider if model else "",
            model=model.ref.model if model else "",
        )
        return Draft(terminal, messages)

    def _detail(self, error: ProviderError) -> dict[str, Any]:
        """`errorDetail` of the terminal (protocol, events §2)."""
        model = self._progress.model
        detail: dict[str, Any] = {"failoverReason": error.kind, "providerRuntimeFailureKind": error.kind}
        if model is not None:
            detail |= {"provider": model.ref.provider, "model": model.ref.model}
        if error.status is not None:
            detail["httpStatus"] = error.status
        if error.detail:
            detail["providerErrorMessagePreview"] = error.detail
        return detail
