"""What the scenarios share: subjects that take turns in blocks, and what becomes of the records. Asks no question.

Subjects take turns in short blocks, in changing order, so that the machine's moods meet all of them.
"""

import gc
import http.client
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import trio

from triops.bench.bare import open_bare
from triops.bench.driver import Driver, now, open_driver
from triops.bench.errors import BenchFailed
from triops.bench.load import MESSAGE, closed_loop, new_session, one_turn, open_loop
from triops.bench.mock_model import Mark
from triops.bench.output import Report, make_folder, summary, write
from triops.bench.progress import kept, live, told
from triops.bench.report import machine, text
from triops.bench.subjects import Subject, Targets, open_model, openers
from triops.bench.turns import BARE, BUSY, BUSY_ALONE, Block, Record, phases, results, steady

ROUNDS = 10
WARM_UP = 5


class Scenario(msgspec.Struct, frozen=True):
    name: str
    concurrency: int = 1
    """Sessions; in a closed loop, that many turns at once."""
    fresh: bool = False
    """A new session for each turn."""
    rate: float = 0.0
    """Arrivals a second in an open loop; 0 is a closed one."""
    message: str = MESSAGE
    history: int = 0
    """Messages that the one session, kept for all blocks, holds at the start."""
    plotted: bool = False
    """It stands in the plot of latency by turns at once."""


class Waiting(trio.abc.Instrument):
    """How long this loop waited for input, output or a timer."""

    ns = since = 0

    def before_io_wait(self, timeout: float) -> None:
        self.since = now()

    def after_io_wait(self, timeout: float) -> None:
        self.ns += now() - self.since


@asynccontextmanager
async def open_subjects(targets: Targets) -> AsyncGenerator[tuple[str, list[tuple[Subject, Driver]]]]:
    """The mock model's URL, and each subject with a driver that is connected to it."""
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(open_model(targets))
        found: list[tuple[Subject, Driver]] = []
        for opener in openers(targets, model).values():
            subject = await stack.enter_async_context(opener())
            bare = subject.name == BARE
            opened = open_bare(subject.url) if bare else open_driver(subject.url, subject.token)
            found.append((subject, driver := await stack.enter_async_context(opened)))
            await check(subject.name, driver)
        gc.freeze()  # what is here stays: a full collection in a turn would be the generator's, not the subject's
        stack.callback(gc.unfreeze)
        yield model, found


async def check(subject: str, driver: Driver) -> None:
    """One turn, before many are waited for in vain.

    Raises:
        BenchFailed: it did not end as it should.
    """
    turn = await one_turn(driver, new_session())
    if turn.state != "final":
        raise BenchFailed(f"{subject}: its first turn did not end as it should: {turn.state} {turn.error}".rstrip())


async def measure_turns(targets: Targets, scenarios: Sequence[Scenario], turns: int) -> list[Block]:
    """Start what is to be started, drive it through every scenario (`turns` each), and end it.

    Raises:
        BenchFailed: a subject did not start, refused, or closed the connection.
    """
    async with open_subjects(targets) as (model, subjects):
        blocks: list[Block] = []
        for scenario in scenarios:
            blocks += await run_scenario(scenario, subjects, model, turns)
    return blocks


