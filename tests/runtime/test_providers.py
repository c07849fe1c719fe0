"""What the configuration and the environment make of providers, and what a run hears of one that cannot be asked."""

import json
import sys
from collections.abc import AsyncGenerator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio.testing
from tests.kit.host import open_test_gateway
from tests.kit.model_server import ModelServer, open_model_server

from triops.agents.errors import ProviderError
from triops.agents.messages import UserMessage
from triops.agents.model import ModelRequest
from triops.agents.providers.anthropic_messages import AnthropicMessagesProvider
from triops.agents.providers.http import HttpClient
from triops.agents.providers.openai_completions import OllamaProvider, OpenAICompletionsProvider
from triops.agents.providers.scripted import ScriptedProvider
from triops.runtime.config import Config, ModelConfig, ModelsConfig, ProviderConfig
from triops.runtime.config_file import LoadedConfig, load_config
from triops.runtime.logs import Redactor
from triops.runtime.models import ModelCatalog, ProviderEntry, UnknownModel
from triops.runtime.paths import Paths
from triops.runtime.providers import open_catalogs, provider_entries
from triops.runtime.secrets import KeyCommand, Secret

NO_KEY = "openai needs a key: set OPENAI_API_KEY or write models.providers.openai.apiKey"


@pytest.fixture
async def server() -> AsyncGenerator[ModelServer]:
    async with open_model_server() as server:
        yield server


def entries(environ: dict[str, str], mode: Any = "replace", **providers: ProviderConfig) -> list[ProviderEntry]:
    config = Config(models=ModelsConfig(mode=mode, providers=providers))
    environ = {"CODEX_HOME": "/nowhere", **environ}
    return provider_entries(config, environ, http=HttpClient(), embedded=None, redactor=Redactor())


def catalog(*found: ProviderEntry) -> ModelCatalog:
    return ModelCatalog(found, aliases={}, default=None)


def provider(**more: Any) -> ProviderConfig:
    return ProviderConfig(models=(ModelConfig(id="m"),), **more)


def refusal(entry: ProviderEntry) -> str:
    """What a run of the entry's model hears."""
    info = entry.models[0]
    request = ModelRequest(model=info, system="", messages=(UserMessage("Hi", timestamp=0),))
    with pytest.raises(ProviderError) as caught:
        entry.serving(info).provider.stream(request)
    return str(caught.value)


def test_a_provider_of_an_unknown_api_keeps_its_models_and_says_why_they_cannot_be_asked():
    (entry,) = entries({}, google=provider(api="google-generative-ai"))
    assert refusal(entry).startswith(
        "google/m cannot be asked: its api 'google-generative-ai' is not supported; known: anthropic-messages, "
    )


async def test_a_provider_that_cannot_be_asked_is_shown_as_failed():
    (entry,) = entries({}, google=provider(api="google-vertex"))
    with pytest.raises(ProviderError, match="'google-vertex' is not supported"):
        await entry.provider.discover()
    with pytest.raises(ProviderError, match="'google-vertex' is not supported"):
        await entry.provider.warm(entry.models[0], "")
    assert await entry.provider.resolve_dynamic("m") is None


def test_a_model_may_have_another_api_than_its_provider():
    models = (ModelConfig(id="a"), ModelConfig(id="b", api="anthropic-messages"), ModelConfig(id="c", api="telepathy"))
    (entry,) = entries({}, p=ProviderConfig(base_url="http://127.0.0.1:1/v1", models=models))
    shelf = catalog(entry)
    kinds: list[type] = []
    for name in "ab":
        found = shelf.find(f"p/{name}")
        assert found is not None
        kinds.append(type(found.provider))
    assert kinds == [OpenAICompletionsProvider, AnthropicMessagesProvider]
    assert refusal(ProviderEntry(provider=entry.provider, why="", models=entry.models[2:], others=entry.others)) == (
        "p/c cannot be asked: its api 'telepathy' is not supported; known: anthropic-messages, codex, ollama, "
        "openai-completions, openai-responses, scripted"
    )


def test_a_missing_key_is_named_with_its_variable_and_its_path():
    assert refusal(entries({}, openai=provider())[0]) == f"openai/m cannot be asked: {NO_KEY}"
    for served in (
        entries({"OPENAI_API_KEY": "k" * 20}, openai=provider()),
        entries({}, openai=provider(api_key=Secret("k" * 20))),
        entries({}, openai=provider(base_url="http://127.0.0.1:1/v1")),
    ):
        assert isinstance(served[0].provider, OpenAICompletionsProvider)


async def test_a_model_of_a_provider_without_configuration_and_key_names_the_variable():
    with pytest.raises(UnknownModel, match=r"; set ANTHROPIC_API_KEY or write models\.providers\.anthropic\.apiKey"):
        await catalog().resolve("anthropic/claude")


