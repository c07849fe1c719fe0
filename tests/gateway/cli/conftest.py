"""The command line in this process, and a gateway of a few lines on loopback HTTP for it to talk to."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from triops.gateway.cli.main import main
from triops.runtime.instance import hold_instance
from triops.runtime.paths import Paths, prepare_state


class Called(NamedTuple):
    method: str
    params: Any
    query: str
    authorization: str | None


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: who asks may hang up."""


class FakeGateway:
    """Answers `/rpc/<method>` from `answers`: a payload, or (status, body)."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.calls: list[Called] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(200 if self.path == "/readyz" else 404, {"ready": True})

            def do_POST(self) -> None:
                path, _, query = self.path.partition("?")
                params = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                method = path.removeprefix("/rpc/")
                fake.calls.append(Called(method, params, query, self.headers["Authorization"]))
                answer = fake.answers[method]
                if isinstance(answer, list) and answer:
                    answer = answer.pop(0)
                status, body = answer if isinstance(answer, tuple) else (200, answer)
                self._answer(status, body)

            def _answer(self, status: int, body: Any) -> None:
                data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def serving(self) -> Iterator[None]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """An empty state folder that the command line finds, whatever the tester's environment says."""
    for name in ("TRIOPS_CONFIG_PATH", "TRIOPS_GATEWAY_TOKEN", "TRIOPS_GATEWAY_PASSWORD", "TRIOPS_GATEWAY_PORT"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.replace("TRIOPS", "OPENCLAW"), raising=False)
    monkeypatch.setenv("TRIOPS_STATE_DIR", str(tmp_path / "state"))
    return Paths(tmp_path / "state", tmp_path / "state" / "triops.json")


@pytest.fixture
def fake() -> Iterator[FakeGateway]:
    """A gateway that nobody has been told of."""
    gateway = FakeGateway()
    with gateway.serving():
        yield gateway


elsewhere = fake


@pytest.fixture
def gateway(fake: FakeGateway, paths: Paths) -> Iterator[FakeGateway]:
    """A gateway that runs on the state folder."""
    prepare_state(paths)
    paths.token.write_text("the-token\n")
    with hold_instance(paths) as instance, instance.published(fake.url, "0.0.0"):
        yield fake


@pytest.fixture
def run(paths: Paths, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `triops` with these arguments."""

    def run(*arguments: str) -> Ran:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert isinstance(ended.value.code, int)
        out, err = capfd.readouterr()
        return Ran(ended.value.code, out, err)

    return run
