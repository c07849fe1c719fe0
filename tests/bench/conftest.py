"""The mock model and the floor, each once for all tests here, as the real processes that they are."""

import json
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager

import pytest
from anyio.from_thread import start_blocking_portal

from triops.bench.subjects import Subject, open_gateway


@contextmanager
def announced(*arguments: str) -> Generator[str]:
    command = [sys.executable, "-m", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"]
            process.stdin.close()
            assert process.wait(10) == 0, "it should end with its standard input"
        finally:
            process.kill()


@pytest.fixture(scope="session")
def model_url() -> Generator[str]:
    with announced("triops.bench.mock_model") as url:
        yield url


@pytest.fixture(scope="session")
def floor_url(model_url: str) -> Generator[str]:
    with announced("triops.bench.floor", "--model", model_url) as url:
        yield url


@pytest.fixture(scope="session")
def gateway(model_url: str) -> Generator[Subject]:
    """This project's gateway, with that model."""
    with start_blocking_portal("trio") as portal, portal.wrap_async_context_manager(open_gateway(model_url)) as found:
        yield found