async def run_scenario(
    scenario: Scenario, subjects: Sequence[tuple[Subject, Driver]], model: str, turns: int
) -> list[Block]:
    """`turns` in blocks, or more: where many are at once, each session has four in a block. Subjects in turn, each
    second time the other way round."""
    rounds = max(1, min(ROUNDS, turns // 2))
    kept = [new_session()] if scenario.history else []
    for _, driver in subjects if kept else ():
        await closed_loop(driver, kept, scenario.history // 2)
    blocks: list[Block] = []
    for number in range(rounds):
        share = turns // rounds + (number < turns % rounds)
        if scenario.concurrency > 1:
            share = max(share, 4 * scenario.concurrency)
        for subject, driver in subjects[:: -1 if number % 2 else 1]:
            sessions = kept or [new_session() for _ in range(scenario.concurrency)]
            blocks.append(await run_block(subject.name, driver, scenario, model, share, sessions, seed=number))
    return blocks


async def run_block(
    subject: str, driver: Driver, scenario: Scenario, model: str, turns: int, sessions: Sequence[str], *, seed: int = 0
) -> Block:
    """Warm up, then play `turns`; `seed` says how the people of an open loop arrive."""
    await closed_loop(driver, sessions, max(WARM_UP, len(sessions)), fresh=scenario.fresh, message=scenario.message)

    trio.lowlevel.add_instrument(waiting := Waiting())
    begun, cpu = now(), time.process_time_ns()
    if scenario.rate:
        done = await open_loop(driver, turns, scenario.rate, seed=seed)
    else:
        done = await closed_loop(driver, sessions, turns, fresh=scenario.fresh, message=scenario.message)
    wall, cpu = now() - begun, time.process_time_ns() - cpu
    trio.lowlevel.remove_instrument(waiting)
    marks = await trio.to_thread.run_sync(take_marks, model)
    kept, ended, window = steady(done, len(sessions))
    found = [Record(subject, scenario.name, turn, phases(turn, marks.get(turn.run, ()))) for turn in kept]
    at_once = len(sessions) if scenario.plotted else 0
    bearable = BUSY if len(sessions) > 1 or scenario.rate else BUSY_ALONE
    return told(Block(found, wall, cpu, wall - waiting.ns, len(done), ended, window, at_once, bearable))


async def timed(work: Callable[[], Awaitable[list[Record]]]) -> Block:
    begun, cpu = now(), time.process_time_ns()
    records = await work()
    return told(Block(records, now() - begun, time.process_time_ns() - cpu))


def take_marks(model: str) -> dict[str, list[Mark]]:
    """What the mock model noted since the last time, by run; blocks."""
    marks: dict[str, list[Mark]] = {}
    try:
        with closing(http.client.HTTPConnection(urlsplit(model).netloc, timeout=30)) as connection:
            connection.request("GET", "/marks")
            found = msgspec.json.decode(connection.getresponse().read(), type=list[Mark])
    except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
        raise BenchFailed(f"{model} is no mock model of this suite: {error}") from error
    for mark in found:
        marks.setdefault(mark.run, []).append(mark)
    return marks


def run(measure: Callable[[], Awaitable[list[Block]]], command: str, *, out: Path | None, as_json: bool) -> None:
    """Measure, print, and write what `output` names into `out`; `command` says how to do it again.

    What a measurement that was cut short has found is printed and written too.

    Raises:
        BenchFailed: the measurement failed, or no turn of a subject ended as it should, or `out` cannot be written.
    """
    if out is not None:
        make_folder(out)
    noted = machine()  # before the load is our own
    blocks: list[Block] = []
    with kept() as found:
        try:
            with live():
                blocks = trio.run(measure)
        finally:
            if found and not blocks:
                _show(found, command, noted | {"unfinished": "it was cut short"}, out, as_json=as_json)
    for result in _show(blocks, command, noted, out, as_json=as_json).results:
        if not result.metrics:
            where = result.scenario, result.subject
            turn = next(r.turn for block in blocks for r in block.records if (r.scenario, r.subject) == where)
            why = f"the first: {turn.state} {turn.error}".rstrip()
            raise BenchFailed(f"{', '.join(where)}: no turn ended as it should ({why})")


def _show(blocks: list[Block], command: str, noted: dict[str, str], out: Path | None, *, as_json: bool) -> Report:
    report = summary(command, noted, results(blocks))
    print(msgspec.json.encode(report).decode() if as_json else text(noted, report.results), flush=True)
    if out is not None:
        try:
            write(out, report, blocks)
        except OSError as error:
            raise BenchFailed(f"--out: {error.filename or out} cannot be written: {error.strerror}") from error
    return report
