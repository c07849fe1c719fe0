import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triops.agents.providers.written import HELD, WrittenReader

TEXT = {"type": "string"}
TOOLS: dict[str, Any] = {"read": {"properties": {"path": TEXT, "lines": {"type": "integer"}}}, "list": {}}
CALL = '{"name": "read", "arguments": {"path": "1"}}'

Found = list[tuple[str, Any]]


def read(text: str, cuts: list[int] | None = None, tools: dict[str, Any] = TOOLS) -> Found:
    """The parts of a reply that comes in the pieces that `cuts` make; neighbours of one kind as one."""
    reader = WrittenReader(tools)
    found: Found = []
    places = cuts or []
    parts = [
        part
        for a, b in zip([0, *places], [*places, len(text)], strict=True)
        for part in reader.feed(text[a:b])
        if part[1]
    ]
    for kind, words, arguments in [*parts, *reader.end()]:
        if kind == "call":
            found.append((words, json.loads(arguments)))
        elif found and found[-1][0] == kind:
            found[-1] = (kind, found[-1][1] + words)
        else:
            found.append((kind, words))
    return found


ONE = [("read", {"path": "1"})]
DIALECTS = {
    "hermes": (f"<tool_call>\n{CALL}\n</tool_call>", ONE),
    "hermes without an end": (f"<tool_call>{CALL}", ONE),
    "several": (f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>", [*ONE, ("text", "\n"), *ONE]),
    "several in one": (f"<tool_call>{CALL}\n{CALL}</tool_call>", ONE * 2),
    "words before": (f"I look.\n<tool_call>{CALL}</tool_call>", [("text", "I look.\n"), *ONE]),
    "parameters": ('<|python_tag|>{"name": "read", "parameters": {"path": "1"}}<|eom_id|>', ONE),
    "a list": (f"[TOOL_CALLS][{CALL}, {CALL}]", ONE * 2),
    "a name and arguments": ('[TOOL_CALLS]read[ARGS]{"path": "1"}', ONE),
    "tags": (
        "<tool_call>\n<function=read>\n<parameter=path>\n1\n</parameter>\n<parameter=lines>\n2\n</parameter>\n"
        "</function>\n</tool_call>",
        [("read", {"path": "1", "lines": 2})],
    ),
    "tags alone": ("<function=read><parameter=path>1</parameter></function>", ONE),
    "bare": (CALL, ONE),
    "bare in a fence": (f"```json\n{CALL}\n```", ONE),
    "bare as a function": ('{"type": "function", "function": {"name": "read", "arguments": {"path": "1"}}}', ONE),
    "arguments in a text": ('<tool_call>{"name": "read", "arguments": "{\\"path\\": \\"1\\"}"}</tool_call>', ONE),
    "after a thought": (f"<think>\nhm\n</think>\n\n<tool_call>{CALL}</tool_call>", [("thinking", "\nhm"), *ONE]),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_call_is_read_in_every_dialect_wherever_it_is_cut(dialect: str):
    text, expected = DIALECTS[dialect]
    assert read(text) == expected
    assert read(text, list(range(1, len(text)))) == expected


@given(st.sampled_from(sorted(DIALECTS)), st.data())
def test_the_cuts_do_not_matter(dialect: str, data: st.DataObject):
    text, expected = DIALECTS[dialect]
    assert read(text, sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))) == expected


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "a < b and [c] and <tool",
        '<tool_call>{"name": "unknown", "arguments": {}}</tool_call> said',
        "<tool_call>not JSON</tool_call>",
        '{"name": "Ada", "born": 1815}',
        '{"answer": 42, "because": "it is the answer to everything"}',
        "```json\n[1]\n```",
        "`read` it",
        "[TOOL_CALLS]",
        "I <think> so",
    ],
)
def test_what_is_no_call_stays_text_to_the_letter(text: str):
    assert read(text) == read(text, list(range(1, len(text)))) == [("text", text)]


def test_without_tools_nothing_is_a_call():
    text = f"<tool_call>{CALL}</tool_call>"
    assert read(text, tools={}) == read(text, [3], tools={}) == [("text", text)]


def test_thinking_goes_on_until_it_ends_and_an_empty_one_is_none():
    reader = WrittenReader({})
    assert reader.feed("<think>I am") == [("thinking", "I am", "")]
    assert reader.feed(" not done</thi") == [("thinking", " not done", "")]
    assert reader.feed("nk>\n\nHi") == [("text", "Hi", "")]
    assert read("<think>\n\n</think>\n\nHi") == [("text", "Hi")]
    assert read("<think>cut off") == [("thinking", "cut off")]


def test_what_is_held_back_has_a_limit():
    reader = WrittenReader(TOOLS)
    told = sum(len(words) for _ in range(40) for _, words, _ in reader.feed("[TOOL_CALLS]" + "x" * (HELD // 20)))
    assert told > HELD
