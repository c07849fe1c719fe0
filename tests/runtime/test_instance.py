import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from triops.runtime.instance import Discovery, InstanceRunning, hold_instance, read_discovery
from triops.runtime.paths import Paths, locate, prepare_state

URL = "http://127.0.0.1:18789"
HOLDER = """
import os, sys
from triops.runtime.instance import hold_instance
from triops.runtime.paths import locate
with hold_instance(locate(os.environ)) as instance:
    with instance.published("http://127.0.0.1:1", "0"):
        print("held", flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = locate({"TRIOPS_STATE_DIR": str(tmp_path / "state")})
    prepare_state(paths)
    return paths


def start_holder(paths: Paths) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        env=os.environ | {"TRIOPS_STATE_DIR": str(paths.state)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_gateway_is_found_while_it_is_published(paths: Paths):
    assert read_discovery(paths) is None
    with hold_instance(paths) as instance:
        assert read_discovery(paths) is None
        with instance.published(URL, "1.2.3") as discovery:
            assert discovery == Discovery(URL, os.getpid(), "1.2.3", str(paths.token))
            assert read_discovery(paths) == discovery
            assert set(msgspec.json.decode(paths.discovery.read_bytes())) == {"url", "pid", "version", "tokenFile"}
            if sys.platform != "win32":
                assert stat.S_IMODE(paths.discovery.stat().st_mode) == 0o600
        assert not paths.discovery.exists()
        assert read_discovery(paths) is None
        with instance.published(URL, "1.2.3", token_file=False) as discovery:
            assert read_discovery(paths) == discovery
            assert "tokenFile" not in msgspec.json.decode(paths.discovery.read_bytes())


def test_a_second_runtime_of_the_same_process_is_refused(paths: Paths):
    with hold_instance(paths):
        with pytest.raises(InstanceRunning, match=f"process {os.getpid()} already runs on") as caught:
            with hold_instance(paths):
                pytest.fail("two hold one state folder")
        assert caught.value.pid == os.getpid()
    with hold_instance(paths):
        pass


def test_two_state_folders_have_an_instance_each(paths: Paths, tmp_path: Path):
    other = locate({"TRIOPS_STATE_DIR": str(tmp_path / "other")})
    prepare_state(other)
    with hold_instance(paths), hold_instance(other):
        pass


@pytest.mark.slow
def test_another_process_is_found_and_refused_and_its_death_frees_the_folder(paths: Paths):
    with start_holder(paths) as process:
        with pytest.raises(InstanceRunning) as caught:
            with hold_instance(paths):
                pytest.fail("two processes hold one state folder")
        assert caught.value.pid == process.pid
        discovery = read_discovery(paths)
        assert discovery is not None and discovery.pid == process.pid
        process.send_signal(signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)
        process.wait(10)
    assert paths.discovery.exists()
    assert read_discovery(paths) is None
    with hold_instance(paths):
        assert not paths.discovery.exists()


def test_what_a_dead_gateway_left_does_not_count_even_if_its_process_id_lives_again(paths: Paths):
    left = Discovery(URL, os.getpid(), "1", str(paths.token))
    paths.discovery.write_bytes(msgspec.json.encode(left))
    assert read_discovery(paths) is None
    paths.lock.write_text(f"{os.getpid()}\n")
    assert read_discovery(paths) is None


def test_what_a_dead_gateway_left_is_not_taken_for_its_successors(paths: Paths):
    with hold_instance(paths):
        paths.discovery.write_bytes(msgspec.json.encode(Discovery(URL, os.getpid() + 1, "1", str(paths.token))))
        assert read_discovery(paths) is None


def test_a_reader_does_not_disturb_a_start(paths: Paths):
    with hold_instance(paths) as instance, instance.published(URL, "1"):
        left = paths.discovery.read_bytes()
    paths.discovery.write_bytes(left)
    assert read_discovery(paths) is None
    with hold_instance(paths):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", '{"url": 1}', "\xff"])
def test_a_broken_discovery_file_counts_as_none(paths: Paths, text: str):
    with hold_instance(paths):
        paths.discovery.write_text(text, "latin-1")
        assert read_discovery(paths) is None
