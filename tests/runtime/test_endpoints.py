import pytest

from triops.agents.model import Compat, ModelRef, Prices
from triops.runtime.config import Config, ModelConfig, ModelsConfig, ProviderConfig
from triops.runtime.endpoints import configured_models


def with_models(**providers: ProviderConfig) -> Config:
    return Config(models=ModelsConfig(providers=providers))


def test_without_a_configuration_no_model_is_configured():
    assert configured_models(Config()) == {}


def test_a_configured_model_keeps_all_that_was_said_of_it():
    model = ModelConfig(
        id="a/b",
        name="B",
        reasoning=True,
        input=("text", "audio", "image"),
        cost=Prices(input=1),
        context_window=1000,
        max_tokens=100,
        compat=Compat(supports_tools=False),
        params={"top_k": 3},
    )
    models = configured_models(with_models(p=ProviderConfig(api="anthropic-messages", models=(model,))))
    info = models[ModelRef("p", "a/b")]
    assert info.ref == ModelRef.parse("p/a/b")
    assert (info.name, info.api, info.reasoning, info.input) == ("B", "anthropic-messages", True, ("text", "image"))
    assert (info.context_window, info.max_tokens, info.cost) == (1000, 100, Prices(input=1))
    assert info.compat == Compat(supports_tools=False)
    assert info.params == (("top_k", 3),)


def test_a_reply_never_exceeds_the_context_window():
    models = (
        ModelConfig(id="said", context_window=1000, max_tokens=2000),
        ModelConfig(id="unsaid", context_window=1000),
    )
    infos = configured_models(with_models(p=ProviderConfig(models=models)))
    assert [info.max_tokens for info in infos.values()] == [1000, 1000]


@pytest.mark.parametrize(
    ("provider", "of_provider", "of_model", "api"),
    [
        ("mine", None, None, "openai-completions"),
        ("anthropic", None, None, "anthropic-messages"),
        ("anthropic", "openai-completions", None, "openai-completions"),
        ("mine", "openai-completions", "anthropic-messages", "anthropic-messages"),
    ],
)
def test_the_wire_format_is_the_models_or_the_providers_or_the_usual_one(
    provider: str, of_provider: str | None, of_model: str | None, api: str
):
    config = with_models(**{provider: ProviderConfig(api=of_provider, models=(ModelConfig(id="m", api=of_model),))})
    assert configured_models(config)[ModelRef(provider, "m")].api == api
