import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from triops.agents.errors import ProviderError
from triops.agents.messages import AssistantMessage, Text, Thinking, ToolCall, Usage
from triops.agents.model import TextDelta, ThinkingDelta
from triops.agents.providers.memo import Memo
from triops.agents.providers.openai_responses import RESPONSES, encode_request

SAVED = json.loads((Path(__file__).parent / "data" / "responses_request.json").read_text())
REASONING = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}
USAGE = {"input_tokens": 50, "input_tokens_details": {"cached_tokens": 20}, "output_tokens": 6}


def sse(*said: dict[str, Any]) -> bytes:
    return b"".join(f"event: {e['type']}\ndata: {json.dumps(e, ensure_ascii=False)}\n\n".encode() for e in said)


def event(name: str, index: int = 0, **fields: Any) -> dict[str, Any]:
    return {"type": f"response.{name}", "output_index": index, **fields}


def ended(status: str = "completed", **fields: Any) -> dict[str, Any]:
    return event(status, response={"id": "resp_1", "usage": USAGE, **fields})


TEXT = event("output_text.delta", delta="x")


def test_a_request_is_mapped_as_saved(conversation):
    assert json.loads(encode_request(conversation, "", Memo())) == SAVED


def test_reasoning_is_asked_for_and_goes_back_as_it_came(conversation, parse):
    stream = sse(event("output_item.done", item=REASONING), event("output_text.delta", 1, delta="x"), ended())
    thought = parse(RESPONSES, stream)[-1].message.content[0]
    model = msgspec.structs.replace(conversation.model, reasoning=True)
    message = AssistantMessage((thought,), 1, provider="mock")
    body = json.loads(
        encode_request(msgspec.structs.replace(conversation, model=model, messages=[message]), "", Memo())
    )
    assert body["input"] == [REASONING] and body["include"] == ["reasoning.encrypted_content"]


STREAM = sse(
    event("created", response={"id": "resp_1", "usage": None}),
    event("output_item.added", item={"type": "reasoning", "id": "rs_1"}),
    event("reasoning_summary_text.delta", delta="hm"),
    event("output_item.done", item=REASONING),
    event("output_item.added", 1, item={"type": "message"}),
    event("output_text.delta", 1, delta="Hé"),
    event("output_text.delta", 1, delta="llo"),
    event("output_item.added", 2, item={"type": "function_call", "call_id": "c1", "name": "read", "arguments": ""}),
    event("function_call_arguments.delta", 2, delta='{"path":'),
    event("function_call_arguments.delta", 2, delta='"a"}'),
    event(
        "output_item.done",
        2,
        item={"type": "function_call", "call_id": "c1", "name": "read", "arguments": '{"path":"a"}'},
    ),
    event(
        "output_item.done", 3, item={"type": "function_call", "call_id": "c2", "name": "list", "arguments": '{"n":1}'}
    ),
    event("brand_new.delta", 9, delta={"odd": 1}),
    ended(),
)


def test_a_stream_with_everything(parse):
    *events, done = parse(RESPONSES, STREAM)
    assert events[:3] == [ThinkingDelta("hm"), TextDelta("Hé"), TextDelta("llo")]
    message = done.message
    assert message.content == (
        Thinking("hm", json.dumps(REASONING)),
        Text("Héllo"),
        ToolCall("c1", "read", {"path": "a"}),
        ToolCall("c2", "list", {"n": 1}),
    )
    assert (message.stop_reason, message.response_id, message.api) == ("toolUse", "resp_1", "openai-responses")
    assert message.usage == Usage(30, 6, 20, 0, 56, message.usage.cost)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=8).map(sorted))
def test_the_cuts_do_not_matter(parse, cuts):
    assert parse(RESPONSES, STREAM, cuts) == parse(RESPONSES, STREAM)


def test_a_reply_that_its_limit_cut_says_so(parse):
    details = {"reason": "max_output_tokens"}
    assert (
        parse(RESPONSES, sse(TEXT, ended("incomplete", incomplete_details=details)))[-1].message.stop_reason == "length"
    )


@pytest.mark.parametrize(
    ("stream", "kind", "retryable"),
    [
        (sse(TEXT), "connection", True),
        (sse(ended()), "empty_response", True),
        (sse(TEXT, ended("failed", error={"code": "server_error", "message": "m"})), "server_error", True),
        (sse(ended("failed", error={"code": "context_length_exceeded", "message": "m"})), "context_overflow", False),
        (sse({"type": "error", "code": "rate_limit_exceeded", "message": "m"}), "rate_limit", True),
        (sse({"type": "error", "error": {"type": "invalid_request_error", "message": "m"}}), "format", False),
        (b"data: [1]\n\n", "format", False),
        (b"data: [DONE]\n\n", "connection", True),
    ],
)
def test_what_goes_wrong_in_a_stream_is_typed(parse, stream, kind, retryable):
    with pytest.raises(ProviderError) as caught:
        parse(RESPONSES, stream)
    assert (caught.value.kind, caught.value.retryable) == (kind, retryable)


def test_a_reply_that_a_filter_withheld_is_a_refusal(parse):
    said = {"type": "response.incomplete", "response": {"incomplete_details": {"reason": "content_filter"}}}
    with pytest.raises(ProviderError) as caught:
        parse(RESPONSES, b"data: " + json.dumps(said).encode() + b"\n\n")
    assert caught.value.kind == "refusal"
