"""OpenTelemetry spans of the turns (`diagnostics.otel`): one a turn, and in it one for each stay in a phase.

They are made of its stamps when a turn is over. The packages (extra `otel`) are imported where the configuration asks
for them and nowhere else. What was said is in none of them.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from triops.runtime.bus import Bus
from triops.runtime.clock import Clock
from triops.runtime.config import OtelConfig
from triops.runtime.events import RunEnded
from triops.runtime.logs import Log
from triops.runtime.runs.state import RunState

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

FLUSH = 3.0  # seconds that the last spans have to reach the collector


@asynccontextmanager
async def open_tracing(config: OtelConfig, bus: Bus, clock: Clock, log: Log) -> AsyncGenerator[None]:
    """Send spans to the collector while the block is open, if the configuration says so."""
    provider = _provider(config, log) if config.enabled else None
    if provider is None:
        yield
        return
    try:
        with bus.subscribe(turn_spans(provider.get_tracer("triops"), clock), RunEnded):
            yield
    finally:
        with trio.move_on_after(FLUSH, shield=True):
            await trio.to_thread.run_sync(provider.shutdown, abandon_on_cancel=True)


def _provider(config: OtelConfig, log: Log) -> "TracerProvider | None":
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        log.warning(f"diagnostics.otel: no spans are sent ({error}); run `pip install 'triops[otel]'`")
        return None
    endpoint = (
        None if config.endpoint is None else f"{config.endpoint.rstrip('/').removesuffix('/v1/traces')}/v1/traces"
    )
    provider = TracerProvider(shutdown_on_exit=False, resource=Resource.create({"service.name": config.service_name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    return provider


def turn_spans(tracer: "Tracer", clock: Clock) -> Callable[[RunEnded], None]:
    """A listener of the bus that makes the spans of each turn that ends."""
    from opentelemetry.trace import StatusCode, set_span_in_context

    def hear(event: RunEnded) -> None:
        if event.phases is None:
            return
        run, terminal, stays = event.run, event.terminal, event.phases.spans()
        offset = clock() / 1000 - stays[-1][2]  # from Trio's clock to the wall's

        def at(moment: float) -> int:
            return round((moment + offset) * 1e9)

        about = {
            "triops.run.id": run.run_id,
            "triops.session.key": run.session_key,
            "triops.source": run.source,
            "triops.state": str(terminal.state),
            "gen_ai.conversation.id": run.session_id,
            "gen_ai.provider.name": terminal.provider,
            "gen_ai.request.model": terminal.model,
        }
        turn = tracer.start_span("triops.turn", start_time=at(stays[0][1]), attributes=about)
        if terminal.state is RunState.ERROR:
            turn.set_status(StatusCode.ERROR, terminal.error_kind)
        inside = set_span_in_context(turn)
        for phase, start, end in stays:
            tracer.start_span(phase, inside, start_time=at(start)).end(at(end))
        turn.end(at(stays[-1][2]))

    return hear
