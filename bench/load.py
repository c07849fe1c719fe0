"""Load: a closed loop, where a session sends when it has the end of its last turn, and an open one, where people arrive
as they please."""

import random
import uuid
from collections.abc import Sequence
from itertools import accumulate

import trio

from triops.bench.driver import Driver, Turn, now

TURN_LIMIT = 60.0
MESSAGE = "TOKENS:8 RUN:"
"""To the mock model; a model that is none finds it odd, and answers."""
TIMER_STEP = 0.001
"""Seconds by which the system's timers may ring late."""


def new_session() -> str:
    """A key that no session has."""
    return f"agent:main:bench-{uuid.uuid4().hex[:12]}"


async def closed_loop(
    driver: Driver, sessions: Sequence[str], turns: int, *, fresh: bool = False, message: str = MESSAGE
) -> list[Turn]:
    """`turns` turns, as many at once as there are sessions (`fresh`: each in a session of its own)."""
    left = iter(range(turns))
    done: list[Turn] = []

    async def talk(session: str) -> None:
        for _ in left:
            done.append(await one_turn(driver, new_session() if fresh else session, message))

    async with trio.open_nursery() as nursery:
        for session in sessions:
            nursery.start_soon(talk, session)
    return done


async def open_loop(driver: Driver, turns: int, rate: float, *, seed: int) -> list[Turn]:
    """`turns` arrivals, `rate` a second, each in a session of its own; nobody waits for who came before.

    A turn is due when its person comes: if the gateway or this generator stalls, all who come meanwhile wait, and their
    waiting is counted ("coordinated omission").
    """
    source, done, begun = random.Random(seed), list[Turn](), now()
    gaps = [source.expovariate(1) for _ in range(turns)]
    step = turns / rate / sum(gaps)

    async def talk(due: int) -> None:
        done.append(await one_turn(driver, new_session(), due=due))

    async with trio.open_nursery() as nursery:
        for at in accumulate(gaps):
            scheduled = begun + round(at * step * 1e9)
            # Set early by what a timer may be late: who comes that little early is due when the timer rang.
            await trio.sleep(max(0, (scheduled - now()) / 1e9 - TIMER_STEP))
            nursery.start_soon(talk, min(now(), scheduled))
    return done


async def one_turn(driver: Driver, session: str, message: str = MESSAGE, *, due: int = 0) -> Turn:
    """A turn under a key of its own, which ends `message`; given up after `TURN_LIMIT`."""
    turn = Turn(uuid.uuid4().hex, session, due=due)
    with trio.move_on_after(TURN_LIMIT):
        await driver.chat(turn, message + turn.run)
    return turn
