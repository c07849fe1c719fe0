"""`triops gateway`: run it here, start and stop it in the background, look at it, call a method."""

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from triops.gateway.cli.failures import START_HINT, Exit, Failure
from triops.gateway.cli.output import json_option, json_text, parse_json, show, show_warnings
from triops.gateway.cli.process import GRACEFUL, ask_to_end, is_running, spawn_detached
from triops.gateway.cli.rpc import Gateway, gateway_options
from triops.runtime.instance import Discovery, InstanceRunning, hold_instance
from triops.runtime.paths import Paths, prepare_state
from triops.runtime.secrets import read_token, replace_token, require_token_file

if TYPE_CHECKING:
    import subprocess

START_SECONDS = 20.0
STOP_SECONDS = 20.0
POLL_SECONDS = 0.02

port_option = click.option("--port", type=click.IntRange(0, 65535), help="Port instead of the configured one; 0: any.")


@click.group(short_help="Run, start, stop, look at and call the gateway.")
def command() -> None:
    """The gateway of this user, found by its state folder."""


@command.command()
@port_option
@json_option
def run(port: int | None) -> None:
    """Run the gateway in this terminal until Ctrl-C, SIGTERM or SIGHUP.

    It lets what runs finish for ten seconds; a second signal ends that at once.
    """
    loaded = Gateway().load_configuration()
    from triops.gateway.host import run_gateway

    run_gateway(loaded, port=port)


@command.command()
@port_option
@json_option
def start(port: int | None) -> None:
    """Start the gateway in the background and wait until it is ready."""
    gateway = Gateway()
    if (found := gateway.discovery) is not None:
        error = {"code": "ALREADY_RUNNING", "pid": found.pid, "url": found.url}
        words = f"the gateway already runs at {found.url} (pid {found.pid})"
        raise Failure(words, "Use it, or end it first: triops gateway stop", code=Exit.RUNNING, error=error)
    paths = gateway.paths
    loaded = gateway.load_configuration()  # its warnings and faults are better told here than in a log
    show_warnings([*loaded.warnings, *prepare_state(paths)])
    output = paths.logs / "gateway.out"
    arguments = ["gateway", "run", "--json", *(["--port", str(port)] if port is not None else [])]
    # The child has another working folder: what is relative in the environment is made absolute.
    environ = {**os.environ, "TRIOPS_STATE_DIR": str(paths.state)}
    if os.environ.get("TRIOPS_CONFIG_PATH"):
        environ["TRIOPS_CONFIG_PATH"] = str(paths.config)
    child = spawn_detached(arguments, output=output, folder=paths.state, environ=environ)
    found = _await_ready(child, output)
    show(
        {"running": True, "pid": found.pid, "url": found.url, "version": found.version, "output": str(output)},
        f"The gateway runs at {found.url} (pid {found.pid}).\nIts output: {output}",
    )


def _await_ready(child: "subprocess.Popen[bytes]", output: Path) -> Discovery:
    deadline = time.monotonic() + START_SECONDS
    while (code := child.poll()) is None:
        started = Gateway()
        if started.discovery is not None and started.is_ready():
            child.returncode = Exit.OK  # it is meant to outlive us: no warning that it still runs
            return started.discovery
        if time.monotonic() > deadline:
            child.returncode = Exit.OK
            hint = f"It goes on trying. Its output: {output}; to end it: triops gateway stop"
            raise Failure(f"the gateway (pid {child.pid}) was not ready within {START_SECONDS:g} s", hint)
        time.sleep(POLL_SECONDS)
    said = output.read_text("utf-8", "replace").splitlines()[-12:]
    with suppress(ValueError, LookupError, TypeError):  # else it did not come to say why
        error = json.loads(said[-1])["error"]
        raise Failure(error["message"], error.get("hint", ""), code=code, error=error)
    words = "\n".join(said)
    raise Failure(f"the gateway ended at once, with exit code {code}:\n{words}", code=max(code, Exit.FAILED))