def test_a_key_in_the_environment_is_found_by_the_providers_id_and_hidden_from_the_log():
    redactor, key = Redactor(), "canary-of-some-length"
    config = Config(models=ModelsConfig(mode="replace", providers={"my-lab": provider(base_url="http://x/v1")}))
    provider_entries(config, {"MY_LAB_API_KEY": key}, http=HttpClient(), embedded=None, redactor=redactor)
    assert key not in redactor.clean(f"asked with {key}")


def test_ollama_is_asked_as_openclaw_users_have_it():
    given = entries({}, ollama=provider(), mine=provider(api="ollama", base_url="http://127.0.0.1:1"))
    assert [type(entry.provider) for entry in given] == [OllamaProvider, OllamaProvider]


def test_where_nothing_is_configured_keys_come_before_local_servers_and_the_embedded_model_last():
    config, environ = Config(), {"ANTHROPIC_API_KEY": "k" * 20, "CODEX_HOME": "/nowhere"}
    embedded = ScriptedProvider(id="local")
    found = provider_entries(config, environ, http=HttpClient(), embedded=embedded, redactor=Redactor())
    assert [(entry.provider.id, entry.why) for entry in found] == [
        ("anthropic", "ANTHROPIC_API_KEY is set"),
        ("ollama", "Ollama answers on this machine"),
        ("lmstudio", "LM Studio answers on this machine"),
        ("llamacpp", "llama.cpp answers on this machine"),
        ("local", "it is on this machine, for when nothing better is found"),
    ]


@pytest.mark.parametrize(
    ("defaults", "mode", "looked_for"),
    [
        ({"model": "lab/m"}, "merge", []),
        ({"model": "lmstudio/m"}, "merge", ["lmstudio"]),
        ({"model": "lmstudio/m"}, "replace", []),
        ({"model": {"primary": "lab/m", "fallbacks": ["ollama/m"]}}, "merge", ["ollama"]),
        ({"model": "o", "models": {"ollama/m": {"alias": "o"}}}, "merge", ["ollama"]),
        ({"model": "lab/m", "heartbeat": {"model": "llamacpp/m"}}, "merge", ["llamacpp"]),
        ({"model": "ollama/of-lab"}, "merge", []),
    ],
)
def test_a_local_server_is_looked_for_when_a_chosen_model_names_it(
    tmp_path: Path, defaults: Any, mode: str, looked_for: list[str]
):
    lab = {"baseUrl": "http://127.0.0.1:1/v1", "models": [{"id": "m"}, {"id": "ollama/of-lab"}]}
    file = tmp_path / "triops.json"
    file.write_text(json.dumps({"agents": {"defaults": defaults}, "models": {"mode": mode, "providers": {"lab": lab}}}))
    config = load_config(Paths(tmp_path, file), {}).config
    environ = {"CODEX_HOME": "/nowhere"}
    found = provider_entries(config, environ, http=HttpClient(), embedded=None, redactor=Redactor())
    assert [entry.provider.id for entry in found] == ["lab", *looked_for]


# -- from outside ------------------------------------------------------------------------------------------------------


def written(**providers: Any) -> dict[str, Any]:
    return {"models": {"mode": "replace", "providers": providers}}


GEMINI = {"api": "google-generative-ai", "models": [{"id": "gemini"}]}


async def test_a_copied_file_with_an_unknown_api_starts_and_another_provider_answers(
    tmp_path: Path, server: ModelServer
) -> None:
    local = {"api": "anthropic-messages", "baseUrl": server.url, "models": [{"id": "m"}]}
    async with (
        open_test_gateway(tmp_path, config=written(google=GEMINI, local=local), providers=()) as host,
        host.client() as client,
    ):
        await client.say("SAY:hello", key="k")
        assert (await client.ended("k"))["state"] == "final"
        assert host.runtime.catalog.default == "local/m"
        assert any(
            record.fields.get("path") == "models.providers.google.api" and "'google-generative-ai'" in record.message
            for record in host.warnings()
        )


@pytest.mark.parametrize(
    ("providers", "primary", "cause"),
    [
        ({"google": GEMINI}, None, "google/gemini cannot be asked: its api 'google-generative-ai' is not supported"),
        ({"google": GEMINI}, "google/other", "provider google failed: its api 'google-generative-ai'"),
        ({"openai": {"models": [{"id": "gpt"}]}}, "openai/gpt", f"openai/gpt cannot be asked: {NO_KEY}"),
        ({"openai": {}}, "openai/gpt", NO_KEY),
    ],
)
async def test_a_run_of_a_model_that_cannot_be_asked_names_the_cause(
    tmp_path: Path, providers: dict[str, Any], primary: str | None, cause: str
) -> None:
    config = written(**providers) | ({"agents": {"defaults": {"model": primary}}} if primary else {})
    async with open_test_gateway(tmp_path, config=config, providers=()) as host, host.client() as client:
        await client.say("Hi", key="k")
        final = await client.ended("k")
        assert final["state"] == "error" and cause in final["errorMessage"]


