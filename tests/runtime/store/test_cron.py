from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from triops.agents.messages import UserMessage
from triops.runtime.cron.job import Job, new_job
from triops.runtime.cron.receipt import Claim, LogEntry, ended, passed
from triops.runtime.runs.state import RunState, Source, Submission, Terminal
from triops.runtime.store import cron, runs, sessions
from triops.runtime.store.cron import KEEP_ISOLATED_MS, KEEP_MS, KEEP_ROWS, RunsQuery
from triops.runtime.store.db import Db
from triops.runtime.store.migrations import migrate
from triops.runtime.store.sqlite import connect

NOW = 1_795_344_245_622


@pytest.fixture
def db(tmp_path: Path) -> Generator[Db]:
    database = connect(tmp_path / "state.sqlite")
    migrate(database)
    yield database
    database.close()


def job(job_id: str = "a", **more: Any) -> Job:
    params = {"schedule": {"kind": "every", "everyMs": 60000}, "payload": {"kind": "systemEvent", "text": "hi"}}
    return new_job(params | more, job_id=job_id, now_ms=NOW)


def slot(n: int, job_id: str = "a") -> Claim:
    return Claim(f"cron:{job_id}:{n}", job_id, n, NOW + n)


def finish(db: Db, claim: Claim, *, error: str | None = None, ts: int | None = None) -> LogEntry:
    entry = ended(job(claim.job_id), claim, claim.claimed_at if ts is None else ts, error=error)
    assert cron.claim(db, job(claim.job_id), claim, ())
    cron.finish(db, job(claim.job_id), claim, entry, ())
    return entry


def found(db: Db, **query: Any) -> list[str]:
    return [entry["runId"] for entry in cron.runs(db, RunsQuery(**query))[0]]


def test_a_slot_is_claimed_once(db: Db) -> None:
    assert cron.claim(db, job(), slot(1), ()) is True
    assert cron.claim(db, job(), slot(1), ()) is False
    assert cron.claim(db, job(), slot(2), ()) is True
    assert cron.claim(db, job("b"), slot(1, "b"), ()) is True


def test_a_slot_that_is_over_is_not_claimed_again_not_even_by_hand(db: Db) -> None:
    finish(db, slot(1))
    assert cron.claim(db, job(), slot(1), ()) is False
    assert cron.claim(db, job(), Claim("manual:a:1:1", "a", 1, NOW), ()) is False


def test_a_slot_that_was_skipped_can_be_claimed_once(db: Db) -> None:
    cron.skip(db, job(), [passed(job(), 1, NOW, "missed")])
    assert found(db) == ["cron:a:1"]
    assert cron.claim(db, job(), Claim("manual:a:1:1", "a", 1, NOW), ()) is True
    assert found(db) == []
    assert cron.claim(db, job(), slot(1), ()) is False
    assert [claim.run_id for claim, _ in cron.open_claims(db)] == ["manual:a:1:1"]


def test_runs_by_hand_have_no_slot_and_do_not_exclude_each_other(db: Db) -> None:
    assert cron.claim(db, job(), Claim("manual:a:1:1", "a", None, NOW), ())
    assert cron.claim(db, job(), Claim("manual:a:1:2", "a", None, NOW), ())


def test_skipping_never_touches_a_slot_that_ran(db: Db) -> None:
    finish(db, slot(1))
    cron.skip(db, job(), [passed(job(), 1, NOW, "missed")])
    assert [entry["status"] for entry in cron.runs(db, RunsQuery())[0]] == ["ok"]


def test_whether_a_job_runs_follows_from_its_open_claims(db: Db) -> None:
    cron.claim(db, job(), slot(5), ())
    assert [known.running_at_ms for known in cron.load(db)] == [NOW + 5]
    running = cron.find(db, "a")
    assert running is not None
    cron.finish(db, running, slot(5), ended(running, slot(5), NOW + 9), ())
    idle = cron.find(db, "a")
    assert idle is not None
    assert idle.running_at_ms is None
    assert cron.find(db, "b") is None


def test_removing_a_job_keeps_its_receipts_and_what_its_open_claim_needs(db: Db) -> None:
    finish(db, slot(1))
    cron.claim(db, job(), slot(2), ())
    cron.remove(db, "a")
    assert cron.load(db) == []
    assert cron.open_claims(db) == [(slot(2), job())]
    assert found(db) == ["cron:a:1"]
    cron.finish(db, None, slot(2), ended(job(), slot(2), NOW + 9), ())
    assert found(db) == ["cron:a:2", "cron:a:1"]
    assert cron.open_claims(db) == []


