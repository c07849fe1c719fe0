"""`triops bench abort`: how long a stopped answer goes on: to the ack, to the terminal, until its children are gone."""

from collections.abc import Collection

import trio

from triops.bench.driver import Driver, Frame, Turn, now
from triops.bench.load import TURN_LIMIT, new_session, one_turn
from triops.bench.memory import tree_of
from triops.bench.scenario import open_subjects, timed
from triops.bench.subjects import Targets
from triops.bench.turns import Block, Record

LONG_ANSWER = "TOKENS:3000 ITL:20 "
LOOK, REAPED_LOOK = 0.01, 0.001
"""Seconds between two looks at the processes: for the first child, and for the end of the last."""


async def measure(targets: Targets, turns: int, message: str = LONG_ANSWER) -> list[Block]:
    """Abort each of `turns` turns at its first delta, or at the first child process that it starts.

    Children are seen where the gateway is a child of ours and the system has /proc.

    Raises:
        BenchFailed: a subject did not start, refused, or closed the connection.
    """
    blocks: list[Block] = []
    async with open_subjects(targets) as (_, subjects):
        for subject, driver in subjects:
            blocks += [
                await timed(lambda s=subject, d=driver: abort_once(s.name, s.pid, d, message)) for _ in range(turns)
            ]
    return blocks


async def abort_once(subject: str, pid: int, driver: Driver, message: str) -> list[Record]:
    """One turn; `pid` is the gateway's, or 0 where its children cannot be seen."""
    session, alive = new_session(), set(tree_of(pid))
    turns: list[Turn] = []
    stop, found, children = trio.Event(), dict[str, float](), set[int]()

    def listen(frame: Frame, stamp: int) -> None:
        if frame.event == "chat" and b'"delta"' in bytes(frame.payload):
            stop.set()

    async def talk() -> None:
        turns.append(await one_turn(driver, session, message + "RUN:"))
        stop.set()

    driver.listener = listen
    with trio.move_on_after(TURN_LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk)
            while not stop.is_set() and not children:
                with trio.move_on_after(LOOK if pid else TURN_LIMIT):
                    await stop.wait()
                children = set(tree_of(pid)) - alive
            begun = now()
            await driver.ask("chat.abort", {"sessionKey": session})
            found["ack"] = (now() - begun) / 1e6
        if children and await _gone(pid, children):
            found["reaped"] = (now() - begun) / 1e6
        found["terminal"] = (turns[0].final - begun) / 1e6
    return [Record(subject, "abort", turns[0] if turns else Turn("", session), found, "aborted")]


async def _gone(pid: int, children: Collection[int]) -> bool:
    while not tree_of(pid).keys().isdisjoint(children):  # noqa: ASYNC110 - nobody tells of a grandchild's end
        await trio.sleep(REAPED_LOOK)
    return True
