import os
import sys

import pytest
import trio

from triops.bench.errors import BenchFailed
from triops.bench.subjects import open_floor, open_gateway, open_model

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
