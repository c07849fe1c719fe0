"""The file tools: `read`, `write` and `edit`, in the workspace only. Knows the words; `folder.py` keeps them inside."""

from collections.abc import Callable, Sequence
from io import StringIO
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

import msgspec
import trio

from triops.agents.errors import ToolError
from triops.agents.messages import Text
from triops.agents.tool import AnyTool, Tool, ToolContext, ToolResult, text_result
from triops.agents.tools.folder import Folder

MAX_FILE = 10 * 1024 * 1024
"""Bytes of a file that is read, written or edited."""
PAGE = 15_000
"""Characters that one `read` gives; with its last line it stays below the cap of the smallest models."""
READERS = 4  # threads; past it reads wait for one another

PathArg = Annotated[str, msgspec.Meta(description="Path of the file, relative to the workspace.", min_length=1)]


class ReadArgs(msgspec.Struct, frozen=True):
    path: PathArg
    offset: Annotated[int, msgspec.Meta(description="First line, counted from 1.", ge=1)] = 1
    limit: Annotated[int, msgspec.Meta(description="Number of lines.", ge=1)] | None = None


class WriteArgs(msgspec.Struct, frozen=True):
    path: PathArg
    content: Annotated[str, msgspec.Meta(description="The whole new content.")]


class Edit(msgspec.Struct, frozen=True, rename="camel"):
    old_text: Annotated[str, msgspec.Meta(description="Exact text that stands once in the file.", min_length=1)]
    new_text: Annotated[str, msgspec.Meta(description="What stands there instead.")]


class EditArgs(msgspec.Struct, frozen=True):
    path: PathArg
    edits: Annotated[
        list[Edit],
        msgspec.Meta(description="All are matched against the original; they may not overlap.", min_length=1),
    ]


_Work = Callable[[Folder, Any], str]


def file_tools(root: Path) -> tuple[AnyTool, ...]:
    """`read`, `write` and `edit` for the workspace at `root`, which writing makes if it is gone.

    A call that is cancelled waits for its disk: a file is changed or it is not. Changes through these tools follow
    one another, so that no edit is lost to another one. A file that has other names (hard links) is read; changed, it
    is a file of its own, and the other names keep what they had.
    """
    folder = Folder(root)
    reading = trio.CapacityLimiter(READERS)
    changing = trio.CapacityLimiter(1)

    def tool(
        name: str, description: str, kind: type[msgspec.Struct], work: _Work, limiter: trio.CapacityLimiter
    ) -> AnyTool:
        async def run(args: msgspec.Struct, context: ToolContext) -> ToolResult:
            try:
                return text_result(await trio.to_thread.run_sync(work, folder, args, limiter=limiter))
            except ToolError as error:
                return failure(name, str(error))

        return Tool(name, description, kind, run, parallel=limiter is reading)

    write = "Write a text file: make it, or replace all of it. Folders are made as needed."
    edit = "Replace pieces of a text file. Each oldText must match exactly and only once."
    return (
        tool("read", "Read a text file, or some of its lines.", ReadArgs, _read, reading),
        tool("write", write, WriteArgs, _write, changing),
        tool("edit", edit, EditArgs, _edit, changing),
    )


def failure(tool: str, words: str) -> ToolResult:
    """An error as clients know it: JSON for the model, the same as `details` (recorded in chat_tool.jsonl)."""
    details = {"status": "error", "tool": tool, "error": words}
    text = msgspec.json.format(msgspec.json.encode(details), indent=2).decode()
    return ToolResult((Text(text),), is_error=True, details=details)


def _read(folder: Folder, args: ReadArgs) -> str:
    lines = list(StringIO(_load(folder, args.path), newline="\n"))
    if args.offset > max(1, len(lines)):
        raise ToolError(f"Line {args.offset} is past the end: {args.path} has {len(lines)} lines.")
    first = args.offset - 1
    wanted = lines[first:] if args.limit is None else lines[first : first + args.limit]
    shown = sum(size <= PAGE for size in accumulate(map(len, wanted)))
    last = first + shown
    if wanted and not shown:  # no finer offset than a line
        return f"{wanted[0][:PAGE]}\n[line {args.offset} cut: {PAGE:,} of {len(wanted[0]):,} characters shown]"
    text = "".join(wanted[:shown])
    if last == len(lines):
        return text
    return f"{text}\n[lines {args.offset}-{last} of {len(lines)}; go on with offset={last + 1}]"


def _write(folder: Folder, args: WriteArgs) -> str:
    return f"Wrote {_store(folder, args.path, args.content)} bytes to {args.path}."


def _edit(folder: Folder, args: EditArgs) -> str:
    changed = apply_edits(_load(folder, args.path), args.edits)
    _store(folder, args.path, changed)
    return f"Replaced {len(args.edits)} {'piece' if len(args.edits) == 1 else 'pieces'} in {args.path}."


def apply_edits(original: str, edits: Sequence[Edit]) -> str:
    """`original` with each edit's one match replaced.

    Models write `\\n`; where a file has `\\r\\n`, an edit that does not match as written is tried with these.

    Raises:
        ToolError: a text is missing, stands more than once, or overlaps another edit's.
    """
    matches = sorted(_match(original, index, edit) for index, edit in enumerate(edits))
    pieces: list[str] = []
    end = 0
    for start, stop, index, new_text in matches:
        if start < end:
            raise ToolError(f"edits[{index}] overlaps another edit; make them one.")
        pieces += (original[end:start], new_text)
        end = stop
    return "".join((*pieces, original[end:]))


def _match(original: str, index: int, edit: Edit) -> tuple[int, int, int, str]:
    old, new = edit.old_text, edit.new_text
    start = original.find(old)
    if start < 0 and "\r\n" in original:
        old, new = (text.replace("\r\n", "\n").replace("\n", "\r\n") for text in (old, new))
        start = original.find(old)
    if start < 0:
        raise ToolError(f"edits[{index}].oldText is not in the file; it must match exactly, blanks included.")
    if original.find(old, start + 1) >= 0:
        raise ToolError(f"edits[{index}].oldText stands more than once in the file; add lines around it.")
    return start, start + len(old), index, new


def _load(folder: Folder, path: str) -> str:
    data, size = folder.read(path, at_most=MAX_FILE + 1)
    if max(len(data), size) > MAX_FILE:
        raise ToolError(f"File too large: {path} has {size:,} bytes, the limit is {MAX_FILE:,}.")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ToolError(f"Not a text file: {path} is not UTF-8 at byte {error.start:,} of {size:,}.") from None
    if "\0" in text:
        raise ToolError(f"Not a text file: {path} has a zero byte ({size:,} bytes).")
    return text


def _store(folder: Folder, path: str, text: str) -> int:
    data = text.encode()
    if len(data) > MAX_FILE:
        raise ToolError(f"Too large: {len(data):,} bytes for {path}, the limit is {MAX_FILE:,}.")
    folder.write(path, data)
    return len(data)
