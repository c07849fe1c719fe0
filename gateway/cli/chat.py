"""`triops chat`: the terminal's side of a conversation. Knows no protocol.

The loop runs in a thread and the terminal keeps the main one, so that Ctrl-C is an ordinary `KeyboardInterrupt` here,
and line editing works as everywhere.
"""

import importlib
import os
import queue
import signal
import stat
import sys
import threading
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import TYPE_CHECKING, Self
from uuid import uuid4

import click

from triops.gateway.cli.failures import Exit, Failure, failure_of
from triops.gateway.cli.output import as_json, json_text, printable
from triops.gateway.cli.process import stop_signals
from triops.gateway.cli.rpc import Gateway, gateway_options

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

    from triops.gateway.cli.conversation import Answer, Conversation

LEAVE = ("/exit", "/quit")
POLL_SECONDS = 0.2  # on Windows a wait without an end would not hear of Ctrl-C
PIPE_SECONDS = 5.0
"""How long a pipe beside a message may stay silent: one that this process merely inherited would for ever."""
PIPE_BYTES = 1 << 20  # of a message no gateway takes more; what has one more is refused there, with words
TRIES = 3
"""How many gateways may go away under one question."""


@click.command(short_help="Talk to the assistant: once, from a pipe, or back and forth.")
@click.argument("message", nargs=-1)
@click.option("--session", default="main", show_default=True, metavar="KEY", help="The session to talk in.")
@click.option("--model", metavar="REF", help="provider/model for this session from now on.")
@gateway_options
def command(gateway: Gateway, message: tuple[str, ...], session: str, model: str | None) -> int:
    """Send MESSAGE, what is piped in, or both (the message first), and print the answer; with neither, talk back and
    forth.

    Beside a MESSAGE, a pipe that stays silent for five seconds is left out; `</dev/null` leaves it out at once. Uses
    the gateway that runs; if none does, this process is one for as long. Ctrl-C aborts the answer, Ctrl-D or /exit
    leaves.
    """
    text = "\n\n".join(part for part in (" ".join(message), _piped(bool(message))) if part)
    if not text and not (sys.stdin and sys.stdin.isatty()):
        raise click.UsageError("there is nothing to send: give a message, or pipe one in")

    from anyio.from_thread import start_blocking_portal

    ending = Exit.INTERRUPTED  # what stands where Ctrl-C hits between two steps
    with start_blocking_portal("trio") as portal, Terminal(portal, gateway, session, model) as terminal:
        with suppress(KeyboardInterrupt):
            ending = terminal.ask(text) if text else terminal.converse()
    return 128 + terminal.stopped_by if terminal.stopped_by else ending


def _piped(beside_message: bool) -> str:
    """What is piped in, to its end; beside a message only if it begins to come."""
    try:
        descriptor = sys.stdin.fileno()
        is_pipe = not os.isatty(descriptor) and not (beside_message and stat.S_ISCHR(os.fstat(descriptor).st_mode))
    except (AttributeError, ValueError, OSError):  # closed, or not a file at all
        return ""
    data = bytearray()
    started = threading.Event()

    def read() -> None:
        with suppress(OSError):
            while len(data) <= PIPE_BYTES and (chunk := os.read(descriptor, 1 << 16)):
                data.extend(chunk)
                started.set()
        started.set()

    if is_pipe:
        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        if beside_message and not started.wait(PIPE_SECONDS):
            click.echo(f"(nothing came from the pipe within {PIPE_SECONDS:g} s: it is left out)", err=True)
            return ""
        while reader.is_alive():
            reader.join(POLL_SECONDS)
    return data.decode(errors="replace").strip()


