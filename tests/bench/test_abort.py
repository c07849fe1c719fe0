import os
import subprocess
import sys
from functools import partial

import msgspec
import pytest
import trio
import trio.testing

from triops.bench import abort
from triops.bench.abort import abort_once, measure
from triops.bench.driver import Driver, Frame, Turn
from triops.bench.subjects import Subject, Targets
from triops.bench.turns import results


async def test_every_turn_is_aborted_and_its_terminal_timed(gateway: Subject, model_url: str):
    targets = Targets(gateway.url, gateway.token, model_url, floor=False)
    with trio.fail_after(20):
        blocks = await measure(targets, 2)
    (found,) = results(blocks)
    assert (found.scenario, found.failed, [record.turn.state for block in blocks for record in block.records]) == (
        "abort",
        0,
        ["aborted"] * 2,
    )
    assert {name: summary.count for name, summary in found.metrics.items()} == {"ack": 2, "terminal": 2}
    assert found.metrics["terminal"].min > 0


async def test_a_turn_that_ends_before_it_can_be_aborted_has_failed(gateway: Subject, model_url: str):
    targets = Targets(gateway.url, gateway.token, model_url, floor=False)
    with trio.fail_after(20):
        blocks = await measure(targets, 1, "FAIL:400 ")
    assert (results(blocks)[0].failed, results(blocks)[0].metrics) == (1, {})


class ToolAtWork(Driver):
    """A gateway whose turn is a child process of this one, until it is aborted."""

    def __init__(self) -> None:
        super().__init__(trio.testing.memory_stream_pair()[0])
        self._aborted = trio.Event()

    async def chat(self, turn: Turn, message: str) -> None:
        async with trio.open_nursery() as nursery:
            command = [sys.executable, "-c", "input()"]
            await nursery.start(partial(trio.run_process, command, stdin=subprocess.PIPE, check=False))
            await self._aborted.wait()
            nursery.cancel_scope.cancel()
        turn.sent, turn.final, turn.state = 1, 2, "aborted"

    async def ask(self, method: str, params: object) -> msgspec.Raw:
        self._aborted.set()
        return msgspec.Raw(b"{}")


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
async def test_a_turn_is_aborted_at_its_first_child_and_timed_until_that_is_gone():
    with trio.fail_after(20):
        (record,) = await abort_once("gateway", os.getpid(), ToolAtWork(), "")
    assert record.good
    assert record.metrics["reaped"] > 0


class Stopwatch(Driver):
    """A gateway that streams after 30 ms, acknowledges an abort in 50 ms and ends the turn 200 ms after that."""

    def __init__(self) -> None:
        super().__init__(trio.testing.memory_stream_pair()[0])
        self._aborted = trio.Event()

    async def chat(self, turn: Turn, message: str) -> None:
        await trio.sleep(0.03)
        self.listener(Frame("event", event="chat", payload=msgspec.Raw(b'{"state":"delta"}')), virtual_now())
        await self._aborted.wait()
        await trio.sleep(0.2)
        turn.sent, turn.final, turn.state = 1, virtual_now(), "aborted"

    async def ask(self, method: str, params: object) -> msgspec.Raw:
        await trio.sleep(0.05)
        self._aborted.set()
        return msgspec.Raw(b"{}")


def virtual_now() -> int:
    return round(trio.current_time() * 1e9)


async def test_an_abort_is_timed_from_its_request(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(abort, "now", virtual_now)
    (record,) = await abort_once("gateway", 0, Stopwatch(), "")
    assert record.metrics == pytest.approx({"ack": 50, "terminal": 250})
