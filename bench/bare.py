"""The model's endpoint alone, as a subject: the same turns with nothing in between. Knows one wire format."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import msgspec

from triops.agents.errors import ProviderError
from triops.agents.providers.http import HttpClient
from triops.bench.driver import Driver, Turn, now

HEADERS = {"content-type": "application/json"}


class BareDriver(Driver):
    """Has turns, and nothing else of a gateway."""

    def __init__(self, http: HttpClient, url: str) -> None:
        self._http = http
        self._url = f"{url}/v1/chat/completions"

    async def chat(self, turn: Turn, message: str) -> None:
        """One call of the model. Its ack is the head of the answer, its final the end of it."""
        said = [{"role": "user", "content": message}]
        body = msgspec.json.encode({"model": "mock-1", "stream": True, "messages": said})
        turn.sent = now()
        try:
            async with self._http.stream("POST", self._url, HEADERS, body) as answer:
                turn.acked = now()
                while data := await answer.read():
                    if not turn.first_delta and b'"content"' in data:
                        turn.first_delta = now()
                turn.final = now()
                turn.state = "final" if answer.status == 200 else "error"
        except ProviderError as error:
            turn.state, turn.error = "error", str(error)


@asynccontextmanager
async def open_bare(url: str) -> AsyncGenerator[BareDriver]:
    """A driver of the endpoint at `url`; its connections end with the block."""
    http = HttpClient()
    try:
        yield BareDriver(http, url)
    finally:
        http.close()
