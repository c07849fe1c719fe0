"""Whatever people do with runs, in whatever order, and however often the process stops: what was promised holds."""

import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from triops.agents.messages import AssistantMessage, Message, ToolResultMessage, UserMessage
from triops.runtime.clock import trio_clock
from triops.runtime.errors import Busy, Conflict, RuntimeFault, Unavailable
from triops.runtime.events import RunEnded, RunEvent, RunStarted, RuntimeEvent
from triops.runtime.runs.state import Accepted, QueueMode, RunState, Submission, Terminal
from triops.runtime.sessions import canonical_key
from triops.runtime.store import sessions as stored_sessions
from triops.runtime.testing import EPOCH, TestRuntime, copy_state, open_test_runtime

CONFIG: dict[str, Any] = {
    "agents": {"defaults": {"model": {"primary": "scripted/echo"}, "timeoutSeconds": 30, "heartbeat": {"every": "0m"}}},
    "messages": {"queue": {"cap": 5}},
}
PLAYS = {
    "plain": "SAY:yes",
    "slow": "TOKENS:5 ITL:100",
    "tools": "TOKENS:3 ITL:100\nCALL:sessions_list {}\nCALL:sessions_list {}",
    "fails": "FAIL:401",
    "hangs": "HANG",
}
SESSIONS = ("main", "other")
LONG = 3600.0  # virtual seconds; each run may take 30


