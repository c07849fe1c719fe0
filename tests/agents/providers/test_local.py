"""The embedded engine, for real: a child process, its socket, and a model of 135 million parameters."""

import http.client
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from http.client import HTTPMessage
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from triops.agents.errors import ContextOverflow, ProviderError
from triops.agents.messages import UserMessage
from triops.agents.model import Done, ModelInfo, ModelRef, ModelRequest, ProviderEvent, RetryNotice, TextDelta
from triops.agents.providers import local
from triops.agents.providers.demo import engine_is_installed, weights_folder
from triops.agents.providers.local import MOST_CONTEXT, LocalProvider, open_local_provider, trained_context
from triops.testing import check_provider

SYSTEM = "You are a helpful assistant. Answer briefly."
real = pytest.mark.skipif(
    not (engine_is_installed() and weights_folder()),
    reason="the demonstration model is not installed here; python3 dev.py setup installs it where its engine is built",
)


def ask(model: ModelInfo, text: str) -> ModelRequest:
    return ModelRequest(model=model, system=SYSTEM, messages=(UserMessage(text, timestamp=0),), max_tokens=16)


def endless(model: ModelInfo) -> ModelRequest:
    talkative = msgspec.structs.replace(model, params=(("ignore_eos", True),))
    return msgspec.structs.replace(ask(talkative, "Tell me a story."), max_tokens=1500)


async def answer(provider: LocalProvider, request: ModelRequest) -> list[ProviderEvent]:
    with trio.fail_after(20):
        async with provider.stream(request) as batches:
            return [event async for batch in batches for event in batch]


async def demo_of(provider: LocalProvider) -> ModelInfo:
    return next(model for model in await provider.discover() if model.demo)


def child_of(provider: LocalProvider) -> trio.Process:
    (engine,) = provider._engines.values()
    return engine.process


