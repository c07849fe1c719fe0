from datetime import date
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triops.agents.model import Compat, ModelInfo, ModelRef
from triops.agents.prompt import (
    DEMO_HISTORY,
    MAX_PROJECT,
    AgentFacts,
    Mode,
    Plan,
    compile_plan,
    history_budget,
)
from triops.agents.tool import AnyTool, Tool, ToolContext, ToolResult, text_result
from triops.agents.transcript import text_tokens
from triops.agents.workspace import BootstrapFile, WorkspaceSnapshot

MODEL = ModelInfo(ref=ModelRef("openai", "gpt-5.5"), context_window=200_000)
AGENT = AgentFacts(id="main", host="box", os="Linux 6.1", time_zone="Europe/Berlin", instructions="Speak Latin.")
DAY = date(2026, 11, 22)


class Args(msgspec.Struct):
    path: str


async def run(args: Args, context: ToolContext) -> ToolResult:
    return text_result("")


TOOLS: list[AnyTool] = [
    Tool("read", "Read a text file. With all its lines.", Args, run),
    Tool("cron", "Plan jobs.", Args, run),
]


def workspace(**files: str) -> WorkspaceSnapshot:
    found = tuple(BootstrapFile(f"{name}.md", text) for name, text in files.items())
    return WorkspaceSnapshot("/home/me/workspace", (), found, ())


def plan(model: ModelInfo = MODEL, mode: Mode = "full", tools: list[AnyTool] = TOOLS, **files: str) -> Plan:
    return compile_plan(model, AGENT, workspace(**files), tools, mode, DAY)


def test_the_parts_stand_in_the_order_of_the_protocol():
    compiled = plan(AGENTS="be brief", SOUL="be kind", MEMORY="likes tea")
    system = compiled.system_for("agent:main:main")
    marks = [
        "You are Triops",
        "## Tools",
        "- read: Read a text file\n- cron: Plan jobs\n",
        "## Safety",
        "## Workspace\nYour folder is /home/me/workspace.",
        "# Project Context",
        "## /home/me/workspace/AGENTS.md\nbe brief",
        "SOUL.md\nbe kind",
        "MEMORY.md\nlikes tea",
        "Today is Sunday, 2026-11-22 (Europe/Berlin).",
        "## Conversation Context\nSpeak Latin.",
        "Runtime: session=agent:main:main | agent=main | host=box | os=Linux 6.1 | model=openai/gpt-5.5",
    ]
    places = [system.index(mark) for mark in marks]
    assert places == sorted(places)
    assert system.endswith(marks[-1])
    assert compiled.left_out == ()


def test_sessions_and_days_share_the_beginning_which_providers_cache():
    one = plan(AGENTS="x" * 1000).system_for("agent:main:main")
    two = compile_plan(MODEL, AGENT, workspace(AGENTS="x" * 1000), TOOLS, "full", date(2026, 11, 23))
    other = two.system_for("agent:main:direct:bob")
    assert one.partition("## Date")[0] == other.partition("## Date")[0]


def test_without_files_the_prompt_is_below_4000_characters():
    assert len(plan().system_for("agent:main:main")) < 4_000


def test_a_plan_has_the_tools_and_their_schemas():
    compiled = plan()
    assert list(compiled.tools) == ["read", "cron"]
    assert [schema.name for schema in compiled.schemas] == ["read", "cron"]
    assert compiled.schemas[0].parameters["required"] == ["path"]


def test_a_sub_agent_gets_only_agents_md():
    system = plan(mode="minimal", AGENTS="be brief", SOUL="be kind", BOOTSTRAP="hello").system
    assert "be brief" in system
    assert "be kind" not in system
    assert "BOOTSTRAP" not in system


def test_a_new_workspace_is_told_to_follow_its_bootstrap_file():
    assert "BOOTSTRAP.md is still there" in plan(BOOTSTRAP="Ask for a name.").system
    assert "BOOTSTRAP.md" not in plan(AGENTS="x").system


def test_a_demonstration_model_gets_250_tokens_and_neither_tools_nor_files():
    model = ModelInfo(ref=ModelRef("local", "smollm2"), context_window=8_192, max_tokens=512, demo=True)
    compiled = plan(model, AGENTS="be brief")
    assert text_tokens(compiled.system_for("agent:main:main")) <= 250
    assert "be brief" not in compiled.system
    assert (compiled.tools, compiled.schemas, compiled.history_tokens) == ({}, (), DEMO_HISTORY)
    assert compiled.left_out


def test_a_model_that_cannot_call_tools_gets_none_and_no_word_of_them():
    compiled = plan(msgspec.structs.replace(MODEL, compat=Compat(supports_tools=False)))
    assert (compiled.tools, compiled.schemas) == ({}, ())
    assert "## Tools" not in compiled.system
    assert "tools" in compiled.left_out[0]


def test_files_past_the_total_are_cut_then_left_out():
    compiled = plan(AGENTS="a" * 30_000, SOUL="b" * 29_000, USER="c" * 2_000, MEMORY="d" * 500)
    assert "a" * 30_000 in compiled.system
    assert "c" * 1_000 + "\n[cut" in compiled.system
    assert "d" * 100 not in compiled.system
    assert [line.partition(":")[0] for line in compiled.left_out] == ["USER.md", "MEMORY.md"]


def test_a_small_window_is_not_filled_with_files():
    small = msgspec.structs.replace(MODEL, context_window=8_000, max_tokens=2_000)
    compiled = plan(small, AGENTS="a" * 20_000)
    assert "a" * 8_000 + "\n[cut" in compiled.system
    assert compiled.history_tokens > 1_000
    assert any("AGENTS.md" in line for line in compiled.left_out)


def test_what_the_workspace_left_out_is_in_the_plan():
    snapshot = WorkspaceSnapshot("/w", (), (), ("SOUL.md: is a link",))
    assert compile_plan(MODEL, AGENT, snapshot, TOOLS, "full", DAY).left_out == ("SOUL.md: is a link",)


def test_braces_in_files_and_names_are_only_text():
    agent = msgspec.structs.replace(AGENT, host="{host}", instructions="{0} {tools}")
    compiled = compile_plan(MODEL, agent, workspace(AGENTS="{root} {}"), TOOLS, "full", DAY)
    system = compiled.system_for("agent:main:{x}")
    assert all(text in system for text in ("{root} {}", "{0} {tools}", "host={host}", "session=agent:main:{x}"))


@pytest.mark.parametrize(
    ("window", "max_tokens", "tokens"), [(200_000, 8_192, 171_808), (190_000, 190_000, 76_000), (4_096, 8_192, 1_638)]
)
def test_the_history_gets_what_reply_and_reserve_leave(window: int, max_tokens: int, tokens: int):
    model = msgspec.structs.replace(MODEL, context_window=window, max_tokens=max_tokens)
    assert history_budget(model, "", ()) == tokens


@pytest.mark.slow
@given(
    st.integers(1, 300_000),
    st.integers(1, 300_000),
    st.dictionaries(st.sampled_from(["AGENTS", "SOUL", "USER"]), st.text()),
)
def test_a_budget_is_never_negative_nor_more_than_the_window(window: int, max_tokens: int, files: dict[str, Any]):
    model = msgspec.structs.replace(MODEL, context_window=window, max_tokens=max_tokens)
    compiled = plan(model, **files)
    assert 0 <= compiled.history_tokens < window
    assert sum(map(len, files.values())) > MAX_PROJECT or len(compiled.system) < 8_000 + MAX_PROJECT
