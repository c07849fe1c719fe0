"""From clock marks to the phases of a turn and their summary: pure. Knows no socket."""

from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import median

import msgspec

from triops.bench.driver import Turn
from triops.bench.mock_model import Mark
from triops.bench.stats import Interval, Summary, median_interval, ratio_interval, summarise

INSIDE = "in process"
"""The subject that shares the generator's process."""
GATEWAY_PHASE = "gateway_"
"""Before the name of what the gateway told of itself."""
BUSY = 0.9
"""Share of the time from which on the generator is taken for the bottleneck."""


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
    begun_ns: int
    wall_ns: int
    cpu_ns: int
    """CPU time of the generator's process."""
    working_ns: int = 0
    """Time in which the generator's loop was not waiting: more than its CPU time where others took the core from it."""


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
    """Median overhead, in medians of the floor."""
    ratio_interval: Interval | None
    invalid: str = ""
    """Why this says nothing of the subject; empty if it does."""


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
    good = [record.metrics for record in turns if record.good]
    names = dict.fromkeys(name for metrics in good for name in metrics)
    ours, base = _overheads(blocks), _overheads(floor)
    metrics = {name: summarise([found[name] for found in good if name in found], unit(name)) for name in names}
    busy = max(cpu, sum(block.working_ns for block in blocks)) / wall
    compared = len(ours) == len(base) and all(ours) and all(base)
    return Result(
        subject=subject,
        scenario=scenario,
        failed=len(turns) - len(good),
        turns_per_second=_rate(blocks),
        generator_cpu_ms=cpu / len(turns) / 1e6,
        generator_busy=busy,
        metrics=metrics,
        overhead_interval=median_interval(ours) if all(ours) else None,
        ratio=median(chain(*ours)) / median(chain(*base)) if compared else None,
        ratio_interval=ratio_interval(ours, base) if compared else None,
        invalid="" if subject == INSIDE else _doubt(busy, metrics),  # there the gateway's work is the generator's
    )


def _doubt(busy: float, metrics: Mapping[str, Summary]) -> str:
    if busy > BUSY:
        return f"the generator was the bottleneck (at work {busy:.0%} of the time)"
    if "sending" in metrics and "total" in metrics and metrics["sending"].p99 > metrics["total"].p50:
        return f"the generator sent late (p99 {metrics['sending'].p99:.1f} ms, more than the median turn took)"
    return ""


def _overheads(blocks: Sequence[Block]) -> list[list[float]]:
    """Of the turns that ended well and whose model left marks, by block."""
    known = [[r.metrics for r in block.records if r.good] for block in blocks]
    return [[metrics["overhead"] for metrics in block if "overhead" in metrics] for block in known]


def _rate(blocks: Sequence[Block]) -> float:
    """Turns per second while all sessions were at work: until the last turn was sent, for then a block runs empty.

    Where no turn had ended by then, all of them count.
    """
    ended = window = everything = 0
    for block in blocks:
        finals = [record.turn.final for record in block.records if record.good]
        last_sent = max(record.turn.sent for record in block.records)
        ended += sum(final <= last_sent for final in finals)
        window += last_sent - block.begun_ns
        everything += len(finals)
    return ended / window * 1e9 if ended else everything / sum(block.wall_ns for block in blocks) * 1e9
