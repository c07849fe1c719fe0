"""The three wire formats against a server that we did not write: llama.cpp's, with the demonstration model."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest
import trio
from tests.agents.providers.test_local import real

from triops.agents.errors import ContextOverflow, ProviderError
from triops.agents.messages import AssistantMessage, Text, ToolCall, ToolResultMessage, UserMessage
from triops.agents.model import Done, ModelInfo, ModelRef, ModelRequest, ToolSchema
from triops.agents.providers.anthropic_messages import AnthropicMessagesProvider
from triops.agents.providers.demo import weights_folder
from triops.agents.providers.http import HttpClient
from triops.agents.providers.openai_completions import OpenAICompletionsProvider
from triops.agents.providers.openai_responses import OpenAIResponsesProvider
from triops.agents.providers.wire import HttpProvider

pytestmark = [real, pytest.mark.slow]
KEY, CONTEXT = "the-key-of-this-test", 1024
LOOK = ToolSchema("look", "Look up a word.", {"type": "object", "properties": {"word": {"type": "string"}}})
CONVERSATION = (
    UserMessage("What is a triops?", 1),
    AssistantMessage((Text("I look."), ToolCall("c1", "look", {"word": "triops"})), 2, stop_reason="toolUse"),
    ToolResultMessage("c1", "look", (Text("A small crustacean."),), 3),
    UserMessage("Say it in one word.", 4),
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    folder = weights_folder()
    assert folder is not None
    model = next(folder.glob("*.gguf"))
    command = [sys.executable, "-P", "-m", "triops.agents.providers.engine", "--model", str(model)]
    command += ["--context", str(CONTEXT)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin and server.stdout
        with closing(server.stdin):
            server.stdin.write(f"{KEY}\n".encode())
            server.stdin.flush()
            yield json.loads(server.stdout.readline())["url"]


async def ask(provider: HttpProvider, *messages: UserMessage | AssistantMessage | ToolResultMessage) -> Done:
    info = ModelInfo(ref=ModelRef("real", "demo"))
    request = ModelRequest(model=info, system="Be brief.", messages=messages, tools=(LOOK,), max_tokens=8)
    with trio.fail_after(60):
        async with provider.stream(request) as batches:
            events = [event async for batch in batches for event in batch]
    assert isinstance(events[-1], Done)
    return events[-1]


@pytest.mark.parametrize(
    "kind",
    [OpenAICompletionsProvider, OpenAIResponsesProvider, AnthropicMessagesProvider],
    ids=lambda kind: kind.__name__,
)
async def test_a_real_server_is_understood_and_understands(url: str, http: HttpClient, kind: type[HttpProvider]):
    provider = kind(id="real", base_url=f"{url}/v1", http=http, api_key=KEY, bearer=True)
    message = (await ask(provider, *CONVERSATION)).message
    assert message.text and message.usage is not None and message.usage.output > 0
    with pytest.raises(ContextOverflow) as caught:
        await ask(provider, UserMessage("word " * 2 * CONTEXT, 1))
    assert caught.value.window == CONTEXT
    with pytest.raises(ProviderError) as refused:
        await ask(kind(id="real", base_url=f"{url}/v1", http=http, api_key="wrong", bearer=True), *CONVERSATION)
    assert refused.value.kind == "auth"
