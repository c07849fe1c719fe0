"""`triops connect-info`."""

import json
from typing import Any

import pytest

from triops.runtime.paths import Paths, prepare_state


def configure(paths: Paths, **gateway: Any) -> None:
    prepare_state(paths)
    paths.config.write_text(json.dumps({"gateway": gateway}))


def test_a_running_gateway_is_told_with_the_place_of_its_token_and_never_the_token(run: Any, gateway: Any):
    done = run("connect-info")
    assert done.code == 0
    assert gateway.url in done.out
    assert "gateway.token; to see it: triops gateway token show" in done.out
    assert "ssh -N -L" in done.out
    assert "triops devices approve" in done.out
    assert "the-token" not in done.out
    about = json.loads(run("connect-info", "--json").out)
    assert (about["running"], about["wsUrl"]) == (True, gateway.url.replace("http", "ws"))


def test_without_a_gateway_it_says_how_to_start_one(run: Any, paths: Paths):
    done = run("connect-info")
    assert (done.code, "triops gateway start" in done.out) == (1, True)
    assert "ws://127.0.0.1:18789" in done.out


@pytest.mark.parametrize(
    ("auth", "place"),
    [
        ({"mode": "none"}, "none is asked for"),
        ({"mode": "password", "password": "p" * 20}, "gateway.auth.password"),
        ({"token": "t" * 30}, "gateway.auth.token"),
    ],
)
def test_each_kind_of_secret_has_its_place(run: Any, paths: Paths, auth: Any, place: str):
    configure(paths, auth=auth)
    out = run("connect-info").out
    assert place in out
    assert "pppp" not in out
    assert "tttt" not in out


def test_a_gateway_open_to_its_network_tells_that_address(run: Any, paths: Paths):
    configure(paths, bind="lan", port=18800)
    about = json.loads(run("connect-info", "--json").out)
    assert about["lanUrl"].endswith(":18800")
    assert "on a network that you trust: ws://" in run("connect-info").out
    configure(paths, bind="custom", customBindHost="10.1.2.3", port=18800)
    assert json.loads(run("connect-info", "--json").out)["lanUrl"] == "ws://10.1.2.3:18800"
