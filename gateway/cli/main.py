"""The `triops` command: which subcommands there are, and what happens to whatever ends them.

A subcommand's module is imported when it runs, so that `triops --help` and `--version` load click and nothing else.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

import click
from click.exceptions import NoArgsIsHelpError

from triops import __version__
from triops.gateway.cli.failures import Exit, Failure, failure_of
from triops.gateway.cli.output import Mode, show_failure

COMMANDS = {
    "chat": "Talk to the assistant: once, from a pipe, or back and forth.",
    "gateway": "Run, start, stop, look at and call the gateway.",
    "cron": "Add, list, run and remove scheduled jobs.",
    "sessions": "List sessions and send to them.",
    "devices": "List, let in and shut out devices.",
    "connect-info": "Show what a program or a phone needs to connect.",
    "models": "List, choose and add models.",
    "logs": "Show what the gateway logged.",
    "bench": "Measure what a person waits for.",
}
"""Name of the command, which is its module's with `-` for `_`, and what it is for."""


class LazyGroup(click.Group):
    """The commands of `COMMANDS`, each imported when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f"triops.gateway.cli.{cmd_name.replace('-', '_')}").command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and (near := difflib.get_close_matches(args[0], COMMANDS, n=1)):
            ctx.fail(f"No such command {args[0]!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="triops %(version)s")
def root() -> None:
    """A local assistant runtime with a gateway.

    State lies in ~/.triops (TRIOPS_STATE_DIR), the configuration in triops.json there (TRIOPS_CONFIG_PATH).
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process: 0, 1 failed, 2 usage, 75 running, 76 port taken, 78 configuration."""
    mode = Mode()
    try:
        code = root.main(arguments, prog_name="triops", obj=mode, standalone_mode=False)
    except NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        code = Exit.USAGE
    except click.UsageError as error:
        mode.as_json |= "--json" in (arguments or sys.argv)  # it may have failed before that option was read
        hint = f"{error.ctx.command_path} --help shows how." if error.ctx else ""
        show_failure(Failure(error.format_message(), hint, code=Exit.USAGE), mode)
        code = Exit.USAGE
    except (click.Abort, KeyboardInterrupt):
        code = Exit.INTERRUPTED
    except BrokenPipeError:  # `triops logs | head`: who read has seen enough
        sys.stdout = None
        code = Exit.OK
    except Exception as error:  # noqa: BLE001 - the end of the process; what is unknown is raised again
        failure = failure_of(error)
        show_failure(failure, mode)
        if isinstance(error, OSError):
            sys.stdout = None  # what it still holds would fail again at the end
        code = failure.code
    sys.exit(code or Exit.OK)


if __name__ == "__main__":
    main()
