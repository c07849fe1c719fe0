"""What a measurement leaves in its folder: `runs.jsonl`, `summary.json`, `summary.csv`, `report.html`.

Statistics have AIPerf's names, and so have the metrics that mean the same there. Tokens are no part of it: a gateway
merges what it streams, so that its client sees no single token.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile

import msgspec

from triops.bench.errors import BenchFailed
from triops.bench.html import page
from triops.bench.turns import Block, Record, Result

AIPERF = {"first_delta": "time_to_first_token", "total": "request_latency"}
"""Our metrics that AIPerf knows under another name."""
STATISTICS = (
    "unit",
    "avg",
    "min",
    "max",
    *(f"p{n}" for n in (1, 5, 10, 25, 50, 75, 90, 95, 99)),
    "std",
    "count",
    "sum",
)
HINT = "`triops bench chat --out FOLDER` makes one"


class Line(Record, frozen=True, omit_defaults=True):
    """A line of `runs.jsonl`."""

    block: int = 0
    """Turns of one block were measured together; blocks are what a comparison draws from."""


class Entry(Result, frozen=True, kw_only=True):
    aiperf: dict[str, dict[str, str | float | None]]
    """What AIPerf knows too, in the shape of its `profile_export_aiperf.json`."""


class Report(msgspec.Struct, frozen=True):
    """`summary.json`."""

    command: str
    machine: dict[str, str]
    results: list[Entry]


def summary(command: str, machine: Mapping[str, str], results: Sequence[Result]) -> Report:
    entries = [Entry(**msgspec.structs.asdict(r), aiperf=_aiperf(r)) for r in results]
    return Report(command, dict(machine), entries)


def _aiperf(result: Result) -> dict[str, dict[str, str | float | None]]:
    metrics = result.metrics
    found = {theirs: msgspec.to_builtins(metrics[ours]) for ours, theirs in AIPERF.items() if ours in metrics}
    if "request_latency" in found:
        found["request_throughput"] = {"unit": "requests/sec", "avg": result.turns_per_second}
        found["request_count"] = {"unit": "requests", "avg": metrics["total"].count}
        found["error_request_count"] = {"unit": "requests", "avg": result.failed}
    return found


def make_folder(folder: Path) -> None:
    """Called before a measurement, which would be in vain where nothing can be written.

    Raises:
        BenchFailed: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BenchFailed(
            f"--out: nothing can be written to {folder}: {error.strerror}; name another folder"
        ) from error


def write(folder: Path, report: Report, blocks: Sequence[Block]) -> None:
    """Into `folder`; what an earlier measurement left there is written over."""
    records = [(number, record) for number, block in enumerate(blocks) for record in block.records]
    lines = [Line(**msgspec.structs.asdict(record), block=number) for number, record in records]
    (folder / "runs.jsonl").write_bytes(msgspec.json.Encoder().encode_lines(lines))
    (folder / "summary.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    with (folder / "summary.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, ("scenario", "subject", "metric", *STATISTICS))
        table.writeheader()
        for entry in report.results:
            where = {"scenario": entry.scenario, "subject": entry.subject}
            for name, metric in {**msgspec.to_builtins(entry.metrics), **entry.aiperf}.items():
                table.writerow({**where, "metric": name, **metric})
    text = page(report.command, report.machine, report.results, [record for _, record in records])
    (folder / "report.html").write_text(text, "utf-8")


def read_summary(folder: Path) -> Report:
    """What `write` left.

    Raises:
        BenchFailed: there is no such folder, or no result in it.
    """
    path = folder / "summary.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Report)
    except OSError as error:
        what = "holds no result" if folder.is_dir() else "is no folder"
        raise BenchFailed(f"{folder} {what} ({path.name}: {error.strerror}); {HINT}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BenchFailed(f"{path} is no summary of turns: {error}; {HINT}") from error


def read_lines(folder: Path) -> list[Line]:
    """The records of every turn, as `write` left them.

    Raises:
        BenchFailed: there are none, or one is damaged.
    """
    path, decode, found = folder / "runs.jsonl", msgspec.json.Decoder(Line).decode, list[Line]()
    try:
        for line in path.read_bytes().splitlines():
            found.append(decode(line))
    except OSError as error:
        raise BenchFailed(f"{path} cannot be read: {error.strerror}; {HINT}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BenchFailed(f"{path}, line {len(found) + 1}, is no record of a turn: {error}; measure again") from error
    return found