def test_receipts_are_filtered_and_paged(db: Db) -> None:
    for n in range(1, 4):
        finish(db, slot(n))
    finish(db, slot(4), error="Disk on FIRE")
    finish(db, slot(9, "b"))
    assert found(db) == ["cron:b:9", "cron:a:4", "cron:a:3", "cron:a:2", "cron:a:1"]
    assert found(db, id="a", sort_dir="asc") == ["cron:a:1", "cron:a:2", "cron:a:3", "cron:a:4"]
    assert found(db, job_id="b") == found(db, id="b") == ["cron:b:9"]
    assert len(found(db, id="a", scope="all")) == 5
    assert found(db, status="error") == ["cron:a:4"]
    assert found(db, statuses=("error", "skipped"), status="ok") == ["cron:a:4"]
    assert found(db, run_id="cron:a:2") == ["cron:a:2"]
    assert found(db, query="on fire") == ["cron:a:4"]
    assert found(db, delivery_status="not-delivered") == []
    assert len(found(db, delivery_statuses=("not-requested", "unknown"))) == 5
    page, total = cron.runs(db, RunsQuery(limit=2, offset=1))
    assert ([entry["runId"] for entry in page], total) == (["cron:a:4", "cron:a:3"], 5)


def test_words_that_look_like_sql_are_words(db: Db) -> None:
    finish(db, slot(1))
    for words in ("' OR 1=1 --", "%", "_"):
        assert found(db, query=words * 2) == []


def test_receipts_go_after_seven_days_and_open_claims_never(db: Db) -> None:
    cron.claim(db, job("b"), Claim("cron:b:0", "b", 0, NOW - 2 * KEEP_MS), ())
    finish(db, slot(1), ts=NOW)
    finish(db, slot(2), ts=NOW + KEEP_MS)
    assert len(found(db)) == 2
    finish(db, slot(3), ts=NOW + KEEP_MS + 1)
    assert found(db) == ["cron:a:3", "cron:a:2"]
    assert [claim.run_id for claim, _ in cron.open_claims(db)] == ["cron:b:0"]


def test_the_session_of_an_isolated_run_goes_when_it_was_idle_for_a_day_and_others_stay(db: Db) -> None:
    def run(run_id: str, key: str, source: Source) -> None:
        submission = Submission(run_id=run_id, session_key=key, message=UserMessage("hi", NOW), source=source)
        sid = runs.accept(db, submission, NOW, start=True).session.sid
        runs.finish(db, sid, run_id, Terminal(state=RunState.FINAL, ended_at=NOW), [], NOW)

    isolated, persistent, mine = (f"agent:main:cron:{rest}" for rest in ("a:run:1", "a", "b:run:mine"))
    run("cron:a:1", isolated, "cron")
    run("cron:a:2", persistent, "cron")
    run("chat", mine, "chat")
    finish(db, slot(1), ts=NOW + KEEP_ISOLATED_MS)
    assert sessions.find(db, isolated) is not None
    finish(db, slot(2), ts=NOW + KEEP_ISOLATED_MS + 1)
    assert sessions.find(db, isolated) is None
    assert runs.find(db, "cron:a:1") is None
    assert sessions.find(db, persistent) is not None and sessions.find(db, mine) is not None
    ((messages,),) = db.execute("SELECT count(*) FROM messages").fetchall()
    assert messages == 2


def test_only_the_newest_two_thousand_receipts_stay(db: Db) -> None:
    db.execute("BEGIN")
    for n in range(KEEP_ROWS + 10):
        finish(db, slot(n))
    db.execute("COMMIT")
    entries, total = cron.runs(db, RunsQuery(sort_dir="asc", limit=1))
    assert total == KEEP_ROWS
    assert entries[0]["runId"] == "cron:a:10"


def test_the_last_heartbeat_is_kept(db: Db) -> None:
    assert cron.last_heartbeat(db) is None
    for ts in (1, 2):
        cron.save_heartbeat(db, {"ts": ts, "status": "sent"})
    assert cron.last_heartbeat(db) == {"ts": 2, "status": "sent"}
