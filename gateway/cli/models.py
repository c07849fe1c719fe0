"""`triops models`: what can be talked to, and the demonstration model."""

from typing import Any

import click

from triops.gateway.cli import models_test
from triops.gateway.cli.failures import Failure
from triops.gateway.cli.output import as_json, json_option, show, table
from triops.gateway.cli.rpc import Gateway, gateway_options


@click.group(short_help="List models, and add the demonstration model.")
def command() -> None:
    """Models that the assistant can use."""


command.add_command(models_test.command)


@command.command("list")
@gateway_options
def list_(gateway: Gateway) -> None:
    """List the models that the gateway knows."""
    payload = gateway.call("models.list", {})
    rows = [
        (
            model_ref(model),
            model.get("alias"),
            model.get("contextWindow"),
            _state(model),
            ", ".join(model.get("tags", ())),
        )
        for model in payload["models"]
    ]
    none = "No models. Configure one, start a local server (Ollama, LM Studio, llama.cpp), or: triops models add demo"
    show(payload, table(rows, "MODEL", "ALIAS", "CONTEXT", "STATE", "TAGS") if rows else none)


@command.command()
@click.argument("what", type=click.Choice(["demo"]))
@json_option
def add(what: str) -> None:
    """Install a model: `demo` is a small one that runs in this process's care (130 MB to download)."""
    from triops.agents.providers.demo import InstallError, install_demo

    try:
        install_demo(lambda line: None if as_json() else click.echo(line))
    except InstallError as error:
        raise Failure(str(error)) from None
    show({"installed": what}, f"The model {what} is installed. Try it: triops chat")


def model_ref(model: dict[str, Any]) -> str:
    return f"{model['provider']}/{model['id']}"


def _state(model: dict[str, Any]) -> str:
    return "available" if model.get("available", True) else "unavailable"
