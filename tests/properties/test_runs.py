"""Any history of sends, steers, interrupts, aborts, resets, refusals, kills and restarts, against what must be true."""

import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kit.stage import Life, Stage, settled, words

from triops.agents.messages import AssistantMessage, Message, Text, ToolCall, ToolResultMessage, UserMessage
from triops.agents.transcript import pair
from triops.runtime.errors import Busy, Conflict, Unavailable
from triops.runtime.events import RunEnded, RunEvent, RuntimeEvent
from triops.runtime.runs.registry import Run
from triops.runtime.runs.state import TERMINAL, Accepted, QueueMode, RunState
from triops.runtime.runs.worker import Desk
from triops.runtime.store import sessions as stored_sessions

SESSIONS = ("one", "two", "three")
MODES: tuple[QueueMode, ...] = ("steer", "followup", "collect", "interrupt")

ALL = 99
session = st.sampled_from(SESSIONS)
place = st.integers(0, 9)
op = st.one_of(
    st.tuples(st.just("send"), session, st.sampled_from(MODES)),
    st.tuples(st.just("send"), session, st.sampled_from(MODES)),
    st.tuples(st.just("send and leave"), session, place),
    st.tuples(st.just("again"), place),
    st.tuples(st.just("conflict"), place, session),
    st.tuples(st.just("abort"), place),
    st.tuples(st.just("cut"), place, st.integers(0, 5)),
    st.tuples(st.just("reset"), session),
    st.tuples(st.sampled_from(("finish", "finish", "step", "fail", "sleep")), place),
    st.tuples(st.just("wait")),
    st.tuples(st.just("refuse"), place),
    st.tuples(st.sampled_from(("kill", "stop"))),
)
steps = st.sampled_from((0, 1, 2, 3, 5, 8, ALL, ALL, ALL, ALL, ALL, ALL))
"""How far everything goes on before the next thing is done: steps of the scheduler, or all there is to do."""
History = list[tuple[tuple[str | int, ...], int]]


