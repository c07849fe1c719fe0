"""`triops chat`: the terminal's side of a conversation. Knows no protocol.

The loop runs in a thread and the terminal keeps the main one, so that Ctrl-C is an ordinary `KeyboardInterrupt` here,
and line editing works as everywhere.
"""

import importlib
import queue
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from triops.gateway.cli.failures import Exit, Failure, failure_of
from triops.gateway.cli.output import as_json, json_text, printable
from triops.gateway.cli.rpc import Gateway, gateway_options

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

    from triops.gateway.cli.conversation import Answer, Conversation

LEAVE = ("/exit", "/quit")
POLL_SECONDS = 0.2  # on Windows a wait without an end would not hear of Ctrl-C


@click.command(short_help="Talk to the assistant: once, from a pipe, or back and forth.")
@click.argument("message", nargs=-1)
@click.option("--session", default="main", show_default=True, metavar="KEY", help="The session to talk in.")
@click.option("--model", metavar="REF", help="provider/model for this session from now on.")
@gateway_options
def command(gateway: Gateway, message: tuple[str, ...], session: str, model: str | None) -> int:
    """Send MESSAGE, or what is piped in, and print the answer; with neither, talk back and forth.

    Uses the gateway that runs; if none does, this process is one for as long. Ctrl-C aborts the answer, Ctrl-D or
    /exit leaves.
    """
    text = " ".join(message)
    if not text and not sys.stdin.isatty():
        text = sys.stdin.buffer.read().decode(errors="replace").strip()
        if not text:
            raise click.UsageError("there is nothing to send: give a message, or pipe one in")
    address = (gateway.url, gateway.token) if gateway.is_known else gateway.load_configuration()

    from anyio.from_thread import start_blocking_portal

    from triops.gateway.cli.conversation import open_conversation

    with start_blocking_portal("trio") as portal:
        with portal.wrap_async_context_manager(open_conversation(address, session, model)) as conversation:
            terminal = Terminal(portal, conversation)
            ending = terminal.ask(text) if text else terminal.converse()
    if isinstance(ending, Failure):
        raise ending
    return ending


class Terminal:
    """Prints what a conversation shows. Raises nothing: an exception would have to pass through the loop's thread."""

    def __init__(self, portal: "BlockingPortal", conversation: "Conversation") -> None:
        self._portal = portal
        self._conversation = conversation

    def converse(self) -> Failure | int:
        """Ask what is typed until the user leaves or the connection is over."""
        with suppress(ImportError):
            importlib.import_module("readline")  # merely importing it gives `input` its history and editing
        while True:
            try:
                text = input("> ").strip()
            except EOFError:
                click.echo(err=True)
                return Exit.OK
            except KeyboardInterrupt:
                click.echo("\n(Ctrl-D or /exit leaves)", err=True)
                continue
            if text in LEAVE:
                return Exit.OK
            ending = self.ask(text) if text else Exit.OK
            if isinstance(ending, Failure):
                if ending.error.get("code") == "CLOSED":
                    return ending
                click.echo(printable(ending.message), err=True)

    def ask(self, text: str) -> Failure | int:
        """Print one answer as it comes; Ctrl-C aborts it."""
        shown: queue.SimpleQueue[tuple[str, str] | None] = queue.SimpleQueue()
        future = self._portal.start_task_soon(self._conversation.ask, text, shown.put)
        future.add_done_callback(lambda _: shown.put(None))
        interrupts = 0
        while interrupts < 2:
            try:
                piece = shown.get(timeout=POLL_SECONDS)
                if piece is None:
                    break
                self._print(*piece)
            except queue.Empty:
                pass
            except KeyboardInterrupt:
                interrupts += 1
                self._portal.start_task_soon(self._conversation.interrupt)
        else:
            return Exit.INTERRUPTED
        if (error := future.exception()) is not None:
            return failure_of(error)
        return self._end(future.result(), interrupted=interrupts > 0)

    def _print(self, kind: str, piece: str) -> None:
        if not as_json():
            click.echo(printable(piece), nl=kind == "head", err=kind == "head")

    def _end(self, answer: "Answer", *, interrupted: bool) -> Failure | int:
        import msgspec

        if as_json():
            click.echo(json_text(msgspec.to_builtins(answer)))
        else:
            click.echo()
        match answer.state:
            case "final":
                if not answer.text:
                    click.echo("(no reply: it was a silent one, or went into a run that was going on)", err=True)
                return Exit.OK
            case "aborted":
                click.echo("(aborted)", err=True)
                return Exit.INTERRUPTED if interrupted else Exit.FAILED
            case _:
                return Failure(answer.error or "the run failed", error={"code": "RUN_FAILED", "runId": answer.run_id})
