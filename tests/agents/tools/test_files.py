import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from triops.agents.errors import ToolError
from triops.agents.messages import ToolCall
from triops.agents.tool import AnyTool, ToolContext, ToolResult
from triops.agents.toolbox import Toolbox, output_limit
from triops.agents.tools.files import MAX_FILE, PAGE, Edit, apply_edits, file_tools


class Desk:
    """The file tools of one workspace, called as a model calls them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tools: dict[str, AnyTool] = {tool.name: tool for tool in file_tools(root)}

    async def call(self, name: str, **arguments: Any) -> ToolResult:
        tool = self.tools[name]
        context = ToolContext("r", "agent:main:main", "c", lambda text: None)
        return await tool.run(msgspec.convert(arguments, tool.args, strict=False), context)

    async def text(self, name: str, **arguments: Any) -> str:
        result = await self.call(name, **arguments)
        assert not result.is_error, result
        return words(result)

    async def error(self, name: str, **arguments: Any) -> str:
        result = await self.call(name, **arguments)
        assert result.is_error
        assert json.loads(words(result)) == result.details
        assert (result.details["status"], result.details["tool"]) == ("error", name)
        return result.details["error"]


def words(result: ToolResult) -> str:
    (block,) = result.content
    return getattr(block, "text", "")


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


async def test_a_missing_file_is_told_as_recorded(desk: Desk):
    result = await desk.call("read", path="does-not-exist.txt")
    path = json.dumps(str(desk.root / "does-not-exist.txt") + ".")[1:-1]
    assert words(result) == ('{\n  "status": "error",\n  "tool": "read",\n  "error": "File not found: ' + path + '"\n}')
    assert result.details == {
        "status": "error",
        "tool": "read",
        "error": f"File not found: {desk.root / 'does-not-exist.txt'}.",
    }


async def test_what_was_written_is_read_back(desk: Desk):
    assert await desk.text("write", path="notes/a.txt", content="héllo\nworld\n") == "Wrote 13 bytes to notes/a.txt."
    assert await desk.text("read", path="notes/a.txt") == "héllo\nworld\n"
    await desk.text("write", path="notes/a.txt", content="")
    assert await desk.text("read", path="notes/a.txt") == ""


async def test_lines_are_counted_from_one_and_the_rest_is_announced(desk: Desk):
    await desk.text("write", path="a", content="".join(f"line {n}\n" for n in range(1, 11)))
    assert await desk.text("read", path="a", offset=9) == "line 9\nline 10\n"
    assert await desk.text("read", path="a", offset="2", limit=2) == (
        "line 2\nline 3\n\n[lines 2-3 of 10; go on with offset=4]"
    )
    assert "past the end: a has 10 lines" in await desk.error("read", path="a", offset=11)


async def test_a_long_file_comes_in_pages_that_together_are_the_file(desk: Desk):
    content = "".join(f"{n} {'x' * (n % 90)}\n" for n in range(2_000))
    await desk.text("write", path="long", content=content)
    pages: list[str] = []
    offset = 1
    while True:
        page = await desk.text("read", path="long", offset=offset)
        assert len(page) <= output_limit(0), "a page is not cut again for a small model"
        text, mark, rest = page.partition("\n[lines ")
        pages.append(text)
        if not mark:
            break
        offset = int(rest.rpartition("=")[2].rstrip("]"))
    assert "".join(pages) == content
    assert len(pages) > 2


async def test_a_line_longer_than_a_page_is_cut(desk: Desk):
    await desk.text("write", path="long", content="x" * 40_000)
    page = await desk.text("read", path="long")
    assert page == "x" * PAGE + "\n[line 1 cut: 15,000 of 40,000 characters shown]"


async def test_what_is_no_text_is_refused_with_the_reason(desk: Desk):
    (desk.root / "latin").write_bytes(b"caf\xe9")
    (desk.root / "zero").write_bytes(b"a\0b")
    assert "latin is not UTF-8 at byte 3 of 4" in await desk.error("read", path="latin")
    assert "zero byte" in await desk.error("read", path="zero")
    assert "not UTF-8" in await desk.error("edit", path="latin", edits=[{"oldText": "c", "newText": "d"}])


async def test_files_past_the_limit_are_neither_read_nor_written(desk: Desk):
    with (desk.root / "huge").open("wb") as file:
        file.truncate(MAX_FILE + 1)
    assert "too large" in (await desk.error("read", path="huge")).lower()
    assert "too large" in (await desk.error("write", path="new", content="x" * (MAX_FILE + 1))).lower()
    assert not (desk.root / "new").exists()


async def test_edits_all_match_the_original(desk: Desk):
    await desk.text("write", path="a", content="one two three")
    edits = [{"oldText": "three", "newText": "one"}, {"oldText": "one", "newText": "three"}]
    assert await desk.text("edit", path="a", edits=edits) == "Replaced 2 pieces in a."
    assert (desk.root / "a").read_text() == "three two one"


@pytest.mark.parametrize(
    ("edits", "reason"),
    [
        ([("nine", "x")], "edits[0].oldText is not in the file"),
        ([("two", "x"), ("o", "x")], "edits[1].oldText stands more than once"),
        ([("aa", "x")], "edits[0].oldText stands more than once"),
        ([("two three", "x"), ("one two", "y")], "overlaps"),
    ],
)
async def test_an_edit_that_is_not_clear_changes_nothing(desk: Desk, edits: list[tuple[str, str]], reason: str):
    original = "one two three aaa"
    await desk.text("write", path="a", content=original)
    error = await desk.error("edit", path="a", edits=[{"oldText": old, "newText": new} for old, new in edits])
    assert reason in error
    assert (desk.root / "a").read_text() == original


def test_edits_in_files_with_carriage_returns_keep_them():
    original = "one\r\ntwo\r\nthree\r\n"
    assert apply_edits(original, [Edit("one\ntwo", "1\n2")]) == "1\r\n2\r\nthree\r\n"
    assert apply_edits(original, [Edit("one\r\n", "")]) == "two\r\nthree\r\n"
    with pytest.raises(ToolError):
        apply_edits("one\ntwo", [Edit("one\r\ntwo", "x")])


@pytest.mark.slow
@given(
    st.lists(st.tuples(st.text("abc \n", max_size=5), st.text("xyz\n", max_size=5)), min_size=1, max_size=6),
    st.randoms(),
)
def test_edits_of_unique_pieces_give_what_replacing_each_would(pieces: list[tuple[str, str]], random: Any):
    marked = [(f"<{index}{old}>", new) for index, (old, new) in enumerate(pieces)]
    original = "-".join(old for old, _ in marked)
    edits = [Edit(old, new) for old, new in marked]
    random.shuffle(edits)
    assert apply_edits(original, edits) == "-".join(new for _, new in marked)


async def test_edits_of_two_calls_at_once_are_both_there(desk: Desk):
    await desk.text("write", path="a", content="".join(f"<{n}>" for n in range(8)))
    async with trio.open_nursery() as nursery:
        for n in range(8):
            edits = [{"oldText": f"<{n}>", "newText": f"[{n}]"}]
            nursery.start_soon(lambda edits=edits: desk.text("edit", path="a", edits=edits))
    assert (desk.root / "a").read_text() == "".join(f"[{n}]" for n in range(8))


async def test_no_tool_leaves_the_workspace(desk: Desk, tmp_path: Path):
    outside = tmp_path.with_name(tmp_path.name + "-outside")
    outside.write_text("secret")
    for path in (f"../{outside.name}", str(outside), "a/../../" + outside.name):
        assert "outside the workspace" in await desk.error("read", path=path)
        assert "outside the workspace" in await desk.error("write", path=path, content="x")
        edits = [{"oldText": "secret", "newText": "x"}]
        assert "outside the workspace" in await desk.error("edit", path=path, edits=edits)
    assert outside.read_text() == "secret"


async def test_a_cancelled_write_is_whole_or_not_there(desk: Desk):
    with trio.CancelScope() as scope:
        scope.cancel()
        await desk.call("write", path="a", content="x" * 100_000)
    assert os.listdir(desk.root) in ([], ["a"])
    if os.listdir(desk.root):
        assert (desk.root / "a").stat().st_size == 100_000


async def test_a_model_that_forgets_an_argument_hears_which(desk: Desk):
    toolbox = Toolbox(
        tools=desk.tools,
        run_id="r",
        session_key="s",
        limit=16_000,
        emit=lambda event: None,
        report=lambda call, error: None,
        now=lambda: 1,
    )
    calls = [ToolCall("a", "edit", {"path": "a", "edits": [{"oldText": "x"}]}), ToolCall("b", "read", {"path": ""})]
    missing, blank = await toolbox.run(calls, lambda: False)
    assert "newText" in missing.text
    assert "$.path" in blank.text


def test_the_schemas_say_what_each_argument_is():
    schemas = {tool.name: tool.schema.parameters for tool in file_tools(Path())}
    assert list(schemas) == ["read", "write", "edit"]
    assert schemas["read"]["required"] == ["path"]
    assert schemas["edit"]["properties"]["edits"]["items"]["required"] == ["oldText", "newText"]
    for schema in schemas.values():
        assert all("description" in json.dumps(field) for field in schema["properties"].values())