class World:
    """The callers, and what they know."""

    def __init__(self, path: Path) -> None:
        self.stage = Stage(path)
        self.stage.act = self.act
        self.sent: dict[str, str] = {}
        """Session of each run that was asked for."""
        self.modes: dict[str, QueueMode] = {}
        self.acked: list[str] = []
        self.commands: dict[str, trio.MemorySendChannel[str]] = {}
        """Where a turn under way hears what it is to do."""
        self.ended: list[tuple[str, RunState, bool]] = []
        """Each end that was told, in all lives, and whether the disk had refused it."""
        self.cut: set[str] = set()
        """Runs whose end was on disk at a kill: maybe nobody was told any more, and who asks hears it."""
        self.aborted: set[str] = set()
        """Of whom somebody was told, in this life, that it is stopped."""
        self.closing = False

    # -- the turns -----------------------------------------------------------------------------------------------------

    async def act(self, run: Run, desk: Desk) -> str:
        if self.closing:
            return f"re: {run.id}"
        send, receive = trio.open_memory_channel[str](20)
        self.commands[run.id] = send
        with send, receive:
            try:
                async for command in receive:
                    if command == "finish":
                        return f"re: {run.id}"
                    if command == "fail":
                        raise ZeroDivisionError
                    if command == "sleep":
                        await trio.sleep(0.5)
                        continue
                    heard = [other.submission.message for other in desk.steer()]
                    call = ToolCall("call_1", "read", {})
                    step: list[Message] = [
                        AssistantMessage((call,), 1, stop_reason="toolUse"),
                        ToolResultMessage("call_1", "read", (Text("result"),), 1),
                    ]
                    await desk.save([*step, *heard], lambda: None)
            finally:
                del self.commands[run.id]
        raise AssertionError("its channel is closed by nobody else")

    # -- the callers ---------------------------------------------------------------------------------------------------

    async def send(self, life: Life, run_id: str, key: str) -> None:
        def acknowledge(accepted: Accepted) -> None:
            if run_id not in self.acked:  # after a kill it may be a replay that tells first
                self.acked.append(run_id)

        submission = life.submission(run_id, key, queue_mode=self.modes[run_id])
        with suppress(Busy, Unavailable):
            await life.runs.submit(submission, acknowledge=acknowledge)

    async def leave(self, life: Life, run_id: str, key: str, steps: int) -> None:
        """A caller that is gone after some steps."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.send, life, run_id, key)
            await self.go_on(steps)
            nursery.cancel_scope.cancel()

    async def conflict(self, life: Life, run_id: str, key: str) -> None:
        with suppress(Conflict, Busy, Unavailable):
            await life.send(run_id, key, text="other words")
            pytest.fail("a key stands for one message")

    async def reset(self, life: Life, key: str) -> None:
        runs = life.runs.open_runs(f"agent:main:{key}")
        for run in runs:
            life.runs.abort(run, "reset")
        for run in runs:
            await run.ended.wait()

    async def go_on(self, steps: int) -> None:
        if steps == ALL:
            await settled()
        else:
            for _ in range(steps):
                await trio.lowlevel.checkpoint()

    def named(self, place: int) -> str | None:
        known = list(self.sent)
        return known[place % len(known)] if known else None

    async def do(self, life: Life, callers: trio.Nursery, name: str, *args: str | int) -> None:
        match name, *args:
            case "send", str(key), str(mode):
                run_id = f"r{len(self.sent)}"
                self.sent[run_id], self.modes[run_id] = key, cast("QueueMode", mode)
                callers.start_soon(self.send, life, run_id, key)
            case "send and leave", str(key), int(steps):
                run_id = f"r{len(self.sent)}"
                self.sent[run_id], self.modes[run_id] = key, "followup"
                callers.start_soon(self.leave, life, run_id, key, steps)
            case "again", int(place) if run_id := self.named(place):
                callers.start_soon(self.send, life, run_id, self.sent[run_id])
            case "conflict", int(place), str(key) if run_id := self.named(place):
                if run_id in self.acked:
                    callers.start_soon(self.conflict, life, run_id, key)
            case "abort", int(place) if run_id := self.named(place):
                if life.abort(run_id):
                    self.aborted.add(run_id)
            case "reset", str(key):
                callers.start_soon(self.reset, life, key)
            case (("finish" | "step" | "fail" | "sleep"), int(place)):
                under_way = list(self.commands.values())
                if under_way:
                    with suppress(trio.WouldBlock):
                        under_way[place % len(under_way)].send_nowait(name)
            case ("settle",):
                await settled()
            case "tick", int(steps):
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
            case ("wait",):
                await trio.sleep(3)
            case "refuse", int(place):
                life.store.refuse(1 + place % 4)
            case _:
                pass  # there is nobody yet

    # -- the lives -----------------------------------------------------------------------------------------------------

    async def live(self, history: History) -> None:
        rest = iter(history)
        over = False
        while not over:
            killed: tuple[list[RuntimeEvent], list[str], list[str]] | None = None
            async with self.stage.life(cap=4, main=2) as life:
                async with trio.open_nursery() as callers:
                    for (name, *args), pause in rest:
                        if name == "kill":
                            self.stage.kill()
                            rows = life.db.execute("SELECT id FROM runs WHERE state NOT IN ('queued', 'running')")
                            self.cut |= {run_id for (run_id,) in rows.fetchall()}
                            killed = list(self.stage.events.events), list(self.acked), list(self.stage.began)
                            break
                        if name == "stop":
                            break
                        await self.do(life, callers, str(name), *args)
                        await self.go_on(pause)
                    else:
                        over = True
                        await self.finish(life)
                    callers.cancel_scope.cancel()
                if over:
                    await self.check(life)
            if killed is not None:  # what it did after that, nobody heard
                self.stage.events.events[:], self.acked, self.stage.began = killed
            self.check_life(self.stage.events.events)
            self.stage.events.events.clear()
        self.check_all()

    async def finish(self, life: Life) -> None:
        """Let everything come to its end."""
        self.closing = True
        with trio.fail_after(600):
            for _ in range(3):  # a caller may still be on its way in
                await settled()
                for send in self.commands.values():
                    with suppress(trio.WouldBlock):
                        send.send_nowait("finish")
                while runs := life.runs.open_runs():
                    await runs[0].ended.wait()
                await trio.sleep(10)

    # -- what must be true ---------------------------------------------------------------------------------------------

    def check_life(self, events: list[RuntimeEvent]) -> None:
        over: set[str] = set()
        seqs: dict[str, int] = {}
        for event in events:
            if isinstance(event, RunEvent):
                run_id = event.run.run_id
                assert run_id not in over, f"{event} after the end of {run_id}"
                seqs[run_id] = seqs.get(run_id, 0) + 1
                assert event.seq == seqs[run_id]
                if isinstance(event, RunEnded):
                    over.add(run_id)
                    terminal = event.terminal
                    refused = "not_stored" in (terminal.error_kind, terminal.stop_reason)
                    self.ended.append((run_id, terminal.state, refused))
                    assert refused or run_id not in self.aborted or terminal.state is RunState.ABORTED
        self.aborted.clear()

    def check_all(self) -> None:
        assert set(Counter(run_id for run_id, _, _ in self.ended).values()) <= {1}, self.ended
        assert set(self.acked) <= {run_id for run_id, _, _ in self.ended} | self.cut
        assert max(Counter(self.stage.began).values(), default=1) == 1, "no run begins twice"
        for key in SESSIONS:
            mine = [run_id for run_id in self.stage.began if self.sent[run_id] == key]
            patient = [run_id for run_id in mine if self.modes[run_id] != "interrupt" and run_id in self.acked]
            assert patient == [run_id for run_id in self.acked if run_id in patient], "order within a session"
        assert self.stage.faults() == []

    async def check(self, life: Life) -> None:
        life.check_empty()
        told = {event.run.run_id: event.terminal for event in self.stage.events.events if isinstance(event, RunEnded)}
        for run_id in self.acked:
            stored = await life.stored(run_id)
            assert stored.state in TERMINAL
            assert stored.terminal is not None
            assert run_id not in told or stored.terminal == told[run_id]
        for key in SESSIONS:
            page = await life.store.read(
                lambda db, key=key: stored_sessions.transcript(db, f"agent:main:{key}", limit=1000, whole=True)
            )
            messages = [placed.message for placed in page.messages]
            assert list(pair(messages)) == messages, "each call is followed by its result"
            said = Counter(words(message) for message in messages if isinstance(message, UserMessage))
            assert set(said.values()) <= {1}, "nothing stands there twice"
            assert {run_id for run_id in self.acked if self.sent[run_id] == key} <= set(said), "nothing is lost"
            replies = [words(message) for message in messages if isinstance(message, AssistantMessage)]
            assert max(Counter(reply for reply in replies if reply).values(), default=1) == 1


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(st.tuples(op, steps), min_size=6, max_size=30))
def test_what_was_accepted_is_kept_and_ends_once(history: History) -> None:
    with tempfile.TemporaryDirectory() as folder:

        async def main() -> None:
            await World(Path(folder) / "state").live(history)

        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
