import os
import shlex
import socket
import sys

import pytest
import trio

from triops.bench.errors import BenchFailed
from triops.bench.subjects import Targets, open_floor, open_gateway, open_model, open_peer

LISTENS = """
import json, os, pathlib, sys, time
state = pathlib.Path(os.environ["TRIOPS_STATE_DIR"])
assert sys.argv[1:] == ["gateway", "run", "--port", "0"], sys.argv
config = json.loads(pathlib.Path(os.environ["TRIOPS_CONFIG_PATH"]).read_text())
(state / "token").write_text("secret\\n")
url = config["models"]["providers"]["mock"]["baseUrl"]
address = {"url": url, "pid": os.getpid(), "tokenFile": str(state / "token")}
(state / "new").write_text(json.dumps(address))
os.replace(state / "new", state / "gateway.json")
time.sleep(60)
"""


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_gateway_is_found_by_its_file_and_gone_after_the_block():
    with trio.fail_after(20):
        async with open_gateway("http://127.0.0.1:9", ["-c", LISTENS]) as gateway:
            state = trio.Path(gateway.env["TRIOPS_STATE_DIR"])
            assert (gateway.url, gateway.token) == ("http://127.0.0.1:9/v1", "secret")
            assert gateway.spawned < gateway.listening
            assert await state.exists()
    assert sys.platform == "win32" or not is_alive(gateway.pid)
    assert not await state.exists()


async def test_a_gateway_that_ends_at_once_leaves_its_last_words():
    with trio.fail_after(20), pytest.raises(BenchFailed, match=r"(?s)exit code 3.*bad configuration"):
        async with open_gateway("http://127.0.0.1:9", ["-c", "print('bad configuration'); raise SystemExit(3)"]):
            pass


async def test_a_child_that_does_not_say_where_it_is_has_failed():
    with trio.fail_after(20), pytest.raises(BenchFailed, match="did not start"):
        async with open_floor("http://127.0.0.1:9", ["-c", "pass"]):
            pass


async def test_children_are_gone_after_a_cancelled_block():
    with trio.fail_after(20):
        async with open_model() as model:
            pids: list[int] = []
            with trio.CancelScope() as scope:
                async with open_floor(model) as floor:
                    pids.append(floor.pid)
                    scope.cancel(reason="the user gave up")
                    await trio.sleep_forever()
            assert sys.platform == "win32" or not is_alive(pids[0])


PEER = """
import socket, sys, time
server = socket.socket()
server.bind(("127.0.0.1", int(sys.argv[1])))
server.listen()
assert sys.argv[2] == "http://127.0.0.1:9/v1", sys.argv
time.sleep(60)
"""


async def test_a_peer_is_there_when_its_port_is_open_and_gone_after_the_block(unused_port: int):
    command = shlex.join([sys.executable, "-c", PEER, str(unused_port), "{model}/v1"])
    targets = Targets(url=f"ws://127.0.0.1:{unused_port}", token="t", command=command)
    with trio.fail_after(20):
        async with open_peer(targets, "http://127.0.0.1:9") as peer:
            assert (peer.url, peer.token) == (targets.url, "t")
            assert peer.spawned < peer.listening
    assert sys.platform == "win32" or not is_alive(peer.pid)


@pytest.mark.parametrize(
    ("command", "words"), [(f"{sys.executable} -c 'print(7*6)'", "(?s)exit code 0.*42"), ("no-such-peer", "started")]
)
async def test_a_peer_that_does_not_come_up_is_said_with_its_last_words(command: str, words: str, unused_port: int):
    targets = Targets(url=f"ws://127.0.0.1:{unused_port}", command=command)
    with trio.fail_after(20), pytest.raises(BenchFailed, match=words):
        async with open_peer(targets, "http://127.0.0.1:9"):
            pass


async def test_a_port_that_somebody_has_is_not_taken_for_the_started_gateway(unused_port: int):
    targets = Targets(url=f"ws://127.0.0.1:{unused_port}", command="no-such-peer")
    listeners = await trio.open_tcp_listeners(unused_port, host="127.0.0.1")
    async with listeners[0]:
        with trio.fail_after(20), pytest.raises(BenchFailed, match=r"somebody listens at .* already"):
            async with open_peer(targets, "http://127.0.0.1:9"):
                pass


@pytest.mark.parametrize(("command", "words"), [("sh 'x", "No closing quotation"), (" ", "names no command")])
async def test_what_is_no_command_is_said_in_words(command: str, words: str):
    with pytest.raises(BenchFailed, match=words):
        async with open_peer(Targets(url="ws://127.0.0.1:1", command=command), ""):
            pass


async def test_a_model_s_address_that_is_none_is_said_before_anything_starts():
    with pytest.raises(BenchFailed, match=r"--model 'foo'.*write for example http://"):
        async with open_model(Targets(model="foo")):
            pass


@pytest.mark.skipif(sys.platform == "win32", reason="there is no sh")
async def test_a_gateway_behind_a_shell_is_gone_after_the_block_too(unused_port: int):
    inner = shlex.join([sys.executable, "-c", PEER, str(unused_port), "{model}/v1"])
    targets = Targets(url=f"ws://127.0.0.1:{unused_port}", command=shlex.join(["sh", "-c", f"{inner}; true"]))
    with trio.fail_after(20):
        async with open_peer(targets, "http://127.0.0.1:9"):
            pass
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream("127.0.0.1", unused_port)