class Terminal:
    """Prints what a conversation shows, and finds it another gateway if its own goes away."""

    def __init__(self, portal: "BlockingPortal", gateway: Gateway, session: str, model: str | None) -> None:
        self._portal = portal
        self._wanted = (gateway, session, model)
        self._link: tuple[Future[None], Conversation] | None = None
        self._as_json = as_json()
        self._is_waiting = False
        self.stopped_by: int | None = None
        """The signal that ends this process, if one came."""

    def __enter__(self) -> Self:
        ours = [number for number in stop_signals() if number != signal.SIGINT]
        self._before = {number: signal.signal(number, self._stop) for number in ours}
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, _: object) -> None:
        self.stopped_by = number
        raise KeyboardInterrupt

    def _open(self) -> "Conversation":
        from triops.gateway.cli.conversation import hold_conversation

        self._link = self._portal.start_task(hold_conversation, *self._wanted, self._tell)
        return self._link[1]

    def _leave(self) -> None:
        """End the conversation. A gateway that is hosted here lets others' answers finish; a signal hastens it."""
        if self._link is None:
            return
        (future, conversation), self._link = self._link, None
        self._portal.call(conversation.left.set)
        told = False
        while not future.done():
            try:
                wait((future,), POLL_SECONDS)
                if not told and (others := self._portal.call(conversation.running)):
                    told = True
                    self._tell(f"(waiting for runs that others asked for: {others}; Ctrl-C ends them)")
            except KeyboardInterrupt:
                self._portal.start_task_soon(conversation.hasten)
        future.result()

    def _tell(self, words: str) -> None:
        if not self._as_json:
            with suppress(OSError):  # a terminal that is gone
                click.echo(printable(words), err=True)

    def converse(self) -> int:
        """Ask what is typed until the user leaves, or no gateway can be had."""
        from triops.gateway.client import GatewayError

        with suppress(ImportError):
            importlib.import_module("readline")  # merely importing it gives `input` its history and editing
        self._tell("(Ctrl-D or /exit leaves, Ctrl-C stops an answer)")
        while not self.stopped_by:
            try:
                text = input("> ").strip()
            except EOFError:
                self._tell("")
                return Exit.OK
            except KeyboardInterrupt:
                self._tell("" if self.stopped_by else "\n(Ctrl-D or /exit leaves)")
                continue
            if text in LEAVE:
                return Exit.OK
            try:
                if text:
                    self.ask(text)
            except (Failure, GatewayError) as error:
                self._tell(failure_of(error).message)
        return Exit.OK

    def ask(self, text: str) -> int:
        """Print one answer as it comes; Ctrl-C aborts it.

        If the gateway goes away meanwhile, the next one is asked under the same idempotency key: it knows what became
        of the question.
        """
        from triops.gateway.client import GatewayClosed

        key = str(uuid4())
        for left in reversed(range(TRIES)):
            try:
                return self._ask(text, key)
            except GatewayClosed:
                if self._wanted[0].is_named or not left:
                    raise
                self._leave()
                self._tell(f"(the gateway is gone; {self._open().where})")
        raise AssertionError("the last try returns or raises")

    def _ask(self, text: str, key: str) -> int:
        assert self._link
        conversation = self._link[1]
        shown: queue.SimpleQueue[tuple[str, str] | None] = queue.SimpleQueue()
        future = self._portal.start_task_soon(conversation.ask, text, key, shown.put)
        future.add_done_callback(lambda _: shown.put(None))
        interrupts = 0
        is_silent = True
        while interrupts < 2:
            try:
                try:
                    piece = shown.get(timeout=POLL_SECONDS)
                except queue.Empty:
                    self._show_waiting(is_silent)
                    continue
                self._show_waiting(False)
                if piece is None:
                    break
                is_silent = False
                if not self._as_json:
                    is_head = piece[0] == "head"
                    click.echo(printable(piece[1]), nl=is_head, err=is_head)
            except KeyboardInterrupt:
                interrupts += 1
                self._portal.start_task_soon(conversation.interrupt)
        if interrupts and (not future.done() or future.exception() is not None):
            return Exit.INTERRUPTED
        return self._end(future.result(), interrupted=interrupts > 0)

    def _show_waiting(self, waiting: bool) -> None:
        """One dim line, where somebody looks, that goes away with the first word."""
        if waiting == self._is_waiting or self._as_json or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
            return
        self._is_waiting = waiting
        line = click.style("(waiting for the answer; Ctrl-C stops it)", dim=True) if waiting else "\r\x1b[K"
        click.echo(line, nl=False, err=True)

    def _end(self, answer: "Answer", *, interrupted: bool) -> int:
        import msgspec

        fields = msgspec.to_builtins(answer)
        if self._as_json and answer.state != "error":
            click.echo(json_text(fields))
        elif answer.text and not self._as_json:
            click.echo()
        match answer.state:
            case "final":
                if not answer.text:
                    self._tell("(no reply: it was a silent one, or went into a run that was going on)")
                return Exit.OK
            case "aborted":
                self._tell(f"(aborted: {answer.error})" if answer.error else "(aborted)")
                return Exit.INTERRUPTED if interrupted else Exit.FAILED
            case _:
                raise Failure(answer.error or "the run failed", error={"code": "RUN_FAILED", **fields})
