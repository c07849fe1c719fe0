"""What a long measurement shows while it goes on: a line for each thing measured, drawn between two blocks.

Nothing is drawn while a turn is under way, and no thread draws: it would be measured too.
"""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from statistics import median

from triops.bench.report import latency
from triops.bench.turns import Block

_show: ContextVar[Callable[[str, str], None]] = ContextVar("show", default=lambda what, text: None)
_keep: ContextVar[Callable[[Block], None]] = ContextVar("keep", default=lambda block: None)


def tell(what: str, text: str) -> None:
    """How far `what` is."""
    _show.get()(what, text)


def told(block: Block) -> Block:
    """The same block, when it is kept and its line is shown."""
    _keep.get()(block)
    first = block.records[0]
    times = [latency(record) for record in block.records if record.good and record.times]
    middle = f", median {median(times):.2f} ms" if times else ""
    tell(f"{first.scenario}, {first.subject}", f"{len(block.records)} turns{middle}")
    return block


@contextmanager
def kept() -> Generator[list[Block]]:
    """The blocks told within, as they come: what there is when a measurement is cut short."""
    blocks: list[Block] = []
    token = _keep.set(blocks.append)
    try:
        yield blocks
    finally:
        _keep.reset(token)


@contextmanager
def live() -> Generator[None]:
    """Show what is told within, where standard error is a terminal; nothing of it stays."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    lines: dict[str, tuple[int, str]] = {}

    def show(what: str, text: str) -> None:
        lines[what] = (lines[what][0] + 1 if what in lines else 1, text)
        table = Table("measuring", "looks", "the last", box=None)
        for name, (times, last) in lines.items():
            table.add_row(name, str(times), last)
        screen.update(table, refresh=True)

    with Live("measuring …", console=Console(stderr=True), auto_refresh=False, transient=True) as screen:
        token = _show.set(show)
        try:
            yield
        finally:
            _show.reset(token)
