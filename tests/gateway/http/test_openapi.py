"""The OpenAPI page, and schemathesis that believes it."""

import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.kit.host import ECHO, TOKEN, open_test_gateway

from triops.gateway.http.table import ROUTES
from triops.gateway.scopes import SCOPES

HOOKS = ECHO | {"hooks": {"enabled": True, "token": "the-hooks-own-secret-of-this-test"}}


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set[str]()
        return own.union(*map(references, node.values()))
    return set[str]().union(*map(references, node)) if isinstance(node, list) else set()


async def test_the_page_has_every_route_with_what_it_takes_and_needs(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path, config=HOOKS) as host:
        page = (await host.http("GET", "/api/openapi.json")).body
        assert page["openapi"] == "3.1.0"
        told = {(method.upper(), path) for path, operations in page["paths"].items() for method in operations}
        assert told == {(entry.method, entry.path) for entry in ROUTES}
        operations = [operation for path in page["paths"].values() for operation in path.values()]
        assert len({operation["operationId"] for operation in operations}) == len(operations)
        assert all(operation["summary"] for operation in operations)
        assert {ref.removeprefix("#/components/schemas/") for ref in references(page)} <= page["components"][
            "schemas"
        ].keys()
        chat = page["paths"]["/v1/chat/completions"]["post"]
        assert "text/event-stream" in chat["responses"]["200"]["content"]
        assert chat["x-scope"] == "operator.write"


async def test_what_the_configuration_does_not_have_is_not_on_the_page(tmp_path: Path) -> None:
    off = {"chatCompletions": {"enabled": False}, "responses": {"enabled": False}}
    async with open_test_gateway(tmp_path, config=ECHO | {"gateway": {"http": {"endpoints": off}}}) as host:
        paths = (await host.http("GET", "/api/openapi.json")).body["paths"]
        for path in ("/v1/chat/completions", "/v1/responses", "/v1/models", "/hooks/wake"):
            assert path not in paths
            assert (await host.http("POST", path, {})).status == 404
        assert "/v1/runs" in paths


def test_every_route_says_what_it_needs() -> None:
    for entry in ROUTES:
        by_method = entry.path == "/rpc/{method}"  # each has its own scope
        assert entry.scope in SCOPES or by_method or entry.style == "hook", entry.path
    assert len({(entry.method, entry.path) for entry in ROUTES}) == len(ROUTES)


@pytest.mark.parametrize(
    "phases",
    [
        pytest.param("fuzzing", marks=pytest.mark.slow),
        pytest.param("coverage,fuzzing", marks=pytest.mark.soak),
    ],
)
async def test_what_the_page_promises_holds_for_whatever_is_sent(tmp_path: Path, phases: str) -> None:
    async with open_test_gateway(tmp_path) as host:
        command = [
            str(Path(sys.executable).with_name("schemathesis")),
            *("run", f"http://127.0.0.1:{host.port}/api/openapi.json", "--header", f"Authorization: Bearer {TOKEN}"),
            *("--phases", phases, "--max-examples", "5", "--seed", "1", "--generation-database", "none"),
            *("--checks", "not_a_server_error,status_code_conformance,content_type_conformance"),
        ]
        with trio.fail_after(300):
            done = await trio.run_process(command, capture_stdout=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stdout.decode()[-3000:]
