import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from triops.agents.errors import ProviderError
from triops.agents.messages import Cost, Text, Thinking, ToolCall, Usage, UserMessage
from triops.agents.model import Compat, Done, TextDelta, ThinkingDelta, ToolCallDelta
from triops.agents.providers.draft import INVALID_ARGUMENTS
from triops.agents.providers.memo import Memo
from triops.agents.providers.openai_completions import COMPLETIONS, encode_request

SAVED = json.loads((Path(__file__).parent / "data" / "completions_request.json").read_text())


def sse(*datas: Any) -> bytes:
    return b"".join(
        b"data: " + (d if isinstance(d, bytes) else json.dumps(d).encode()) + b"\n\n" for d in (*datas, b"[DONE]")
    )


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"id": "c1", "choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def fragment(arguments: Any = None, **fields: Any) -> dict[str, Any]:
    function = {"name": fields.pop("name", None), "arguments": arguments}
    return {**fields, "function": {key: value for key, value in function.items() if value is not None}}


def test_a_request_is_mapped_as_saved(conversation):
    assert json.loads(encode_request(conversation, "", Memo())) == SAVED


def test_compat_says_what_an_endpoint_does_not_take(conversation):
    compat = Compat(
        supports_tools=False,
        supports_developer_role=True,
        supports_usage_in_streaming=False,
        supports_temperature=False,
        supports_store=True,
        requires_string_content=True,
        max_tokens_field="max_completion_tokens",
    )
    model = msgspec.structs.replace(conversation.model, compat=compat, input=("text",))
    body = json.loads(encode_request(msgspec.structs.replace(conversation, model=model), "", Memo()))
    assert not {"tools", "stream_options", "temperature", "max_tokens"} & body.keys()
    assert body["store"] is False and body["max_completion_tokens"] == 1000
    assert body["messages"][0] == {"role": "developer", "content": "Be brief."}
    assert body["messages"][1]["content"].endswith("Compare\n\n[an image was left out: this model takes none]")
    assert all(isinstance(turn["content"], str) for turn in body["messages"])


@pytest.mark.parametrize(("asked", "window", "limit"), [(None, 128_000, 8192), (None, 4096, 2048), (9000, 4096, 4096)])
def test_a_reply_is_limited_to_what_fits(ask, asked, window, limit):
    request = ask(max_tokens=asked)
    request = msgspec.structs.replace(request, model=msgspec.structs.replace(request.model, context_window=window))
    assert json.loads(encode_request(request, "", Memo()))["max_tokens"] == limit


def test_an_image_of_the_last_tool_result_reaches_the_model(conversation):
    request = msgspec.structs.replace(conversation, messages=conversation.messages[:4])
    assert json.loads(encode_request(request, "", Memo()))["messages"][-1]["content"][0]["type"] == "image_url"


def test_an_empty_message_is_left_out(ask):
    body = json.loads(encode_request(ask(messages=[UserMessage("", 1), UserMessage((Text("x"),), 2)]), "", Memo()))
    assert body["messages"][1:] == [{"role": "user", "content": "x"}]


STREAM = sse(
    delta(role="assistant", content=""),
    delta(reasoning_content="hm"),
    delta(reasoning="m"),
    delta(content="Hé"),
    delta(content="llo", tool_calls=None),
    delta(tool_calls=[fragment("", index=0, id="a", name="read")]),
    delta(tool_calls=[fragment('{"path"', index=0)]),
    delta(tool_calls=[fragment(':"x"}', index=0), fragment("{}", index=1, id="b", name="list")]),
    delta("tool_calls"),
    {
        "choices": [],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 400}},
    },
)


