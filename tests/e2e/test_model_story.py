"""A person and a model server of their own, such as LM Studio: what is seen when it works, and when it does not."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.kit.host import open_test_gateway
from tests.kit.raw_server import Answer, completions, open_raw_server, refusal, said, stream

from triops.runtime.events import ModelsChanged, RuntimeEvent

KEY = "canary-lm-studio-key"


def answer(body: Any) -> Answer:
    words = said(body).rpartition("\n\n")[2]  # what got no answer stands before it
    model, tools = body["model"], [m for m in body["messages"] if m["role"] == "tool"]
    if model == "gone":
        return [refusal(404, b'{"error": {"message": "model \\"gone\\" not found, try pulling it first"}}')]
    if words == "Which sessions?" and not tools:
        call = '<tool_call>{"name": "sessions_list", "arguments": {"limit": 1}}</tool_call>'
        return stream(completions("<think>I should look.</think>", call))
    if words == "Which sessions?":
        return stream(completions("There is ", "main" if "agent:main:main" in tools[-1]["content"] else "none", "."))
    if words == "Locked?":
        return [refusal(401, b'{"error": {"message": "Malformed LM Studio API token: %s"}}' % KEY.encode())]
    if words == "Half?":
        return [*stream(completions("Half of", stop=None))[:-1], b"5\r\nda"]
    return stream(completions(f"{model} heard: ", words))


def config(port: int) -> dict[str, Any]:
    models = [{"id": "qwen/qwen3"}, {"id": "gemma"}, {"id": "gone"}]
    provider = {"baseUrl": f"http://127.0.0.1:{port}/v1", "apiKey": KEY, "models": models}
    return {
        "models": {"mode": "replace", "providers": {"lmstudio": provider}, "patienceSeconds": 0},
        "agents": {"defaults": {"model": "lmstudio/qwen/qwen3"}},
    }


@pytest.fixture
def port() -> int:
    """Of nobody yet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def test_a_model_server_of_ones_own_from_the_first_word_to_its_restart(tmp_path: Path, port: int) -> None:
    # The proxy is for the world: what is on this machine is not reached through it.
    environ = {"HTTP_PROXY": "http://127.0.0.1:9"}
    there, count = f"127.0.0.1:{port}", iter(range(99))
    async with open_test_gateway(tmp_path, config=config(port), providers=(), environ=environ) as host:

        async def told(words: str, method: str = "agent", **more: Any) -> str:
            asked = {"message": words, "sessionKey": "main", "idempotencyKey": f"story-{next(count)}", **more}
            answer = await host.http("POST", f"/rpc/{method}?wait=final", asked)
            assert KEY not in str(answer.body)
            return str(answer.body)

        down = f"could not connect to {there} (refused or no route); is the server up and baseUrl right?"
        assert down in await told("Hello?")
        async with open_raw_server(answer, port=port):
            assert "qwen/qwen3 heard: Hello!" in await told("Hello!")
            looked = await told("Which sessions?")
            assert "There is main." in looked and "tool_call" not in looked and "think" not in looked
            assert "lmstudio/gemma" in await told("/model lmstudio/gemma", method="chat.send")
            assert "gemma heard: And you?" in await told("And you?")
            await told("/model default", method="chat.send")
            assert "qwen/qwen3 heard: You again?" in await told("You again?")
            locked = await told("Locked?")
            assert "lmstudio/qwen/qwen3 request failed (not authorised, HTTP 401); " in locked and "apiKey" in locked
            gone = await told("Gone?", model="lmstudio/gone")
            assert "(not found, HTTP 404); it says: " in gone and "check the model\\'s id and baseUrl" in gone
            assert "did you mean lmstudio/gemma" in await told("Typo?", model="lmstdio/gemma")
            assert "does not have it" in (missing := await told("Missing?", model="lmstudio/gema"))
            assert "did you mean lmstudio/gemma" in missing
            assert "did you mean lmstudio/gemma" in await told("/model lmstudio/gema", method="chat.send")
            half = await told("Half?")
            assert f"{there} hung up before its answer was complete" in half
        assert down in await told("Still there?")
        async with open_raw_server(answer, port=port) as again:
            assert "qwen/qwen3 heard: Back?" in await told("Back?")
            history = [message["content"] for message in again.asked[-1]["messages"] if message["role"] == "assistant"]
        assert "Half of" in history and "There is main." in history, "what had arrived is part of the conversation"


@pytest.mark.slow  # the file is looked at once a second
async def test_a_server_that_moved_is_found_where_the_edited_file_says(tmp_path: Path, port: int) -> None:
    async with (
        open_test_gateway(tmp_path, config=config(port), providers=(), environ={}) as host,
        open_raw_server(answer) as moved,
    ):

        async def told(words: str) -> str:
            asked = {"message": words, "sessionKey": "main", "idempotencyKey": words}
            return str((await host.http("POST", "/rpc/agent?wait=final", asked)).body)

        assert f"could not connect to 127.0.0.1:{port}" in await told("Hello?")
        edited, taken_up = config(int(moved.url.rpartition(":")[2])), trio.Event()

        def hear(event: RuntimeEvent) -> None:
            if isinstance(event, ModelsChanged) and host.runtime.loaded.parsed == edited:
                taken_up.set()

        with host.runtime.bus.subscribe(hear):
            host.runtime.paths.config.write_text(json.dumps(edited))
            with trio.fail_after(20):
                await taken_up.wait()
        assert "qwen/qwen3 heard: And now?" in await told("And now?")
