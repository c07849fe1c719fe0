"""`triops bench gauges`: smaller questions of our own: fan-out, idle clients, commits, the longest step of a task,
the CPU of a chunk."""

import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from statistics import median

import msgspec
import trio

from triops.bench.driver import Driver, Frame, decode_chat, now, open_driver
from triops.bench.load import new_session, one_turn
from triops.bench.memory import rss_of_tree
from triops.bench.progress import live, tell
from triops.bench.report import machine, machine_line, table
from triops.bench.subjects import Subject, open_gateway, open_inside, open_model
from triops.gateway.cli.process import raise_descriptor_limit
from triops.runtime.store.sqlite import open_store

WATCHERS, IDLE, COMMITS, TURNS, CHUNKS = (10, 100, 1_000), 5_000, 2_000, 5, 2_000
SPARE = 200
"""File descriptors that a process needs for itself."""


class Step(msgspec.Struct, frozen=True):
    ms: float
    task: str


class Report(msgspec.Struct, frozen=True):
    machine: dict[str, str]
    fan_out_ms: dict[int, float]
    """By number of clients: from the first that has a run's final to the last; this process reads for them all."""
    idle_clients: int
    idle_kb: float | None
    """Of the gateway's memory, for each; None where there is no /proc."""
    commits_per_second: dict[str, float]
    """`one by one`, and `at once`: those that wait together share one."""
    longest: list[Step]
    """Of the tasks of a gateway in this process, over some turns."""
    chunk_us: float
    """CPU of that gateway and its client for each chunk of a stream that sends one a millisecond."""


async def measure(watchers: Sequence[int] = WATCHERS, idle: int = IDLE, commits: int = COMMITS) -> Report:
    room = raise_descriptor_limit() - SPARE
    async with open_model() as model:
        async with open_gateway(model) as subject, open_driver(subject.url, subject.token) as sender:
            spread = {count: await _fan_out(subject, sender, count) for count in {min(n, room): None for n in watchers}}
            clients = min(idle, room)
            kb = await _idle(subject, clients)
        tell("gauges", "commits")
        rates = await _commits(commits)
        tell("gauges", "the longest steps")
        steps, chunk_us = await _inside(model)
    return Report(machine(), spread, clients, kb, rates, steps, chunk_us)


async def _fan_out(subject: Subject, sender: Driver, count: int) -> float:
    stamps: dict[str, list[int]] = {}

    def note(frame: Frame, stamp: int) -> None:
        if frame.event == "chat" and (chat := decode_chat(frame.payload)).state == "final":
            stamps.setdefault(chat.run_id, []).append(stamp)

    async with _clients(subject, count) as clients:
        for client in clients:
            client.listener = note
        runs = [(await one_turn(sender, new_session(), "TOKENS:2 RUN:")).run for _ in range(TURNS)]
        with trio.move_on_after(10):
            while any(len(stamps.get(run, ())) < count for run in runs):  # noqa: ASYNC110 - each client notes its own
                await trio.sleep(0.01)
    return median((max(stamps[run]) - min(stamps[run])) / 1e6 for run in runs)


async def _idle(subject: Subject, count: int) -> float | None:
    before = rss_of_tree(subject.pid) if sys.platform == "linux" else None
    async with _clients(subject, count):
        after = rss_of_tree(subject.pid) if before is not None else None
    return None if before is None or after is None else (after - before) * 1000 / count


@asynccontextmanager
async def _clients(subject: Subject, count: int) -> AsyncGenerator[list[Driver]]:
    async with AsyncExitStack() as stack:
        found: list[Driver] = []
        for number in range(count):
            if number % 100 == 0:
                tell("gauges", f"{number} of {count} clients")
            found.append(await stack.enter_async_context(open_driver(subject.url, subject.token)))
        yield found


async def _commits(count: int) -> dict[str, float]:
    def work(db: object) -> None:
        getattr(db, "execute")("INSERT OR REPLACE INTO kv (key, value) VALUES ('gauge', '1')")  # noqa: B009 - a Db

    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="triops-bench-") as folder:
        async with open_store(Path(folder) / "triops.sqlite") as store:
            begun = time.perf_counter()
            for _ in range(count // 10):
                await store.write(work)
            found["one by one"] = count // 10 / (time.perf_counter() - begun)
            begun = time.perf_counter()
            async with trio.open_nursery() as nursery:
                for _ in range(count):
                    nursery.start_soon(store.write, work)
            found["at once"] = count / (time.perf_counter() - begun)
    return found


class _Steps(trio.abc.Instrument):
    """The longest step of each task that is not the gauge's."""

    def __init__(self) -> None:
        self.longest: dict[str, int] = {}
        self._begun = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._begun = now()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        took = now() - self._begun
        if "triops.bench" not in task.name and took > self.longest.get(task.name, 0):
            self.longest[task.name] = took


async def _inside(model: str) -> tuple[list[Step], float]:
    steps = _Steps()
    async with open_inside(model) as subject, open_driver(subject.url, subject.token) as driver:
        trio.lowlevel.add_instrument(steps)
        session = new_session()
        for _ in range(20 * TURNS):
            await one_turn(driver, session, "TOKENS:20 RUN:")
        trio.lowlevel.remove_instrument(steps)
        begun = time.process_time()
        await one_turn(driver, session, f"TOKENS:{CHUNKS} ITL:1 RUN:")
        chunk_us = (time.process_time() - begun) / CHUNKS * 1e6
    found = sorted(((took, name) for name, took in steps.longest.items()), reverse=True)
    return [Step(took / 1e6, name.removeprefix("triops.")) for took, name in found[:5]], chunk_us


def run(*, as_json: bool) -> None:
    with live():
        found = trio.run(measure)
    lines = [
        ["fan-out", f"to {count}", f"{ms:.2f} ms from the first client to the last"]
        for count, ms in found.fan_out_ms.items()
    ]
    if found.idle_kb is not None:
        few = "" if found.idle_clients >= IDLE else f" (as many as there are descriptors for, of {IDLE})"
        lines.append(["idle clients", f"{found.idle_clients}{few}", f"{found.idle_kb:.0f} kB each"])
    lines += [["commits", how, f"{rate:,.0f} a second"] for how, rate in found.commits_per_second.items()]
    lines += [["longest step", step.task, f"{step.ms:.2f} ms"] for step in found.longest]
    lines.append(["a quick stream", f"{CHUNKS:,} chunks", f"{found.chunk_us:.0f} µs of CPU each"])
    text = "\n".join([machine_line(found.machine), "", *table(lines)])
    print(msgspec.json.encode(found).decode() if as_json else text)
