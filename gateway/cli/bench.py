"""`triops bench`: hands its arguments to the measuring floor, which knows them."""

import click


@click.command(
    short_help="Measure chat latency and start-up.",
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> int | None:
    """Measure chat latency and start-up."""
    import importlib

    return importlib.import_module("triops.bench.cli").main(list(arguments))
