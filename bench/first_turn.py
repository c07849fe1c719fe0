"""`triops bench first-turn`: what the first message after a start waits longer than later ones."""

import time
from contextlib import AsyncExitStack

import trio

from triops.bench.driver import now, open_driver
from triops.bench.load import closed_loop, new_session, one_turn
from triops.bench.progress import told
from triops.bench.scenario import take_marks
from triops.bench.subjects import Opener, Targets, open_model, openers
from triops.bench.turns import Block, Record, phases

WARM_AFTER = 2.0
"""Seconds that a gateway is given to warm up by itself."""
BEFORE_WARM, WARM_TURNS = 20, 10


async def measure(targets: Targets, runs: int, *, warm_after: float = WARM_AFTER) -> list[Block]:
    """Start each subject twice a run: its first turn is cold, or comes when the gateway had time to warm up.

    Raises:
        BenchFailed: a subject is not ours to start, did not start, refused, or closed the connection.
    """
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(open_model(targets))
        blocks: list[Block] = []
        for _ in range(runs):
            for name, opener in openers(targets, model, children=True).items():
                for pause, first in ((0.0, "cold"), (warm_after, "warmed")):
                    blocks += await _start_once(name, opener, model, pause, first)
    return sorted(blocks, key=lambda block: block.records[0].scenario)


async def _start_once(name: str, opener: Opener, model: str, pause: float, first: str) -> list[Block]:
    """The first turn, the second, and some when all is warm."""
    async with opener() as subject, open_driver(subject.url, subject.token) as driver:

        async def talk(scenario: str, turns: int) -> Block:
            begun, cpu = now(), time.process_time_ns()
            done = await closed_loop(driver, [new_session()], turns)
            wall, cpu = now() - begun, time.process_time_ns() - cpu
            marks = await trio.to_thread.run_sync(take_marks, model)
            return told(Block([Record(name, scenario, t, phases(t, marks.get(t.run, ()))) for t in done], wall, cpu))

        await trio.sleep(pause)
        blocks = [await talk(scenario, 1) for scenario in (first, f"second after {first}")]
        for _ in range(BEFORE_WARM):
            await one_turn(driver, new_session())
        return [*blocks, await talk("warm", WARM_TURNS)]
