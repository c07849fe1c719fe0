"""The embedded model behind a whole gateway: what it can do, what it costs, and what its death costs."""

import json
import math
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.kit.host import TestHost, open_test_gateway

from triops.agents.providers.demo import engine_is_installed, weights_folder
from triops.agents.providers.local import LocalProvider
from triops.runtime.events import RunDelta

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (engine_is_installed() and weights_folder()),
        reason="the demonstration model is not installed here; python3 dev.py setup installs it",
    ),
]
QUESTIONS = {
    "What is the capital of Japan?": "tokyo",
    "What is the capital of France?": "paris",
    "What is photosynthesis?": "light",
    "Why do we need sleep?": "body",
    "What is a volcano?": "magma lava erupt",
    "What is the largest planet of the solar system?": "jupiter",
    "What is water made of?": "hydrogen",
    "Who wrote Romeo and Juliet?": "shakespeare",
    "What do bees make?": "honey",
    "What does a doctor do?": "patient health",
}
"""And words of which one stands in a right answer."""
TOOLS = {
    "read_file": "read a file",
    "list_files": "list the files in a folder",
    "get_time": "tell the time and the date",
    "get_weather": "tell the weather of a place",
    "search_web": "search the web",
}
PROMPTS = {
    "What does the file notes.txt say?": "read_file",
    "Show me what is written in README.md.": "read_file",
    "Which files are in my downloads folder?": "list_files",
    "List everything in the folder photos.": "list_files",
    "What time is it now?": "get_time",
    "What is today's date?": "get_time",
    "Will it rain in Berlin tomorrow?": "get_weather",
    "How warm is it in Madrid?": "get_weather",
    "Search the web for news about bees.": "search_web",
    "Look up on the internet who won the match.": "search_web",
}
LONGEST_STEP = 0.020
"""Seconds of processor that one step of a task may take while the model generates."""


class Steps(trio.abc.Instrument):
    """The longest step that a task took, in processor time: what the machine gives others is not our fault."""

    longest = 0.0
    task = ""
    _start = math.inf  # of the step that adds it nothing is known

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._start = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        took = time.thread_time() - self._start
        if took > self.longest:
            self.longest, self.task = took, task.name


@asynccontextmanager
async def open_demo(tmp_path: Path) -> AsyncGenerator[TestHost]:
    """A gateway whose embedded model has been loaded."""
    folder = weights_folder()
    assert folder is not None
    (weights,) = folder.glob("*.gguf")
    config = {"agents": {"defaults": {"model": f"local/{weights.stem}"}}}
    async with open_test_gateway(tmp_path, config=config, providers=(), environ={"CODEX_HOME": str(tmp_path)}) as host:
        await asked(host, "Hello")
        yield host


async def asked(host: TestHost, words: str, **more: Any) -> Any:
    message = {"message": words, "sessionKey": f"s-{words}", "idempotencyKey": words, **more}
    return (await host.http("POST", "/rpc/agent?wait=final", message)).body


async def test_a_child_that_is_killed_while_it_answers_ends_the_run_with_words_and_the_next_one_works(
    tmp_path: Path,
) -> None:
    steps, begun = Steps(), trio.Event()
    story: list[Any] = []

    async def tell() -> None:
        story.append(await asked(host, "Tell me a long story about a dragon."))

    async with open_demo(tmp_path) as host:
        trio.lowlevel.add_instrument(steps)
        (local,) = (e.provider for e in host.runtime.catalog.entries() if isinstance(e.provider, LocalProvider))
        (engine,) = local._engines.values()
        with host.runtime.bus.subscribe(lambda event: begun.set() if isinstance(event, RunDelta) else None):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tell)
                with trio.fail_after(20):
                    await begun.wait()
                engine.process.kill()  # SIGKILL; on Windows TerminateProcess
        assert story[0]["status"] == "error" and "the next message starts it again" in str(story[0]), story
        assert "Tokyo" in (await asked(host, "What is the capital of Japan?"))["text"]
        trio.lowlevel.remove_instrument(steps)
    assert steps.longest < LONGEST_STEP, steps.task


@pytest.mark.soak
async def test_ten_questions_and_ten_choices_of_a_tool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right: list[str] = []
    picked: list[str] = []
    steps = Steps()
    schema = {"type": "object", "properties": {"tool": {"enum": [*TOOLS]}}, "required": ["tool"]}
    form = {"type": "json_schema", "json_schema": {"name": "choice", "schema": schema}}
    told = "Choose the tool that helps with the request.\n" + "\n".join(
        f"{tool}: {does}" for tool, does in TOOLS.items()
    )
    async with open_demo(tmp_path) as host:
        trio.lowlevel.add_instrument(steps)
        for question, words in QUESTIONS.items():
            said = await asked(host, question)
            assert said["state"] == "final" and said["text"]
            if any(word in said["text"].lower() for word in words.split()):
                right.append(question)
        for prompt in PROMPTS:
            messages = [{"role": "system", "content": told}, {"role": "user", "content": prompt}]
            body = {"model": "openclaw", "messages": messages, "response_format": form, "max_tokens": 32}
            answer = (await host.http("POST", "/v1/chat/completions", body)).body
            choice = json.loads(answer["choices"][0]["message"]["content"])["tool"]
            assert choice in TOOLS, "the schema forces one of them"
            if choice == PROMPTS[prompt]:
                picked.append(prompt)
        trio.lowlevel.remove_instrument(steps)
    with capsys.disabled():
        print(f"\n{len(right)} of {len(QUESTIONS)} questions answered rightly, not: {QUESTIONS.keys() - set(right)}")
        print(f"{len(picked)} of {len(PROMPTS)} tools picked rightly, not: {PROMPTS.keys() - set(picked)}")
        print(f"longest step {steps.longest * 1000:.1f} ms of processor, by {steps.task}")
    assert steps.longest < LONGEST_STEP, steps.task
    assert len(right) >= 8
