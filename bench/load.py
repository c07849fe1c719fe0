"""Load: turns in a closed loop, where a session sends its next message when it has the end of the last."""

import uuid
from collections.abc import Sequence

import trio

from triops.bench.driver import Driver, Turn

TURN_LIMIT = 60.0
MESSAGE = "TOKENS:8 RUN:"
"""To the mock model; a model that is none finds it odd, and answers."""


def new_session() -> str:
    """A key that no session has."""
    return f"agent:main:bench-{uuid.uuid4().hex[:12]}"


async def closed_loop(driver: Driver, sessions: Sequence[str], turns: int, *, fresh: bool = False) -> list[Turn]:
    """`turns` turns, as many at once as there are sessions (`fresh`: each in a session of its own)."""
    left = iter(range(turns))
    done: list[Turn] = []

    async def talk(session: str) -> None:
        for _ in left:
            done.append(await _one_turn(driver, new_session() if fresh else session))

    async with trio.open_nursery() as nursery:
        for session in sessions:
            nursery.start_soon(talk, session)
    return done


async def _one_turn(driver: Driver, session: str) -> Turn:
    run = uuid.uuid4().hex
    with trio.move_on_after(TURN_LIMIT):
        return await driver.chat(session, MESSAGE + run, run)
    return Turn(run, session)