@pytest.mark.parametrize(
    ("key", "variable", "advice"),
    [
        ({}, "", "set LAB_API_KEY or write models.providers.lab.apiKey"),
        ({}, "canary-of-some-length", "it refused the key of LAB_API_KEY: check that one"),
        (
            {"apiKey": "canary-of-some-length"},
            "other-of-some-length",
            "it refused the key of models.providers.lab.apiKey: check that one",
        ),
    ],
)
async def test_a_refused_key_is_named_by_where_it_stands_and_a_missing_one_by_where_to_write_it(
    tmp_path: Path, server: ModelServer, key: dict[str, str], variable: str, advice: str
) -> None:
    config = written(lab={"baseUrl": f"{server.url}/v1", "models": [{"id": "m"}], **key})
    config["env"] = {"vars": {"LAB_API_KEY": variable}} if variable else {}
    server.otherwise = 401
    async with open_test_gateway(tmp_path, config=config, providers=()) as host, host.client() as client:
        await client.say("Hi", key="k")
        message = (await client.ended("k"))["errorMessage"]
        assert message == f"lab/m request failed (not authorised, HTTP 401); {advice}"


PROGRAM = """
import json, os, sys
asked = json.load(sys.stdin)
keys = open(sys.argv[1]).read().split()
open(sys.argv[1], "w").write(" ".join(keys[1:]))
if not keys:
    sys.exit("the vault is locked")
plain = os.environ.get("PLAIN")
print(keys[0] if plain else json.dumps({"values": {asked["ids"][0]: keys[0]}}))
"""


@pytest.mark.parametrize("environ", [{}, {"PLAIN": "1"}])
async def test_a_command_says_the_key_when_it_is_needed_and_again_after_it_was_refused(
    tmp_path: Path, server: ModelServer, environ: dict[str, str]
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("key-of-yesterday key-of-today")
    argv = (sys.executable, "-c", PROGRAM, str(keys))
    command = KeyCommand(argv, environ, 20.0, "default", "lab/key")
    redactor = Redactor()
    config = Config(
        models=ModelsConfig(
            mode="replace", providers={"lab": ProviderConfig(base_url=f"{server.url}/v1", api_key=command)}
        )
    )
    with closing(HttpClient()) as http:
        (entry,) = provider_entries(config, {}, http=http, embedded=None, redactor=redactor)
        assert entry.key == "config" and keys.read_text().startswith("key-of-yesterday")
        assert [str(found.ref) for found in await entry.provider.discover()] == ["lab/m"]
        assert server.asked[-1][1]["authorization"] == "Bearer key-of-yesterday"
        assert "key-of-yesterday" not in redactor.clean("with key-of-yesterday")
        server.otherwise = 401
        request = ModelRequest(
            model=(await entry.provider.discover())[0], system="", messages=(UserMessage("Hi", timestamp=0),)
        )
        for key in ("yesterday", "today"):
            with pytest.raises(ProviderError, match=r"it refused the key of models.providers.lab.apiKey"):
                async with entry.provider.stream(request) as batches:
                    async for _ in batches:
                        pass
            assert server.asked[-1][1]["authorization"] == f"Bearer key-of-{key}"
        with pytest.raises(ProviderError, match=r"said no key .exit code 1.: the vault is locked") as caught:
            await entry.provider.discover()
        assert caught.value.kind == "auth"


async def test_changes_keep_the_connections_to_providers_or_close_them(tmp_path: Path, server: ModelServer) -> None:
    def loaded(**models: Any) -> LoadedConfig:
        providers = {"lab": ProviderConfig(base_url=f"{server.url}/v1")}
        return LoadedConfig(Config(models=ModelsConfig(mode="replace", providers=providers, **models)))

    async with open_catalogs(Paths(tmp_path, tmp_path / "triops.json"), redactor=Redactor()) as catalog_of:
        for change, connections in (({}, [True]), ({}, [True]), ({"patience_seconds": 1.0}, [False, True])):
            (entry,) = catalog_of(loaded(**change)).entries()
            await entry.provider.discover()
            assert isinstance(entry.provider, OpenAICompletionsProvider)
            assert entry.provider.http.patience == change.get("patience_seconds", 20)
            assert server.connections == connections
    await trio.testing.wait_all_tasks_blocked()
    assert server.connections == [False, False]


async def test_a_command_that_cannot_be_run_is_the_providers_state() -> None:
    command = KeyCommand(("/no/such/program",), {}, 5.0, "default", "x")
    (entry,) = entries({}, lab=ProviderConfig(base_url="http://127.0.0.1:1/v1", api_key=command))
    with pytest.raises(ProviderError, match="/no/such/program, which should say the key, cannot be run: No such file"):
        await entry.provider.discover()