def test_a_stream_with_everything(parse):
    *events, done = parse(COMPLETIONS, STREAM)
    assert events[:4] == [ThinkingDelta("hm"), ThinkingDelta("m"), TextDelta("Hé"), TextDelta("llo")]
    assert events[4:] == [
        ToolCallDelta("a", "read", ""),
        ToolCallDelta("a", "read", '{"path"'),
        ToolCallDelta("a", "read", ':"x"}'),
        ToolCallDelta("b", "list", "{}"),
    ]
    message = done.message
    calls = ToolCall("a", "read", {"path": "x"}), ToolCall("b", "list", {})
    assert message.content == (Thinking("hmm"), Text("Héllo"), *calls)
    assert (message.stop_reason, message.response_id, message.timestamp) == ("toolUse", "c1", 42)
    assert (message.api, message.provider, message.model) == ("openai-completions", "mock", "mock-1")
    cost = Cost(600e-6, 20e-6, 200e-6, 0, 820e-6)
    assert message.usage == Usage(600, 10, 400, 0, 1010, message.usage.cost)
    assert msgspec.structs.astuple(message.usage.cost) == pytest.approx(msgspec.structs.astuple(cost))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=8).map(sorted))
def test_the_cuts_do_not_matter(parse, cuts):
    assert parse(COMPLETIONS, STREAM, cuts) == parse(COMPLETIONS, STREAM)


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param(
            [[fragment('{"n":1}', name="f"), fragment('{"n":2}', name="g")]], id="no ids, no indexes, one chunk"
        ),
        pytest.param([[fragment({"n": 1}, name="f")], [fragment({"n": 2}, name="g")]], id="arguments as objects"),
        pytest.param(
            [[fragment('{"n":1}', index=0, id="x", name="f")], [fragment('{"n":2}', index=0, id="y", name="g")]],
            id="the same index for all",
        ),
        pytest.param(
            [
                [fragment("", id="x", name="f")],
                [fragment('{"n"', id="x")],
                [fragment(":1}")],
                [fragment('{"n":2}', id="y", name="g")],
            ],
            id="ids without indexes",
        ),
        pytest.param(
            [[fragment('{"n":', name="f")], [fragment("1}")], [fragment('{"n":2}', name="g")]], id="only names"
        ),
        pytest.param(
            [
                [fragment('{"n":', index=0, name="f")],
                [fragment("1}", index=0, name="f")],
                [fragment('{"n":2}', index=1, name="g")],
            ],
            id="the name in every fragment",
        ),
        pytest.param(
            [[fragment('{"n":1}', index=0, name="f")], [fragment('{"n":2}', index=0, name="g")]], id="one index, no ids"
        ),
        pytest.param(
            [
                [fragment("", index=0, id="x", name="f"), fragment("", index=1, id="y", name="g")],
                [fragment('{"n":2}', index=1), fragment('{"n":1}', index=0)],
            ],
            id="interleaved",
        ),
        pytest.param(
            [[fragment('"{\\"n\\":1}"', index=0, id="x", name="f")], [fragment('{"n":2}', index=1, name="g")]],
            id="wrapped twice",
        ),
    ],
)
def test_tool_calls_in_every_dialect(parse, chunks):
    stream = sse(*[delta(tool_calls=calls) for calls in chunks], delta("stop"))
    message = parse(COMPLETIONS, stream)[-1].message
    assert [(call.name, call.arguments) for call in message.tool_calls] == [("f", {"n": 1}), ("g", {"n": 2})]
    ids = [call.id for call in message.tool_calls]
    assert all(ids) and len(set(ids)) == 2 and message.stop_reason == "toolUse"


def test_arguments_that_are_no_object_reach_the_model_as_they_were(parse):
    stream = sse(delta(tool_calls=[fragment('{"path": nope', index=0, id="a", name="read")]), delta("tool_calls"))
    assert parse(COMPLETIONS, stream)[-1].message.tool_calls[0].arguments == {INVALID_ARGUMENTS: '{"path": nope'}


def test_a_call_that_the_limit_cut_is_dropped(parse):
    stream = sse(
        delta(content="I"), delta(tool_calls=[fragment('{"path": "a', index=0, id="a", name="f")]), delta("length")
    )
    message = parse(COMPLETIONS, stream)[-1].message
    assert message.content == (Text("I"),) and message.stop_reason == "length"


@pytest.mark.parametrize(
    ("finish", "reason"), [("stop", "stop"), ("length", "length"), ("content_filter", "stop"), ("tool_calls", "stop")]
)
def test_why_it_stopped(parse, finish, reason):
    assert parse(COMPLETIONS, sse(delta(finish, content="x")))[-1].message.stop_reason == reason


