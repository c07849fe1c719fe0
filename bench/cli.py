"""The command line of `triops bench`. Imports what a subcommand needs when it runs."""

import math
import shlex
import signal
from collections.abc import Awaitable, Callable, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from triops.bench.errors import BenchFailed
from triops.gateway.cli.failures import Exit, Failure
from triops.gateway.cli.output import as_json, json_option
from triops.gateway.cli.process import stop_signals

if TYPE_CHECKING:
    from triops.bench.subjects import Targets


@click.group(short_help="Measure what a person waits for.")
def bench() -> None:
    """Measure an assistant's gateway: what a person waits for, and where the time goes."""


Command = Callable[..., None]
TARGETS = (
    click.option("--url", default="", help="A gateway that runs already; else this project's is started."),
    click.option("--token", default="", help="Its shared token."),
    click.option("--start", "command", default="", help="Start that gateway; {model} in it is the mock model's URL."),
    click.option(
        "--model", default="", help="The mock model that the gateway at --url uses (python -m triops.bench.mock_model)."
    ),
    click.option("--endpoint", default="", help="A real model in the mock's place: its OpenAI-compatible base URL."),
    click.option("--endpoint-model", default="", help="Its name there; a key is read from TRIOPS_BENCH_KEY."),
)
BESIDE = (
    click.option("--in-process", is_flag=True, help="Also this project's gateway in the generator's process."),
    click.option("--bare", is_flag=True, help="Also the model's endpoint alone."),
)
NO_FLOOR = click.option("--no-floor", is_flag=True, help="Leave out the floor.")
OUT = click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Write runs.jsonl, summary and report there."
)


def _scenario(*options: Callable[[Command], Command], floor: bool = True) -> Callable[[Command], click.Command]:
    """A subcommand with the options of every scenario; its function gets `targets` for those of the subject."""

    def decorate(function: Command) -> click.Command:
        @wraps(function)
        def with_targets(
            url: str,
            token: str,
            command: str,
            model: str,
            endpoint: str,
            endpoint_model: str,
            no_floor: bool = True,
            in_process: bool = False,
            bare: bool = False,
            **rest: Any,
        ) -> None:
            from triops.bench.subjects import Targets

            if bool(endpoint) != bool(endpoint_model) or (endpoint and model):
                raise click.UsageError("--endpoint and --endpoint-model go together, and without --model")
            targets = Targets(url, token, model, not no_floor, in_process, bare, command, endpoint, endpoint_model)
            function(targets, **rest)

        made: Command = with_targets
        for option in reversed([*options, *TARGETS, OUT, json_option, *([NO_FLOOR] if floor else [])]):
            made = option(made)
        return bench.command(name=function.__name__.replace("_", "-"))(made)

    return decorate


def _turns(default: int) -> Callable[[Command], Command]:
    return click.option(
        "--turns", default=default, show_default=True, type=click.IntRange(1), help="Per scenario and subject."
    )


@_scenario(
    _turns(600),
    click.option("--concurrency", default="1", show_default=True, help="Sessions at once, one scenario each."),
    click.option("--history", default=0, type=click.IntRange(0), help="Also in a session of that many messages."),
    click.option("--paced", is_flag=True, help="Also with a model that takes 10 ms a token."),
    *BESIDE,
)
def chat(targets: "Targets", turns: int, concurrency: str, history: int, paced: bool, out: Path | None) -> None:
    """Chat latency: ack, first delta, final, and the overhead over the model's own time."""
    from triops.bench.chat import measure

    _report(partial(measure, targets, turns, _counts(concurrency), paced=paced, history=history), out)


@_scenario(
    _turns(600),
    click.option("--sessions", default="1,4,16,64,256", show_default=True, help="Sessions at once, each in turn."),
    click.option("--rate", default="", help="Also arrivals a second that wait for nobody, for example 50,100."),
    *BESIDE,
)
def concurrency(targets: "Targets", turns: int, sessions: str, rate: str, out: Path | None) -> None:
    """Latency and turns a second with many sessions, in closed and open loops."""
    from triops.bench.concurrency import measure

    rates = _counts(rate, "--rate") if rate else ()
    _report(partial(measure, targets, turns, _counts(sessions, "--sessions"), rates), out)


@_scenario(click.option("--runs", default=5, show_default=True, type=click.IntRange(1), help="Pairs of starts."))
def first_turn(targets: "Targets", runs: int, out: Path | None) -> None:
    """The first turn after a start, at once and warmed up, the second, and warm ones."""
    from triops.bench.first_turn import measure

    _report(partial(measure, targets, runs), out)


@_scenario(
    _turns(50),
    click.option(
        "--message",
        help="To the model; else its mock is asked for a long answer. Children are started by a tool, which this"
        """ project's gateway has none of; one of another is called with 'CALL:exec {"command":"sleep 60"}'.""",
    ),
    floor=False,
)
def abort(targets: "Targets", turns: int, message: str | None, out: Path | None) -> None:
    """From chat.abort to its ack, to the terminal event, and until the turn's child processes are gone."""
    from triops.bench.abort import LONG_ANSWER, measure

    _report(partial(measure, targets, turns, LONG_ANSWER if message is None else message), out)


