"""From clock marks to the phases of a turn and their summary: pure. Knows no socket."""

from collections.abc import Sequence
from statistics import median

import msgspec

from triops.bench.driver import Turn
from triops.bench.mock_model import Mark
from triops.bench.stats import Interval, Summary, median_interval, percentile, ratio, summarise

INSIDE = "in process"
"""The subject that shares the generator's process."""
BARE = "model alone"
GATEWAY_PHASE = "gateway_"
"""Before the name of what the gateway told of itself."""
BUSY, BUSY_ALONE = 0.9, 0.5
"""Share of the time from which on the generator is taken for the bottleneck; the second where one session works and
waits by turns: it then takes longer than what it measures."""


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of `runs.jsonl`; `metrics` in ms (see `phases`) or in the `unit` that they name."""

    subject: str
    scenario: str
    turn: Turn
    metrics: dict[str, float]
    wanted: str = "final"
    """The state in which it was to end."""

    @property
    def good(self) -> bool:
        return self.turn.state == self.wanted

    @property
    def times(self) -> dict[str, float]:
        return {name: value for name, value in self.metrics.items() if unit(name) == "ms"}


def unit(metric: str) -> str:
    """Of `idle, MB` it is MB; times name none."""
    return metric.rpartition(", ")[2] if metric.endswith((", MB", ", kB")) else "ms"


class Block(msgspec.Struct, frozen=True):
    """Turns of one subject in one scenario, measured without a pause, and what they cost the generator."""

    records: list[Record]
    wall_ns: int
    cpu_ns: int
    """CPU time of the generator's process."""
    working_ns: int = 0
    """Time in which the generator's loop was not waiting: more than its CPU time where others took the core from it."""
    played: int = 0
    """Turns in all, with those that `steady` leaves out of the records; 0: as many as there are records."""
    ended: int = 0
    window_ns: int = 0
    """The turns that ended while all sessions were at work, and how long that was; 0: nobody looked."""
    at_once: int = 0
    """By this it stands in the plot of latency by turns at once; 0: it does not."""
    bearable: float = BUSY
    """Share of the time that the generator may be at work."""


class Result(msgspec.Struct, frozen=True):
    """One subject in one scenario."""

    subject: str
    scenario: str
    failed: int
    turns_per_second: float
    generator_cpu_ms: float
    """Per turn."""
    generator_busy: float
    """Share of the time, or of one core, that it worked; see `BUSY`."""
    metrics: dict[str, Summary]
    overhead_interval: Interval | None
    """Of the median."""
    ratio: float | None
    """Overhead in floors: the geometric mean over pairs of blocks."""
    ratio_interval: Interval | None
    invalid: str = ""
    """Why this says nothing of the subject; empty if it does."""
    at_once: int = 0
    """See `Block`."""


def phases(turn: Turn, marks: Sequence[Mark]) -> dict[str, float]:
    """The durations of a turn in ms, as far as its marks tell them.

    Counted from the send, or from when it was due; `sending` lies between. `model` is the model's own time, from a
    whole request to its last byte, summed over the turn's requests; `overhead` is what is left of `total`.
    """
    begun = turn.due or turn.sent
    ends = {"ack": turn.acked, "first_delta": turn.first_delta, "total": turn.final}
    found = {name: (end - begun) / 1e6 for name, end in ends.items() if end}
    if turn.due and turn.sent:
        found["sending"] = (turn.sent - turn.due) / 1e6
    if marks and turn.final:
        found["model_request"] = (marks[0].received - begun) / 1e6
        found["last_byte_to_final"] = (turn.final - marks[-1].last) / 1e6
        found["model"] = sum(mark.last - mark.received for mark in marks) / 1e6
        found["overhead"] = found["total"] - found["model"]
        if turn.first_delta:
            found["first_byte_to_delta"] = (turn.first_delta - marks[0].first) / 1e6
    return found | {f"{GATEWAY_PHASE}{name}": ms for name, ms in turn.phases.items()}


