"""`triops sessions`: what the assistant is talking about, and sending to one of its sessions."""

from uuid import uuid4

import click

from triops.gateway.cli.failures import Failure
from triops.gateway.cli.output import show, table, time_text
from triops.gateway.cli.rpc import Gateway, gateway_options


@click.group(short_help="List sessions and send to them.")
def command() -> None:
    """Sessions of the gateway."""


@command.command("list")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@gateway_options
def list_(gateway: Gateway, limit: int) -> None:
    """List sessions, the last used first."""
    payload = gateway.call("sessions.list", {"limit": limit})
    rows = [
        (
            row["key"],
            row.get("label") or row.get("displayName"),
            f"{row['modelProvider']}/{row['model']}" if row.get("model") else None,
            "running" if row.get("hasActiveRun") else row.get("status"),
            time_text(row.get("updatedAt")),
        )
        for row in payload["sessions"]
    ]
    show(payload, table(rows, "KEY", "LABEL", "MODEL", "STATE", "UPDATED") if rows else "No sessions.")


@command.command()
@click.argument("key")
@click.argument("message", nargs=-1, required=True)
@click.option("--no-wait", is_flag=True, help="Return when it is accepted; the reply is left to the session.")
@gateway_options
def send(gateway: Gateway, key: str, message: tuple[str, ...], no_wait: bool) -> None:
    """Send MESSAGE to the session KEY, a new one if there is none, and print the reply. Ctrl-C aborts it."""
    # `sessions.send` refuses a session that is not there yet, and takes every message as it is.
    params = {"sessionKey": key, "message": " ".join(message), "suppressCommandInterpretation": True}
    payload = gateway.call("chat.send", params | {"idempotencyKey": str(uuid4())}, wait=not no_wait)
    if no_wait:
        show(payload, f"Accepted as run {payload['runId']}.")
        return
    if payload["state"] != "final":
        words = payload.get("error") or f"the run ended: {payload['state']}"
        raise Failure(words, error={"code": "RUN_FAILED", **payload})
    show(payload, payload.get("text") or "(no reply)")
