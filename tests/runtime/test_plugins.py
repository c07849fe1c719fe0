"""Providers of other packages: as good as ours, and unable to hurt anybody else."""

from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.kit.host import open_test_gateway

from triops.agents.errors import ProviderError
from triops.agents.messages import UserMessage
from triops.agents.model import ModelInfo, ModelRef, ModelRequest
from triops.agents.providers import plugins
from triops.agents.providers.http import HttpClient
from triops.agents.providers.scripted import ScriptedProvider
from triops.runtime.config import Config, ModelsConfig, ProviderConfig
from triops.runtime.config_file import load_config
from triops.runtime.logs import Redactor
from triops.runtime.paths import Paths
from triops.runtime.plugins import LateProvider, open_plugin
from triops.runtime.providers import provider_entries

MODULES = {
    "plug_good": """
        from triops.agents.model import ModelInfo, ModelRef
        from triops.agents.providers.scripted import ScriptedProvider
        class Good(ScriptedProvider):
            def __init__(self, *, id, http, api_key=None, base_url=None, **more):
                super().__init__(id=id)
                self.given = (api_key, base_url)
            async def discover(self):
                return []
            async def resolve_dynamic(self, model_id):
                return ModelInfo(ref=ModelRef(self.id, model_id), api="good") if model_id.startswith("made") else None
        """,
    "plug_bad": "import nothing_of_this_name",
    "plug_exit": "raise SystemExit(3)",
    "plug_hollow": "class Hollow:\n    def __init__(self, *, id, **more):\n        self.id = id\n",
    "plug_other": """
        from triops.agents.providers.scripted import ScriptedProvider
        def make(**settings):
            return ScriptedProvider(id="openai")
        """,
}
POINTS = {
    "good": "plug_good:Good",
    "bad": "plug_bad:X",
    "exit": "plug_exit:X",
    "hollow": "plug_hollow:Hollow",
    "other": "plug_other:make",
    "ollama": "plug_good:Good",
}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package with these entry points in this environment."""
    folder = tmp_path / "site"
    info = folder / "plug-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1.0\n")
    lines = [f"{name} = {target}" for name, target in POINTS.items()]
    (info / "entry_points.txt").write_text("\n".join(["[triops.providers]", *lines]))
    for name, text in MODULES.items():
        body = text if not text.startswith("\n") else "\n".join(line[8:] for line in text.splitlines())
        (folder / f"{name}.py").write_text(body)
    monkeypatch.syspath_prepend(str(folder))
    plugins.cache_clear()
    yield
    plugins.cache_clear()


def request(provider: str) -> ModelRequest:
    info = ModelInfo(ref=ModelRef(provider, "m"), api="scripted")
    return ModelRequest(model=info, system="", messages=(UserMessage("SAY:hello", timestamp=0),))


@pytest.mark.usefixtures("installed")
def test_entry_points_are_apis_and_ours_are_not_replaced():
    assert list(plugins()) == ["good", "bad", "exit", "hollow", "other"]


@pytest.mark.usefixtures("installed")
def test_a_plugin_is_a_provider_of_its_name_unless_the_configuration_uses_it_otherwise(tmp_path: Path):
    def entries(**providers: ProviderConfig) -> dict[str, str]:
        config = Config(models=ModelsConfig(providers=providers))
        environ = {"CODEX_HOME": "/nowhere"}
        found = provider_entries(config, environ, http=HttpClient(), embedded=None, redactor=Redactor())
        return {entry.provider.id: entry.why for entry in found}

    assert entries()["good"] == "its plugin plug_good:Good is installed"
    assert "good" not in entries(lab=ProviderConfig(api="good"))
    paths = Paths(tmp_path, tmp_path / "triops.json")
    models = "models: {providers: {good: {}, lab: {api: 'good'}}}"
    paths.config.write_text(f"{{{models}, agents: {{defaults: {{model: 'bad/m'}}}}}}")
    assert load_config(paths, {}).warnings == ()


@pytest.mark.usefixtures("installed")
async def test_a_plugin_gets_the_settings_that_ours_get():
    plugin = open_plugin("good", {"id": "lab", "http": None, "api_key": "k", "base_url": "http://x", "idle": 3.0})
    assert await plugin.discover() == []
    found = await plugin.resolve_dynamic("made-up")
    assert found is not None and str(found.ref) == "lab/made-up"
    assert await plugin.prepare_auth() is None
    async with plugin.stream(request("lab")) as batches:
        assert [type(event).__name__ async for batch in batches for event in batch][-1] == "Done"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bad", "'plug_bad:X' for 'bad' cannot be opened: ModuleNotFoundError"),
        ("exit", "cannot be opened: ImportError.'it ended itself: 3'"),
        ("hollow", "has no stream, discover, resolve_dynamic, warm"),
        ("other", "calls itself 'openai' instead of 'other'"),
    ],
)
async def test_a_plugin_that_cannot_be_opened_says_why(name: str, words: str):
    plugin = open_plugin(name, {"id": name, "http": None})
    with pytest.raises(ProviderError, match=words):
        await plugin.discover()
    with pytest.raises(ProviderError, match=words):
        async with plugin.stream(request(name)):
            pass


@pytest.mark.usefixtures("installed")
async def test_a_gateway_with_broken_plugins_answers_with_the_model_that_only_a_hook_knows(tmp_path: Path) -> None:
    config = {"agents": {"defaults": {"model": "good/made-up"}}}
    async with open_test_gateway(tmp_path, config=config, providers=()) as host, host.client() as client:
        await client.say("SAY:hello", key="k")
        assert (await client.ended("k"))["state"] == "final"
        states = {state.provider: state.state for state in host.runtime.catalog.states()}
        assert states["good"] == "ready"
        assert not [record for record in host.log if "nknown model" in str(record)]


class Clumsy(ScriptedProvider):
    """Fails by its own fault, where it is told to."""

    place = ""

    @trio.as_safe_channel
    async def stream(self, request: ModelRequest) -> AsyncGenerator[Any, None]:
        if self.place == "start":
            raise ZeroDivisionError
        yield [] if self.place != "batch" else "text"
        if self.place == "middle":
            raise ZeroDivisionError
        if self.place == "auth":
            raise ProviderError("auth", "the key is wrong")


@pytest.mark.parametrize("place", ["start", "middle", "batch"])
async def test_what_a_provider_does_wrong_in_a_stream_is_its_error(place: str):
    clumsy = Clumsy(id="clumsy")
    clumsy.place = place

    async def open() -> Clumsy:
        return clumsy

    with pytest.raises(ProviderError, match="clumsy failed by its own fault") as caught:
        async with LateProvider("clumsy", open).stream(request("clumsy")) as batches:
            async for _ in batches:
                pass
    assert caught.value.kind == "unclassified"


async def test_what_its_reader_does_wrong_stays_the_readers():
    async def open() -> ScriptedProvider:
        return ScriptedProvider(id="s")

    with pytest.raises(ZeroDivisionError):
        async with LateProvider("s", open).stream(request("s")):
            raise ZeroDivisionError


async def test_a_provider_is_opened_once_and_again_after_its_key_was_refused(autojump_clock: Any) -> None:
    opened: list[Clumsy] = []

    async def open() -> Clumsy:
        await trio.sleep(1)
        opened.append(Clumsy(id="c"))
        return opened[-1]

    late = LateProvider("c", open)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(late.discover)
        nursery.start_soon(late.discover)
    assert len(opened) == 1
    opened[0].place = "auth"
    with pytest.raises(ProviderError, match="the key is wrong"):
        async with late.stream(request("c")) as batches:
            async for _ in batches:
                pass
    await late.discover()
    assert len(opened) == 2


async def test_one_that_does_not_open_fails_in_time(autojump_clock: Any) -> None:
    with pytest.raises(ProviderError, match="did not open in time") as caught:
        async with LateProvider("slow", trio.sleep_forever).stream(request("slow")):
            pass
    assert caught.value.retryable
