import json
from typing import Any

import pytest

from triops.runtime.paths import Paths, prepare_state


@pytest.fixture
def configured(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write the configuration; no proxy and no key of the tester's is in the way."""
    for name in ("HTTP_PROXY", "http_proxy", "OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def write(provider: dict[str, Any]) -> None:
        prepare_state(paths)
        config = {
            "models": {"mode": "replace", "providers": {"mine": provider}},
            "agents": {"defaults": {"model": "mine/m", "models": {"mine/m": {"alias": "best"}}}},
        }
        paths.config.write_text(json.dumps(config))

    return write


@pytest.mark.parametrize("ref", [[], ["best"], ["mine/m"]])
def test_a_model_that_answers_is_said_to(run: Any, configured: Any, ref: list[str]):
    configured({"api": "scripted", "models": [{"id": "m"}]})
    ran = run("models", "test", *ref)
    assert ran.code == 0 and ran.out.startswith("mine/m answers and takes tools. First word after ")
    told = json.loads(run("models", "test", *ref, "--json").out)
    assert told["ok"] and told["model"] == "mine/m" and "ready" in told["text"]


def test_a_wrong_key_is_said_with_the_servers_words_and_where_it_stands(run: Any, configured: Any, fake: Any):
    configured({"baseUrl": f"{fake.url}/v1", "apiKey": "canary-1234", "models": [{"id": "m"}]})
    fake.answers["/v1/chat/completions"] = (401, {"error": {"message": "canary-1234 is no key"}})
    ran = run("models", "test")
    assert (ran.code, ran.out) == (1, "") and "mine/m request failed (not authorised, HTTP 401); " in ran.err
    assert "it says: [redacted] is no key" in ran.err and "It said" not in ran.err and "canary" not in ran.err
    told = json.loads(run("models", "test", "--json").err)
    assert (told["error"]["code"], told["error"]["kind"], told["error"]["status"]) == ("MODEL_FAILED", "auth", 401)


def test_retries_are_seen_and_a_model_that_is_not_there_is_said(run: Any, configured: Any, fake: Any):
    configured({"baseUrl": f"{fake.url}/v1", "models": [{"id": "m"}]})
    busy = (429, {"error": {"message": "slow down"}})
    fake.answers["/v1/chat/completions"] = [busy, (404, {"error": {"message": "no m here"}})]
    err = run("models", "test").err
    assert "(too many requests, HTTP 429); it says: slow down; asked again in 0.5 s" in err
    assert "check the model's id and baseUrl" in err


def test_an_unknown_model_names_the_nearest(run: Any, configured: Any):
    configured({"api": "scripted", "models": [{"id": "model-x"}]})
    ran = run("models", "test", "mine/model-y")
    assert ran.code == 1 and "did you mean mine/model-x" in ran.err


def test_a_faulty_configuration_is_told_as_such(run: Any, configured: Any):
    configured({"timeoutSeconds": "long"})
    ran = run("models", "test")
    assert ran.code == 78 and "models.providers.mine.timeoutSeconds" in ran.err
