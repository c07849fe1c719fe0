"""`triops logs`: the gateway's log, through the gateway while it runs and from its file when it does not."""

import json
import time
from typing import Any

import click

from triops.gateway.cli.failures import Failure
from triops.gateway.cli.output import as_json, printable
from triops.gateway.cli.rpc import Gateway, gateway_options

FOLLOW_SECONDS = 0.5
_FIXED = ("time", "level", "subsystem", "message", "trace")


@click.command(short_help="Show what the gateway logged.")
@click.option("--limit", type=click.IntRange(1, 5000), default=100, show_default=True, help="Lines to begin with.")
@click.option("--follow", "-f", is_flag=True, help="Go on with what is logged from now on, until Ctrl-C.")
@gateway_options
def command(gateway: Gateway, limit: int, follow: bool) -> None:
    """Show the end of the log; with --json, its lines as they are."""
    tail = _tail(gateway, {"limit": limit})
    _print(tail["lines"])
    while follow:
        time.sleep(FOLLOW_SECONDS)
        tail = _tail(gateway, {"cursor": tail["cursor"]})
        _print(tail["lines"])


def _tail(gateway: Gateway, params: dict[str, int]) -> dict[str, Any]:
    if gateway.is_known:
        return gateway.call("logs.tail", params)
    import msgspec

    from triops.runtime.logs import LogFile

    with LogFile(gateway.paths.logs) as file:
        if not file.path.exists():
            raise Failure(
                f"no gateway runs, and there is no log in {gateway.paths.logs}", "Start one: triops gateway start"
            )
        return msgspec.to_builtins(file.tail(params.get("cursor"), limit=params.get("limit", 500)))


def _print(lines: list[str]) -> None:
    for line in lines:
        click.echo(line if as_json() else _for_people(line))


def _for_people(line: str) -> str:
    """`12:00:00 warn  gateway: refused a connection  reason=origin`; a line that is no record stays as it is."""
    try:
        record = json.loads(line)
        time_, level, subsystem, message = (record[name] for name in _FIXED[:4])
    except (ValueError, KeyError, TypeError):
        return printable(line)
    fields = "".join(f"  {key}={_value(value)}" for key, value in record.items() if key not in _FIXED)
    return printable(f"{time_[11:19]} {level:<5} {subsystem}: {message}{fields}").replace("\n", "\\n")


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
