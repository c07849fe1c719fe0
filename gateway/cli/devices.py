"""`triops devices`: who asks to be let in, who is let in, and what is decided on them."""

from typing import Any, Literal

import click

from triops.gateway.cli.failures import Failure
from triops.gateway.cli.output import printable, show, table, time_text
from triops.gateway.cli.rpc import Gateway, gateway_options

LIST_HINT = "See which there are: triops devices list"
role_option = click.option("--role", default="operator", show_default=True, help="Whose token of the device.")


@click.group(short_help="List, let in and shut out devices.")
def command() -> None:
    """Devices of other machines, browsers and apps that use the gateway.

    Ids may be cut to what tells them apart, as the list shows them.
    """


@command.command("list")
@gateway_options
def list_(gateway: Gateway) -> None:
    """List who waits to be let in and who is."""
    payload = gateway.call("device.pair.list", {})
    waiting = [
        (row["requestId"][:8], row["deviceId"][:12], *_about(row), row.get("remoteIp"), time_text(row["ts"]))
        for row in payload["pending"]
    ]
    paired = [
        (row["deviceId"][:12], *_about(row), _state(row), time_text(row.get("lastSeenAtMs")))
        for row in payload["paired"]
    ]
    parts: list[str] = []
    if waiting:
        parts.append(table(waiting, "REQUEST", "DEVICE", "NAME", "CLIENT", "SCOPES", "FROM", "ASKED"))
        parts.append("Let one in: triops devices approve REQUEST\n")
    parts.append(table(paired, "DEVICE", "NAME", "CLIENT", "SCOPES", "STATE", "SEEN") if paired else "No devices.")
    show(payload, "\n".join(parts))


@command.command()
@click.argument("request", required=False)
@gateway_options
def approve(gateway: Gateway, request: str | None) -> None:
    """Let in the device of REQUEST; without it, the only one that waits."""
    payload = gateway.call("device.pair.approve", {"requestId": _pick(gateway, "pending", request)})
    device = payload["device"]
    show(payload, f"Device {device['deviceId'][:12]} may connect with {_scopes(device)}.")


@command.command()
@click.argument("request", required=False)
@gateway_options
def reject(gateway: Gateway, request: str | None) -> None:
    """Refuse REQUEST; without it, the only one that waits."""
    payload = gateway.call("device.pair.reject", {"requestId": _pick(gateway, "pending", request)})
    show(payload, f"Device {payload['deviceId'][:12]} is not let in; it may ask again.")


@command.command()
@click.argument("device")
@gateway_options
def remove(gateway: Gateway, device: str) -> None:
    """Forget DEVICE and close its connections."""
    payload = gateway.call("device.pair.remove", {"deviceId": _pick(gateway, "paired", device)})
    show(payload, f"Device {payload['deviceId'][:12]} is forgotten and must be let in again.")


@command.command()
@click.argument("device")
@role_option
@gateway_options
def rotate(gateway: Gateway, device: str, role: str) -> None:
    """Give DEVICE a new token; the old one opens nothing any more."""
    payload = gateway.call("device.token.rotate", {"deviceId": _pick(gateway, "paired", device), "role": role})
    words = "has a new token, and gets it when it next connects with the gateway's own"
    show(payload, f"Device {payload['deviceId'][:12]} {words}.")


@command.command()
@click.argument("device")
@role_option
@gateway_options
def revoke(gateway: Gateway, device: str, role: str) -> None:
    """End the token of DEVICE and close its connections."""
    payload = gateway.call("device.token.revoke", {"deviceId": _pick(gateway, "paired", device), "role": role})
    words = "has no token any more. To make it ask again: triops devices remove"
    show(payload, f"Device {payload['deviceId'][:12]} {words} {payload['deviceId'][:12]}")


def _pick(gateway: Gateway, kind: Literal["pending", "paired"], start: str | None) -> str:
    """The id of the one request or device whose id begins like this."""
    rows = gateway.call("device.pair.list", {})[kind]
    what = "request" if kind == "pending" else "device"
    found = [row[f"{what}Id"] for row in rows if row[f"{what}Id"].startswith(start or "")]
    if len(found) == 1:
        return found[0]
    if not rows:
        hint = "A request ends after five minutes: let the device connect again."
        raise Failure("no device waits to be let in", hint) if what == "request" else Failure("there are no devices")
    if not found:
        raise Failure(f"there is no {what} {start!a}", LIST_HINT)
    ids = ", ".join(id[:12] for id in found)
    raise Failure(f"{len(found)} {what}s could be meant: {ids}", f"Say which. {LIST_HINT}")


def _about(row: dict[str, Any]) -> tuple[str | None, str, str]:
    name = row.get("operatorLabel") or row.get("displayName")
    return name, f"{row['clientId']} ({row['platform']})", _scopes(row)


def _scopes(row: dict[str, Any]) -> str:
    scopes = ", ".join(scope.removeprefix("operator.") for scope in row["scopes"])
    return printable(scopes).replace("\n", "\\n") or "no scopes"


def _state(row: dict[str, Any]) -> str:
    revoked = all(token.get("revokedAtMs") for token in row["tokens"])
    return "connected" if row.get("connected") else "revoked" if revoked else "paired"
