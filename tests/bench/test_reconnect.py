from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from triops.bench import reconnect
from triops.bench.driver import Driver
from triops.bench.subjects import Subject, Targets
from triops.bench.turns import results


async def test_who_comes_back_has_the_answer_that_was_missed(gateway: Subject, model_url: str):
    targets = Targets(gateway.url, gateway.token, model_url, floor=False)
    with trio.fail_after(20):
        blocks = await reconnect.measure(targets, 2)
    (found,) = results(blocks)
    assert [(record.turn.state, sorted(record.metrics)) for block in blocks for record in block.records] == [
        ("final", ["caught_up", "hello"])
    ] * 2
    assert found.metrics["caught_up"].min > found.metrics["hello"].min > 0


def test_a_history_that_holds_only_the_question_is_behind():
    asked = {"role": "user", "content": "SAY:x"}
    answered = {"role": "assistant", "content": [{"type": "text", "text": "x"}]}
    for messages, caught_up in (([asked], False), ([asked, answered], True)):
        assert reconnect.holds(msgspec.Raw(msgspec.json.encode({"messages": messages})), "x") is caught_up


class Stopwatch(Driver):
    """A gateway that answers each request in 30 ms, and knows what was said."""

    def __init__(self, said: list[str]) -> None:
        super().__init__(trio.testing.memory_stream_pair()[0])
        self._said = said

    async def ask(self, method: str, params: Any) -> msgspec.Raw:
        await trio.sleep(0.03)
        self._said.append(params.get("message", "").removeprefix("SAY:"))
        return msgspec.Raw(msgspec.json.encode({"messages": [{"role": "assistant", "content": self._said[0]}]}))


async def test_who_comes_back_is_timed_from_the_new_line(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
):
    said: list[str] = []

    @asynccontextmanager
    async def connect(url: str, token: str) -> AsyncGenerator[Driver]:
        await trio.sleep(0.02)
        yield Stopwatch(said)

    monkeypatch.setattr(reconnect, "now", lambda: round(trio.current_time() * 1e9))
    monkeypatch.setattr(reconnect, "open_driver", connect)
    (record,) = await reconnect.reconnect_once(Subject("gateway", "", ""), Stopwatch(said), "agent:main:a")
    assert record.good
    assert record.metrics == pytest.approx({"hello": 20, "caught_up": 50})