def test_a_stream_may_end_without_its_mark_once_it_named_its_reason(parse):
    stream = sse(delta("stop", content="x")).replace(b"data: [DONE]\n\n", b"")
    assert parse(COMPLETIONS, stream)[-1].message.text == "x"


def test_a_mark_without_a_reason_is_enough(parse):
    assert parse(COMPLETIONS, sse(delta(content="x")))[-1].message.stop_reason == "stop"


@pytest.mark.parametrize(
    ("stream", "kind", "retryable"),
    [
        (sse(delta(content="x")).replace(b"data: [DONE]\n\n", b""), "connection", True),
        (b"", "connection", True),
        (b"<html>no events at all</html>\n\n", "connection", True),
        (sse(delta("stop")), "empty_response", True),
        (sse(delta("length")), "empty_response", False),
        (sse(b"{nonsense"), "format", False),
        (sse(b"[" * 100_000), "format", False),
        (sse({"choices": "none"}), "format", False),
        (sse(b'{"choices": [{"delta": {"content": "\xff"}}]}'), "format", False),
        (sse({"error": {"message": "slow down", "code": 429}}), "rate_limit", True),
        (sse({"error": "context size exceeded"}), "context_overflow", False),
        (
            sse({"error": {"code": 400, "type": "exceed_context_size_error", "message": "big"}}),
            "context_overflow",
            False,
        ),
    ],
)
def test_what_goes_wrong_in_a_stream_is_typed(parse, stream, kind, retryable):
    with pytest.raises(ProviderError) as caught:
        parse(COMPLETIONS, stream)
    assert (caught.value.kind, caught.value.retryable) == (kind, retryable)


@pytest.mark.parametrize("lie", [-5, None, "many", 1e308, {"a": 1}, [], True])
def test_lying_usage_does_no_harm(parse, lie):
    usage = {"prompt_tokens": lie, "completion_tokens": lie, "prompt_tokens_details": {"cached_tokens": 10**30}}
    done = parse(COMPLETIONS, sse(delta("stop", content="x"), {"choices": [], "usage": usage}))[-1]
    assert isinstance(done, Done) and done.message.usage
    numbers = msgspec.structs.astuple(done.message.usage)[:5]
    assert all(isinstance(number, int) and 0 <= number <= 1 << 55 for number in numbers)
    assert msgspec.json.decode(msgspec.json.encode(done.message))


def test_a_call_that_was_written_as_text_is_a_call_and_what_is_held_back_at_the_end_is_told(parse):
    stream = sse(
        delta(content="Let me see. <tool_"), delta(content='call>{"name": "read", "arguments": {}}'), delta("stop")
    )
    *events, done = parse(COMPLETIONS, stream, tools={"read": {}})
    assert [type(event) for event in events] == [TextDelta, ToolCallDelta, ToolCallDelta]
    assert (done.message.stop_reason, done.message.text) == ("toolUse", "Let me see. ")
    less = sse(delta(content="1 <"), delta("stop"))
    assert parse(COMPLETIONS, less, tools={"read": {}})[:2] == [TextDelta("1 "), TextDelta("<")]


def test_content_may_come_in_parts_and_ids_as_numbers(parse):
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "Hi"}]
    stream = sse(delta(content=parts), delta(tool_calls=[fragment("{}", id=7, name="read")]), delta("stop"))
    assert parse(COMPLETIONS, stream)[-1].message.content == (Thinking("hm"), Text("Hi"), ToolCall("7", "read", {}))


def test_a_reply_that_a_filter_withheld_is_a_refusal(parse):
    with pytest.raises(ProviderError, match="would not answer") as caught:
        parse(COMPLETIONS, sse(delta("content_filter")))
    assert caught.value.kind == "refusal" and not caught.value.retryable
    assert parse(COMPLETIONS, sse(delta("content_filter", content="Well")))[-1].message.text == "Well"


def test_cached_tokens_are_counted_in_deepseeks_way_too(parse):
    told = {"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 1, "prompt_cache_hit_tokens": 8}}
    usage = parse(COMPLETIONS, sse(delta("stop", content="Hi"), told))[-1].message.usage
    assert (usage.input, usage.cache_read) == (2, 8)