def leftovers(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def said(events: Sequence[ProviderEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


@real
async def test_files_of_the_folders_and_the_demonstration_model_are_listed(tmp_path: Path) -> None:
    (tmp_path / "mine.Q4.gguf").touch()
    async with open_local_provider([tmp_path, tmp_path / "missing"], socket_folder=tmp_path / "run") as provider:
        models = {model.ref: model for model in await provider.discover()}

    mine = models[ModelRef("local", "mine.Q4")]
    (demo,) = (model for model in models.values() if model.demo)
    assert not mine.demo and mine.compat.supports_tools
    assert demo.ref.model.startswith("SmolLM2") and not demo.compat.supports_tools
    assert (demo.context_window, demo.max_tokens) == (2048, 512)
    assert not (tmp_path / "run").exists()


async def test_without_the_engine_only_this_provider_fails_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)  # as where no wheel of it is built
    model = ModelInfo(ref=ModelRef("local", "any"))
    async with open_local_provider([], socket_folder=tmp_path) as provider:
        with pytest.raises(ProviderError, match="triops models add demo") as discovering:
            await provider.discover()
        with pytest.raises(ProviderError, match="triops models add demo"):
            await answer(provider, ask(model, "Hello"))
    assert discovering.value.kind == "model_not_found" and not discovering.value.retryable


@real
async def test_a_model_that_is_not_there_is_named_with_the_next_step(tmp_path: Path) -> None:
    async with open_local_provider([], socket_folder=tmp_path) as provider:
        assert await provider.resolve_dynamic("gone") is None
        with pytest.raises(ProviderError, match=r"'gone'.*triops models add demo"):
            await answer(provider, ask(ModelInfo(ref=ModelRef("local", "gone")), "Hello"))


@real
@pytest.mark.slow
async def test_a_warmed_model_answers_from_its_cache_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async with open_local_provider([], socket_folder=tmp_path) as provider:
        model = await demo_of(provider)
        with trio.fail_after(20):
            await provider.warm(model, SYSTEM)
        child = child_of(provider)
        events = await answer(provider, ask(model, "What is the capital of Japan?"))
        with pytest.raises(ContextOverflow):
            await answer(provider, ask(model, "word " * 3000))
        quick = msgspec.structs.replace(ask(model, "Hello"), max_tokens=2)
        in_a_row = [event for _ in range(12) for event in await answer(provider, quick)]
        assert child_of(provider) is child

    assert not any(isinstance(event, RetryNotice) for event in in_a_row)
    done = events[-1]
    assert isinstance(done, Done)
    assert "Tokyo" in said(events) and done.message.text == said(events)
    assert done.message.usage is not None and done.message.usage.cache_read > 5
    assert child.returncode is not None
    assert not leftovers(tmp_path)


@real
@pytest.mark.slow
async def test_the_embedded_engine_keeps_the_contract_of_providers(tmp_path: Path) -> None:
    async with open_local_provider([], socket_folder=tmp_path) as provider:
        with trio.fail_after(60):
            await check_provider(provider, await demo_of(provider))
    assert not leftovers(tmp_path)


@real
@pytest.mark.slow
async def test_a_killed_engine_fails_its_run_and_the_next_message_starts_another(tmp_path: Path) -> None:
    async with open_local_provider([], socket_folder=tmp_path) as provider:
        model = await demo_of(provider)
        with pytest.raises(ProviderError, match="starts it again") as failed, trio.fail_after(20):
            async with provider.stream(endless(model)) as batches:
                async for _ in batches:
                    child_of(provider).kill()
        first = child_of(provider)
        assert provider.rest == "its process ended; the next message loads it again"
        events = await answer(provider, ask(model, "Hello"))
        assert child_of(provider).pid != first.pid

    assert failed.value.kind == "connection" and failed.value.retryable
    assert failed.value.detail == "it ended without a word"
    assert said(events)


@real
@pytest.mark.slow
async def test_an_abandoned_start_or_answer_stops_the_model(tmp_path: Path) -> None:
    async with open_local_provider([], socket_folder=tmp_path) as provider:
        model = await demo_of(provider)
        with trio.move_on_after(0.1):
            await provider.warm(model, SYSTEM)
        assert not leftovers(tmp_path)

        async with provider.stream(endless(model)) as batches:
            await anext(aiter(batches))
            child = child_of(provider)
        with trio.fail_after(8):  # 1,500 tokens take twice as long on an idle machine
            await answer(provider, ask(model, "Hello"))
        assert child_of(provider) is child


@real
@pytest.mark.slow
async def test_a_model_that_is_being_loaded_delays_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, start = trio.Event(), local._start

    async def slow(process: trio.Process, key: str, name: str, stderr: Any) -> Any:
        if name == "large":
            begun.set()
            await trio.sleep_forever()
        return await start(process, key, name, stderr)

    monkeypatch.setattr(local, "_start", slow)
    (tmp_path / "large.gguf").touch()
    async with (
        open_local_provider([tmp_path], socket_folder=tmp_path / "run") as provider,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(answer, provider, ask(ModelInfo(ref=ModelRef("local", "large")), "Hello"))
        await begun.wait()
        assert said(await answer(provider, ask(await demo_of(provider), "Hello")))
        nursery.cancel_scope.cancel(reason="seen")


@real
@pytest.mark.slow
async def test_an_idle_engine_is_unloaded_and_comes_back(tmp_path: Path) -> None:
    async with open_local_provider([], socket_folder=tmp_path, idle_unload=0.05) as provider:
        model = await demo_of(provider)
        assert provider.rest == "", "it was never loaded"
        await answer(provider, ask(model, "Hello"))
        first = child_of(provider)
        with trio.fail_after(5):
            await first.wait()
        assert "unloaded after" in provider.rest
        async with provider.stream(ask(model, "Hello")) as batches:
            assert provider.rest == ""
            async for _ in batches:
                pass
        second = child_of(provider)
        assert second is not first
    assert second.returncode is not None


@real
@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there, the first request to end is the last")
async def test_an_engine_that_does_not_end_is_killed(tmp_path: Path) -> None:
    async with open_local_provider([], socket_folder=tmp_path) as provider:
        await answer(provider, ask(await demo_of(provider), "Hello"))
        child = child_of(provider)
        child.send_signal(signal.SIGSTOP)
        await trio.to_thread.run_sync(os.waitpid, child.pid, os.WUNTRACED)  # its threads stop one after the other
    assert child.returncode == -signal.SIGKILL


@real
@pytest.mark.slow
async def test_a_folder_too_deep_for_a_socket_gets_a_loopback_port(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    async with open_local_provider([], socket_folder=deep) as provider:
        assert said(await answer(provider, ask(await demo_of(provider), "Hello")))
        assert not leftovers(deep)


@real
@pytest.mark.slow
async def test_a_file_that_is_no_model_is_refused_with_the_engine_s_own_words(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"not a model at all")
    async with open_local_provider([tmp_path], socket_folder=tmp_path / "run") as provider:
        with pytest.raises(ProviderError, match=r"broken could not be loaded: .*expected 'GGUF'") as failed:
            await answer(provider, ask(ModelInfo(ref=ModelRef("local", "broken")), "Hello"))
    assert failed.value.kind == "server_error" and "failed to load model" in failed.value.detail


@contextmanager
def engine(*arguments: str) -> Iterator[tuple["subprocess.Popen[bytes]", dict[str, str]]]:
    folder = weights_folder()
    assert folder is not None
    (model,) = folder.glob("*.gguf")
    command = [sys.executable, "-P", "-m", "triops.agents.providers.engine"]
    command += ["--model", str(model), "--context", "512", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(b"the-key\n")
            process.stdin.flush()
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


@real
@pytest.mark.slow
def test_the_engine_opens_to_its_key_only_and_ends_with_its_stdin() -> None:
    page = {"Origin": "http://evil.example"}
    key = {"Authorization": "Bearer the-key"}
    with engine() as (process, ready):
        assert int(ready["pid"]) == process.pid

        def get(path: str, headers: dict[str, str]) -> tuple[int, HTTPMessage]:
            with closing(http.client.HTTPConnection(ready["url"].removeprefix("http://"), timeout=10)) as connection:
                connection.request("GET", path, headers=headers)
                response = connection.getresponse()
                response.read()
                return response.status, response.headers

        assert get("/v1/models", page)[0] == 401
        status, allowed = get("/v1/models", {**page, **key})
        assert status == 200
        assert not allowed.get("Access-Control-Allow-Origin")
        assert not allowed.get("Access-Control-Allow-Credentials")
        assert get("/slots", key)[0] in (404, 501)
        assert get("/", key)[0] == 404

        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=5) == 0


@real
@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Unix sockets and signals")
def test_the_engine_s_socket_is_private_survives_ctrl_c_and_is_gone_at_the_end(tmp_path: Path) -> None:
    socket = tmp_path / "e.sock"
    with engine("--socket", str(socket)) as (process, ready):
        assert ready["socket"] == str(socket)
        assert socket.stat().st_mode & 0o077 == 0
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.1)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=5) == 0
    assert not socket.exists()


def gguf(path: Path, *, context: int, tags: int = 2) -> Path:
    """The head of a file of weights, as converters write it."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    head = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("general.tags") + struct.pack("<IIQ", 9, 8, tags) + text("chat") * tags,
        text("general.quality") + struct.pack("<If", 6, 0.5),
        text("llama.context_length") + struct.pack("<II", 4, context),
    ]
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, len(head)) + b"".join(head))
    return path


def test_a_files_head_says_how_much_context_it_was_trained_on(tmp_path: Path):
    file = gguf(tmp_path / "m.gguf", context=32_768)
    assert trained_context(file) == 32_768
    whole = file.read_bytes()
    for cut in range(len(whole)):
        file.write_bytes(whole[:cut])
        assert trained_context(file) == 0
    assert trained_context(gguf(file, context=4096, tags=50_000)) == 0
    file.write_bytes(b"\xff" * 400)
    assert trained_context(file) == trained_context(tmp_path / "none.gguf") == 0


@real
async def test_a_file_of_ones_own_gets_the_context_it_was_trained_on_up_to_a_limit(tmp_path: Path) -> None:
    for context in (1024, 32_768):
        gguf(tmp_path / f"m{context}.gguf", context=context)
    async with open_local_provider([tmp_path], socket_folder=tmp_path / "run") as provider:
        found = {model.ref.model: (model.context_window, model.max_tokens) for model in await provider.discover()}
    assert (found["m1024"], found["m32768"]) == ((1024, 256), (MOST_CONTEXT, MOST_CONTEXT // 4))
