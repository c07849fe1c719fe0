import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec
import pytest

from triops.runtime import config as module
from triops.runtime.config import (
    AgentDefaults,
    AgentEntry,
    AgentsConfig,
    Config,
    GatewayConfig,
    workspace_of,
)
from triops.runtime.paths import Paths

PATHS = Paths(Path("/state"), Path("/etc/triops/triops.json"))


def test_no_configuration_at_all_is_one():
    config = Config()
    assert (config.gateway.port, config.gateway.host, config.gateway.auth.mode) == (18789, "127.0.0.1", "token")
    assert config.agents.defaults.max_concurrent >= 8
    assert config.agents.defaults.heartbeat.every == 0
    assert config.messages.queue.max_age == 600


def test_the_bind_says_the_address():
    assert GatewayConfig(bind="lan").host == "0.0.0.0"
    assert GatewayConfig(bind="custom", custom_bind_host="::1").host == "::1"


def agents(workspace: str | None, **entries: AgentEntry) -> Config:
    return Config(agents=AgentsConfig(defaults=AgentDefaults(workspace=workspace), entries=entries))


@pytest.mark.skipif(sys.platform == "win32", reason="the paths are written the POSIX way")
@pytest.mark.parametrize(
    ("config", "agent", "workspace"),
    [
        (agents(None), "main", "/state/workspace"),
        (agents("/w"), "main", "/w"),
        (agents("w"), "main", "/etc/triops/w"),
        (agents("~/w"), "main", f"{Path.home()}/w"),
        (agents("/w", solo=AgentEntry()), "solo", "/w"),
        (agents("/w", a=AgentEntry(), b=AgentEntry()), "a", "/w/a"),
        (agents("/w", main=AgentEntry(), b=AgentEntry()), "main", "/w"),
        (agents(None, a=AgentEntry(), b=AgentEntry()), "b", "/state/workspace-b"),
        (agents("/w", a=AgentEntry(workspace="/own"), b=AgentEntry()), "a", "/own"),
    ],
)
def test_each_agent_has_its_folder(config: Config, agent: str, workspace: str):
    assert workspace_of(config, PATHS, agent) == Path(workspace)


def sections(kind: Any) -> set[type[msgspec.Struct]]:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        inner = {section for field in msgspec.structs.fields(kind) for section in sections(field.type)}
        return inner | ({kind} if kind.__module__ == module.__name__ else set())
    return {section for part in get_args(kind) for section in sections(part)} if get_origin(kind) else set()


def test_every_key_is_documented_in_place():
    source = Path(module.__file__).read_text("utf-8").splitlines()
    found = sections(Config)
    assert len(found) > 15
    for section in found:
        assert section.__doc__
        start = next(i for i, line in enumerate(source) if line.startswith(f"class {section.__name__}("))
        for name in section.__struct_fields__:
            line = next(i for i, text in enumerate(source[start:], start) if text.startswith(f"    {name}: "))
            assert source[line + 1].startswith('    """'), f"{section.__name__}.{name} has no docstring"


@pytest.mark.slow
def test_without_a_file_neither_the_loop_nor_the_json5_parser_is_loaded(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from triops.runtime.config_file import load_config;"
        "from triops.runtime.paths import Paths;"
        f"load_config(Paths(Path({str(tmp_path)!r}), Path({str(tmp_path / 'none.json')!r})), {{}});"
        "print(sorted({'trio', 'pyjson5', 'difflib', 'zoneinfo'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20)
    assert shown.stdout == "[]\n"
