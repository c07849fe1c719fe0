import csv
import json
import re
import signal
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import trio

from triops.bench.output import read_lines, read_summary
from triops.bench.subjects import Subject
from triops.bench.turns import Block
from triops.gateway.cli.main import main


def bench(*argv: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["bench", *argv])
    return int(ended.value.code or 0)


@pytest.mark.slow
def test_chat_measures_a_gateway_at_a_url_and_writes_a_record_a_turn(
    model_url: str, floor_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["--url", floor_url, "--model", model_url, "--no-floor", "--turns", "3", "--concurrency", "1,2"]
    assert bench("chat", *arguments, "--token", "secret", "--json", "--out", str(tmp_path / "out")) == 0
    summary = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "out" / "summary.json").read_text("utf-8")) == summary
    assert summary["command"] == (
        f"triops bench chat --turns 3 --concurrency 1,2 --url {floor_url} --model {model_url} --no-floor"
    ), "neither the token nor the folder"
    assert [found["scenario"] for found in summary["results"]] == ["fresh sessions", "one session", "2 at once"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "runs.jsonl").read_text("utf-8").splitlines()]
    least = {"fresh sessions": 3, "one session": 3, "2 at once": 4}
    for found in summary["results"]:
        assert (found["subject"], found["failed"]) == ("gateway", 0)
        count = sum(line["scenario"] == found["scenario"] for line in lines)
        assert found["metrics"]["overhead"]["count"] == count >= least[found["scenario"]]
    assert all(line["turn"]["state"] == "final" for line in lines)
    assert all(line["metrics"]["total"] > line["metrics"]["overhead"] > 0 for line in lines)
    sessions = {
        name: {li["turn"]["session"] for li in lines if li["scenario"] == name}
        for name in (li["scenario"] for li in lines)
    }
    assert {name: len(keys) for name, keys in sessions.items()} == {
        "fresh sessions": 3,
        "one session": 1,
        "2 at once": 2,
    }


