from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from triops.runtime.cron.job import AgentTurn, Job, LogEntry, due_at, due_slots, new_job
from triops.runtime.cron.schedule import iso
from triops.runtime.cron.view import delivery_preview, read_view, view
from triops.runtime.errors import Invalid

NOW = 1795344245622
STORY: dict[str, Any] = {
    "name": "test",
    "schedule": {"kind": "every", "everyMs": 180000},
    "payload": {"kind": "systemEvent", "text": "test"},
    "sessionTarget": "current",
}
TURN: dict[str, Any] = {
    "name": "iso",
    "schedule": {"kind": "cron", "expr": "0 7 * * *", "tz": "Europe/Berlin"},
    "payload": {"kind": "agentTurn", "message": "SAY:cronned"},
    "sessionTarget": "isolated",
}


def job(params: dict[str, Any], *, caller: str | None = None, **more: Any) -> Job:
    return new_job({**params, **more}, job_id="j1", now_ms=NOW, caller=caller)


def ran_at(ms: int) -> LogEntry:
    return LogEntry(ts=ms, job_id="j1", status="ok", run_id="r", run_at_ms=ms, job_name="test")


def refusal(params: dict[str, Any], **more: Any) -> str:
    with pytest.raises(Invalid) as caught:
        job(params, **more)
    return str(caught.value)


# -- as recorded -------------------------------------------------------------------------------------------------------


def test_the_read_view_of_a_session_event_is_as_recorded() -> None:
    made = job(STORY, sessionTarget="main", wakeMode="now")
    shown = read_view(made, NOW)
    assert shown.pop("configRevision").startswith("sha256:")
    assert shown == {
        "id": "j1",
        "name": "test",
        "enabled": True,
        "createdAtMs": 1795344245622,
        "updatedAtMs": 1795344245622,
        "schedule": {"kind": "every", "everyMs": 180000, "anchorMs": 1795344245622},
        "sessionTarget": "main",
        "wakeMode": "now",
        "payload": {"kind": "systemEvent", "text": "test"},
        "state": {"nextRunAtMs": 1795344425622},
        "nextRunAtMs": 1795344425622,
    }
    assert delivery_preview(made) == {"label": "not requested", "detail": "not requested"}


def test_the_view_of_an_agent_turn_is_as_recorded() -> None:
    assert msgspec.json.decode(msgspec.json.encode(view(job(TURN, delivery={"mode": "none"}), NOW))) == {
        "id": "j1",
        "name": "iso",
        "enabled": True,
        "createdAtMs": NOW,
        "updatedAtMs": NOW,
        "schedule": {"kind": "cron", "expr": "0 7 * * *", "tz": "Europe/Berlin"},
        "sessionTarget": "isolated",
        "wakeMode": "now",
        "payload": {"kind": "agentTurn", "message": "SAY:cronned", "toolsAllow": ["*"]},
        "delivery": {"mode": "none"},
        "state": {"nextRunAtMs": 1795413600000},
        "scheduledToolPolicy": {"version": 1, "mode": "trusted"},
    }


def test_a_one_shot_is_kept_in_utc_and_goes_after_its_run() -> None:
    made = job(STORY, schedule={"kind": "at", "at": "2030-01-01T00:00:00Z"}, sessionTarget="main")
    shown = view(made, NOW)
    assert shown["schedule"] == {"kind": "at", "at": "2030-01-01T00:00:00.000Z"}
    assert shown["deleteAfterRun"] is True
    assert shown["state"] == {"nextRunAtMs": 1893456000000}


# -- defaults ----------------------------------------------------------------------------------------------------------


def test_current_is_bound_to_the_caller_s_session() -> None:
    assert job(STORY).session_target == "session:agent:main:main"
    assert job(STORY, caller="agent:main:work").session_target == "session:agent:main:work"
    assert job(STORY, caller="agent:main:work", sessionKey="Other").session_target == "session:agent:main:other"
    assert job(TURN, sessionTarget="current").session_target == "isolated"
    assert job(TURN, sessionTarget="current", caller="agent:main:work").session_target == "session:agent:main:work"


