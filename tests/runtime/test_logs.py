import io
import os
import stat
import sys
import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from triops.runtime.logs import (
    CONSOLE_CAPACITY,
    MAX_TEXT,
    Console,
    Log,
    LogFile,
    Record,
    Redactor,
    console_line,
    printable,
)
from triops.runtime.secrets import REDACTED, Secret

NOON = datetime(2026, 11, 22, 12).astimezone()
VALUE = 'canary"\\1f7a9c2b'


def at(moment: datetime):
    return lambda: round(moment.timestamp() * 1000)


def record(message: str = "hello", day: str = "2026-11-22", **fields: Any) -> Record:
    return Record(f"{day}T12:00:00.000+00:00", "info", "gateway", message, fields)


@pytest.fixture
def records() -> list[Record]:
    return []


@pytest.fixture
def log(records: list[Record]) -> Log:
    return Log(records.append, level="debug", clock=at(NOON))


# -- records -----------------------------------------------------------------------------------------------------------


def test_what_strangers_cause_is_written_twenty_times_a_minute_and_then_counted() -> None:
    kept: list[Record] = []
    now = [0]
    log = Log(kept.append, clock=lambda: now[0])
    for _ in range(50):
        log.refusal("refused a connect", reason="origin")
        now[0] += 1_000
    log.refusal("refused a request")
    assert [record.message for record in kept] == ["refused a connect"] * 20 + ["refused a request"]
    assert "unwritten" not in kept[-2].fields
    now[0] = 60_000
    log.refusal("refused a connect", reason="host")
    assert (kept[-1].level, kept[-1].fields) == ("warn", {"reason": "host", "unwritten": 30})
    now[0] = 0  # the wall clock went back
    log.refusal("refused a connect")
    assert kept[-1].fields == {}


def test_one_kind_of_refusal_does_not_silence_another():
    kept: list[Record] = []
    log = Log(kept.append, clock=lambda: 0)
    for number in range(50):
        log.refusal("refused", status=400, reason=f"noise {number}")
        log.refusal("refused", code=1008, details={"code": "NOISE"})
    told = [{"status": 401}, {"code": "MISSING"}, {"code": 1008, "details": {"code": "OTHER"}}]
    for fields in told:
        log.refusal("refused", **fields)
    assert [record.fields for record in kept[40:]] == told


def test_a_stream_that_is_no_terminal_gets_the_whole_time() -> None:
    stream = io.StringIO()
    with Console(stream) as console:
        Log(console, clock=lambda: 0).info("hello")
    written, level, *_ = stream.getvalue().split()
    assert datetime.fromisoformat(written).timestamp() == 0
    assert level == "info"


def test_a_record_is_one_line_of_json_with_time_level_subsystem_message_and_fields(log: Log, records: list[Record]):
    log.bind("gateway").warning("refused", reason="origin", origin="https://evil.example", tries=3)
    line = records[0].line()
    assert line.endswith(b"}\n") and line.count(b"\n") == 1
    decoded = msgspec.json.decode(line)
    assert datetime.fromisoformat(decoded.pop("time")) == NOON
    assert decoded == {
        "level": "warn",
        "subsystem": "gateway",
        "message": "refused",
        "reason": "origin",
        "origin": "https://evil.example",
        "tries": 3,
    }


def test_each_method_has_its_level(log: Log, records: list[Record]):
    for write in (log.debug, log.info, log.warning, log.error):
        write("x")
    assert [record.level for record in records] == ["debug", "info", "warn", "error"]
    assert {record.subsystem for record in records} == {"triops"}


def test_what_lies_under_the_level_is_not_written(records: list[Record]):
    log = Log(records.append, level="warn").bind("cron")
    log.info("x")
    log.warning("y")
    Log(records.append, level="silent").error("z")
    assert [record.message for record in records] == ["y"]


def test_a_log_without_sinks_is_silent():
    Log().error("nobody hears", error=ValueError())