@_scenario(_turns(50), floor=False)
def reconnect(targets: "Targets", turns: int, out: Path | None) -> None:
    """From a lost line to the hello, and to the answer that came meanwhile."""
    from triops.bench.reconnect import measure

    _report(partial(measure, targets, turns), out)


@_scenario(
    click.option(
        "--jobs", default=20, show_default=True, type=click.IntRange(1, 25), help="A gateway takes 30 changes a minute."
    ),
    floor=False,
)
def cron(targets: "Targets", jobs: int, out: Path | None) -> None:
    """How late jobs start and finish, counted from their time."""
    from triops.bench.cron import measure

    _report(partial(measure, targets, jobs), out)


@_scenario(_turns(10_000))
def memory(targets: "Targets", turns: int, out: Path | None) -> None:
    """Resident memory of the process tree on the way through many turns."""
    from triops.bench.memory import measure

    _report(partial(measure, targets, turns), out)


@bench.command()
@click.option("--runs", default=10, show_default=True, type=click.IntRange(1), help="Starts of each subject.")
@click.option("--turns", default=1_000, show_default=True, type=click.IntRange(1), help="Before memory is read again.")
@OUT
@json_option
@NO_FLOOR
def start(runs: int, turns: int, out: Path | None, no_floor: bool) -> None:
    """Process start to hello-ok by phase, imports, CLI commands, memory."""
    from triops.bench.start import measure

    _report(partial(measure, runs, turns, floor=not no_floor), out)


@bench.command()
@json_option
def gauges() -> None:
    """Fan-out, idle clients, commits, the longest step of a task, the CPU of a chunk: for our own use."""
    from triops.bench.gauges import run

    _guard(lambda: run(as_json=as_json()))


@bench.command()
@click.option("--pairs", default=300, show_default=True, type=click.IntRange(1), help="Of turns, for each place.")
@json_option
def selfcheck(pairs: int) -> None:
    """Whether 5 ms are found where they are put, here and now; fails if not."""
    from triops.bench.selfcheck import run

    _guard(lambda: run(pairs, as_json=as_json()))


@bench.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--threshold", type=click.FloatRange(0, min_open=True), help="Fail past it, for example 1.10.")
@click.option("--metric", help="The one that must not pass it.  [default: overhead_in_floors]")
@json_option
def compare(a: Path, b: Path, threshold: float | None, metric: str | None) -> None:
    """What B is in parts of A (folders that --out wrote), with 99 % intervals.

    With --threshold it fails if a median of B is more than that many of A's, and the whole interval says so.
    """
    from triops.bench.compare import run

    if threshold is not None and not math.isfinite(threshold):
        raise click.BadParameter(f"{threshold} is no bound; write for example 1.10", param_hint="--threshold")
    _guard(lambda: run(a, b, threshold=threshold, metric=metric, as_json=as_json()))


@bench.command()
@click.argument("folders", type=click.Path(path_type=Path), nargs=-1, required=True)
def table(folders: Sequence[Path]) -> None:
    """Saved results (folders that --out wrote) as Markdown, with date, machine and command."""
    from triops.bench.output import read_summary
    from triops.bench.report import markdown

    def show() -> None:
        for report in list(map(read_summary, folders)):
            print(markdown(report.command, report.machine, report.results), end="\n\n")

    _guard(show)


def _report(measure: Callable[[], Awaitable[Any]], out: Path | None) -> None:
    from triops.bench.scenario import run

    _guard(lambda: run(measure, _command(), out=out, as_json=as_json()))


def _command() -> str:
    """The running command as it can be typed again, without its token and where its results went."""
    context = click.get_current_context()
    words, token = context.command_path.split(), context.params.get("token") or "\0"
    for option in context.command.params:
        name, value = option.name or "", context.params.get(option.name or "")
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE and name not in ("token", "out", "json"):
            words += [option.opts[0], *([] if value is True else [str(value).replace(token, "TOKEN")])]
    return shlex.join(words)


def _counts(text: str, option: str = "--concurrency") -> tuple[int, ...]:
    parts = text.split(",")
    for part in parts:
        if not part.isdecimal() or int(part) < 1:
            what = "arrivals a second" if option == "--rate" else "sessions"
            raise click.BadParameter(f"{part!r} is not a number of {what}; write for example 1,16", param_hint=option)
    return tuple(map(int, parts))


def _interrupt(number: int, frame: object) -> None:
    signal.raise_signal(signal.SIGINT)


def _guard(measure: Callable[[], None]) -> None:
    """Say a failed measurement in words; what is nobody's failure but ours keeps its traceback.

    What asks this process to end is taken for Ctrl-C, with which the children end too.
    """
    before = {number: signal.signal(number, _interrupt) for number in stop_signals()}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background job ignores it, and Trio with it
    try:
        measure()
    except (BenchFailed, KeyboardInterrupt, BaseExceptionGroup) as error:
        group = BaseExceptionGroup[BaseException]("", [error])
        if group.subgroup(KeyboardInterrupt):
            raise Failure("interrupted", code=Exit.INTERRUPTED) from error
        failed, other = group.split(BenchFailed)
        if failed is None or other is not None:
            raise
        while isinstance(failed, BaseExceptionGroup):
            failed = failed.exceptions[0]
        raise Failure(str(failed)) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
