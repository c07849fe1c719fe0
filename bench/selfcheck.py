"""`triops bench selfcheck`: is a delay found where it was put, and nowhere else?

Turns of the floor that one place holds up for 10 ms, beside turns that it holds up for 5: whoever waits at all wakes
up slower than who does not, and that is no fault of the gauge. `python -m triops.bench.selfcheck` is that floor; what
holds up the model is a directive to its mock. Holding is spinning: a timer would be late by more than is allowed here.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from statistics import median

import msgspec
import trio

from triops.bench.driver import Turn, now, open_driver
from triops.bench.errors import BenchFailed
from triops.bench.floor import Model, Statement, Writer, main
from triops.bench.load import new_session, one_turn
from triops.bench.report import machine, machine_line, table
from triops.bench.scenario import take_marks
from triops.bench.subjects import open_floor, open_model
from triops.bench.turns import phases

HELD_MS, ALLOWED_MS = 5, 0.3
PLACES = {
    "ACK": {"ack", "model_request", "first_delta", "overhead", "total"},
    "REQUEST": {"model_request", "first_delta", "overhead", "total"},
    "FIRST": {"first_delta", "model", "total"},
    "DELTA": {"first_delta", "first_byte_to_delta", "last_byte_to_final", "overhead", "total"},
    "ITL": {"model", "total"},
    "LAST": {"model", "total"},
    "FINAL": {"last_byte_to_final", "overhead", "total"},
}
"""The directive that holds up a place, and the metrics that have to grow by it; all others must not."""
Shifts = Mapping[str, Mapping[str, float]]


class HeldWriter(Writer):
    """Its commits do not wait for the disk, which takes the longer the longer it was left alone: half a millisecond of
    the machine's, in turns that differ in nothing but how long they pause."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._execute("PRAGMA synchronous=OFF")

    async def commit(self, *statements: Statement) -> None:
        _hold(statements[0][1][2], "ACK")  # the text of the person's message; the reply holds no directive
        await super().commit(*statements)


class HeldModel(Model):
    async def ask(self, text: str, on_text: Callable[[str], Awaitable[None]]) -> None:
        said = False

        async def hold_first(fresh: str) -> None:
            nonlocal said
            if not said:
                _hold(text, "DELTA")
            said = True
            await on_text(fresh)

        _hold(text, "REQUEST")
        await super().ask(text, hold_first)
        _hold(text, "FINAL")


def _hold(text: str, place: str) -> None:
    found = re.search(rf"\b{place}:(\d+)", text)
    until = now() + int(found[1]) * 1_000_000 if found else 0
    while now() < until:
        pass


async def measure(pairs: int) -> dict[str, dict[str, float]]:
    """By place, how many ms each metric grew: the median of `pairs` pairs of turns."""
    shorter, longer = HELD_MS, 2 * HELD_MS
    async with open_model() as model, open_floor(model, ("-m", __spec__.name)) as floor:
        async with open_driver(floor.url, "") as driver:
            session, turns = new_session(), list[tuple[str, int, Turn]]()
            for number in range(1 + pairs):
                for place in PLACES:
                    for held in (longer, shorter) if number % 2 else (shorter, longer):
                        turn = await one_turn(driver, session, f"TOKENS:2 {place}:{held} RUN:")
                        turns.append((place, held, turn))
            marks = await trio.to_thread.run_sync(take_marks, model)
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for place, held, turn in turns[2 * len(PLACES) :]:
        found.setdefault((place, held), []).append(phases(turn, marks[turn.run]))
    return {place: growth(found[place, shorter], found[place, longer]) for place in PLACES}


def growth(before: Sequence[Mapping[str, float]], after: Sequence[Mapping[str, float]]) -> dict[str, float]:
    pairs = list(zip(before, after, strict=True))
    return {name: median(held[name] - plain[name] for plain, held in pairs) for name in before[0]}


def faults(shifts: Shifts) -> list[str]:
    """What was not found where it was put."""
    wanted = {(place, name): HELD_MS * (name in PLACES[place]) for place, found in shifts.items() for name in found}
    return [
        f"{place}: {name} grew by {shifts[place][name]:.2f} ms, not by {growth:.0f}"
        for (place, name), growth in wanted.items()
        if abs(shifts[place][name] - growth) > ALLOWED_MS
    ]


def run(pairs: int, *, as_json: bool) -> None:
    """Measure and print. Raises BenchFailed if a delay was not found where it was put."""
    shifts = trio.run(measure, pairs)
    names = list(next(iter(shifts.values())))
    rows = [
        ["ms more with 5 ms at", "", *names],
        *([p, "", *(f"{s[n]:+.2f}" for n in names)] for p, s in shifts.items()),
    ]
    text = "\n".join([machine_line(machine()), "", *table(rows)])
    print(msgspec.json.encode(shifts).decode() if as_json else text)
    if wrong := faults(shifts):
        raise BenchFailed("measurements on this machine cannot be trusted now:\n" + "\n".join(wrong))


if __name__ == "__main__":
    trio.run(main, HeldWriter, HeldModel)
