"""`triops bench memory`: whether memory grows with the turns: RSS of the whole process tree, looked at on the way."""

import os
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import msgspec
import trio

from triops.bench.driver import open_driver
from triops.bench.errors import BenchFailed
from triops.bench.load import closed_loop, new_session
from triops.bench.output import make_folder
from triops.bench.progress import live, tell
from triops.bench.report import machine, machine_line, table
from triops.bench.subjects import Targets, open_model, openers

SESSIONS, AT_ONCE, LOOKS = 100, 10, 20


class Look(msgspec.Struct, frozen=True):
    turns: int
    rss_mb: float


class Report(msgspec.Struct, frozen=True):
    machine: dict[str, str]
    looks: dict[str, list[Look]]
    """By subject; the first is idle."""
    kb_per_turn: dict[str, float]
    """Slope over the second half, when all that is filled once is full."""


async def measure(targets: Targets, turns: int) -> Report:
    """Drive each subject alone through `turns` turns over 100 sessions.

    Raises:
        BenchFailed: a subject is no child of ours, or this system has no /proc; or it failed.
    """
    if targets.url and not targets.command:
        raise BenchFailed("memory is that of a child: add --start with the command that starts the gateway at --url")
    if sys.platform != "linux":
        raise BenchFailed("memory is not measured: this system has no /proc")
    looks: dict[str, list[Look]] = {}
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(open_model(targets))
        for name, opener in openers(targets, model).items():
            async with opener() as subject, open_driver(subject.url, subject.token) as driver:
                sessions, found = [new_session() for _ in range(SESSIONS)], [Look(0, rss_of_tree(subject.pid) or 0)]
                for number in range(LOOKS):
                    share = turns // LOOKS + (number < turns % LOOKS)
                    at = number * AT_ONCE % SESSIONS
                    await closed_loop(driver, sessions[at : at + AT_ONCE], share)
                    found.append(Look(found[-1].turns + share, rss_of_tree(subject.pid) or 0))
                    tell(f"memory, {name}", f"{found[-1].turns} turns, {found[-1].rss_mb:.1f} MB")
            looks[name] = found
    return Report(machine(), looks, {name: slope(found[LOOKS // 2 :]) for name, found in looks.items()})


def slope(looks: Sequence[Look]) -> float:
    """kB a turn, by least squares; 0 if no turn lies between."""
    turns, rss = [look.turns for look in looks], [look.rss_mb * 1000 for look in looks]
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


def memory_table(report: Report) -> str:
    rows = [["resident MB after turns", "", *(str(look.turns) for look in next(iter(report.looks.values()))[::5])]]
    for name, looks in report.looks.items():
        rows.append([name, f"{report.kb_per_turn[name]:+.2f} kB/turn", *(f"{look.rss_mb:.1f}" for look in looks[::5])])
    return "\n".join([machine_line(report.machine), "", *table(rows)])


def run(targets: Targets, turns: int, *, out: Path | None, as_json: bool) -> None:
    """Measure, print, and write `summary.json` into `out`."""
    if out is not None:
        make_folder(out)
    with live():
        report = trio.run(measure, targets, turns)
    if out is not None:
        (out / "summary.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    print(msgspec.json.encode(report).decode() if as_json else memory_table(report))
