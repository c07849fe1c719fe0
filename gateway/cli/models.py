"""`triops models`: what can be talked to, which of it is used, and files of one's own."""

import difflib
import re
from collections.abc import Callable
from typing import Any

import click

from triops.gateway.cli import models_test
from triops.gateway.cli.failures import Exit, Failure
from triops.gateway.cli.output import as_json, json_option, show, show_warnings, table
from triops.gateway.cli.rpc import Gateway, gateway_options

TAKEN_UP = "A gateway that runs takes it up within seconds."
agent_option = click.option("--agent", metavar="ID", help="For this agent instead of all.")


@click.group(short_help="List, choose and add models.")
def command() -> None:
    """Models that the assistant can use."""


command.add_command(models_test.command)


@command.command("list")
@click.option("--provider", help="Only those of this provider.")
@click.option("--configured", is_flag=True, help="Only those that the configuration names.")
@gateway_options
def list_(gateway: Gateway, provider: str | None, configured: bool) -> None:
    """List the models that the gateway knows."""
    wanted = {"provider": provider} if provider else {}
    payload = gateway.call("models.list", {**wanted, "view": "configured" if configured else "all"})
    rows = [
        (
            model_ref(model),
            model.get("alias"),
            model.get("contextWindow"),
            "available" if model.get("available", True) else model.get("unavailableReason", "unavailable"),
            ", ".join(model.get("tags", ())),
        )
        for model in payload["models"]
    ]
    none = "No models. Configure one, start a local server (Ollama, LM Studio, llama.cpp), or: triops models add demo"
    if wanted or configured:
        none = "No such models. triops models list shows all, triops models status why some are missing."
    show(payload, table(rows, "MODEL", "ALIAS", "CONTEXT", "STATE", "TAGS") if rows else none)


@command.command()
@gateway_options
def status(gateway: Gateway) -> None:
    """Show the default model, and how each provider stands: its state, its credential, and why."""
    _show_status(gateway)


@command.command()
@gateway_options
def scan(gateway: Gateway) -> None:
    """Ask every provider for its models now, and show how each answered."""
    gateway.call("models.list", {"refresh": True})
    _show_status(gateway)


def _show_status(gateway: Gateway) -> None:
    models: dict[str, Any] = gateway.call("status", {})["models"]
    auth = {row["provider"]: row for row in gateway.call("models.authStatus", {})["providers"]}
    tagged = {tag: model_ref(row) for row in gateway.call("models.list", {})["models"] for tag in row.get("tags", ())}
    fallbacks = [ref for tag, ref in sorted(tagged.items()) if tag.startswith("fallback#")]
    rows = [
        (
            each["provider"],
            each["state"],
            each["models"],
            auth[each["provider"]]["status"],
            each["reason"] or each["why"],
        )
        for each in models["providers"]
    ]
    why = models.get("fault") or models["why"]
    lines = [f"Default: {models['default']} ({why})" if models["default"] else "Default: none found"]
    lines += [f"Fallbacks: {', '.join(fallbacks)}"] if fallbacks else []
    lines += ["", table(rows, "PROVIDER", "STATE", "MODELS", "AUTH", "WHY")] if rows else []
    show({**models, "fallbacks": fallbacks, "auth": list(auth.values())}, "\n".join(lines))


@command.command("set")
@click.argument("model")
@agent_option
@json_option
def set_(model: str, agent: str | None) -> None:
    """Use MODEL (provider/model or alias) from now on; its fallbacks stay."""
    gateway = Gateway()
    if agent or "/" not in model or gateway.discovery is not None:  # else whoever reads the file says it
        _warn_of(gateway, model)

    def change(holder: dict[str, Any]) -> None:
        if isinstance(holder.get("model"), dict):
            holder["model"]["primary"] = model
        else:
            holder["model"] = model

    _edit(gateway, agent, change, f"model: {model!r}")
    show({"primary": model, "agent": agent}, f"The model is {model}. {TAKEN_UP}")


@command.command()
@click.argument("models", nargs=-1)
@click.option("--clear", is_flag=True, help="Have none.")
@agent_option
@json_option
def fallbacks(models: tuple[str, ...], clear: bool, agent: str | None) -> None:
    """Ask MODELS in turn when the model fails; without any, show those that are set."""
    gateway = Gateway()
    if not models and not clear:
        config = gateway.load_configuration().config.agents
        entry = config.entries.get(agent) if agent else config.defaults
        if entry is None:
            raise _no_agent(str(agent))
        show({"fallbacks": list(entry.model.fallbacks)}, "\n".join(entry.model.fallbacks) or "No fallbacks.")
        return
    for model in models:
        _warn_of(gateway, model)

    def change(holder: dict[str, Any]) -> None:
        if not isinstance(holder.get("model"), dict):
            holder["model"] = {"primary": holder["model"]} if "model" in holder else {}
        holder["model"]["fallbacks"] = list(models)

    _edit(gateway, agent, change, f"model: {{primary: …, fallbacks: {list(models)}}}")
    show({"fallbacks": list(models), "agent": agent}, f"The fallbacks are {', '.join(models) or 'none'}. {TAKEN_UP}")