def test_a_field_does_not_replace_a_fixed_one(log: Log, records: list[Record]):
    log.info("real", level="forged", time="never", message="forged", subsystem="forged")
    decoded = msgspec.json.decode(records[0].line())
    assert decoded["message"] == "real" and decoded["level"] == "info" and decoded["subsystem"] == "triops"


def test_fields_may_hold_anything(log: Log, records: list[Record]):
    class Pair(msgspec.Struct):
        left: object
        right: object

    endless: list[object] = []
    endless.append(endless)
    log.info(
        "\ud800",
        path=Path("a/b"),
        pair=Pair(1, {2: (None, True, 1.5)}),
        odd=object,
        endless=endless,
        big=2**70,
        nan=float("nan"),
        names={"x"},
        raw=b"\x00",
    )
    decoded = msgspec.json.decode(records[0].line())
    assert decoded["message"] == "\\ud800"
    assert decoded["path"] == str(Path("a/b"))
    assert decoded["pair"] == {"left": 1, "right": {"2": [None, True, 1.5]}}
    assert decoded["big"] == str(2**70)
    assert decoded["nan"] is None
    assert decoded["names"] == ["x"]
    assert decoded["raw"] == "b'\\x00'"


def test_a_long_value_is_cut_and_says_so(log: Log, records: list[Record]):
    log.info("x", body="a" * (MAX_TEXT + 5))
    assert records[0].fields["body"].endswith("a… (5 more characters)")


def test_an_exception_is_its_class_and_words_and_for_an_error_the_places_it_came_through(
    log: Log, records: list[Record]
):
    def inner() -> None:
        raise ValueError("bad")

    try:
        try:
            inner()
        except ValueError as cause:
            raise KeyError("worse") from cause
    except KeyError as error:
        log.warning("minor", error=error)
        log.error("major", error=ExceptionGroup("both", [error, OSError("disk")]))
    assert records[0].fields == {"error": "KeyError: 'worse'"}
    fields = records[1].fields
    assert fields["error"] == "ExceptionGroup: both (2 sub-exceptions): [KeyError: 'worse'; OSError: disk]"
    places = [line for line in fields["trace"] if line.endswith("in inner")]
    assert len(places) == 1 and __file__ in places[0]


# -- secrets -----------------------------------------------------------------------------------------------------------


def test_a_secret_never_reaches_a_record(log: Log, records: list[Record]):
    secret = Secret(VALUE)
    log.info("given as a secret", key=secret, nested=[{"key": secret}])
    log.redactor.add([secret])
    log.bind("other").error(
        f"in words {VALUE}",
        text=f"a{VALUE}b",
        error=ValueError(VALUE),
        nested={"list": [VALUE], VALUE: 1},
        other=io.StringIO,
    )
    written = b"".join(record.line() for record in records) + "".join(map(console_line, records)).encode()
    assert b"1f7a9c2b" not in written
    assert records[1].fields["text"] == f"a{REDACTED}b"


def test_a_secret_is_not_cut_in_half_before_it_is_found():
    redactor = Redactor()
    redactor.add([Secret(VALUE)])
    assert "canary" not in redactor.clean("a" * (MAX_TEXT - 5) + VALUE)


def test_of_two_secrets_the_longer_one_is_hidden_whole():
    redactor = Redactor()
    redactor.add([Secret("abcdefabcdef"), Secret("abcdefabcdef-more")])
    assert redactor.clean("abcdefabcdef-more") == REDACTED


def test_a_placeholder_key_does_not_spoil_the_log():
    redactor = Redactor()
    redactor.add([Secret("ollama"), Secret("")])
    assert redactor.clean("ollama answers") == "ollama answers"


# -- the file ----------------------------------------------------------------------------------------------------------


