import json
from typing import Any

import msgspec
import pytest

from triops.bench.mock_script import Ask, Reply, Script, anthropic, openai, read_script


def ask(*messages: dict[str, object]) -> Ask:
    return msgspec.json.decode(msgspec.json.encode({"messages": list(messages)}), type=Ask)


def user(text: str) -> dict[str, object]:
    return {"role": "user", "content": text}


def read(*messages: dict[str, object], seed: int = 0) -> Script:
    return read_script(ask(*messages), seed)


def data_of(reply: Reply, script: Script) -> list[dict[str, Any]]:
    lines = b"".join(reply.writes(script)).decode().splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def test_without_a_directive_the_reply_is_ok():
    assert read(user("hello")).tokens == ("ok",)


def test_only_the_last_message_of_the_user_directs():
    found = read(user("SAY:old FAIL:500"), {"role": "assistant", "content": "SAY:mine"}, user("RUN:r1 SAY:new ITL:2.5"))
    assert found == Script(run="r1", tokens=("new",), itl=0.0025)


def test_a_pause_before_the_end_parts_the_tail_from_what_was_said():
    script = read(user("SAY:hello LAST:3 FIRST:2"))
    assert (script.first, script.last) == (0.002, 0.003)
    said, end = openai(script, "m").writes(script)
    assert b"hello" in said
    assert b"[DONE]" not in said
    assert end.endswith(b"[DONE]\n\n")


def test_a_message_in_parts_is_read_like_a_plain_one():
    parts = [{"type": "text", "text": "first"}, {"type": "image"}, {"type": "text", "text": "TOKENS:3"}]
    assert len(read({"role": "user", "content": parts}).tokens) == 3


def test_tokens_depend_on_message_and_seed_alone():
    first, other = read(user("TOKENS:5 a")), read(user("TOKENS:5 b"))
    assert read(user("TOKENS:5 a")) == first
    assert other.tokens != first.tokens
    assert read(user("TOKENS:5 a"), seed=1).tokens != first.tokens


def test_calls_take_the_json_behind_them_and_may_be_several():
    found = read(user('CALL:read {"path":{"in":"}"}} then CALL:list and SAY:done'))
    assert [(name, arguments) for _, name, arguments in found.calls] == [
        ("read", b'{"path":{"in":"}"}}'),
        ("list", b"{}"),
    ]
    assert len({id for id, _, _ in found.calls}) == 2


@pytest.mark.parametrize(
    "result",
    [
        {"role": "tool", "tool_call_id": "x", "content": "it is there"},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x", "content": "it is there"}]},
    ],
)
def test_after_the_tool_s_result_comes_the_text(result: dict[str, object]):
    found = read(user("CALL:read {} SAY:done"), {"role": "assistant", "content": None}, result)
    assert found.calls == ()
    assert found.tokens == ("done",)


@pytest.mark.parametrize("text", ["TOKENS:many", "ITL:x", "CALL:read {oops"])
def test_a_directive_that_does_not_parse_is_refused(text: str):
    with pytest.raises(ValueError):
        read(user(text))


@pytest.mark.parametrize("dialect", [openai, anthropic])
def test_a_paced_reply_is_one_write_a_token_and_an_instant_one_a_single_write(dialect):
    tokens = ("a", "b", "c")
    reply = dialect(Script(tokens=tokens), "m")
    paced = reply.writes(Script(tokens=tokens, itl=0.1))
    assert len(paced) == 3
    assert reply.writes(Script(tokens=tokens)) == [b"".join(paced)]


@pytest.mark.parametrize("dialect", [openai, anthropic])
def test_a_dropped_reply_has_its_first_tokens_and_no_end(dialect):
    whole = b"".join(dialect(Script(tokens=("a", "b", "c")), "m").writes(Script()))
    dropped = Script(tokens=("a", "b", "c"), drop=2)
    (data,) = dialect(dropped, "m").writes(dropped)
    assert whole.startswith(data)
    assert b'"b"' in data
    assert b'"c"' not in data


def test_openai_names_every_call_by_its_place_and_says_why_it_stopped():
    called = Script(calls=(("id0", "read", b'{"a":1}'), ("id1", "list", b"{}")), tokens=("ok",))
    chunks = data_of(openai(called, "m/x"), called)
    assert {chunk["model"] for chunk in chunks} == {"m/x"}
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    calls = [call for choice in choices for call in choice["delta"].get("tool_calls", [])]
    assert [(c["index"], c["id"], c["function"]) for c in calls] == [
        (0, "id0", {"name": "read", "arguments": '{"a":1}'}),
        (1, "id1", {"name": "list", "arguments": "{}"}),
    ]
    assert choices[-1]["finish_reason"] == "tool_calls"


def test_anthropic_opens_and_closes_a_block_for_every_call():
    called = Script(calls=(("id0", "read", b'{"a":1}'), ("id1", "list", b"{}")), tokens=("ok",))
    events = data_of(anthropic(called, "m"), called)
    assert [event["type"] for event in events] == [
        "message_start",
        *["content_block_start", "content_block_delta", "content_block_stop"] * 2,
        "message_delta",
        "message_stop",
    ]
    assert [event["index"] for event in events if event["type"] == "content_block_start"] == [0, 1]
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
