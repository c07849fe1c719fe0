"""A conversation with one session of a gateway: a running one, or one hosted here for as long. Knows no terminal."""

from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any, Literal

import anyio
import msgspec
from anyio.abc import TaskStatus

from triops.gateway.cli.failures import START_HINT, Failure
from triops.gateway.cli.rpc import Gateway
from triops.gateway.client import EventsLost, EventStream, GatewayClient, GatewayClosed, GatewayError, open_client
from triops.runtime.instance import InstanceRunning

if TYPE_CHECKING:
    from triops.gateway.host import Host

JOIN_SECONDS = 20.0
"""How long another process may take to start a gateway, or to end one: its runs have ten seconds to finish."""
JOIN_POLL = 0.05
TELL_SECONDS = 1.0  # after which a user wants to know what is waited for
MODEL_SECONDS = 1.0
"""How long the first words wait to be headed by their model; it was named before them, on the same connection."""

STATUS_SECONDS = 0.2
"""How long after a chat's status event the agent's may come, which has the words for it: both leave together."""

Show = Callable[[tuple[Literal["head", "text"], str]], None]
"""Takes a piece of what is to be seen now, and returns at once."""


class Answer(msgspec.Struct, frozen=True, rename="camel"):
    """How one question ended."""

    run_id: str
    state: str
    """`final`, `aborted` or `error`."""
    text: str
    error: str | None
    """Why it is no `final`, if that is known."""
    model: str | None
    """`provider/model`, if one spoke."""


class Conversation:
    """Asks one thing at a time. Made by `hold_conversation`."""

    def __init__(self, client: GatewayClient, session_key: str, host: "Host | None") -> None:
        self._client = client
        self._session_key = session_key
        self._host = host
        self._busy = anyio.Lock()
        self.left = anyio.Event()
        self.where = "this chat is one now" if host else "this chat goes on with the next one"
        """Which gateway it goes through."""
        self._model: str | None = None
        self._asking = anyio.CancelScope()

    async def ask(self, message: str, key: str, show: Show) -> Answer:
        """Send `message` and show the answer as it comes. The same `key` stands for the same question.

        Raises:
            GatewayError: it was refused.
            GatewayClosed: the gateway is gone or stops, and the question without an answer.
        """
        text, state, model = "", "aborted", None  # what stands if it is interrupted
        last: dict[str, Any] = {}
        try:
            events = self._client.events
            with events("agent") as agents, events("agent") as statuses, anyio.CancelScope() as self._asking:
                async with self._busy, self._client.chat(self._session_key, message, key=key) as run:
                    async for event in run:
                        last = event.payload
                        if last["state"] == "status":
                            await self._say_why(key, statuses, show)
                        if last["state"] != "delta":
                            continue
                        if not text:
                            model = await self._head(key, agents, show)
                        piece = ("\n\n" if last.get("replace") and text else "") + last["deltaText"]
                        text += piece
                        show(("text", piece))
                    state = last["state"]
        except GatewayError as error:
            if error.details == {"reason": "stopping"}:
                raise GatewayClosed(1012, "the gateway is stopping") from error
            raise
        whole = _text(last.get("message")) if state == "final" else text
        if not text and whole:
            show(("text", whole))
        why = last.get("errorMessage") if state == "error" else None
        if last.get("stopReason") == "restart":
            why = "the gateway stopped; ask again"
        return Answer(key, state, whole, why, model)

    async def interrupted(self) -> None:
        """Abort what is being asked, and wait until the gateway knows."""
        self.interrupt()
        async with self._busy:
            pass

    def running(self) -> int:
        """How many runs are under way in a gateway that is hosted here."""
        return self._host.gateway.running if self._host else 0

    def hasten(self) -> None:
        """Have a gateway that is hosted here wait for no run."""
        if self._host:
            self._host.gateway.patience.cancel(reason="a second signal")

    def interrupt(self) -> None:
        """Abort what is being asked."""
        self._asking.cancel()

    async def _say_why(self, run_id: str, agents: EventStream, show: Show) -> None:
        """Say what is waited for, if the run has words for it: a failure that is tried again, another model."""
        with anyio.move_on_after(STATUS_SECONDS), suppress(EventsLost):
            while True:
                event = (await agents.receive()).payload
                if event.get("runId") == run_id and event["stream"] == "run_status":
                    data = event["data"]
                    again = f"; trying again, {data['attempt']} of {data['maxAttempts']}" if "attempt" in data else ""
                    if reason := data.get("reason"):
                        show(("head", f"[{reason}{again}]"))
                    return

    async def _head(self, run_id: str, agents: EventStream, show: Show) -> str | None:
        """Say which model speaks, and why that one, if it is another than before."""
        model = None
        with anyio.move_on_after(MODEL_SECONDS), suppress(EventsLost):
            while model is None or agents.outlet.statistics().current_buffer_used:  # the last one named is it
                event = (await agents.receive()).payload
                data = event.get("data", {})
                if event.get("runId") == run_id and data.get("phase") == "model":
                    model = f"{data['provider']}/{data['model']}"
        if model is not None and model != self._model:
            self._model = model
            show(("head", f"[{model}: {await self._why(model)}]"))
        return model

    async def _why(self, model: str) -> str:
        default = (await self._client.request("status"))["models"]
        rows = (await self._client.request("models.list"))["models"]
        why = default["why"] if model == default["default"] else "in place of the default one"
        is_demo = any("demo" in row.get("tags", ()) for row in rows if f"{row['provider']}/{row['id']}" == model)
        return f"{why}; a demonstration model, do not expect much" if is_demo else why