def test_each_day_has_its_file_and_only_this_user_reads_it(tmp_path: Path):
    with LogFile(tmp_path) as file:
        file(record("one"))
        file(record("two", day="2026-11-23"))
        file(record("three", day="2026-11-23"))
        assert file.path.name == "triops-2026-11-23.log"
    assert len((tmp_path / "triops-2026-11-22.log").read_bytes().splitlines()) == 1
    assert len(file.path.read_bytes().splitlines()) == 2
    if sys.platform != "win32":
        assert stat.S_IMODE(file.path.stat().st_mode) == 0o600


def test_a_line_is_in_the_file_when_the_call_returns(tmp_path: Path):
    with LogFile(tmp_path) as file:
        file(record("one"))
        assert b"one" in file.path.read_bytes()


def test_the_file_goes_on_after_a_restart(tmp_path: Path):
    for message in ("one", "two"):
        with LogFile(tmp_path) as file:
            file(record(message))
    assert len(file.path.read_bytes().splitlines()) == 2


def test_seven_files_are_kept_and_strange_ones_are_left_alone(tmp_path: Path):
    strange = [tmp_path / "triops-mine.log", tmp_path / "other-2026-11-01.log"]
    for path in strange:
        path.touch()
    first = datetime(2026, 11, 1)
    with LogFile(tmp_path) as file:
        for day in range(10):
            file(record(day=(first + timedelta(days=day)).date().isoformat()))
    kept = sorted(path.name for path in tmp_path.iterdir() if path not in strange)
    assert kept == [f"triops-2026-11-{day:02}.log" for day in range(4, 11)]
    assert all(path.exists() for path in strange)


def test_a_disk_that_refuses_costs_the_line_and_nothing_else(tmp_path: Path):
    with LogFile(tmp_path / "later") as file:
        file(record("lost"))
        assert file.dropped == 1
        (tmp_path / "later").mkdir()
        file(record("kept"))
        assert file.dropped == 1
        assert b"kept" in file.path.read_bytes()


