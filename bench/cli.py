"""The command line of `triops bench`. Imports what a subcommand needs when it runs."""

from collections.abc import Callable
from pathlib import Path

import click

from triops.bench.errors import BenchFailed
from triops.gateway.cli.failures import Failure
from triops.gateway.cli.output import as_json, json_option


@click.group(short_help="Measure chat latency and start-up.")
def bench() -> None:
    """Measure an assistant's gateway: what a person waits for, and where the time goes."""


@bench.command()
@click.option("--turns", default=600, show_default=True, type=click.IntRange(1), help="Per scenario and subject.")
@click.option("--concurrency", default="1,4,16,64", show_default=True, help="Sessions at once, one scenario each.")
@click.option("--url", default="", help="A gateway that runs already; else this project's is started.")
@click.option("--token", default="", help="Its shared token.")
@click.option(
    "--model", default="", help="The mock model that the gateway at --url uses (python -m triops.bench.mock_model)."
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Write runs.jsonl and summary.json there."
)
@json_option
@click.option("--no-floor", is_flag=True, help="Leave out the floor.")
def chat(turns: int, concurrency: str, url: str, token: str, model: str, out: Path | None, no_floor: bool) -> None:
    """Chat latency: ack, first delta, final, and the overhead over the model's own time."""
    from triops.bench.chat import Options, run

    counts = tuple(_count(part) for part in concurrency.split(","))
    options = Options(turns=turns, concurrency=counts, url=url, token=token, model=model, floor=not no_floor)
    _guard(lambda: run(options, out=out, as_json=as_json()))


@bench.command()
@click.option("--runs", default=10, show_default=True, type=click.IntRange(1), help="Starts of each subject.")
@click.option("--turns", default=1_000, show_default=True, type=click.IntRange(1), help="Before memory is read again.")
@json_option
@click.option("--no-floor", is_flag=True, help="Leave out the floor.")
def start(runs: int, turns: int, no_floor: bool) -> None:
    """Process start to hello-ok by phase, imports, CLI commands, memory."""
    from triops.bench.start import Options, run

    _guard(lambda: run(Options(runs=runs, turns=turns, floor=not no_floor), as_json=as_json()))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise click.BadParameter(
            f"{text!r} is not a number of sessions; write for example 1,16", param_hint="--concurrency"
        )
    return int(text)


def _guard(measure: Callable[[], None]) -> None:
    """Say a failed measurement in words; what is nobody's failure but ours keeps its traceback."""
    try:
        measure()
    except BenchFailed as error:
        raise Failure(str(error)) from error
    except BaseExceptionGroup as group:
        failed, other = group.split(BenchFailed)
        if failed is None or other is not None:
            raise
        while isinstance(failed, BaseExceptionGroup):
            failed = failed.exceptions[0]
        raise Failure(str(failed)) from group
