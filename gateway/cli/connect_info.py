"""`triops connect-info`: what a program or a phone needs to use the gateway."""

import socket
from typing import Any

import click

from triops.gateway.cli.failures import START_HINT, Exit
from triops.gateway.cli.output import json_option, show
from triops.gateway.cli.rpc import Gateway
from triops.runtime.config import AuthConfig
from triops.runtime.paths import Paths

SHOW = "triops gateway token show"


@click.command(short_help="Show what a program or a phone needs to connect.")
@json_option
def command() -> int:
    """Show the gateway's address, where its token lies, and what a program or a phone needs to connect.

    Exit code 1 if no gateway runs.
    """
    gateway = Gateway()
    config = gateway.load_configuration().config.gateway
    found = gateway.discovery
    url = found.url if found else f"http://{config.host}:{config.port}"
    port = url.rpartition(":")[2]
    local = config.host in ("127.0.0.1", "::1", "localhost")
    address = _own_address() if config.bind == "lan" else config.host
    file = found.token_file if found else None
    place, command = (file, SHOW) if file else _secret(config.auth, gateway.paths)
    about: dict[str, Any] = {
        "running": found is not None,
        "url": url,
        "wsUrl": f"ws{url.removeprefix('http')}",
        "authMode": config.auth.mode,
        "secretIn": place,
        "tokenFile": found.token_file if found else None,
        "lanUrl": None if local else f"ws://{address}:{port}",
    }
    lines = [
        f"Gateway: {about['wsUrl']}, HTTP at {url}" + ("" if found else f" (not running). {START_HINT}"),
        f"Secret:  {place}" + (f"; to see it: {command}" if command else ""),
        "",
        "A program on this machine connects there with that secret, and need do nothing more.",
        _elsewhere(about["lanUrl"], port),
        "A device that waits to be let in: triops devices approve",
    ]
    show(about, "\n".join(lines))
    return Exit.OK if found else Exit.FAILED


def _secret(auth: AuthConfig, paths: Paths) -> tuple[str, str]:
    """Where it lies, and the command that shows it."""
    match auth.mode:
        case "none":
            return "none is asked for on this machine", ""
        case "password":
            return f"gateway.auth.password in {paths.config}, or TRIOPS_GATEWAY_PASSWORD", ""
        case "token" if auth.token is not None:
            place = f"gateway.auth.token in {paths.config}, or TRIOPS_GATEWAY_TOKEN"
        case "token":
            place = str(paths.token)
    return place, SHOW


def _elsewhere(lan_url: str | None, port: str) -> str:
    tunnel = f"ssh -N -L {port}:127.0.0.1:{port} USER@{socket.gethostname()}"
    if lan_url is None:
        return (
            "A phone or another machine reaches it through a tunnel, as if it were here:\n"
            f"  {tunnel}\n"
            'or, on a network that you trust, directly: set gateway.bind to "lan" and restart the gateway.'
        )
    return f"A phone or another machine on a network that you trust: {lan_url}\nThrough any other: {tunnel}"


def _own_address() -> str:
    """The address of this machine towards its network; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return probe.getsockname()[0]
        except OSError:
            return socket.gethostname()
