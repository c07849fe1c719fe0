"""From what happens in the runtime to what stands on the wire. Who gets it is tested with the fan-out."""

from typing import Any

import msgspec

from triops.agents.messages import AssistantMessage, SystemMessage, Text, ToolCall, ToolResultMessage, UserMessage
from triops.gateway import wire
from triops.runtime.events import RunInfo, RunTool
from triops.runtime.runs.state import RunState, Terminal

RUN = RunInfo(
    run_id="r",
    session_key="agent:main:main",
    spelled_key="agent:main:main",
    session_id="s",
    agent_id="main",
    source="chat",
    origin="",
    tool_events=False,
)


def shown(value: Any) -> dict[str, Any]:
    return msgspec.json.decode(msgspec.json.encode(value))


def test_a_status_is_a_chat_and_an_agent_event_of_one_seq() -> None:
    chat, agent = wire.status(RUN, 3, 50, "starting_model", None)
    assert shown(chat) == {
        "runId": "r",
        "sessionKey": "agent:main:main",
        "agentId": "main",
        "seq": 3,
        "state": "status",
        "phase": "starting_model",
    }
    assert (shown(agent)["stream"], shown(agent)["data"]) == ("run_status", {"phase": "starting_model"})
    retry = {"attempt": 1, "maxAttempts": 3, "reason": "too many requests"}
    chat, agent = wire.status(RUN, 3, 50, "starting_model", retry | {"kind": "rate_limit"})
    assert shown(chat)["retry"] == retry | {"reason": "rate_limit"}
    assert shown(agent)["data"] == {"phase": "retrying", **retry}
    chat, agent = wire.status(RUN, 3, 50, "starting_model", {"reason": "it failed", "kind": "server_error"})
    assert "retry" not in shown(chat)
    assert shown(agent)["data"] == {"phase": "retrying", "reason": "it failed"}


def test_a_delta_carries_what_is_new_and_the_whole() -> None:
    agent, chat = wire.delta(RUN, 4, 60, 2, "lo", "hello", replace=True)
    assert shown(agent)["data"] == {"text": "hello", "delta": "lo", "itemId": "r:2"}
    told = shown(chat)
    assert (told["state"], told["deltaText"], told["replace"]) == ("delta", "lo", True)
    assert told["message"] == {"role": "assistant", "content": [{"type": "text", "text": "hello"}], "timestamp": 60}
    assert "replace" not in shown(wire.delta(RUN, 4, 60, 1, "a", "a", replace=False)[1])


def test_each_way_out_has_its_lifecycle_end_and_its_chat_state() -> None:
    final = Terminal(state=RunState.FINAL, stop_reason="stop", text="hi \n", started_at=1, ended_at=9, tools=("read",))
    aborted = Terminal(state=RunState.ABORTED, stop_reason="rpc", text="h", started_at=1, ended_at=9)
    failed = Terminal(
        state=RunState.ERROR,
        error_message="no",
        error_kind="timeout",
        error_detail={"httpStatus": 500},
        started_at=1,
        ended_at=9,
    )
    end, chat = shown(wire.lifecycle_end(RUN, 7, final)), shown(wire.chat_terminal(RUN, 7, final))
    assert (end["data"]["phase"], end["data"]["aborted"], end["sessionId"]) == ("end", False, "s")
    assert end["data"]["terminalReply"] == {"disposition": "visible", "text": "hi"}
    assert end["data"]["terminalReceipt"]["successfulToolNames"] == ["read"]
    assert (chat["state"], chat["message"]["content"][0]["text"], chat["seq"]) == ("final", "hi", 7)
    end, chat = shown(wire.lifecycle_end(RUN, 7, aborted)), shown(wire.chat_terminal(RUN, 7, aborted))
    assert (end["data"]["phase"], end["data"]["aborted"], end["data"]["status"]) == ("end", True, "cancelled")
    assert "terminalReceipt" not in end["data"]
    assert (chat["state"], chat["stopReason"], chat["message"]["content"][0]["text"]) == ("aborted", "rpc", "h")
    end, chat = shown(wire.lifecycle_end(RUN, 7, failed)), shown(wire.chat_terminal(RUN, 7, failed))
    assert (end["data"]["phase"], end["data"]["error"], end["data"]["errorKind"]) == ("error", "no", "timeout")
    assert end["data"]["errorObservation"] == {"httpStatus": 500}
    assert (chat["state"], chat["errorMessage"], chat["errorKind"]) == ("error", "no", "timeout")
    assert "message" not in chat


def test_a_silent_final_has_no_message() -> None:
    silent = Terminal(state=RunState.FINAL, stop_reason="stop", text="", started_at=1, ended_at=9)
    assert "message" not in shown(wire.chat_terminal(RUN, 7, silent))
    assert shown(wire.lifecycle_end(RUN, 7, silent))["data"]["terminalReply"]["disposition"] == "silent"


def test_a_tools_result_is_told_with_its_details() -> None:
    call = ToolCall("c", "read", {"path": "x"})
    result = ToolResultMessage("c", "read", (Text("data"),), 5, is_error=True, details={"lines": 1})
    data = shown(wire.tool(RunTool(RUN, 3, 5, "result", call, result)))["data"]
    assert data == {
        "phase": "result",
        "name": "read",
        "toolCallId": "c",
        "isError": True,
        "result": {"content": [{"type": "text", "text": "data"}], "details": {"lines": 1}},
    }


def test_messages_of_a_transcript_have_their_place_and_their_key() -> None:
    user = wire.shown_message(UserMessage("hi", 5, idempotency_key="k:user"), "m1", 1, "k")
    assert user["__openclaw"] == {"id": "m1", "seq": 1, "runId": "k", "idempotencyKey": "k:user"}
    assert (user["role"], user["content"]) == ("user", "hi")
    system = wire.shown_message(SystemMessage("event", 5, source="cron:j"), "m2", 2, None)
    assert (system["role"], system["content"], system["__openclaw"]) == ("system", "event", {"id": "m2", "seq": 2})
    reply = wire.shown_message(AssistantMessage((Text("yes"),), 5), "m3", 3, "k")
    assert (reply["role"], reply["content"][0]["text"]) == ("assistant", "yes")


def test_events_of_a_sub_agent_name_who_spawned_it_and_heartbeats_say_so() -> None:
    child = msgspec.structs.replace(RUN, spawned_by="agent:main:main", source="heartbeat")
    event = shown(wire.agent_event(child, 1, 1, "lifecycle", {"phase": "start"}))
    assert (event["spawnedBy"], event["isHeartbeat"]) == ("agent:main:main", True)
    assert "spawnedBy" not in shown(wire.agent_event(RUN, 1, 1, "lifecycle", {}))