@command.command()
@json_option
def stop() -> None:
    """End this user's gateway, and wait until it has ended."""
    gateway = Gateway()
    found = gateway.discovery
    if found is None:
        show({"stopped": False, "running": False}, f"No gateway runs on {gateway.paths.state}.")
        return
    # The discovery file counts only while that process holds the state folder's lock: the process is ours.
    ask_to_end(found.pid)
    deadline = time.monotonic() + STOP_SECONDS
    while is_running(found.pid) or not _has_ended(gateway.paths):
        if time.monotonic() > deadline:
            hint = (
                "It may be finishing a run; ask again, or end it at once: a killed gateway recovers at its next start."
            )
            raise Failure(f"the gateway (pid {found.pid}) still runs after {STOP_SECONDS:g} s", hint)
        time.sleep(POLL_SECONDS)
    how = "" if GRACEFUL else ", at once: runs that were going on end at its next start"
    show({"stopped": True, "running": False, "pid": found.pid}, f"The gateway (pid {found.pid}) has stopped{how}.")


def _has_ended(paths: Paths) -> bool:
    """Whether the state folder is free again; takes a tenth of a second while it is not."""
    try:
        with hold_instance(paths):
            return True
    except InstanceRunning:
        return False


@command.command()
@gateway_options
def status(gateway: Gateway) -> int:
    """Say whether a gateway runs, where it listens and whether it answers. Exit code 1 if it does not."""
    if not gateway.is_known:
        human = f"Runtime: stopped (no gateway runs on {gateway.paths.state})\nStart it: triops gateway start"
        show({"running": False, "rpc": {"ok": False}}, human)
        return Exit.FAILED
    address = gateway.url.partition("//")[2]
    about: dict[str, Any] = {"probeTarget": f"ws://{address}"}
    pending = ""
    try:
        told = gateway.call("status", {})
        ran, probe, listening = f"running (pid {told['pid']})", "ok", ", ".join(told["listening"])
        about |= {"listening": listening, "pid": told["pid"], "version": told["runtimeVersion"], "rpc": {"ok": True}}
        if pending := told.get("configPending", ""):
            about["configPending"] = pending
    except Failure as failure:
        found = None if gateway.is_named else gateway.discovery
        ran, probe, listening = f"running (pid {found.pid})" if found else "unknown", f"failed ({failure.message})", ""
        about |= {"rpc": {"ok": False, "error": failure.message}}
    lines = [f"Runtime: {ran}", f"Listening: {listening}", f"Probe target: ws://{address}", f"RPC probe: {probe}"]
    lines += [f"Configuration: {pending}"] if pending else []
    show({"running": ran != "unknown", **about}, "\n".join(line for line in lines if line != "Listening: "))
    return Exit.OK if probe == "ok" else Exit.FAILED


@command.command()
@click.argument("method")
@click.option("--params", default="{}", metavar="JSON", help="The method's parameters.")
@click.option("--wait", is_flag=True, help="Wait for the end of the run that it starts.")
@gateway_options
def call(gateway: Gateway, method: str, params: str, wait: bool) -> int:
    """Call METHOD of the protocol and print its payload; with --wait, a run that failed or was stopped exits 1."""
    payload = gateway.call(method, parse_json(params, "--params"), wait=wait)
    click.echo(json_text(payload))
    return Exit.FAILED if wait and payload.get("status", "ok") != "ok" else Exit.OK


@command.group(short_help="Show or change the gateway's token.")
def token() -> None:
    """The token by which programs of this machine prove themselves."""


@token.command("show")
@json_option
def token_show() -> None:
    """Print the token."""
    gateway = Gateway()
    auth = gateway.load_configuration().config.gateway.auth
    if auth.mode != "token":
        raise Failure(f"gateway.auth.mode is {auth.mode!r}: there is no token", "See: triops connect-info")
    in_file = bool(gateway.discovery and gateway.discovery.token_file) or auth.token is None
    secret = read_token(gateway.paths) if in_file else auth.token
    if secret is None:
        raise Failure("there is no token yet; the first start makes it", START_HINT)
    show({"token": secret.reveal(), "tokenFile": str(gateway.paths.token) if in_file else None}, secret.reveal())


@token.command("rotate")
@json_option
def token_rotate() -> None:
    """Make a new token. Programs that read the token file go on with it; connections with the old one are closed."""
    gateway = Gateway()
    paths = gateway.paths
    if gateway.discovery is not None:
        gateway.call("gateway.token.rotate", {})
    else:
        require_token_file(gateway.load_configuration().config.gateway.auth, paths)
        prepare_state(paths)
        with hold_instance(paths):  # no gateway starts with the old one meanwhile
            replace_token(paths)
    words = f"The new token lies in {paths.token}; the old one opens nothing any more."
    show({"rotated": True, "tokenFile": str(paths.token)}, f"{words}\nTo see it: triops gateway token show")