@command.command()
@click.argument("name", required=False)
@click.argument("model", required=False)
@click.option("--remove", is_flag=True, help="Take the alias away.")
@json_option
def aliases(name: str | None, model: str | None, remove: bool) -> None:
    """Call MODEL (provider/model) also NAME; without both, show the aliases."""
    gateway = Gateway()
    if name is None:
        found = gateway.load_configuration().config.agents.defaults.models
        known = {setting.alias: ref for ref, setting in found.items() if setting.alias}
        show({"aliases": known}, table(list(known.items()), "ALIAS", "MODEL") if known else "No aliases.")
        return
    if (model is None) is not remove:
        raise click.UsageError("give an alias and its model, or an alias and --remove")
    if model is not None and not re.fullmatch(r"[^/\s]+/\S+", model):
        raise click.UsageError(f"{model!r} is no provider/model")

    def change(defaults: dict[str, Any]) -> None:
        from triops.gateway.cli.edit import member

        models = member(defaults, "models")
        mine = [ref for ref in models if str(models[ref].get("alias", "")).lower() == name.lower()]
        if remove and not mine:
            raise Failure(f"there is no alias {name!r}", "triops models aliases shows those there are.")
        for ref in mine:
            del models[ref]["alias"]
        if model is not None:
            member(models, model)["alias"] = name

    _edit(gateway, None, change, f"models: {{{model!r}: {{alias: {name!r}}}}}")
    said = f"{name} is an alias no more." if remove else f"{model} is also called {name}."
    show({"alias": name, "model": model}, f"{said} {TAKEN_UP}")


def _edit(gateway: Gateway, agent: str | None, change: Callable[[dict[str, Any]], None], line: str) -> None:
    from triops.gateway.cli.edit import edit_configuration, member

    def at_holder(parsed: dict[str, Any]) -> None:
        if agent is not None and agent not in member(parsed, "agents", "entries"):
            raise _no_agent(agent)
        change(member(parsed, "agents", "entries", agent) if agent else member(parsed, "agents", "defaults"))

    edit_configuration(gateway, at_holder, f"agents.{f'entries.{agent}' if agent else 'defaults'}.{line}")


def _no_agent(agent: str) -> Failure:
    return Failure(f"the configuration has no agent {agent!r}", "Its agents stand in agents.entries.", code=Exit.USAGE)


def _warn_of(gateway: Gateway, model: str) -> None:
    """Say if the gateway that runs does not know a model, or without one if the configuration knows no such provider or
    alias; a provider's hook may know it all the same."""
    if gateway.discovery is None:
        from triops.agents.providers import plugins
        from triops.runtime.endpoints import ENDPOINTS

        config = gateway.load_configuration().config
        known = {setting.alias.lower() for setting in config.agents.defaults.models.values() if setting.alias}
        known |= {each.id.lower() for provider in config.models.providers.values() for each in provider.models}
        id, slash, name = model.partition("/")
        others = {*ENDPOINTS, *plugins(), "local"} if config.models.mode != "replace" else set[str]()
        if model.lower() not in known and not (slash and name and id in others | {*config.models.providers}):
            what = f"no provider {id!r} in models.providers" if slash else "no alias of that name"
            show_warnings([f"{model} is unknown: there is {what}; write provider/model or an alias"])
        return
    rows = gateway.call("models.list", {})["models"]
    known = [name for row in rows for name in (model_ref(row), row.get("alias"), row["id"]) if name]
    if model not in known:
        near = difflib.get_close_matches(model, map(model_ref, rows), n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        show_warnings([f"the gateway that runs does not list {model}{hint}"])


@command.command()
@click.argument("what")
@click.option("--name", help="Its name here, instead of the file's.")
@click.option("--sha256", metavar="HEX", help="What the file's SHA-256 must be.")
@json_option
def add(what: str, name: str | None, sha256: str | None) -> None:
    """Add a model that runs on this machine, in the gateway's care: WHAT is `demo`, or a .gguf file's path or URL.

    `demo` is a small one to try everything with (130 MB to download). A download that was cut off is gone on with by
    the same command, where the server tells one version of the file from another.
    """
    if what == "demo":
        _add_demo()
        return
    from triops.agents.providers.demo import ENGINE_PACKAGE, engine_is_installed
    from triops.gateway.cli.weights import bring, name_of
    from triops.runtime.paths import private_folder

    gateway = Gateway()
    folder = gateway.paths.models
    target = folder / name_of(what, name)
    if target.exists():
        raise Failure(f"{target} is there already", "Remove it first, or give another --name.")
    private_folder(gateway.paths.state)
    private_folder(folder)
    digest = bring(what, target, sha256)
    ref = f"local/{target.stem}"
    if gateway.discovery is not None:
        gateway.call("models.list", {"refresh": True})
    missing = "" if engine_is_installed() else f'\nWhat is missing is its engine: pip install "{ENGINE_PACKAGE}"'
    human = f"{ref} is here ({target}, SHA-256 {digest}).{missing}\nUse it: triops models set {ref}"
    show({"installed": ref, "path": str(target), "sha256": digest}, human)


def _add_demo() -> None:
    from triops.agents.providers.demo import InstallError, install_demo

    try:
        install_demo(lambda line: None if as_json() else click.echo(line))
    except InstallError as error:
        raise Failure(str(error)) from None
    show({"installed": "demo"}, "The model demo is installed. Try it: triops chat")


def model_ref(model: dict[str, Any]) -> str:
    return f"{model['provider']}/{model['id']}"
