"""`triops bench memory`: whether memory grows with the turns: RSS of the whole process tree, looked at on the way."""

import os
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from triops.bench.driver import Driver, Turn, open_driver
from triops.bench.errors import BenchFailed
from triops.bench.load import closed_loop, new_session
from triops.bench.progress import tell
from triops.bench.scenario import check, timed
from triops.bench.subjects import Targets, open_model, openers
from triops.bench.turns import Block, Record

SESSIONS, AT_ONCE, LOOKS, SHOWN = 100, 10, 20, 5
"""Every `SHOWN`th look stands in the result; all of them make the slope."""


async def measure(targets: Targets, turns: int) -> list[Block]:
    """Drive each subject alone through `turns` turns over 100 sessions; its last good turn bears what was seen.

    Raises:
        BenchFailed: a subject is no child of ours, or this system has no /proc; or it failed.
    """
    if sys.platform != "linux":
        raise BenchFailed("memory is not measured: this system has no /proc")
    blocks: list[Block] = []
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(open_model(targets))
        for name, opener in openers(targets, model, children=True).items():
            async with opener() as subject, open_driver(subject.url, subject.token) as driver:
                blocks.append(await timed(lambda n=name, s=subject, d=driver: _look(n, s.pid, d, turns)))
    return blocks


async def _look(name: str, pid: int, driver: Driver, turns: int) -> list[Record]:
    sessions, looks = [new_session() for _ in range(SESSIONS)], [(0, rss_of_tree(pid) or 0)]
    done: list[Turn] = []
    await check(name, driver)
    for number in range(LOOKS):
        at = number * AT_ONCE % SESSIONS
        done += await closed_loop(driver, sessions[at : at + AT_ONCE], turns // LOOKS + (number < turns % LOOKS))
        looks.append((len(done), rss_of_tree(pid) or 0))
        tell(f"memory, {name}", f"{len(done)} turns, {looks[-1][1]:.1f} MB")
    found = {f"after {turns} turns, MB" if turns else "idle, MB": rss for turns, rss in looks[::SHOWN]}
    found["each turn of the second half, kB"] = slope(looks[LOOKS // 2 :])
    last = next((turn for turn in reversed(done) if turn.state == "final"), None)
    return [Record(name, "memory", turn, found if turn is last else {}) for turn in done]


def slope(looks: Sequence[tuple[int, float]]) -> float:
    """kB a turn, by least squares, of turns and MB; 0 if no turn lies between."""
    turns, rss = [turns for turns, _ in looks], [rss * 1000 for _, rss in looks]
    middle, level = sum(turns) / len(turns), sum(rss) / len(rss)
    spread = sum((t - middle) ** 2 for t in turns)
    return sum((t - middle) * (r - level) for t, r in zip(turns, rss, strict=True)) / spread if spread else 0.0


def rss_of_tree(pid: int) -> float | None:
    """Resident MB of a process and all below it (pages that they share count twice); None where there is no /proc."""
    return sum(tree_of(pid).values()) / 1e6 if sys.platform == "linux" else None


def tree_of(pid: int) -> dict[int, int]:
    """A process and all below it, and the resident bytes of each; nothing where there is no /proc, or for pid 0."""
    if sys.platform != "linux" or not pid:
        return {}
    processes: dict[int, tuple[int, int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            fields = path.read_text().rpartition(")")[2].split()
            processes[int(path.parent.name)] = int(fields[1]), int(fields[21])
    tree = {pid} & processes.keys()
    while more := {child for child, (parent, _) in processes.items() if parent in tree} - tree:
        tree |= more
    page = os.sysconf("SC_PAGE_SIZE")
    return {member: processes[member][1] * page for member in tree}
