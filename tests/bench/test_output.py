import csv
from pathlib import Path

import msgspec
import pytest
from tests.bench.test_turns import MS, turn

from triops.bench.errors import BenchFailed
from triops.bench.output import STATISTICS, make_folder, read_lines, read_summary, summary, write
from triops.bench.turns import Block, Record, results


def blocks(*, cpu: float = 10) -> list[Block]:
    """Two subjects, two scenarios; with every phase."""
    found: list[Block] = []
    for scenario, at_once in (("one session", 1), ("2 at once", 2)):
        for subject, latency in (("triops", 4.0), ("floor", 2.0)):
            metrics = {"ack": 1.0, "first_delta": latency - 1, "total": latency, "model_request": 1.5, "model": 0.5}
            metrics |= {"last_byte_to_final": 0.5, "first_byte_to_delta": 0.5, "overhead": latency - 0.5}
            turns = [turn(sent=10 * (n // at_once), final=10 * (n // at_once) + latency) for n in range(8)]
            records = [Record(subject, scenario, each, metrics) for each in turns]
            found.append(Block(records, 100 * MS, round(cpu * MS), at_once=at_once))
    return found


def written(folder: Path, found: list[Block]) -> Path:
    make_folder(folder)
    write(folder, summary("triops bench chat", {"date": "today"}, results(found)), found)
    return folder


def test_a_folder_has_a_record_a_turn_a_summary_a_table_and_a_page(tmp_path: Path):
    found = blocks()
    folder = written(tmp_path / "new" / "folder", found)
    assert {path.name for path in folder.iterdir()} == {"runs.jsonl", "summary.json", "summary.csv", "report.html"}
    lines = read_lines(folder)
    assert [line.block for line in lines] == [number for number in range(4) for _ in range(8)]
    assert [Record(line.subject, line.scenario, line.turn, line.metrics) for line in lines] == [
        record for block in found for record in block.records
    ]
    report = read_summary(folder)
    assert (report.command, report.machine) == ("triops bench chat", {"date": "today"})
    assert [msgspec.structs.replace(entry).metrics for entry in report.results] == [r.metrics for r in results(found)]


def test_what_aiperf_knows_too_has_its_names_and_shape(tmp_path: Path):
    folder = written(tmp_path, blocks())
    found = read_summary(folder).results[0].aiperf
    assert set(found["request_latency"]) == set(STATISTICS)
    assert (found["request_latency"]["p50"], found["time_to_first_token"]["p50"]) == (4.0, 3.0)
    assert found["request_throughput"]["unit"] == "requests/sec"
    assert found["request_count"] == {"unit": "requests", "avg": 8}
    with (folder / "summary.csv").open(encoding="utf-8", newline="") as file:
        rows = {(row["scenario"], row["subject"], row["metric"]): row for row in csv.DictReader(file)}
    for name in ("request_latency", "total"):
        row = rows["one session", "triops", name]
        assert (row["unit"], row["p10"], row["p50"], row["sum"], row["count"]) == ("ms", "4.0", "4.0", "32.0", "8")
    assert rows["one session", "triops", "request_throughput"]["p99"] == "", "a rate has no distribution"


def test_what_is_no_turn_has_nothing_that_aiperf_knows():
    stopped = Block([Record("gateway", "abort", turn(sent=1, final=2), {"terminal": 1.0})], MS, 1)
    assert summary("", {}, results([stopped])).results[0].aiperf == {}


def test_the_summary_says_which_result_is_invalid_and_why():
    found = summary("", {}, results([*blocks(cpu=95)[:1], *blocks()[1:]])).results
    assert ["bottleneck" in result.invalid for result in found] == [True, False, False, False]


def test_wrong_folders_are_named_with_what_is_wrong(tmp_path: Path):
    with pytest.raises(BenchFailed, match=r"absent is no folder .*--out FOLDER"):
        read_summary(tmp_path / "absent")
    with pytest.raises(BenchFailed, match=r"holds no result \(summary.json: "):
        read_summary(tmp_path)
    folder = written(tmp_path / "good", blocks())
    first = (folder / "runs.jsonl").read_bytes().splitlines(keepends=True)[0]
    (folder / "runs.jsonl").write_bytes(first + b'{"subject": 1}\n')
    with pytest.raises(BenchFailed, match=r"runs.jsonl, line 2, is no record of a turn: .*subject"):
        read_lines(folder)
    (folder / "runs.jsonl").unlink()
    with pytest.raises(BenchFailed, match=r"runs.jsonl cannot be read"):
        read_lines(folder)
    (folder / "summary.json").write_bytes(b"{}")
    with pytest.raises(BenchFailed, match=r"summary.json is no summary of turns: .*command"):
        read_summary(folder)
