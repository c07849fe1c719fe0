import json
from typing import Any

import pytest

from triops.agents.providers import demo
from triops.runtime.paths import Paths, prepare_state


def test_list(run: Any, gateway: Any):
    models = [
        {
            "provider": "lmstudio",
            "id": "qwen/qwen3.5-9b",
            "alias": "big",
            "contextWindow": 190_000,
            "tags": ["default"],
        },
        {"provider": "p", "id": "m", "available": False},
    ]
    gateway.answers["models.list"] = {"models": models}
    lines = run("models", "list").out.splitlines()
    assert lines[1].split() == ["lmstudio/qwen/qwen3.5-9b", "big", "190000", "available", "default"]
    assert "unavailable" in lines[2]


def test_no_models_names_the_next_step(run: Any, gateway: Any):
    gateway.answers["models.list"] = {"models": []}
    assert "triops models add demo" in run("models", "list").out


def test_add_demo_installs_it(run: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo, "install_demo", lambda progress: progress("Installing"))
    assert run("models", "add", "demo") == (0, "Installing\nThe model demo is installed. Try it: triops chat\n", "")
    assert run("models", "add", "demo", "--json") == (0, '{"installed": "demo"}\n', "")


def test_a_failed_installation_fails_the_command(run: Any, monkeypatch: pytest.MonkeyPatch):
    def fail(progress: object) -> None:
        raise demo.InstallError("no pip; by hand: …")

    monkeypatch.setattr(demo, "install_demo", fail)
    ran = run("models", "add", "demo")
    assert (ran.code, ran.err) == (1, "triops: no pip; by hand: …\n")
    assert run("models", "add", "other").code == 2


def test_the_list_can_be_narrowed(run: Any, gateway: Any):
    gateway.answers["models.list"] = {"models": []}
    assert "triops models status" in run("models", "list", "--provider", "p", "--configured").out
    assert gateway.calls[-1].params == {"provider": "p", "view": "configured"}


def test_status_shows_how_each_provider_stands_and_scan_asks_first(run: Any, gateway: Any):
    states = [
        {"provider": "lab", "state": "ready", "models": 2, "reason": "", "why": "configured"},
        {"provider": "away", "state": "failed", "models": 0, "reason": "nobody listens", "why": "configured"},
    ]
    gateway.answers["status"] = {"models": {"default": "lab/a", "why": "configured", "providers": states}}
    auth = [{"provider": "lab", "status": "static"}, {"provider": "away", "status": "missing"}]
    gateway.answers["models.authStatus"] = {"providers": auth}
    gateway.answers["models.list"] = {"models": [{"provider": "lab", "id": "b", "tags": ["fallback#1"]}]}
    lines = run("models", "status").out.splitlines()
    assert lines[:2] == ["Default: lab/a (configured)", "Fallbacks: lab/b"]
    assert lines[-1].split() == ["away", "failed", "0", "missing", "nobody", "listens"]
    gateway.answers["status"]["models"]["fault"] = "nobody has it"
    assert run("models", "status").out.startswith("Default: lab/a (nobody has it)\n")
    assert {} in [call.params for call in gateway.calls] and {"refresh": True} not in [c.params for c in gateway.calls]
    assert json.loads(run("models", "scan", "--json").out)["fallbacks"] == ["lab/b"]
    assert {"refresh": True} in [call.params for call in gateway.calls]


# -- the configuration file --------------------------------------------------------------------------------------------


@pytest.fixture
def written(paths: Paths) -> Any:
    def write(text: str) -> None:
        prepare_state(paths)
        paths.config.write_text(text)

    return write


def read(paths: Paths) -> Any:
    return json.loads(paths.config.read_text())


def test_set_makes_the_file_that_is_not_there(run: Any, paths: Paths):
    ran = run("models", "set", "anthropic/claude")
    assert (ran.code, read(paths)) == (0, {"agents": {"defaults": {"model": "anthropic/claude"}}})
    assert "A gateway that runs takes it up" in ran.out
    assert paths.config.stat().st_mode & 0o077 == 0