def test_the_target_is_inferred_from_the_payload() -> None:
    without = {key: value for key, value in STORY.items() if key != "sessionTarget"}
    assert job(without).session_target == "main"
    turn = {key: value for key, value in TURN.items() if key != "sessionTarget"}
    assert job(turn, caller="agent:main:work").session_target == "session:agent:main:work"


def test_each_target_names_the_session_of_its_runs() -> None:
    assert job(STORY, sessionTarget="main").session == "agent:main:main"
    assert job(TURN).session == "agent:main:cron:j1"
    assert job(TURN, agentId="work").session == "agent:work:cron:j1"
    assert job(TURN, sessionTarget="session:Notes").session == "agent:main:notes"
    assert job(STORY, sessionTarget="session:agent:work:main", agentId="work").session == "agent:work:main"


def test_a_missing_name_is_made_from_the_words() -> None:
    nameless = {key: value for key, value in STORY.items() if key != "name"}
    assert job(nameless, payload={"kind": "systemEvent", "text": " water\n the  plants "}).name == "water the plants"
    assert len(job(nameless, payload={"kind": "systemEvent", "text": "x" * 500}).name) == 60
    assert job(nameless, payload={"kind": "systemEvent", "text": " "}).name == "j1"


def test_an_agent_turn_is_announced_unless_told_otherwise() -> None:
    assert view(job(TURN), NOW)["delivery"] == {"mode": "announce"}
    assert "delivery" not in view(job(STORY), NOW)
    kept = {"mode": "announce", "channel": "telegram", "to": "42", "bestEffort": True}
    assert view(job(TURN, delivery=kept), NOW)["delivery"] == kept


def test_at_may_be_a_number_and_other_kinds_keys_are_dropped() -> None:
    made = job(STORY, schedule={"kind": "at", "at": 1893456000000, "everyMs": 5, "tz": "UTC"})
    assert view(made, NOW)["schedule"] == {"kind": "at", "at": "2030-01-01T00:00:00.000Z"}
    assert job(STORY, deleteAfterRun=False, schedule={"kind": "at", "at": 1893456000000}).delete_after_run is False


def test_the_timeout_and_model_of_a_turn_are_kept() -> None:
    payload = job(TURN, payload={**TURN["payload"], "model": "a/b", "timeoutSeconds": 0}).payload
    assert isinstance(payload, AgentTurn)
    assert (payload.model, payload.timeout_seconds) == ("a/b", 0)


def test_a_stored_job_comes_back_as_it_was() -> None:
    for made in (job(STORY), job(TURN), job(STORY, schedule={"kind": "at", "at": iso(NOW)}, enabled=False)):
        assert msgspec.json.decode(msgspec.json.encode(made), type=Job) == made


