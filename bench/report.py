"""What the user reads: the machine and the tables, as plain text. Knows no subject and takes no measurement."""

import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from triops.bench.turns import Record, Result


def machine() -> dict[str, str]:
    """Where and when; without it a number means nothing. What a commit costs is the affair of the disk of `state`."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(os.cpu_count()),
        "load": f"{os.getloadavg()[0]:.2f}" if sys.platform != "win32" else "unknown",
        "state": tempfile.gettempdir(),
    }


def machine_line(machine: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in machine.items())


def text(machine: Mapping[str, str], results: Sequence[Result]) -> str:
    """The table for a terminal, and below it what is to be known of it."""
    return "\n".join([machine_line(machine), "", *table(rows(results)), "", *remarks(results)]).rstrip()


def markdown(command: str, machine: Mapping[str, str], results: Sequence[Result]) -> str:
    """The same for a README, with the command that made it."""
    lines = [f"| {' | '.join(cells)} |" for cells in rows(results)]
    rule = "|---|---|" + "--:|" * (lines[0].count("|") - 3)
    return "\n".join([f"`{command}` ({machine_line(machine)})", "", lines[0], rule, *lines[1:], "", *remarks(results)])


def rows(results: Sequence[Result]) -> list[list[str]]:
    """Of turns what was waited for; of what is no turn every metric."""
    return _turns(results) if any("total" in result.metrics for result in results) else _metrics(results)


def _metrics(results: Sequence[Result]) -> list[list[str]]:
    named = any(s.unit != "ms" for result in results for s in result.metrics.values())
    found = [["", "ms, or as named" if named else "ms", "p50", "p95", "p99", "max", "count"]]
    for result in results:
        for metric, s in result.metrics.items():
            name, times = f"{result.scenario}, {result.subject}", map(_number, (s.p50, s.p95, s.p99, s.max))
            found.append([name, metric, *times, str(s.count)])
    return found


def _turns(results: Sequence[Result]) -> list[list[str]]:
    """Medians in ms, the overhead's p99, and the median overhead in floors with its 99 % interval."""
    head = ["", "subject", "ack", "model req", "1st delta", "byte→delta", "last→final", "overhead", "p99", "turns/s"]
    found = [[*head, "× floor", "gen ms"]]
    for before, result in zip(["", *(result.scenario for result in results)], results, strict=False):
        names = ("ack", "model_request", "first_delta", "first_byte_to_delta", "last_byte_to_final", "overhead")
        medians = [_number(result.metrics[name].p50) if name in result.metrics else "–" for name in names]
        p99 = _number(result.metrics["overhead"].p99) if "overhead" in result.metrics else "–"
        scenario = "" if before == result.scenario else result.scenario
        subject = f"{result.subject} INVALID" if result.invalid else result.subject
        cost = _number(result.generator_cpu_ms)
        found.append([scenario, subject, *medians, p99, f"{result.turns_per_second:.0f}", _ratio(result), cost])
    return found


def latency(record: Record) -> float:
    """What was waited for: the final; where that is not the question, what was measured last."""
    return record.metrics.get("total", list(record.times.values())[-1])


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell; the first two to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def remarks(results: Sequence[Result]) -> list[str]:
    found: list[str] = []
    if turns := [result for result in results if "total" in result.metrics]:
        found.append(
            "Medians in ms; overhead: chat.send → final less the model's own time; gen ms: the generator's CPU a turn."
        )
    if any("overhead" not in result.metrics for result in turns):
        found.append("No marks of the model for some: --model names the mock that the gateway is configured to use.")
    for result in results:
        where = f"{result.scenario}, {result.subject}"
        if result.failed:
            found.append(f"{where}: {result.failed} turns did not end as they should; runs.jsonl says why.")
        known, turned = (result.metrics[n].count if n in result.metrics else 0 for n in ("overhead", "total"))
        if 0 < known < turned:
            found.append(f"{where}: of {turned - known} turns the model left no marks; the overhead is the others'.")
        if result.invalid:
            found.append(f"{where}: INVALID, {result.invalid}; not plotted.")
    return found


def _ratio(result: Result) -> str:
    if result.ratio is None:
        return ""
    sure = result.ratio_interval
    return f"{result.ratio:.2f} ({f'{sure.low:.2f}–{sure.high:.2f}' if sure else '–'})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
