"""`triops bench start`: from the process's start to `hello-ok` by phase, imports, CLI commands, memory.

Beside the floor, which shows what the interpreter and the libraries alone cost.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
import trio

from triops.bench.driver import now, open_driver
from triops.bench.launch import MARKS
from triops.bench.load import closed_loop, new_session
from triops.bench.memory import AT_ONCE, SESSIONS, rss_of_tree
from triops.bench.progress import live, tell
from triops.bench.report import machine, machine_line, table
from triops.bench.stats import Summary, summarise
from triops.bench.subjects import FLOOR, GATEWAY, open_floor, open_gateway, open_model

TOP = 15
IMPORT_LINE = re.compile(r"^import time: +(\d+) \| +\d+ \| +(\S+)$", re.MULTILINE)
COMMANDS = {
    "interpreter, http.client": ("-c", "import http.client"),
    "triops --version": ("-m", GATEWAY, "--version"),
    "triops gateway status": ("-m", GATEWAY, "gateway", "status"),
}
OPENERS = {"triops": (open_gateway, GATEWAY), "floor": (open_floor, FLOOR)}


class Options(msgspec.Struct, frozen=True):
    runs: int
    turns: int
    """Before the second look at the memory."""
    floor: bool


class Report(msgspec.Struct, frozen=True):
    machine: dict[str, str]
    phases: dict[str, dict[str, Summary]]
    """ms, by subject: spawn, import, listen (the rest of the way to an open port), hello, and their total."""
    imports: list[tuple[str, float, int]]
    """Package, ms of its modules' own time, how many; the dearest first. Tracing makes them some tenths dearer."""
    commands: dict[str, Summary]
    rss_mb: dict[str, list[float]]
    """By subject: of the process tree, idle and after the turns. Empty where there is no /proc."""
    turns: int


async def measure(options: Options) -> Report:
    """Start each subject `runs` times in turn, then look at imports, commands and memory.

    Raises:
        BenchFailed: a subject did not start.
    """
    names = list(OPENERS) if options.floor else ["triops"]
    with _bytecode_kept():
        async with open_model() as model:
            starts = [{name: await _start_once(name, model) for name in names} for _ in range(1 + options.runs)][1:]
            opener, module = OPENERS["triops"]
            async with opener(model, ["-X", "importtime", "-m", module]) as gateway:
                imports = imports_by_package(_read(gateway.log).decode("utf-8", "replace"))
            async with opener(model, ["-m", module]) as gateway:
                commands = await trio.to_thread.run_sync(_time_commands, gateway.env, options.runs)
            rss = {name: await _memory(name, model, options.turns) for name in names}
    phases = {name: {key: summarise([s[name][key] for s in starts]) for key in starts[0][name]} for name in names}
    return Report(machine(), phases, imports[:TOP], commands, rss, options.turns)


@contextmanager
def _bytecode_kept() -> Generator[None]:
    """Give the children a cache for bytecode, which the first start fills: an installed package comes compiled."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="triops-bench-") as folder:
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = folder
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


async def _start_once(name: str, model: str) -> dict[str, float]:
    opener, module = OPENERS[name]
    with tempfile.TemporaryDirectory() as folder:
        marks = f"{folder}/marks"
        async with opener(model, ["-m", "triops.bench.launch", marks, module]) as subject:
            ready, imports = MARKS.unpack(_read(marks))
            begun = now()
            async with open_driver(subject.url, subject.token):
                hello = now() - begun
    spans = {"spawn": ready - subject.spawned, "import": imports, "listen": subject.listening - ready - imports}
    spans |= {"hello": hello, "total": subject.listening - subject.spawned + hello}
    tell(f"start, {name}", f"{spans['total'] / 1e6:.1f} ms")
    return {name: span / 1e6 for name, span in spans.items()}


def imports_by_package(trace: str) -> list[tuple[str, float, int]]:
    """Sum up what `-X importtime` wrote: package, ms of its modules' own time, how many; the dearest first."""
    spent, modules = Counter[str](), Counter[str]()
    for micros, module in IMPORT_LINE.findall(trace):
        package = module.partition(".")[0]
        spent[package] += int(micros)
        modules[package] += 1
    return [(package, micros / 1000, modules[package]) for package, micros in spent.most_common()]


def _time_commands(env: Mapping[str, str], runs: int) -> dict[str, Summary]:
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs):
        for name, arguments in COMMANDS.items():
            begun = now()
            subprocess.run([sys.executable, *arguments], env=env, check=True, capture_output=True)
            found[name].append((now() - begun) / 1e6)
    return {name: summarise(values) for name, values in found.items()}


async def _memory(name: str, model: str, turns: int) -> list[float]:
    opener, module = OPENERS[name]
    async with opener(model, ["-m", module]) as subject, open_driver(subject.url, subject.token) as driver:
        idle = rss_of_tree(subject.pid)
        for _ in range(0, SESSIONS, AT_ONCE):
            await closed_loop(driver, [new_session() for _ in range(AT_ONCE)], turns * AT_ONCE // SESSIONS)
        after = rss_of_tree(subject.pid)
    return [idle, after] if idle is not None and after is not None else []


def start_table(report: Report) -> str:
    """All of a report, as plain text."""
    spans = [["ms, p50 (min–max)", *report.phases]]
    for key in next(iter(report.phases.values())):
        spans.append([key, *(_spread(found[key]) for found in report.phases.values())])
    imports = [["imports by package", "", "ms", "modules"]]
    imports += [[name, "", f"{ms:.1f}", str(modules)] for name, ms, modules in report.imports]
    commands = [["wall of a command, ms", ""], *([name, _spread(found)] for name, found in report.commands.items())]
    memory = [["resident MB", "idle", f"after {report.turns} turns over {SESSIONS} sessions"]]
    memory += [[name, *map("{:.1f}".format, found)] for name, found in report.rss_mb.items() if found]
    if len(memory) == 1:
        memory = [["resident memory: not measured, this system has no /proc"]]
    parts = [[machine_line(report.machine)], *map(table, (spans, imports, commands, memory))]
    return "\n\n".join("\n".join(part) for part in parts)


def _spread(found: Summary) -> str:
    return f"{found.p50:.1f} ({found.min:.1f}–{found.max:.1f})"


def _read(path: Path | str) -> bytes:
    return Path(path).read_bytes()


def run(options: Options, *, as_json: bool) -> None:
    """Measure and print."""
    with live():
        report = trio.run(measure, options)
    print(msgspec.json.encode(report).decode() if as_json else start_table(report))
