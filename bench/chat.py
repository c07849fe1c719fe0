"""`triops bench chat`: how long a person waits for an answer, on any gateway of this protocol, beside the floor.

A closed loop over one connection: each session sends its next message when it has the final of the last. Subjects
take turns in short blocks, in changing order, so that the machine's moods meet both.
"""

import gc
import http.client
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import trio

from triops.bench.driver import Driver, now, open_driver
from triops.bench.errors import BenchFailed
from triops.bench.load import closed_loop, new_session
from triops.bench.mock_model import Mark
from triops.bench.report import chat_table, machine
from triops.bench.subjects import Subject, open_floor, open_gateway, open_model
from triops.bench.turns import Block, Record, Result, phases, results

ROUNDS = 10
WARM_UP = 5


class Options(msgspec.Struct, frozen=True):
    turns: int
    """Per scenario and subject."""
    concurrency: tuple[int, ...]
    url: str = ""
    """A gateway that runs already; without, this project's is started."""
    token: str = ""
    model: str = ""
    """The mock model that the gateway at `url` uses; without, one is started."""
    floor: bool = True


class Scenario(msgspec.Struct, frozen=True):
    name: str
    concurrency: int
    fresh: bool = False
    """A new session for each turn."""


class Report(msgspec.Struct, frozen=True):
    """`summary.json`."""

    machine: dict[str, str]
    results: list[Result]


def scenarios(concurrency: Sequence[int]) -> list[Scenario]:
    """Fresh sessions one by one, then that many sessions at once."""
    names = {1: "one session"}
    return [Scenario("fresh sessions", 1, True), *(Scenario(names.get(n, f"{n} at once"), n) for n in concurrency)]


async def measure(options: Options) -> tuple[Report, list[Record]]:
    """Start what is to be started, drive it through every scenario, and end it.

    Raises:
        BenchFailed: a subject did not start, refused, or closed the connection.
    """
    async with AsyncExitStack() as stack:
        model = options.model or await stack.enter_async_context(open_model())
        if options.url:
            subjects = [Subject("gateway", options.url, options.token)]
        else:
            subjects = [await stack.enter_async_context(open_gateway(model))]
        if options.floor:
            subjects.append(await stack.enter_async_context(open_floor(model)))
        drivers = {s.name: await stack.enter_async_context(open_driver(s.url, s.token)) for s in subjects}
        gc.freeze()  # what is here stays: a full collection in a turn would be the generator's, not the subject's
        stack.callback(gc.unfreeze)
        blocks: list[Block] = []
        for scenario in scenarios(options.concurrency):
            blocks += await _run_scenario(scenario, drivers, model, options.turns)
    return Report(machine(), results(blocks)), [record for block in blocks for record in block.records]


async def _run_scenario(scenario: Scenario, drivers: dict[str, Driver], model: str, turns: int) -> list[Block]:
    """Blocks of at least two turns a session; subjects in turn, each second time the other way round."""
    rounds = max(1, min(ROUNDS, turns // (2 * scenario.concurrency)))
    blocks: list[Block] = []
    for number in range(rounds):
        share = turns // rounds + (number < turns % rounds)
        for name, driver in list(drivers.items())[:: -1 if number % 2 else 1]:
            blocks.append(await _run_block(name, driver, scenario, model, share))
    return blocks


async def _run_block(subject: str, driver: Driver, scenario: Scenario, model: str, turns: int) -> Block:
    sessions = [new_session() for _ in range(scenario.concurrency)]
    await closed_loop(driver, sessions, max(WARM_UP, scenario.concurrency), fresh=scenario.fresh)
    begun, cpu = now(), time.process_time_ns()
    done = await closed_loop(driver, sessions, turns, fresh=scenario.fresh)
    wall, cpu = now() - begun, time.process_time_ns() - cpu
    marks = await trio.to_thread.run_sync(take_marks, model)
    found = [Record(subject, scenario.name, turn, phases(turn, marks.get(turn.run, ()))) for turn in done]
    return Block(found, begun, wall, cpu)


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


def run(options: Options, *, out: Path | None, as_json: bool) -> None:
    """Measure, print, and write `runs.jsonl` and `summary.json` into `out`."""
    report, found = trio.run(measure, options)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "runs.jsonl").write_bytes(b"".join(msgspec.json.encode(record) + b"\n" for record in found))
        (out / "summary.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    print(msgspec.json.encode(report).decode() if as_json else chat_table(report.machine, report.results))