@pytest.mark.slow
def test_chat_beside_the_floor_prints_a_table_with_the_ratio(
    model_url: str, floor_url: str, capsys: pytest.CaptureFixture[str]
):
    assert bench("chat", "--url", floor_url, "--model", model_url, "--turns", "3", "--concurrency", "1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-8] for line in lines if "gateway  " in line], "both subjects have a row"
    assert sum("gateway  " in line and "(" in line for line in lines) == 2
    assert sum(line.split()[-10:-9] == ["floor"] for line in lines) == 2


def test_what_cannot_be_measured_is_said_in_words(model_url: str, capsys: pytest.CaptureFixture[str]):
    arguments = ("--model", model_url, "--no-floor", "--turns", "1")
    assert bench("chat", "--url", "ws://127.0.0.1:1", *arguments) == 1
    assert "no gateway listens at ws://127.0.0.1:1" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_endpoint_takes_the_mocks_place_and_the_overhead_is_told_all_the_same(
    model_url: str, capsys: pytest.CaptureFixture[str]
):
    where = ("--endpoint", f"{model_url}/v1", "--endpoint-model", "there")
    assert bench("chat", "--turns", "3", *where, "--bare", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert {found["subject"] for found in summary["results"]} == {"triops", "model alone", "floor"}
    for found in summary["results"]:
        assert (found["failed"], found["metrics"]["overhead"]["count"]) == (0, 3)


def test_an_endpoint_needs_the_name_of_its_model(capsys: pytest.CaptureFixture[str]):
    assert bench("chat", "--endpoint", "http://127.0.0.1:1/v1") == 2
    assert "--endpoint-model" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_that_is_no_mock_is_said_in_words(floor_url: str, capsys: pytest.CaptureFixture[str]):
    assert bench("chat", "--url", floor_url, "--model", "http://127.0.0.1:1", "--no-floor", "--turns", "1") == 1
    assert capsys.readouterr().err


@pytest.mark.parametrize("counts", ["", "0", "1,x"])
def test_sessions_at_once_must_be_numbers(counts: str, capsys: pytest.CaptureFixture[str]):
    assert bench("chat", "--concurrency", counts) == 2
    assert "is not a number of sessions" in capsys.readouterr().err


@pytest.mark.slow
def test_chat_starts_this_gateway_and_the_floor_beside_it(capsys: pytest.CaptureFixture[str]):
    assert bench("chat", "--turns", "3", "--concurrency", "2", "--json") == 0
    found = json.loads(capsys.readouterr().out)["results"]
    assert [(each["subject"], each["failed"]) for each in found] == [("triops", 0), ("floor", 0)] * 2
    assert all("first_byte_to_delta" in each["metrics"] for each in found)


@pytest.mark.slow
def test_start_measures_phases_imports_commands_and_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert bench("start", "--runs", "1", "--turns", "100", "--json", "--out", str(tmp_path)) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    found = {(each["scenario"], each["subject"]): each["metrics"] for each in results}
    for subject in ("triops", "floor"):
        spans = found["start", subject]
        parts = [spans[name]["p50"] for name in ("spawn", "import", "listen", "hello")]
        assert min(parts) > 0
        assert spans["ready"]["p50"] == pytest.approx(sum(parts))
    assert "triops" in found["imports", "triops"]
    assert found["commands", "triops"]["triops gateway status"]["count"] == 1
    assert sys.platform != "linux" or found["memory", "floor"]["after 100 turns, MB"]["unit"] == "MB"
    assert read_summary(tmp_path).command == "triops bench start --runs 1 --turns 100"


def test_concurrency_takes_sessions_at_once_and_arrivals(
    model_url: str, floor_url: str, capsys: pytest.CaptureFixture[str]
):
    arguments = ["--url", floor_url, "--model", model_url, "--no-floor", "--turns", "4", "--json"]
    assert bench("concurrency", *arguments, "--sessions", "1,2", "--rate", "500") == 0
    found = json.loads(capsys.readouterr().out)["results"]
    assert [(each["scenario"], each["failed"]) for each in found] == [
        ("one session", 0),
        ("2 at once", 0),
        ("500/s arrive", 0),
    ]
    assert ["sending" in each["metrics"] for each in found] == [False, False, True]


def test_arrivals_must_be_a_number(capsys: pytest.CaptureFixture[str]):
    assert bench("concurrency", "--rate", "x") == 2
    assert "--rate" in capsys.readouterr().err


@pytest.mark.slow  # seven pauses of 10 ms a turn
def test_chat_with_a_paced_model_and_a_history(model_url: str, floor_url: str, capsys: pytest.CaptureFixture[str]):
    arguments = ["--url", floor_url, "--model", model_url, "--no-floor", "--turns", "1", "--json"]
    assert bench("chat", *arguments, "--paced", "--history", "4") == 0
    found = {each["scenario"]: each for each in json.loads(capsys.readouterr().out)["results"]}
    assert set(found) == {"fresh sessions", "one session", "paced model", "history of 4"}
    assert found["paced model"]["metrics"]["model"]["p50"] > 70, "seven pauses of 10 ms"
    assert all(each["failed"] == 0 for each in found.values())


def test_a_command_without_its_address_is_said_in_words(model_url: str, capsys: pytest.CaptureFixture[str]):
    assert bench("chat", "--start", "peer --port 1", "--model", model_url) == 1
    assert "add --url" in capsys.readouterr().err


@pytest.mark.parametrize(("scenario", "state"), [("abort", "aborted"), ("reconnect", "final")])
def test_a_scenario_without_a_floor_writes_its_records_and_a_table(
    scenario: str, state: str, gateway: Subject, model_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ("--url", gateway.url, "--token", gateway.token, "--model", model_url, "--turns", "1")
    assert bench(scenario, *arguments, "--out", str(tmp_path)) == 0
    assert f"{scenario}, gateway" in capsys.readouterr().out
    assert json.loads((tmp_path / "runs.jsonl").read_bytes())["turn"]["state"] == state


@pytest.mark.slow
def test_a_short_measurement_leaves_valid_files_that_can_be_compared_and_shown(
    model_url: str, floor_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """What CI runs of the suite: it works and its output is valid, whatever the times are."""
    arguments = ["--url", floor_url, "--model", model_url, "--turns", "10", "--concurrency", "1,2"]
    assert bench("chat", *arguments, "--out", str(tmp_path)) == 0
    report, lines = read_summary(tmp_path), read_lines(tmp_path)
    counts = [entry.metrics["total"].count for entry in report.results]
    assert [entry.aiperf["request_count"]["avg"] for entry in report.results] == counts
    assert counts[:4] == [10] * 4
    assert min(counts[4:]) >= 20, "of two at once the ends of the blocks are left out"
    assert [(line.good, line.scenario) for line in lines] == [
        (True, entry.scenario) for entry in report.results for _ in range(entry.metrics["total"].count)
    ]
    with (tmp_path / "summary.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["scenario"] for row in rows} == {entry.scenario for entry in report.results}
    assert all(float(row["avg"]) >= 0 and row["unit"] for row in rows)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert len(list(ElementTree.fromstring(page).iter("svg"))) > len(report.results)
    assert not re.search(r"src=|href=|@import|url\(|<script", page)
    capsys.readouterr()
    assert bench("compare", str(tmp_path), str(tmp_path), "--threshold", "1.1") == 0
    assert "1.00" in capsys.readouterr().out
    assert bench("table", str(tmp_path)) == 0
    assert capsys.readouterr().out.startswith("`triops bench chat --turns 10 ")


@pytest.mark.parametrize("scenario", ["chat", "memory"])
def test_a_folder_that_cannot_be_written_is_said_before_anything_is_measured(
    scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").touch()
    assert bench(scenario, "--url", "ws://127.0.0.1:1", "--start", "x", "--out", str(tmp_path / "file" / "below")) == 1
    assert "--out: nothing can be written to" in capsys.readouterr().err


def test_the_noted_command_keeps_no_token(monkeypatch: pytest.MonkeyPatch):
    noted: list[str] = []
    monkeypatch.setattr("triops.bench.scenario.run", lambda measure, command, **rest: noted.append(command))
    assert bench("chat", "--token", "s3", "--start", "peer --token=s3 {model}", "--turns", "1", "--out", "x") == 0
    assert noted == ["triops bench chat --turns 1 --start 'peer --token=TOKEN {model}'"]


def test_more_jobs_than_a_gateway_takes_in_a_minute_are_refused(capsys: pytest.CaptureFixture[str]):
    assert bench("cron", "--jobs", "26") == 2
    assert "1<=x<=25" in capsys.readouterr().err


@pytest.mark.slow  # starts a gateway
@pytest.mark.parametrize("scenario", ["chat", "abort", "cron"])
def test_a_gateway_whose_model_is_dead_has_failed(scenario: str, capsys: pytest.CaptureFixture[str]):
    assert bench(scenario, "--model", "http://127.0.0.1:9") == 1
    assert "triops: its first turn did not end as it should: error could not connect" in capsys.readouterr().err


def test_a_scenario_in_which_no_turn_was_good_has_failed_after_its_table(
    gateway: Subject, model_url: str, capsys: pytest.CaptureFixture[str]
):
    arguments = ("--url", gateway.url, "--token", gateway.token, "--model", model_url, "--turns", "1")
    assert bench("abort", *arguments, "--message", "FAIL:400 ") == 1
    shown = capsys.readouterr()
    assert "abort, gateway: 1 turns did not end as they should" in shown.out
    assert "abort, gateway: no turn ended as it should (the first: error" in shown.err


def test_what_asks_to_end_is_ctrl_c_and_told_in_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    async def interrupted() -> list[Block]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            signal.raise_signal(signal.SIGTERM)
            await trio.sleep(10)
            nursery.cancel_scope.cancel()
        return []

    before = signal.signal(signal.SIGINT, signal.SIG_IGN), signal.getsignal(signal.SIGTERM)  # as in a background job
    try:
        monkeypatch.setattr("triops.bench.reconnect.measure", lambda *_: interrupted())
        assert bench("reconnect") == 130
        assert capsys.readouterr().err == "triops: interrupted\n"
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == (signal.SIG_IGN, before[1])
    finally:
        signal.signal(signal.SIGINT, before[0])
