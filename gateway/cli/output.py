"""What the commands print: tables for people, JSON for programs, failures that name the next step.

Imports click and the standard library only: a command against a running gateway should be over in a quarter second.
"""

import enum
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn, TypeVar, cast

import click

F = TypeVar("F", bound=Callable[..., Any])

_CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in (0x09, 0x0A)}


class Exit(enum.IntEnum):
    """What a process of ours says at its end."""

    OK = 0
    FAILED = 1
    USAGE = 2
    RUNNING = 75
    PORT_TAKEN = 76
    CONFIG = 78
    INTERRUPTED = 130


class Failure(Exception):
    """Ends the command: `message` says what is wrong, `hint` what to do next, `error` is the gateway's own object."""

    def __init__(
        self, message: str, hint: str = "", *, exit_code: int = Exit.FAILED, error: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code
        self.error = error or {"code": exit_code.name if isinstance(exit_code, Exit) else "FAILED"}


class Mode:
    """How this command's results and failures are written; click's context object."""

    as_json = False


def json_option(command: F) -> F:
    """Give a command `--json`; it holds for failures of its other arguments as well."""

    def chosen(context: click.Context, _: click.Parameter, value: bool) -> None:
        context.ensure_object(Mode).as_json |= value

    option = click.option(
        "--json", is_flag=True, is_eager=True, expose_value=False, callback=chosen, help="Print JSON, errors too."
    )
    return option(command)


def as_json() -> bool:
    """Whether the running command was asked for JSON."""
    return click.get_current_context().ensure_object(Mode).as_json


def show(payload: Any, human: str) -> None:
    """Print a result: `payload` with `--json`, else `human`."""
    click.echo(json_text(payload) if as_json() else printable(human))


def json_text(payload: Any) -> str:
    return json.dumps(payload, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None)


def show_failure(failure: Failure, mode: Mode) -> None:
    if mode.as_json:
        error = {**failure.error, "message": failure.message} | ({"hint": failure.hint} if failure.hint else {})
        click.echo(json.dumps({"error": error}, ensure_ascii=False), err=True)
    else:
        click.echo(printable(f"triops: {failure.message}" + (f"\n{failure.hint}" if failure.hint else "")), err=True)


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
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def _cell(value: object) -> str:
    return "-" if value is None or value == "" else " ".join(str(value).split())


def time_text(ms: int | None) -> str | None:
    """Epoch milliseconds as local time to the second."""
    return None if ms is None else datetime.fromtimestamp(ms / 1000).strftime("%Y-%m-%d %H:%M:%S")


def printable(text: str) -> str:
    """`text` with control characters made visible: a model's or a peer's words must not steer a terminal."""
    return text.translate(_CONTROL)


def refuse_config(error: Exception) -> NoReturn:
    """End the command because of the configuration or the state folder."""
    raise Failure(str(error), exit_code=Exit.CONFIG) from error
