"""OpenAI's own Python client against our routes, over the real port."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import trio
from tests.kit.host import TOKEN, TestHost, open_test_gateway

from triops.agents.errors import ProviderError
from triops.agents.messages import AssistantMessage, Text
from triops.agents.model import Done, TextDelta

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
HI: Any = [{"role": "user", "content": "TOKENS:4"}]


@asynccontextmanager
async def sdk(tmp_path: Path, **options: Any) -> AsyncGenerator[tuple[TestHost, openai.OpenAI]]:
    async with open_test_gateway(tmp_path, **options) as host:
        url = f"http://127.0.0.1:{host.port}/v1"
        with openai.OpenAI(base_url=url, api_key=TOKEN, timeout=10) as client:
            yield host, client


async def in_thread(call: Any, **arguments: Any) -> Any:
    with trio.fail_after(20):
        return await trio.to_thread.run_sync(lambda: call(**arguments))


async def test_a_chat_is_answered_whole(tmp_path: Path) -> None:
    async with sdk(tmp_path) as (_, client):
        answer = await in_thread(client.chat.completions.create, model="openclaw", messages=HI)
        assert answer.id.startswith("chatcmpl_")
        assert answer.object == "chat.completion"
        assert answer.model == "openclaw"
        assert answer.choices[0].message.content == "tok0 quick brown fox"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.completion_tokens == 4
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + 4


async def test_a_chat_is_streamed_with_a_finish_reason_and_the_usage_that_was_asked_for(tmp_path: Path) -> None:
    async with sdk(tmp_path) as (_, client):
        chunks = await in_thread(
            lambda **arguments: list(client.chat.completions.create(**arguments)),
            model="openclaw/main",
            messages=HI,
            stream=True,
            stream_options={"include_usage": True},
        )
        assert chunks[0].choices[0].delta.role == "assistant"
        words = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert words.strip() == "tok0 quick brown fox"
        finishes = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
        assert finishes == [None] * (len(finishes) - 1) + ["stop"]
        assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 4)
        plain = await in_thread(
            lambda: list(client.chat.completions.create(model="openclaw", messages=HI, stream=True))
        )
        assert all(chunk.usage is None for chunk in plain)


async def test_a_tool_of_the_clients_own_is_called_by_the_model_and_run_by_the_client(tmp_path: Path) -> None:
    async with sdk(tmp_path) as (host, client):
        asked: Any = [{"role": "user", "content": 'CALL:weather {"city": "Kiel"}'}]
        answer = await in_thread(
            client.chat.completions.create, model="openclaw", messages=asked, tools=[WEATHER], tool_choice="required"
        )
        (call,) = answer.choices[0].message.tool_calls
        assert answer.choices[0].finish_reason == "tool_calls"
        assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Kiel"})
        assert [tool.name for tool in host.model.requests[-1].tools] == ["weather"]

        def streamed() -> Any:
            with client.chat.completions.stream(model="openclaw", messages=asked, tools=[WEATHER]) as stream:
                return stream.get_final_completion()

        final = await in_thread(streamed)
        assert final.choices[0].finish_reason == "tool_calls"
        assert json.loads(final.choices[0].message.tool_calls[0].function.arguments) == {"city": "Kiel"}
        assert {"weather", "read"} <= {tool.name for tool in host.model.requests[-1].tools}

        told = [
            *asked,
            answer.choices[0].message.to_dict(),
            {"role": "tool", "tool_call_id": call.id, "content": "wet"},
        ]
        answer = await in_thread(client.chat.completions.create, model="openclaw", messages=told, tools=[WEATHER])
        heard = str(host.model.requests[-1].messages[-1])
        assert f"Result of {call.id}: wet" in heard
        assert "Kiel" in heard


async def test_who_must_call_a_tool_and_does_not_is_an_error(tmp_path: Path) -> None:
    async with sdk(tmp_path) as (_, client):
        with pytest.raises(openai.InternalServerError, match="called none of the tools"):
            await in_thread(
                client.chat.completions.create, model="openclaw", messages=HI, tools=[WEATHER], tool_choice="required"
            )


async def test_what_the_client_wants_of_the_model_reaches_it(tmp_path: Path) -> None:
    async with sdk(tmp_path) as (host, client):
        said: Any = [
            {"role": "system", "content": "Speak like a pirate."},
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": "second"},
            {"role": "user", "content": [{"type": "text", "text": "third"}]},
        ]
        await in_thread(
            client.chat.completions.create, model="openclaw", messages=said, max_tokens=7, temperature=0.5, user="Ann"
        )
        request = host.model.requests[-1]
        assert (request.max_tokens, request.temperature) == (7, 0.5)
        assert request.system.endswith("Speak like a pirate.")
        heard = str(request.messages[-1])
        assert heard.index("User: first") < heard.index("Assistant: second") < heard.index("third")
        keys = [row["key"] for row in (await host.rpc("sessions.list"))["sessions"]]
        assert keys == ["agent:main:openai-user:ann"]


async def test_a_client_that_stops_reading_stops_its_run(tmp_path: Path) -> None:
    async with sdk(tmp_path) as (host, client):
        endless: Any = [{"role": "user", "content": "TOKENS:100000 ITL:20"}]

        def begin() -> None:
            with client.chat.completions.create(model="openclaw", messages=endless, stream=True) as stream:
                next(iter(stream))

        await in_thread(begin)
        with trio.fail_after(10):
            for run in host.runtime.runs.open_runs():
                await run.ended.wait()
        (row,) = (await host.rpc("sessions.list"))["sessions"]
        assert row["status"] == "killed"


async def test_errors_are_the_clients_own_exceptions_and_say_what_was_wrong(tmp_path: Path) -> None:
    async with sdk(tmp_path) as (_, client):
        create = client.chat.completions.create
        with pytest.raises(openai.BadRequestError, match="Use `openclaw` or `openclaw/<agentId>`"):
            await in_thread(create, model="gpt-4", messages=HI)
        with pytest.raises(openai.BadRequestError, match="Missing user message in `messages`"):
            await in_thread(create, model="openclaw", messages=[])
        with pytest.raises(openai.BadRequestError, match="at /temperature: must be <= 2"):
            await in_thread(create, model="openclaw", messages=HI, temperature=3)
        with pytest.raises(openai.BadRequestError, match="data: URL"):
            image = {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}
            await in_thread(create, model="openclaw", messages=[{"role": "user", "content": [image]}])
        with pytest.raises(openai.InternalServerError) as failed:
            await in_thread(create, model="openclaw", messages=[{"role": "user", "content": "FAIL:401"}])
        assert failed.value.status_code == 502
        assert failed.value.type == "api_error"
        wrong = client.with_options(api_key="wrong-token-of-somebody")
        with pytest.raises(openai.AuthenticationError, match="Unauthorized"):
            await in_thread(wrong.chat.completions.create, model="openclaw", messages=HI)


async def test_the_agents_are_the_models(tmp_path: Path) -> None:
    async with sdk(tmp_path) as (_, client):
        listed = await in_thread(client.models.list)
        assert [model.id for model in listed.data] == ["openclaw", "openclaw/default", "openclaw/main"]
        assert (await in_thread(client.models.retrieve, model="openclaw/main")).owned_by == "openclaw"
        with pytest.raises(openai.NotFoundError, match="Model 'openclaw/nobody' not found"):
            await in_thread(client.models.retrieve, model="openclaw/nobody")
        with pytest.raises(openai.BadRequestError, match="Invalid model id"):
            await in_thread(client.models.retrieve, model="none")


# -- responses -------------------------------------------------------------------------------------------------------


async def test_a_response_is_whole_and_the_next_one_goes_on_from_it(tmp_path: Path) -> None:
    async with sdk(tmp_path) as (host, client):
        first = await in_thread(client.responses.create, model="openclaw", input="SAY:hello", instructions="Be brief.")
        assert (first.status, first.output_text) == ("completed", "hello")
        assert first.usage.total_tokens == first.usage.input_tokens + 1
        assert host.model.requests[-1].system.endswith("Be brief.")
        second = await in_thread(client.responses.create, model="openclaw", input="more", previous_response_id=first.id)
        assert second.output_text == "You said: more"
        assert "hello" in str(host.model.requests[-1].messages)
        assert (await host.rpc("sessions.list"))["totalCount"] == 1
        with pytest.raises(openai.BadRequestError, match="'resp_x' is no response"):
            await in_thread(client.responses.create, model="openclaw", input="x", previous_response_id="resp_x")


async def test_a_response_is_streamed_in_the_order_of_its_events(tmp_path: Path) -> None:
    async with sdk(tmp_path) as (_, client):
        events = await in_thread(lambda: list(client.responses.create(model="openclaw", input="TOKENS:4", stream=True)))
        kinds = [event.type.removeprefix("response.") for event in events]
        deltas = kinds.count("output_text.delta")
        assert kinds == [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            *["output_text.delta"] * deltas,
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "completed",
        ]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert events[-1].response.output_text == "".join(e.delta for e in events if e.type.endswith("text.delta"))


async def test_a_response_calls_a_tool_of_the_clients_own(tmp_path: Path) -> None:
    async with sdk(tmp_path) as (host, client):
        tool: Any = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": None}
        asked = 'CALL:weather {"city": "Kiel"}'

        def streamed() -> Any:
            with client.responses.stream(model="openclaw", input=asked, tools=[tool]) as stream:
                return stream.get_final_response()

        response = await in_thread(streamed)
        (call,) = response.output
        assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "weather", {"city": "Kiel"})
        told: Any = [
            {"role": "user", "content": asked},
            call.to_dict(),
            {"type": "function_call_output", "call_id": call.call_id, "output": "wet"},
        ]
        await in_thread(client.responses.create, model="openclaw", input=told, tools=[tool])
        assert f"Result of {call.call_id}: wet" in str(host.model.requests[-1].messages[-1])


async def test_a_response_that_fails_says_so_before_its_first_word_and_after(tmp_path: Path) -> None:
    fails = ProviderError("auth", "no such key")
    async with sdk(tmp_path, script=[[fails], [TextDelta("Well"), fails]]) as (_, client):
        with pytest.raises(openai.InternalServerError, match="no such key"):
            await in_thread(client.responses.create, model="openclaw", input="x", stream=True)
        events = await in_thread(lambda: list(client.responses.create(model="openclaw", input="x", stream=True)))
        assert events[-1].type == "response.failed"
        assert "no such key" in events[-1].response.error.message


async def test_a_chat_that_fails_after_its_first_word_ends_with_the_error(tmp_path: Path) -> None:
    fails = ProviderError("auth", "no such key")
    async with sdk(tmp_path, script=[[TextDelta("Well"), fails]]) as (_, client):
        with pytest.raises(openai.APIError, match="no such key"):
            await in_thread(lambda: list(client.chat.completions.create(model="openclaw", messages=HI, stream=True)))


async def test_what_was_cut_by_its_limit_says_so(tmp_path: Path) -> None:
    cut = Done(AssistantMessage((Text("half"),), 1, stop_reason="length"))
    async with sdk(tmp_path, script=[[cut], [cut]]) as (_, client):
        answer = await in_thread(client.chat.completions.create, model="openclaw", messages=HI)
        assert answer.choices[0].finish_reason == "length"
        response = await in_thread(client.responses.create, model="openclaw", input="x", max_output_tokens=1)
        assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")


async def test_the_usage_of_a_run_is_that_of_all_its_calls_of_the_model(tmp_path: Path) -> None:
    async with sdk(tmp_path) as (_, client):
        calls: Any = [{"role": "user", "content": "CALL:sessions_list {}"}]
        answer = await in_thread(client.chat.completions.create, model="openclaw", messages=calls)
        assert answer.choices[0].message.content.startswith("tool said:")
        plain = await in_thread(client.chat.completions.create, model="openclaw", messages=HI)
        assert answer.usage.prompt_tokens > 1.5 * plain.usage.prompt_tokens
