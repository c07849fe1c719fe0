import json
from typing import Any

import pytest


@pytest.mark.parametrize("arguments", [["-h"], ["--help"], ["chat", "-h"]])
def test_the_measuring_floor_takes_part_in_the_command_line(run: Any, arguments: list[str]):
    code, out, _ = run("bench", *arguments)
    assert (code, "Usage: triops bench" in out) == (0, True)


def test_its_errors_look_like_all_others(run: Any):
    ran = run("bench", "chat", "--concurrency", "x")
    assert (ran.code, ran.err.splitlines()[-1]) == (2, "triops bench chat --help shows how.")
    failed = run("bench", "chat", "--url", "ws://127.0.0.1:1", "--no-floor", "--turns", "1", "--json")
    assert (failed.code, "127.0.0.1:1" in json.loads(failed.err)["error"]["message"]) == (1, True)
