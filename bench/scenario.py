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

from triops.bench.driver import Driver, now, open_driver
from triops.bench.errors import BenchFailed
from triops.bench.load import MESSAGE, closed_loop, new_session, open_loop
from triops.bench.mock_model import Mark
from triops.bench.report import machine, machine_line, table
from triops.bench.subjects import Subject, Targets, open_model, openers
from triops.bench.turns import Block, Record, Result, phases, results

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


class Waiting(trio.abc.Instrument):
    """How long this loop waited for input, output or a timer."""

    ns = since = 0

    def before_io_wait(self, timeout: float) -> None:
        self.since = now()

    def after_io_wait(self, timeout: float) -> None:
        self.ns += now() - self.since


class Report(msgspec.Struct, frozen=True):
    """`summary.json`."""

    machine: dict[str, str]
    results: list[Result]


@asynccontextmanager
async def open_subjects(targets: Targets) -> AsyncGenerator[tuple[str, list[tuple[Subject, Driver]]]]:
    """The mock model's URL, and each subject with a driver that is connected to it."""
    async with AsyncExitStack() as stack:
        model = targets.model or await stack.enter_async_context(open_model())
        found: list[tuple[Subject, Driver]] = []
        for opener in openers(targets, model).values():
            subject = await stack.enter_async_context(opener())
            found.append((subject, await stack.enter_async_context(open_driver(subject.url, subject.token))))
        gc.freeze()  # what is here stays: a full collection in a turn would be the generator's, not the subject's
        stack.callback(gc.unfreeze)
        yield model, found


async def measure_turns(targets: Targets, scenarios: Sequence[Scenario], turns: int) -> list[Block]:
    """Start what is to be started, drive it through every scenario (`turns` each), and end it.

    Raises:
        BenchFailed: a subject did not start, refused, or closed the connection.
    """
    async with open_subjects(targets) as (model, subjects):
        blocks: list[Block] = []
        for scenario in scenarios:
            blocks += await _run_scenario(scenario, subjects, model, turns)
    return blocks


async def _run_scenario(
    scenario: Scenario, subjects: Sequence[tuple[Subject, Driver]], model: str, turns: int
) -> list[Block]:
    """Blocks of at least two turns a session; subjects in turn, each second time the other way round."""
    rounds = max(1, min(ROUNDS, turns // (2 * scenario.concurrency)))
    kept = [new_session()] if scenario.history else []
    for _, driver in subjects if kept else ():
        await closed_loop(driver, kept, scenario.history // 2)
    blocks: list[Block] = []
    for number in range(rounds):
        share = turns // rounds + (number < turns % rounds)
        for subject, driver in subjects[:: -1 if number % 2 else 1]:
            sessions = kept or [new_session() for _ in range(scenario.concurrency)]
            blocks.append(await run_block(subject.name, driver, scenario, model, share, sessions))
    return blocks


async def run_block(
    subject: str, driver: Driver, scenario: Scenario, model: str, turns: int, sessions: Sequence[str]
) -> Block:
    warm_up = max(WARM_UP, scenario.concurrency)
    await closed_loop(driver, sessions, warm_up, fresh=scenario.fresh, message=scenario.message)

    trio.lowlevel.add_instrument(waiting := Waiting())
    begun, cpu = now(), time.process_time_ns()
    if scenario.rate:
        done = await open_loop(driver, sessions, turns, scenario.rate)
    else:
        done = await closed_loop(driver, sessions, turns, fresh=scenario.fresh, message=scenario.message)
    wall, cpu = now() - begun, time.process_time_ns() - cpu
    trio.lowlevel.remove_instrument(waiting)
    marks = await trio.to_thread.run_sync(take_marks, model)
    found = [Record(subject, scenario.name, turn, phases(turn, marks.get(turn.run, ()))) for turn in done]
    return Block(found, begun, wall, cpu, wall - waiting.ns)


async def timed(work: Callable[[], Awaitable[list[Record]]]) -> Block:
    begun, cpu = now(), time.process_time_ns()
    records = await work()
    return Block(records, begun, now() - begun, time.process_time_ns() - cpu)


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


def metrics_table(machine: dict[str, str], found: Sequence[Result]) -> str:
    """Every metric of every result, in ms."""
    rows = [["", "ms", "p50", "p95", "p99", "max", "count"]]
    for result in found:
        name = f"{result.scenario}, {result.subject}" + (f" ({result.failed} failed)" if result.failed else "")
        for metric, s in result.metrics.items():
            rows.append([name, metric, *(f"{value:.2f}" for value in (s.p50, s.p95, s.p99, s.max)), str(s.count)])
    return "\n".join([machine_line(machine), "", *table(rows)])


def run(
    measure: Callable[[], Awaitable[list[Block]]],
    *,
    out: Path | None,
    as_json: bool,
    table: Callable[[dict[str, str], Sequence[Result]], str] = metrics_table,
) -> None:
    """Measure, print, and write `runs.jsonl` and `summary.json` into `out`."""
    noted = machine()  # before the load is our own
    blocks = trio.run(measure)
    report = Report(noted, results(blocks))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "runs.jsonl").write_bytes(
            b"".join(msgspec.json.encode(record) + b"\n" for b in blocks for record in b.records)
        )
        (out / "summary.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    print(msgspec.json.encode(report).decode() if as_json else table(report.machine, report.results))
