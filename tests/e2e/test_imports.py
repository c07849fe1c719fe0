"""What a gateway has loaded when it listens: the start-up budget is spent on imports."""

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import _thread, json, sys, threading, time
from pathlib import Path

before = set(sys.modules)

def watch():
    state = Path(sys.argv[1])
    while not (state / "gateway.json").exists():
        time.sleep(0.005)
    names = {name.partition(".")[0] for name in set(sys.modules) - before}
    third = {n for n in names if n not in sys.stdlib_module_names and not n.startswith("_sysconfigdata")}
    own = sorted(name for name in sys.modules if name.startswith("triops."))
    (state / "modules.json").write_text(json.dumps({"third": sorted(third), "own": own}))
    _thread.interrupt_main()

threading.Thread(target=watch, daemon=True).start()
from triops.gateway.cli.main import main
main(["gateway", "run", "--port", "0"])
"""

ALLOWED = {
    "triops",
    *("trio", "attr", "attrs", "outcome", "sniffio", "sortedcontainers", "idna"),  # trio, and what it imports
    *("trio_websocket", "wsproto", "h11"),
    *("msgspec", "typing_extensions", "apsw"),
    "cronsim",  # pure and small: 0.6 ms
    "click",  # the command line itself
    *("cffi", "_cffi_backend", "colorama"),  # trio's and click's on Windows
}


def loaded(state: Path, config: str | None) -> tuple[set[str], set[str]]:
    """Top-level third-party modules and our own modules of a gateway that listens."""
    state.mkdir(mode=0o700)
    if config is not None:
        (state / "triops.json").write_text(config)
    keep = ("PATH", "SYSTEMROOT", "TEMP", "TMP")
    environ = {name: os.environ[name] for name in keep if name in os.environ}
    home = {name: str(state) for name in ("HOME", "USERPROFILE", "TRIOPS_STATE_DIR")}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(state)],
        env=environ | home,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    modules = json.loads((state / "modules.json").read_text())
    return set(modules["third"]), set(modules["own"])


def test_a_gateway_that_listens_has_loaded_nothing_it_does_not_need_yet(tmp_path: Path) -> None:
    third, own = loaded(tmp_path / "bare", None)
    assert third <= ALLOWED
    assert "trio_websocket" in third
    assert "triops.gateway.client" not in own
    assert not {name for name in own if name.startswith("triops.bench")}


def test_a_configuration_file_adds_its_parser_and_a_scripted_model_adds_nothing(tmp_path: Path) -> None:
    config = {
        "models": {"providers": {"scripted": {"api": "scripted"}}},
        "agents": {"defaults": {"model": {"primary": "scripted/echo"}}},
    }
    third, _ = loaded(tmp_path / "configured", json.dumps(config))
    parser = {name for name in third if "pyjson5" in name or "cython" in name}
    assert parser
    assert third - parser <= ALLOWED