def results(blocks: Sequence[Block]) -> list[Result]:
    """By scenario and subject, in their first order; the ratio is to the subject called `floor`, where there is one."""
    groups: dict[tuple[str, str], list[Block]] = {}
    for block in blocks:
        groups.setdefault((block.records[0].scenario, block.records[0].subject), []).append(block)
    return [
        _result(scenario, subject, group, () if subject == "floor" else groups.get((scenario, "floor"), ()))
        for (scenario, subject), group in groups.items()
    ]


def _result(scenario: str, subject: str, blocks: Sequence[Block], floor: Sequence[Block]) -> Result:
    wall, cpu = sum(block.wall_ns for block in blocks), sum(block.cpu_ns for block in blocks)
    turns = [record for block in blocks for record in block.records]
    played = sum(block.played or len(block.records) for block in blocks)
    good = [record.metrics for record in turns if record.good]
    names = dict.fromkeys(name for metrics in good for name in metrics)
    ours, base = _overheads(blocks), _overheads(floor)
    metrics = {name: summarise([found[name] for found in good if name in found], unit(name)) for name in names}
    busy = max(cpu, sum(block.working_ns for block in blocks)) / wall
    compared = ratio(ours, base) if len(ours) == len(base) and all(ours) and all(base) else None
    alone = subject in (INSIDE, BARE)  # there the generator's work is the gateway's, or the client's that is measured
    return Result(
        subject=subject,
        scenario=scenario,
        failed=len(turns) - len(good),
        turns_per_second=_rate(blocks),
        generator_cpu_ms=cpu / played / 1e6,
        generator_busy=busy,
        metrics=metrics,
        overhead_interval=median_interval(ours) if all(ours) else None,
        ratio=compared[0] if compared else None,
        ratio_interval=compared[1] if compared else None,
        invalid="" if alone else _doubt(busy, turns, blocks[0].bearable),
        at_once=blocks[0].at_once,
    )


def steady(turns: Sequence[Turn], concurrency: int) -> tuple[list[Turn], int, int]:
    """Of a closed loop: the turns that were played while all its sessions were at work, how many ended in that time,
    and how long (ns) it was.

    All begin at once, so that those who came first waited for one another more than later ones do, and the last ones
    less: as many as there are sessions are left out at either end, unless hardly any would be left. A turn that failed
    is never left out.
    """
    finals = sorted(turn.final for turn in turns if turn.final)
    ended, window = 0, 0
    if len(finals) > concurrency:
        begun, over = finals[concurrency - 1], max(turn.sent for turn in turns)
        ended, window = sum(begun < final <= over for final in finals), over - begun
    if concurrency == 1 or len(turns) < 3 * concurrency:
        return list(turns), ended, window
    first = sorted(turns, key=lambda turn: turn.sent)[:concurrency]
    last = sorted(turns, key=lambda turn: turn.final)[-concurrency:]
    edges = {id(turn) for turn in (*first, *last)}
    kept = [turn for turn in turns if turn.state != "final" or id(turn) not in edges]
    return kept, ended, window


def _doubt(busy: float, turns: Sequence[Record], bearable: float) -> str:
    if busy > bearable:
        return f"the generator was the bottleneck (at work {busy:.0%} of the time)"
    late = [record.metrics["sending"] for record in turns if "sending" in record.metrics]
    totals = [record.metrics["total"] for record in turns if "total" in record.metrics]
    if late and totals and percentile(late, 99) > median(totals):
        return f"the generator sent late (p99 {percentile(late, 99):.1f} ms, more than the median turn took)"
    return ""


def _overheads(blocks: Sequence[Block]) -> list[list[float]]:
    """Of the turns that ended well and whose model left marks, by block."""
    known = [[r.metrics for r in block.records if r.good] for block in blocks]
    return [[metrics["overhead"] for metrics in block if "overhead" in metrics] for block in known]


def _rate(blocks: Sequence[Block]) -> float:
    """Turns a second while all sessions were at work; where nobody looked or none ended then, over all the time."""
    if ended := sum(block.ended for block in blocks):
        return ended / sum(block.window_ns for block in blocks) * 1e9
    good = sum(record.good for block in blocks for record in block.records)
    return good / sum(block.wall_ns for block in blocks) * 1e9