class World:
    """What was done so far, over all lives of the runtime, and what must be true of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lives = 0
        self.asked: list[Submission] = []
        self.accepted: dict[str, Submission] = {}
        self.refused: set[str] = set()
        self.heard: list[RuntimeEvent | Accepted] = []
        """What was told in each life, acknowledgements among the events, as far as anybody heard it."""
        self.told: dict[str, Terminal] = {}
        self.killed = False
        self._stack = AsyncExitStack()
        self._host: TestRuntime | None = None

    @property
    def host(self) -> TestRuntime:
        assert self._host is not None
        return self._host

    async def open(self) -> None:
        self._stack = AsyncExitStack()
        opening = open_test_runtime(self.folder / str(self.lives), config=CONFIG, clock=trio_clock(EPOCH))
        self._host = await self._stack.enter_async_context(opening)

    async def close(self) -> None:
        """Stop as a signal does."""
        host = self.host
        await self._stack.aclose()
        self._hear(host.events.events)
        assert host.faults() == [] or self._disk_refused(host), host.faults()
        for key, submission in self.accepted.items():
            run = host.runtime.runs.open_run(key)
            assert run is None or run.state is RunState.QUEUED, (submission, run and run.state)

    async def leave(self) -> None:
        """Leave nothing open, whatever was found."""
        await self._stack.aclose()

    async def kill(self) -> None:
        """Stop as a power cut does: what the disk holds now is all that the next life finds."""
        host, self.killed = self.host, True
        now, accepted = len(host.events.events), dict(self.accepted)
        copy_state(self.folder / str(self.lives), self.folder / str(self.lives + 1))
        self.lives += 1
        await self._stack.aclose()
        self._hear(host.events.events[:now])
        self.accepted = accepted  # what it acknowledged after that, nobody heard

    def _disk_refused(self, host: TestRuntime) -> bool:
        return all("stored" in record.message or "started" in record.message for record in host.faults())

    def _hear(self, events: Sequence[RuntimeEvent]) -> None:
        self.heard.extend(events)
        seen: Counter[str] = Counter()
        over: set[str] = set()
        for event in events:
            if isinstance(event, RunEvent):
                run_id = event.run.run_id
                seen[run_id] += 1
                assert event.seq == seen[run_id], f"a gap before {event}"
                assert run_id not in over, f"after its end: {event}"
                if isinstance(event, RunEnded):
                    over.add(run_id)
                    assert run_id not in self.told, f"a second end: {event}, after {self.told[run_id]}"
                    self.told[run_id] = event.terminal

    # -- what people do ------------------------------------------------------------------------------------------------

    def draft(self, session: str, mode: QueueMode, play: str) -> Submission:
        key = f"run-{len(self.asked)}"
        submission = Submission(
            run_id=key,
            session_key=canonical_key(session),
            message=UserMessage(f"{PLAYS[play]}\n#{key}", EPOCH),
            queue_mode=mode,
        )
        self.asked.append(submission)
        return submission

    async def submit(self, submission: Submission) -> None:
        known = submission.run_id in self.accepted
        host = self.host

        def acknowledge(accepted: Accepted) -> None:
            assert accepted.replay or not host.events.of(submission.run_id), "an event before the acknowledgement"
            assert accepted.replay or not known, "a key was accepted twice"
            self.accepted.setdefault(submission.run_id, submission)
            self.refused.discard(submission.run_id)

        try:
            accepted = await host.runtime.runs.submit(submission, acknowledge=acknowledge)
        except (Busy, Unavailable):
            if not known:
                self.refused.add(submission.run_id)
            return
        assert accepted.replay or not known

    async def lose(self, submission: Submission) -> None:
        """Ask, and go away at once; nobody knows whether it was accepted, and asking again tells."""
        with trio.CancelScope() as scope:
            scope.cancel(reason="the test's caller goes")
            await self.submit(submission)

    async def contradict(self, submission: Submission) -> None:
        """Use a known key for other words."""
        other = Submission(
            run_id=submission.run_id, session_key=submission.session_key, message=UserMessage("other words", EPOCH)
        )
        try:
            await self.host.runtime.runs.submit(other)
        except (Busy, Unavailable, Conflict):
            return
        raise AssertionError("a key stands for two inputs")

    async def refuse_next(self) -> None:
        self.host.store.refuse(1)

    async def reset(self, session: str) -> None:
        try:
            await self.host.store.write(lambda db: stored_sessions.reset(db, canonical_key(session), EPOCH))
        except RuntimeFault:
            return  # the disk was told to refuse

    def abort(self, place: int) -> None:
        runs = self.host.runtime.runs.open_runs()
        if runs:
            self.host.runtime.runs.abort(runs[place % len(runs)], "rpc")

    async def do(self, step: tuple[Any, ...]) -> None:
        match step:
            case ("send", session, mode, play):
                await self.submit(self.draft(session, mode, play))
            case ("burst", session, mode):
                async with trio.open_nursery() as nursery:
                    for play in ("tools", "plain", "slow"):
                        nursery.start_soon(self.submit, self.draft(session, mode, play))
            case ("lose", session, mode):
                await self.lose(self.draft(session, mode, "slow"))
            case ("repeat", place) if self.asked:
                await self.submit(self.asked[place % len(self.asked)])
            case ("contradict", place) if self.accepted:
                await self.contradict([*self.accepted.values()][place % len(self.accepted)])
            case ("abort", place):
                self.abort(place)
            case ("reset", session):
                await self.reset(session)
            case ("wait", seconds):
                await trio.sleep(seconds)
            case ("refuse",):
                await self.refuse_next()
            case ("restart",):
                await self.close()
                await self.open()
            case ("kill",):
                await self.kill()
                await self.open()
            case _:
                pass  # nothing to repeat yet

    # -- what must be true ---------------------------------------------------------------------------------------------

    async def check(self) -> None:
        """Once everything that was asked is over."""
        host = self.host
        for submission in self.asked:  # who was refused or went away may ask again, and gets one run all the same
            while submission.run_id not in self.accepted:
                await self.submit(submission)
                await trio.sleep(1)
        with trio.fail_after(LONG):
            ends = {key: await host.runtime.runs.wait(key) for key in self.accepted}
            await trio.sleep(10)  # what the disk refused is written late
        statistics = host.runtime.runs.statistics()
        assert (statistics.runs.queued, statistics.runs.running, statistics.inbox) == (0, 0, 0)
        assert (statistics.lanes.lanes, statistics.lanes.queued) == (0, 0)
        assert all(used.startswith("0/") for used in statistics.lanes.limits.values())
        transcripts = {session: await host.transcript(session) for session in SESSIONS}
        await self.close()
        for key, end in ends.items():
            self._check_end(key, end)
        for session, messages in transcripts.items():
            check_pairs(messages)
            texts = Counter(m.content for m in messages if isinstance(m, UserMessage))
            mine = [s for s in self.accepted.values() if s.session_key == canonical_key(session)]
            assert texts == Counter(s.message.content for s in mine)
        self._check_order()

    def _check_end(self, key: str, end: Terminal) -> None:
        told = self.told.get(key)
        assert told is not None or self.killed, f"{key} was never told to have ended"
        if told is not None and not (self.killed and told.error_kind == "not_stored"):
            assert (end.state, end.stop_reason, end.text) == (told.state, told.stop_reason, told.text), key
        if end.state is RunState.MERGED:
            assert end.merged_into is not None
            assert self.accepted[end.merged_into].session_key == self.accepted[key].session_key

    def _check_order(self) -> None:
        """Of those that wait for their turn, who came first is served first; only an interruption overtakes."""
        order = list(self.accepted)
        for session in SESSIONS:
            started = [
                order.index(event.run.run_id)
                for event in self.heard
                if isinstance(event, RunStarted)
                and event.run.session_key == canonical_key(session)
                and self.accepted[event.run.run_id].queue_mode != "interrupt"
            ]
            assert started == sorted(started), f"{session}: {[order[place] for place in started]}"
            assert len(started) == len(set(started)), "a run had two turns"


def check_pairs(messages: Sequence[Message]) -> None:
    """Each call is followed by its result, and each result has its call."""
    waiting: list[str] = []
    for message in messages:
        if isinstance(message, ToolResultMessage):
            assert waiting and waiting.pop(0) == message.tool_call_id
        else:
            assert waiting == [], "a call without its result"
            waiting = [call.id for call in message.tool_calls] if isinstance(message, AssistantMessage) else []
    assert waiting == []


async def play(steps: Sequence[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        await world.open()
        try:
            for step in steps:
                await world.do(step)
            await world.check()
        finally:
            await world.leave()  # noqa: ASYNC102, RUF100  nobody cancels this task


SESSION = st.sampled_from(SESSIONS)
MODE = st.sampled_from(["steer", "followup", "collect", "interrupt"])
PLACE = st.integers(0, 30)
SEND = st.tuples(st.just("send"), SESSION, MODE, st.sampled_from(list(PLAYS)))
WAIT = st.tuples(st.just("wait"), st.sampled_from([0.0, 0.05, 0.1, 0.15, 0.3, 1.0, 31.0]))
STEP = st.one_of(
    SEND,
    SEND,
    WAIT,
    st.tuples(st.just("burst"), SESSION, MODE),
    st.tuples(st.just("lose"), SESSION, MODE),
    st.tuples(st.sampled_from(["repeat", "contradict", "abort"]), PLACE),
    st.tuples(st.just("abort"), PLACE),
    st.tuples(st.just("reset"), SESSION),
    st.tuples(st.sampled_from(["refuse", "restart", "kill"])),
)


@settings(
    max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
@given(st.lists(STEP, max_size=25))
def test_whatever_happens_every_accepted_run_ends_once_in_order_and_nothing_is_lost(
    steps: list[tuple[Any, ...]],
) -> None:
    trio.run(play, steps, clock=trio.testing.MockClock(autojump_threshold=0))
