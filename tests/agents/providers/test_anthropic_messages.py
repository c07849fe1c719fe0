import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from triops.agents.errors import ProviderError
from triops.agents.messages import Text, Thinking, ToolCall, Usage
from triops.agents.model import TextDelta, ThinkingDelta, ToolCallDelta
from triops.agents.providers.anthropic_messages import MESSAGES, encode_request
from triops.agents.providers.memo import Memo

SAVED = json.loads((Path(__file__).parent / "data" / "messages_request.json").read_text())


def sse(*said: dict[str, Any]) -> bytes:
    return b"".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n".encode() for e in said)


def start(index: int, **block: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": block}


def delta(index: int, **fields: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": fields}


BEGIN = {
    "type": "message_start",
    "message": {
        "id": "msg_1",
        "usage": {
            "input_tokens": 7,
            "cache_read_input_tokens": 100,
            "cache_creation_input_tokens": 30,
            "output_tokens": 1,
        },
    },
}
STOP = {"type": "message_stop"}


def end(reason: str = "end_turn") -> dict[str, Any]:
    return {
        "type": "message_delta",
        "delta": {"stop_reason": reason},
        "usage": {"output_tokens": 9, "input_tokens": None},
    }


def text(words: str) -> list[dict[str, Any]]:
    return [start(0, type="text", text=""), delta(0, type="text_delta", text=words)]


def test_a_request_is_mapped_as_saved(conversation):
    assert json.loads(encode_request(conversation, "http://127.0.0.1/v1", Memo())) == SAVED


def test_only_the_vendors_endpoint_gets_cache_marks(conversation):
    mark = {"type": "ephemeral"}
    body = json.loads(encode_request(conversation, "https://api.anthropic.com", Memo()))
    assert body["system"] == [{"type": "text", "text": "Be brief.", "cache_control": mark}]
    assert body["messages"][-1]["content"][-1]["cache_control"] == mark
    assert json.dumps(body).count("cache_control") == 2
    assert "cache_control" not in json.dumps(SAVED)


def test_no_system_no_tools_no_temperature_are_left_out(ask):
    assert json.loads(encode_request(ask(system=""), "https://api.anthropic.com", Memo())).keys() == {
        "model",
        "max_tokens",
        "stream",
        "messages",
    }


STREAM = sse(
    BEGIN,
    {"type": "ping"},
    start(0, type="thinking", thinking="", signature=""),
    delta(0, type="thinking_delta", thinking="Let"),
    delta(0, type="thinking_delta", thinking=" me"),
    delta(0, type="signature_delta", signature="c2ln"),
    {"type": "content_block_stop", "index": 0},
    start(1, type="text", text=""),
    delta(1, type="text_delta", text="Rëading"),
    {"type": "something_new", "index": 1, "delta": {"type": "odd"}},
    start(2, type="tool_use", id="t1", name="read", input={}),
    delta(2, type="input_json_delta", partial_json=""),
    delta(2, type="input_json_delta", partial_json='{"path": '),
    delta(2, type="input_json_delta", partial_json='"a"}'),
    start(3, type="tool_use", id="t2", name="list", input={}),
    start(4, type="tool_use", id="t3", name="read", input={"path": "whole"}),
    start(5, type="server_tool_use", id="s1", name="not_ours", input={}),
    delta(5, type="input_json_delta", partial_json='{"query": 1}'),
    end("tool_use"),
    STOP,
)


def test_a_stream_with_everything(parse):
    *events, done = parse(MESSAGES, STREAM)
    assert events[:3] == [ThinkingDelta("Let"), ThinkingDelta(" me"), TextDelta("Rëading")]
    assert [e.fragment for e in events[3:] if isinstance(e, ToolCallDelta) and e.id == "t1"] == [
        "",
        '{"path": ',
        '"a"}',
    ]
    message = done.message
    assert message.content == (
        Thinking("Let me", "c2ln"),
        Text("Rëading"),
        ToolCall("t1", "read", {"path": "a"}),
        ToolCall("t2", "list", {}),
        ToolCall("t3", "read", {"path": "whole"}),
    )
    assert (message.stop_reason, message.response_id, message.api) == ("toolUse", "msg_1", "anthropic-messages")
    assert message.usage == Usage(7, 9, 100, 30, 146, message.usage.cost)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=8).map(sorted))
def test_the_cuts_do_not_matter(parse, cuts):
    assert parse(MESSAGES, STREAM, cuts) == parse(MESSAGES, STREAM)


@pytest.mark.parametrize(
    ("reason", "ours"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("refusal", "stop"),
        ("tool_use", "stop"),
    ],
)
def test_why_it_stopped(parse, reason, ours):
    assert parse(MESSAGES, sse(BEGIN, *text("x"), end(reason), STOP))[-1].message.stop_reason == ours


def test_a_stream_may_end_without_its_mark_once_it_named_its_reason(parse):
    assert parse(MESSAGES, sse(BEGIN, *text("x"), end()))[-1].message.text == "x"


@pytest.mark.parametrize(
    ("stream", "kind", "retryable"),
    [
        (sse(BEGIN, *text("x")), "connection", True),
        (b"", "connection", True),
        (sse(BEGIN, end(), STOP), "empty_response", True),
        (sse(BEGIN, {"type": "error", "error": {"type": "overloaded_error", "message": "O"}}), "overloaded", True),
        (
            sse({"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long"}}),
            "context_overflow",
            False,
        ),
        (b"data: {}\n\n", "format", False),
        (b'data: {"type": "content_block_delta", "index": "x"}\n\n', "format", False),
    ],
)
def test_what_goes_wrong_in_a_stream_is_typed(parse, stream, kind, retryable):
    with pytest.raises(ProviderError) as caught:
        parse(MESSAGES, stream)
    assert (caught.value.kind, caught.value.retryable) == (kind, retryable)


def test_a_reply_that_the_model_refused_is_a_refusal(parse):
    stopped = (
        b'data: {"type": "message_delta", "delta": {"stop_reason": "refusal"}}\n\ndata: {"type": "message_stop"}\n\n'
    )
    with pytest.raises(ProviderError) as caught:
        parse(MESSAGES, stopped)
    assert caught.value.kind == "refusal"