def test_the_revision_follows_what_was_asked_for_only() -> None:
    made = job(STORY)

    def revision(changed: Job) -> str:
        return read_view(changed, NOW)["configRevision"]

    assert revision(made) == revision(replace(made, decided_ms=NOW + 5, updated_at_ms=NOW + 5, retry_ms=1, errors=2))
    assert revision(made) != revision(replace(made, name="other"))
    assert len(revision(made)) == len("sha256:KqTuvp6GNQrcjvRGzBI6TlFjTdL6_wInFrGqwvhnqRQ")


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            {"schedule": {"kind": "every", "everyMs": 0}},
            "invalid cron.add params: at /schedule/everyMs: Expected `int` >= 1",
        ),
        ({"schedule": {"kind": "every"}}, "at /schedule: Object missing required field `everyMs`"),
        ({"schedule": {"everyMs": 5}}, "at /schedule: Object missing required field `kind`"),
        ({"schedule": None}, "at /schedule: Expected"),
        (
            {"schedule": {"kind": "on-exit", "command": "x"}},
            "at /schedule/kind: Invalid value 'on-exit'; supported: at, every, cron",
        ),
        ({"schedule": {"kind": "stream", "command": ["x"]}}, "supported: at, every, cron"),
        ({"schedule": {"kind": "cron", "expr": "* * * * *", "staggerMs": -1}}, "at /schedule/staggerMs"),
        (
            {"payload": {"kind": "command", "argv": ["x"]}},
            "at /payload/kind: Invalid value 'command'; supported: systemEvent, agentTurn",
        ),
        ({"payload": {"kind": "script", "script": "x"}}, "supported: systemEvent, agentTurn"),
        ({"payload": {"kind": "systemEvent", "text": ""}}, "at /payload/text"),
        ({"payload": {"kind": "systemEvent", "text": "x", "argv": []}}, "at /payload/argv: not supported"),
        (
            {"delivery": {"mode": "webhook", "to": "https://x"}},
            "at /delivery/mode: Invalid enum value 'webhook'; supported: none, announce",
        ),
        ({"trigger": {"script": "x"}}, "at /trigger: not supported; supported: schedule, payload, name"),
        ({"wakeMode": "later"}, "at /wakeMode: Invalid enum value 'later'; supported: now, next-heartbeat"),
        ({"name": ""}, "at /name"),
        ({"sessionTarget": "isolated"}, "at /sessionTarget: isolated needs an agentTurn"),
        (
            {"sessionTarget": "somewhere"},
            "at /sessionTarget: 'somewhere' is not main, isolated, current or session:<key>",
        ),
        ({"sessionTarget": "session:"}, "session key is empty"),
        ({"sessionTarget": "session:agent:a:b", "agentId": "other"}, "belongs to agent 'a'"),
        ({"sessionTarget": "main", "agentId": "other"}, "at /agentId: main is the session of agent main"),
        ({"sessionTarget": "main", "delivery": {"mode": "announce"}}, "delivery.mode announce needs"),
    ],
)
def test_a_wrong_parameter_is_refused_with_its_path_and_only_what_was_meant(more: dict[str, Any], words: str) -> None:
    said = refusal(STORY, **more)
    assert words in said
    assert "systemEvent" not in said or "payload" in said or "agentTurn" in said


def test_what_a_turn_cannot_have_is_refused() -> None:
    assert "main needs a systemEvent" in refusal(TURN, sessionTarget="main")
    for key, value in (("toolsAllow", ["read"]), ("fallbacks", ["a/b"]), ("thinking", "high"), ("timeoutSeconds", -1)):
        assert f"/payload/{key}" in refusal(TURN, payload={**TURN["payload"], key: value})
    job(TURN, payload={**TURN["payload"], "toolsAllow": ["*"]})


def test_missing_parameters_are_named() -> None:
    assert refusal({"name": "x"}) == "invalid cron.add params: Object missing required field `schedule`"


# -- when it is due ----------------------------------------------------------------------------------------------------


def test_a_disabled_job_is_never_due() -> None:
    assert due_at(job(STORY, enabled=False), NOW) is None


def test_a_job_does_not_fire_twice_within_two_seconds() -> None:
    fast = job(STORY, schedule={"kind": "every", "everyMs": 1000})
    assert due_at(fast, NOW) == NOW + 1000
    ran = replace(fast, decided_ms=NOW + 1000, last=ran_at(NOW + 1500))
    assert due_at(ran, NOW + 1500) == NOW + 3500
    assert due_slots(ran, NOW + 3500) == [NOW + 3000]


def test_a_clock_that_went_back_a_year_does_not_silence_a_job() -> None:
    year = 365 * 86_400_000
    ahead = replace(job(STORY), decided_ms=NOW + year, retry_ms=NOW + year, last=ran_at(NOW + year))
    due = due_at(ahead, NOW)
    assert due is not None
    assert due <= NOW + 3_600_000


def test_a_zone_that_is_gone_makes_a_job_that_is_not_due() -> None:
    made = job(TURN)
    gone = replace(made, schedule=replace(made.schedule, tz="Atlantis/Capital"))
    assert due_at(gone, NOW) is None
    assert "nextRunAtMs" not in read_view(gone, NOW)