async def hold_conversation(
    gateway: Gateway,
    session_key: str,
    model: str | None,
    tell: Callable[[str], None],
    *,
    task_status: TaskStatus[Conversation],
) -> None:
    """Talk with the gateway, or with one hosted here meanwhile, until the conversation is left.

    Raises what `open_client` and `open_host` do; `model` is the session's from now on; `tell` is for a user who waits.
    """
    async with AsyncExitStack() as stack:
        client, host = await _join(stack, gateway, tell)
        if model is not None:
            await client.request("sessions.create", {"key": session_key, "model": model})
        conversation = Conversation(client, session_key, host)
        task_status.started(conversation)
        await conversation.left.wait()
        await conversation.interrupted()


async def _join(
    stack: AsyncExitStack, gateway: Gateway, tell: Callable[[str], None]
) -> tuple[GatewayClient, "Host | None"]:
    """Connect to the gateway that runs, or be the one.

    Of several that begin at once one becomes the gateway, and one that stops still holds the state folder: who finds
    either waits for it, and looks again.
    """
    began = anyio.current_time()
    told = False
    while True:
        found = gateway.looked_for_again()
        try:
            if not found.is_known:
                return await _host(stack, found, tell)
            return await _attach(stack, found), None
        except (InstanceRunning, _Away) as error:
            waited = anyio.current_time() - began
            if gateway.is_named or waited > JOIN_SECONDS:
                raise (error.failure if isinstance(error, _Away) else error) from None
        if waited > TELL_SECONDS and not told:
            told = True
            tell("(another process starts or stops the gateway: waiting for it)")
        await anyio.sleep(JOIN_POLL)


class _Away(Exception):
    """Where the gateway should be, nobody answers; that may pass."""

    def __init__(self, failure: Exception) -> None:
        self.failure = failure


async def _attach(stack: AsyncExitStack, gateway: Gateway) -> GatewayClient:
    try:
        client = open_client(gateway.url, token=gateway.token, client_id="cli", mode="cli")
        return await stack.enter_async_context(client)
    except OSError as error:
        words = f"the gateway at {gateway.url} cannot be reached: {str(error) or 'it does not answer'}"
        raise _Away(Failure(words, START_HINT, error={"code": "UNREACHABLE", "url": gateway.url})) from error
    except GatewayClosed as error:
        raise _Away(error) from error
    except GatewayError as error:
        raise (_Away(error) if error.code == "HTTP_503" else error) from None


async def _host(stack: AsyncExitStack, gateway: Gateway, tell: Callable[[str], None]) -> tuple[GatewayClient, "Host"]:
    from triops.gateway.host import open_host

    loaded = gateway.load_configuration()
    host = await stack.enter_async_context(open_host(loaded))
    for warning in loaded.warnings:
        if warning.level == "warning":
            tell(f"triops: warning: {warning}")
    token = host.token.reveal() if host.token else None
    return await stack.enter_async_context(open_client(host.url, token=token, client_id="cli", mode="cli")), host


def _text(message: dict[str, Any] | None) -> str:
    """What a message says, without its other blocks; a silent run has none."""
    blocks: list[dict[str, Any]] = message["content"] if message is not None else []
    return "".join(block["text"] for block in blocks if block["type"] == "text")
