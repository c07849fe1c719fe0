from typing import Any

import pytest

from triops.agents.providers import demo


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