def test_set_and_fallbacks_keep_what_else_there_is(run: Any, paths: Paths, written: Any):
    written("{gateway: {port: 1}, agents: {defaults: {model: 'anthropic/a'}, entries: {w: {name: 'W'}}},}")
    assert run("models", "fallbacks", "openai/b", "openai/c").code == 0
    assert run("models", "set", "openai/d").code == 0
    assert run("models", "set", "openai/e", "--agent", "w").code == 0
    assert read(paths) == {
        "gateway": {"port": 1},
        "agents": {
            "defaults": {"model": {"primary": "openai/d", "fallbacks": ["openai/b", "openai/c"]}},
            "entries": {"w": {"name": "W", "model": "openai/e"}},
        },
    }
    assert run("models", "fallbacks").out == "openai/b\nopenai/c\n"
    assert run("models", "fallbacks", "--clear").code == 0
    assert run("models", "fallbacks").out == "No fallbacks.\n"
    assert run("models", "set", "openai/e", "--agent", "nobody").code == 2


def test_without_a_gateway_a_name_of_no_provider_and_no_alias_is_warned_of(run: Any, written: Any):
    written(
        '{"models": {"providers": {"lab": {"baseUrl": "http://127.0.0.1:9/v1", "models": [{"id": "big"}]}}},'
        ' "agents": {"defaults": {"models": {"lab/a": {"alias": "Quick"}}}}}'
    )
    for known in ("lab/any", "quick", "big", "ollama/qwen3:4b", "openai/gpt-5.4", "local/m"):
        assert "unknown" not in run("models", "set", known).err + run("models", "fallbacks", known).err
    ran = run("models", "fallbacks", "opnai/gpt-5.4")
    assert ran.code == 0 and "opnai/gpt-5.4 is unknown: there is no provider 'opnai'" in ran.err
    assert run("models", "set", "opnai/gpt-5.4").err.count("no provider") == 1
    assert "slow is unknown: there is no alias of that name" in run("models", "fallbacks", "lab/a", "slow").err
    assert "unknown" in run("models", "fallbacks", "lab/").err


def test_aliases_are_given_moved_and_taken_away(run: Any, paths: Paths, written: Any):
    written('{"agents": {"defaults": {"models": {"p/a": {"alias": "Quick", "params": {"x": 1}}}}}}')
    assert run("models", "aliases", "quick", "p/b").code == 0
    assert read(paths)["agents"]["defaults"]["models"] == {"p/a": {"params": {"x": 1}}, "p/b": {"alias": "quick"}}
    assert run("models", "aliases").out.splitlines()[1].split() == ["quick", "p/b"]
    assert run("models", "aliases", "quick", "--remove").code == 0
    assert run("models", "aliases").out == "No aliases.\n"
    assert "there is no alias 'quick'" in run("models", "aliases", "quick", "--remove").err
    assert run("models", "aliases", "quick").code == run("models", "aliases", "quick", "bare").code == 2


def test_a_file_with_comments_is_left_alone_and_the_line_is_told(run: Any, paths: Paths, written: Any):
    text = "{\n  // mine\n  gateway: {port: 1, x: 'http://y'},\n}"
    written(text)
    ran = run("models", "set", "p/m")
    assert (ran.code, paths.config.read_text()) == (78, text)
    assert "has comments" in ran.err and "by hand: agents.defaults.model: 'p/m'" in ran.err
    written("{gateway: {port: 1, customBindHost: 'http://y'}}")
    assert run("models", "set", "p/m").code == 0


def test_a_file_that_no_gateway_could_start_with_is_not_written(run: Any, paths: Paths, written: Any):
    written('{"agents": {"defaults": {"model": 3}}}')
    assert run("models", "set", "p/m").code == 78
    written('{"agents": {"entries": []}}')
    assert run("models", "set", "p/m", "--agent", "w").code == 78
    assert [path.name for path in paths.state.iterdir() if path.name.startswith("triops.json")] == ["triops.json"]


def test_a_model_that_the_running_gateway_does_not_list_is_named_with_the_nearest(run: Any, gateway: Any):
    gateway.answers["models.list"] = {"models": [{"provider": "lab", "id": "gpt-5.4"}]}
    assert "does not list lab/gpt-5.5; did you mean lab/gpt-5.4?" in run("models", "set", "lab/gpt-5.5").err
    assert run("models", "set", "lab/gpt-5.4").err.count("does not list") == 0
