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

import trio

from triops.bench.driver import Turn, now, open_driver
from triops.bench.launch import MARKS
from triops.bench.memory import measure as measure_memory
from triops.bench.scenario import timed
from triops.bench.subjects import FLOOR, GATEWAY, Targets, open_floor, open_gateway, open_model
from triops.bench.turns import Block, Record

TOP = 15
IMPORT_LINE = re.compile(r"^import time: +(\d+) \| +\d+ \| +(\S+)$", re.MULTILINE)
COMMANDS = {
    "interpreter, http.client": ("-c", "import http.client"),
    "triops --version": ("-m", GATEWAY, "--version"),
    "triops gateway status": ("-m", GATEWAY, "gateway", "status"),
}
OPENERS = {"triops": (open_gateway, GATEWAY), "floor": (open_floor, FLOOR)}


async def measure(runs: int, turns: int, *, floor: bool) -> list[Block]:
    """Start each subject `runs` times in turn, then look at imports, commands, and memory where there is /proc.

    Raises:
        BenchFailed: a subject did not start, or failed.
    """
    blocks: list[Block] = []
    with _bytecode_kept():
        async with open_model() as model:
            names = list(OPENERS) if floor else ["triops"]
            for name in names:
                await _start_once(name, model)  # compiles
            for _ in range(runs):
                blocks += [await timed(lambda n=name: _start_once(n, model)) for name in names]
            blocks.append(await timed(lambda: _trace_imports(model)))
            async with open_gateway(model) as gateway:
                env = gateway.env
                for _ in range(runs):
                    blocks.append(await timed(lambda: trio.to_thread.run_sync(_time_commands, env)))
            if sys.platform == "linux":
                blocks += await measure_memory(Targets(model=model, floor=floor), turns)
    return blocks


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


async def _start_once(name: str, model: str) -> list[Record]:
    """ms of spawn, import, listen (the rest of the way to an open port) and hello; `ready` is their total."""
    opener, module = OPENERS[name]
    with tempfile.TemporaryDirectory() as folder:
        marks = f"{folder}/marks"
        async with opener(model, ["-m", "triops.bench.launch", marks, module]) as subject:
            ready, imports = MARKS.unpack(_read(marks))
            begun = now()
            async with open_driver(subject.url, subject.token):
                hello = now() - begun
    spans = {"spawn": ready - subject.spawned, "import": imports, "listen": subject.listening - ready - imports}
    spans |= {"hello": hello, "ready": subject.listening - subject.spawned + hello}
    return [_record(name, "start", begun, {span: ns / 1e6 for span, ns in spans.items()})]


async def _trace_imports(model: str) -> list[Record]:
    """ms of the modules' own time, by package; tracing makes them some tenths dearer."""
    begun = now()
    async with open_gateway(model, ["-X", "importtime", "-m", GATEWAY]) as gateway:
        found = imports_by_package(_read(gateway.log).decode("utf-8", "replace"))
    return [_record("triops", "imports", begun, dict(found[:TOP]))]


def _record(subject: str, scenario: str, begun: int, metrics: dict[str, float]) -> Record:
    return Record(subject, scenario, Turn("", "", sent=begun, final=now(), state="final"), metrics)


def imports_by_package(trace: str) -> list[tuple[str, float]]:
    """Sum up what `-X importtime` wrote: package and ms of its modules' own time, the dearest first."""
    spent = Counter[str]()
    for micros, module in IMPORT_LINE.findall(trace):
        spent[module.partition(".")[0]] += int(micros)
    return [(package, micros / 1000) for package, micros in spent.most_common()]


def _time_commands(env: Mapping[str, str]) -> list[Record]:
    """ms of wall time."""
    first, found = now(), dict[str, float]()
    for name, arguments in COMMANDS.items():
        begun = now()
        subprocess.run([sys.executable, *arguments], env=env, check=True, capture_output=True)
        found[name] = (now() - begun) / 1e6
    return [_record("triops", "commands", first, found)]


def _read(path: Path | str) -> bytes:
    return Path(path).read_bytes()
