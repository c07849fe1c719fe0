"""A conversation with one session of a gateway: a running one, or one hosted here for as long. Knows no terminal."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Literal

import anyio
import msgspec

from triops.gateway.client import EventsLost, EventStream, GatewayClient, open_client
from triops.runtime.config_file import LoadedConfig

MODEL_SECONDS = 1.0
"""How long the first words wait to be headed by their model; it was named before them, on the same connection."""

Show = Callable[[tuple[Literal["head", "text"], str]], None]
"""Takes a piece of what is to be seen now, and returns at once."""


class Answer(msgspec.Struct, frozen=True, rename="camel"):
    """How one question ended."""

    run_id: str
    state: str
    """`final`, `aborted` or `error`."""
    text: str
    error: str | None
    model: str | None
    """`provider/model`, if one spoke."""


class Conversation:
    """Asks one thing at a time. Made by `open_conversation`."""

    def __init__(self, client: GatewayClient, session_key: str) -> None:
        self._client = client
        self._session_key = session_key
        self._model: str | None = None
        self._asking = anyio.CancelScope()

    async def ask(self, message: str, show: Show) -> Answer:
        """Send `message` and show the answer as it comes. Raises `GatewayError` or `GatewayClosed`."""
        text, state, run_id, model = "", "aborted", "", None  # what stands if it is interrupted
        last: dict[str, Any] = {}
        with self._client.events("agent") as agents, anyio.CancelScope() as self._asking:
            async with self._client.chat(self._session_key, message) as run:
                run_id = run.run_id
                async for event in run:
                    last = event.payload
                    if last["state"] != "delta":
                        continue
                    if not text:
                        model = await self._head(run_id, agents, show)
                    piece = ("\n\n" if last.get("replace") and text else "") + last["deltaText"]
                    text += piece
                    show(("text", piece))
                state = last["state"]
        whole = _text(last.get("message")) if state == "final" else text
        if not text and whole:
            show(("text", whole))
        return Answer(run_id, state, whole, last.get("errorMessage") if state == "error" else None, model)

    def interrupt(self) -> None:
        """Abort what is being asked."""
        self._asking.cancel()

    async def _head(self, run_id: str, agents: EventStream, show: Show) -> str | None:
        """Say which model speaks, and why that one, if it is another than before."""
        model = None
        with anyio.move_on_after(MODEL_SECONDS), suppress(EventsLost):
            while model is None:
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
        why = default["why"] if model == default["default"] else "chosen for this session"
        is_demo = any("demo" in row.get("tags", ()) for row in rows if f"{row['provider']}/{row['id']}" == model)
        return f"{why}; a demonstration model, do not expect much" if is_demo else why


@asynccontextmanager
async def open_conversation(
    address: tuple[str, str | None] | LoadedConfig, session_key: str, model: str | None
) -> AsyncGenerator[Conversation]:
    """Talk with the gateway at an address (url and token), or with one of this configuration hosted here meanwhile.

    Raises what `open_client` and `open_host` do; `model` is the session's from now on.
    """
    async with AsyncExitStack() as stack:
        if isinstance(address, LoadedConfig):
            from triops.gateway.host import open_host

            host = await stack.enter_async_context(open_host(address, port=None))
            address = (host.url, host.token.reveal() if host.token else None)
        url, token = address
        client = await stack.enter_async_context(open_client(url, token=token, client_id="cli", mode="cli"))
        if model is not None:
            await client.request("sessions.create", {"key": session_key, "model": model})
        yield Conversation(client, session_key)


def _text(message: dict[str, Any] | None) -> str:
    """What a message says, without its other blocks; a silent run has none."""
    blocks: list[dict[str, Any]] = message["content"] if message is not None else []
    return "".join(block["text"] for block in blocks if block["type"] == "text")
