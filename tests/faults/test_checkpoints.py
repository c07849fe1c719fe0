"""A run that is stopped, or whose runtime closes, after any step that Trio takes: it ends once, and nothing is left."""

import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from tests.kit.transcripts import check_pairs

from triops.agents.messages import UserMessage
from triops.runtime.events import RunEvent
from triops.runtime.runs.state import Accepted, RunState, Submission, Terminal
from triops.runtime.sessions import canonical_key
from triops.runtime.testing import EPOCH, TestRuntime, open_test_runtime

Scenario = Callable[["Sender"], Awaitable[None]]
MOST = 2_000  # steps; no scenario takes a tenth of it
REPLIES = 'CALL:sessions_list {}\nCALL:sessions_send {"sessionKey": "other", "message": "TOKENS:2 ITL:100"}'


class AfterStep(trio.abc.Instrument):
    """Calls `strike` once, between two steps, after `count` steps of any task."""

    def __init__(self, count: int, strike: Callable[[], None]) -> None:
        self.left = count
        self.struck = False
        self._strike = strike

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.left -= 1
        if self.left == 0:
            self._strike()  # Trio logs what it raises and goes on, so that it counts only once it is done
            self.struck = True


class Sender:
    """Says things, and keeps what was acknowledged outside of the runtime."""

    def __init__(self, host: TestRuntime, accepted: dict[str, Submission]) -> None:
        self.host = host
        self.accepted = accepted

    async def send(self, run_id: str, text: str) -> None:
        submission = Submission(
            run_id=run_id, session_key=canonical_key("main"), message=UserMessage(f"{text}\n#{run_id}", EPOCH)
        )

        def acknowledge(_: Accepted) -> None:
            assert self.host.events.of(run_id) == []
            self.accepted[run_id] = submission

        await self.host.runtime.runs.submit(submission, acknowledge=acknowledge)

    async def ends(self, *run_ids: str) -> None:
        for run_id in run_ids:
            await self.host.runtime.runs.wait(run_id)

    def abort(self) -> None:
        """Stop whatever is at work in the session."""
        runs = self.host.runtime.runs
        for run in runs.open_runs(canonical_key("main")):
            runs.abort(run, "rpc")


async def plain_reply(sender: Sender) -> None:
    await sender.send("a", "TOKENS:2 ITL:100")
    await sender.ends("a")


async def tool_batch(sender: Sender) -> None:
    await sender.send("a", REPLIES)
    await sender.ends("a")


async def steered_tools(sender: Sender) -> None:
    await sender.send("a", REPLIES)
    await trio.sleep(0.05)
    await sender.send("b", "SAY:and this")
    await sender.ends("a", "b")


def check_empty(host: TestRuntime) -> None:
    statistics = host.runtime.runs.statistics()
    assert (statistics.runs.queued, statistics.runs.running, statistics.inbox) == (0, 0, 0)
    assert (statistics.lanes.lanes, statistics.lanes.queued) == (0, 0)
    assert all(used.startswith("0/") for used in statistics.lanes.limits.values())


async def aborted_after(count: int, scenario: Scenario, folder: Path) -> bool:
    """Whether the scenario took that many steps."""
    accepted: dict[str, Submission] = {}
    async with open_test_runtime(folder) as host:
        sender = Sender(host, accepted)
        instrument = AfterStep(count, sender.abort)
        trio.lowlevel.add_instrument(instrument)
        with trio.fail_after(60):
            await scenario(sender)
        trio.lowlevel.remove_instrument(instrument)
        struck = instrument.left <= 0
        assert instrument.struck is struck
        await trio.sleep(1)  # what the run asked of another session ends as well
        check_empty(host)
        host.events.check(accepted)
        assert host.faults() == []
        told = host.events.terminals()
    await check_reopened(folder, accepted, told)
    return struck


async def closed_after(count: int, scenario: Scenario, folder: Path) -> bool:
    """Whether the scenario took that many steps."""
    accepted: dict[str, Submission] = {}
    async with open_test_runtime(folder) as host:
        scope = trio.CancelScope()
        instrument = AfterStep(count, lambda: scope.cancel(reason="the test closes the runtime"))
        with trio.fail_after(60), scope:
            trio.lowlevel.add_instrument(instrument)
            await scenario(Sender(host, accepted))
            trio.lowlevel.remove_instrument(instrument)
        struck = instrument.left <= 0
        assert instrument.struck is struck
    host.events.check()
    assert host.faults() == []
    told = host.events.terminals()
    begun = {event.run.run_id for event in host.events.events if isinstance(event, RunEvent)}
    assert begun <= set(told), f"begun and not ended: {begun - set(told)}"
    for run in host.runtime.runs.open_runs():
        assert run.state is RunState.QUEUED, f"{run.id} was left {run.state}"
    await check_reopened(folder, accepted, told)
    return struck


async def check_reopened(folder: Path, accepted: dict[str, Submission], told: dict[str, Terminal]) -> None:
    """The next life says what was told, and ends what was not."""
    async with open_test_runtime(folder) as host:
        with trio.fail_after(60):
            for run_id in {*accepted, *told}:
                end = await host.runtime.runs.wait(run_id)
                assert told.get(run_id, end) == end, run_id
        await trio.sleep(1)
        check_empty(host)
        assert not set(told) & set(host.events.terminals()), "ended again after the restart"
        messages = await host.transcript()
        check_pairs(messages)
        check_pairs(await host.transcript("other"))
        said = Counter(message.content for message in messages if isinstance(message, UserMessage))
        assert all(said[submission.message.content] == 1 for submission in accepted.values()), said
        assert set(said.values()) <= {1}, said


@pytest.mark.slow
@pytest.mark.parametrize("variant", [aborted_after, closed_after])
@pytest.mark.parametrize("scenario", [plain_reply, tool_batch, steered_tools])
def test_a_run_that_is_cut_off_after_any_step_ends_once_and_leaves_nothing(
    scenario: Scenario, variant: Callable[[int, Scenario, Path], Awaitable[bool]]
) -> None:
    for count in range(1, MOST):
        with tempfile.TemporaryDirectory() as folder:
            clock = trio.testing.MockClock(autojump_threshold=0)
            try:
                if not trio.run(variant, count, scenario, Path(folder), clock=clock):
                    return
            except BaseException as error:
                error.add_note(f"cut off after step {count}")
                raise
    raise AssertionError("the scenario has no end")
