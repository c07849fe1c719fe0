"""Starts a module as `python -m` would, and notes from inside when the interpreter was ready and how long imports took.

`python -m triops.bench.launch MARKS module arguments…`: MARKS is a file, written through a memory map, so that
the parent can read it at any moment and a note costs nothing. Imports nothing that the module might.
"""

import builtins
import mmap
import runpy
import struct
import sys
import time
from types import ModuleType
from typing import Any

MARKS = struct.Struct("=qq")
"""When the first statement ran (ns of `perf_counter_ns`), and the ns spent in import statements so far."""


def main() -> None:
    ready = time.perf_counter_ns()
    _, path, module, *arguments = sys.argv
    with open(path, "w+b") as file:
        file.write(bytes(MARKS.size))
        file.flush()
        _watch_imports(mmap.mmap(file.fileno(), MARKS.size), ready)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _watch_imports(marks: mmap.mmap, ready: int) -> None:
    """Time the outermost imports; those of other threads meanwhile are counted with them."""
    import_module, spent, inside = builtins.__import__, 0, False
    MARKS.pack_into(marks, 0, ready, spent)

    def timed(*args: Any, **kwargs: Any) -> ModuleType:
        nonlocal spent, inside
        if inside:
            return import_module(*args, **kwargs)
        inside, begun = True, time.perf_counter_ns()
        try:
            return import_module(*args, **kwargs)
        finally:
            inside, spent = False, spent + time.perf_counter_ns() - begun
            MARKS.pack_into(marks, 0, ready, spent)

    builtins.__import__ = timed


if __name__ == "__main__":
    main()
