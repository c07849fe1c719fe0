"""The spans of turns, as OpenTelemetry's own SDK collects them."""

import sys
from functools import partial
from pathlib import Path

import pytest
import trio
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from trio.testing import MockClock

from triops.agents.model import TextDelta
from triops.runtime.events import RunEnded
from triops.runtime.testing import EPOCH, open_test_runtime
from triops.runtime.tracing import turn_spans


def shown(span: ReadableSpan) -> tuple[str, int, int]:
    """Its name, start and end in milliseconds since the test's epoch."""
    assert span.start_time is not None and span.end_time is not None
    return span.name, round(span.start_time / 1e6) - EPOCH, round(span.end_time / 1e6) - EPOCH


async def test_a_turn_is_a_span_and_each_stay_in_a_phase_one_in_it(tmp_path: Path, autojump_clock: MockClock) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    script = [[0.2, TextDelta("The secret"), 0.3, TextDelta(" word")]]
    async with open_test_runtime(tmp_path, script=script) as host:
        with host.runtime.bus.subscribe(turn_spans(provider.get_tracer("test"), host.runtime.clock), RunEnded):
            start = host.runtime.clock() - EPOCH
            await host.ask("secret?", run_id="r")
            await host.ask("more?", run_id="failed")
    *stays, turn = [span for span in exporter.get_finished_spans() if span.start_time][:8]
    assert all(span.parent == turn.get_span_context() for span in stays)
    assert [shown(span) for span in stays] == [
        *((name, start, start) for name in ("queue", "plan", "connect")),
        ("first_token", start, start + 200),
        ("stream", start + 200, start + 500),
        *((name, start + 500, start + 500) for name in ("commit", "emit")),
    ]
    assert shown(turn) == ("triops.turn", start, start + 500)
    assert turn.attributes is not None
    assert turn.attributes["triops.run.id"] == "r" and turn.attributes["gen_ai.request.model"] == "echo"
    assert "secret" not in str([span.to_json() for span in exporter.get_finished_spans()])
    assert turn.status.status_code is StatusCode.UNSET
    assert exporter.get_finished_spans()[-1].status.status_code is StatusCode.ERROR


@pytest.mark.slow
async def test_spans_reach_the_configured_collector_before_the_runtime_has_closed(tmp_path: Path) -> None:
    received = bytearray()

    async def collector(stream: trio.SocketStream) -> None:
        while b"triops.turn" not in received and (data := await stream.receive_some()):
            received.extend(data)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, collector, 0, host="127.0.0.1"))
        otel = {"enabled": True, "endpoint": f"http://127.0.0.1:{listener.socket.getsockname()[1]}"}
        config = {"diagnostics": {"otel": otel}, "agents": {"defaults": {"model": {"primary": "scripted/echo"}}}}
        with trio.fail_after(10):
            async with open_test_runtime(tmp_path, config=config) as host:
                await host.ask("hi")
        nursery.cancel_scope.cancel()
    assert received.startswith(b"POST /v1/traces HTTP/1.1\r\n") and b"triops.turn" in received


async def test_without_the_packages_it_is_said_how_to_get_them_and_nothing_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    async with open_test_runtime(tmp_path, config={"diagnostics": {"otel": {"enabled": True}}}) as host:
        (warning,) = [record for record in host.log if record.level == "warn"]
    assert "pip install 'triops[otel]'" in warning.message