def test_lines_of_several_threads_stay_whole(tmp_path: Path):
    with LogFile(tmp_path) as file:
        log = Log(file)
        threads = [threading.Thread(target=lambda: [log.info("x" * 500) for _ in range(50)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        lines = [msgspec.json.decode(line) for line in file.path.read_bytes().splitlines()]
    assert len(lines) == 200


# -- the tail ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> LogFile:
    return LogFile(tmp_path)


def fill(file: LogFile, text: str) -> None:
    (file.path if file.path.exists() else file.path.with_name("triops-2026-11-22.log")).write_bytes(text.encode())


def test_the_tail_of_a_missing_file_is_empty(file: LogFile):
    tail = file.tail()
    assert (tail.cursor, tail.size, tail.lines, tail.reset) == (0, 0, (), False)
    assert msgspec.json.decode(msgspec.json.encode(tail)) == {"file": tail.file, "cursor": 0, "size": 0, "lines": []}


def test_who_follows_the_cursor_gets_each_line_once(file: LogFile):
    fill(file, "a\nb\n")
    first = file.tail()
    assert (first.lines, first.cursor, first.size, first.truncated) == (("a", "b"), 4, 4, False)
    assert file.tail(first.cursor).lines == ()
    fill(file, "a\nb\nc\nd\n")
    second = file.tail(first.cursor)
    assert (second.lines, second.cursor, second.truncated, second.skipped_bytes) == (("c", "d"), 8, False, 0)


def test_half_a_line_waits_for_its_other_half(file: LogFile):
    fill(file, "a\nhal")
    tail = file.tail()
    assert (tail.lines, tail.cursor, tail.size) == (("a",), 2, 5)
    fill(file, "a\nhalf\n")
    assert file.tail(tail.cursor).lines == ("half",)


def test_more_lines_than_the_limit_leave_out_the_older_ones_and_say_so(file: LogFile):
    fill(file, "a\nb\nc\n")
    assert (file.tail(limit=2).lines, file.tail(limit=2).truncated) == (("b", "c"), True)
    tail = file.tail(0, limit=1)
    assert (tail.lines, tail.truncated, tail.skipped_bytes, tail.cursor) == (("c",), True, 4, 6)


def test_more_bytes_than_the_limit_begin_at_a_whole_line(file: LogFile):
    fill(file, "aaaa\nbbbb\ncccc\n")
    tail = file.tail(max_bytes=7)
    assert (tail.lines, tail.truncated, tail.reset, tail.cursor) == (("cccc",), True, False, 15)
    exact = file.tail(max_bytes=10)
    assert exact.lines == ("bbbb", "cccc")


def test_a_cursor_too_far_behind_is_reset_and_says_what_was_skipped(file: LogFile):
    fill(file, "aaaa\nbbbb\ncccc\n")
    tail = file.tail(0, max_bytes=7)
    assert (tail.lines, tail.reset, tail.truncated, tail.skipped_bytes) == (("cccc",), True, True, 10)


def test_a_cursor_beyond_the_file_is_reset(file: LogFile):
    fill(file, "a\n")
    tail = file.tail(100)
    assert (tail.lines, tail.reset, tail.truncated, tail.cursor, tail.skipped_bytes) == (("a",), True, False, 2, 0)


def test_a_line_longer_than_the_limit_does_not_stop_who_follows(file: LogFile):
    fill(file, "a" * 100 + "\nb\n")
    tail = file.tail(0, max_bytes=10)
    assert (tail.lines, tail.cursor) == (("b",), 103)
    fill(file, "a" * 100 + "\n")
    assert file.tail(0, max_bytes=10).cursor == 101


def test_the_payload_has_the_names_of_the_protocol(file: LogFile):
    fill(file, "a\nb\nc\n")
    assert set(msgspec.json.decode(msgspec.json.encode(file.tail(0, limit=1)))) == {
        "file",
        "cursor",
        "size",
        "lines",
        "truncated",
        "skippedBytes",
    }


# -- the console -------------------------------------------------------------------------------------------------------


def test_people_get_one_short_line_without_the_trace():
    line = console_line(record("refused", reason="origin", tries=3, trace=["a.py:1 in f"]))
    assert line == "12:00:00 info  gateway: refused  reason=origin  tries=3\n"


def test_a_peers_words_do_not_steer_the_terminal():
    assert console_line(record("x\x1b[2J\ny", name="\x9b\r")).count("\n") == 1
    assert printable("\x1b[31mred\x7f\x9b") == "\\x1b[31mred\\x7f\\x9b"
    assert printable("grün ✓") == "grün ✓"


def test_the_end_waits_for_the_lines():
    stream = io.StringIO()
    with Console(stream) as console:
        for number in range(100):
            console(record(str(number)))
    assert stream.getvalue().count("\n") == 100
    assert not stream.closed


def test_a_terminal_that_nobody_reads_stops_nobody_and_the_loss_is_told():
    reader, writer = os.pipe()
    sent = CONSOLE_CAPACITY + 2_000
    received: list[str] = []
    with open(reader) as pipe, open(writer, "w") as stream:
        drain = threading.Thread(target=lambda: received.extend(pipe))
        with Console(stream) as console:
            for number in range(sent):  # far more than a pipe holds: a write in place would block here for ever
                console(record("x" * 100, number=number))
            assert 0 < console.dropped < sent
            drain.start()
        stream.close()
        drain.join(5)
    notices = [line for line in received if "lines before this were dropped" in line]
    assert sum(int(line[1:].split()[0]) for line in notices) == console.dropped
    assert len(received) == sent - console.dropped + len(notices)


def test_a_closed_terminal_costs_nothing_but_lines():
    stream = io.StringIO()
    stream.close()
    with Console(stream) as console:
        console(record("x"))
    assert console.dropped == 1


def test_a_terminal_of_few_letters_gets_the_others_escaped():
    raw = io.BytesIO()
    with Console(io.TextIOWrapper(raw, encoding="ascii", write_through=True)) as console:
        console(record("grün"))
        console.__exit__()
        assert b"gr\\xfcn" in raw.getvalue()
