"""What the commands print: tables for people, JSON for programs. Knows nothing of gateways.

Imports click and the standard library only: a command against a running gateway should be over in a quarter second.
"""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from triops.gateway.cli.failures import Failure
from triops.runtime.printable import ESCAPES

if TYPE_CHECKING:
    from triops.runtime.config_reader import Notice

F = TypeVar("F", bound=Callable[..., Any])

_ESCAPES = {code: seen for code, seen in ESCAPES.items() if chr(code) not in "\t\n"}


class Mode:
    """How this command's results and failures are written; click's context object."""

    as_json = False


def json_option(command: F) -> F:
    """Give a command `--json`; it holds for failures of its other arguments as well."""

    def chosen(context: click.Context, _: click.Parameter, value: bool) -> None:
        context.ensure_object(Mode).as_json |= value

    text = "Print JSON, errors too."
    return click.option("--json", is_flag=True, is_eager=True, expose_value=False, callback=chosen, help=text)(command)


def as_json() -> bool:
    """Whether the running command was asked for JSON."""
    return click.get_current_context().ensure_object(Mode).as_json


def show(payload: Any, human: str) -> None:
    """Print a result: `payload` with `--json`, else `human`."""
    click.echo(json_text(payload) if as_json() else printable(human))


def show_failure(failure: Failure, mode: Mode) -> None:
    """Print to stderr why the command failed, and what to do next."""
    human = f"triops: {failure.message}" + (f"\n{failure.hint}" if failure.hint else "")
    click.echo(json.dumps({"error": failure.error}, ensure_ascii=False) if mode.as_json else printable(human), err=True)


def show_warnings(notices: Iterable["Notice | str"]) -> None:
    """Print to stderr what is wrong and stops nothing; with `--json` it is left to the log."""
    if not as_json():
        for notice in notices:
            if isinstance(notice, str) or notice.level == "warning":
                click.echo(printable(f"triops: warning: {notice}"), err=True)


def json_text(payload: Any) -> str:
    return json.dumps(payload, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None)


def parse_json(text: str, option: str) -> dict[str, Any]:
    """The object that an option's value says."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"{option} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise click.UsageError(f"{option} must be a JSON object, such as {{}}")
    return cast("dict[str, Any]", value)


def table(rows: Sequence[Sequence[object]], *head: str) -> str:
    """Rows under their heads, in columns as wide as their widest cell."""
    cells = [head, *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)


def _cell(value: object) -> str:
    return "-" if value is None or value == "" else " ".join(str(value).split())


def time_text(ms: int | None) -> str | None:
    """Epoch milliseconds as local time to the second."""
    return None if ms is None else datetime.fromtimestamp(ms / 1000).strftime("%Y-%m-%d %H:%M:%S")


def printable(text: str) -> str:
    """`text` with control characters made visible: a model's or a peer's words must not steer a terminal."""
    return text.translate(_ESCAPES)
