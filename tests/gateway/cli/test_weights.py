"""`triops models add` of a file: from a path and from a server that is cut, changed and wrong."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from triops.runtime.paths import Paths

WEIGHTS = b"GGUF" + bytes(range(256)) * 20_000
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


class FileServer:
    """Serves `content` at `/m.gguf`, by ranges too, and hangs up after `cut` bytes; `/moved` leads there."""

    def __init__(self) -> None:
        self.content = WEIGHTS
        self.version: str | None = '"one"'
        self.changed: str | None = None
        self.cut: int | None = None
        self.ranges: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.startswith("/moved"):
                    self.send_response(302)
                    self.send_header("Location", "/m.gguf")
                    self.end_headers()
                    return
                if not self.path.startswith("/m.gguf"):
                    self.send_error(404)
                    return
                server.ranges.append(wanted := self.headers["Range"])
                content, start = server.content, 0
                if wanted and self.headers["If-Range"] in (server.version, server.changed):
                    start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if start > len(content):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                if server.version:
                    self.send_header("ETag", server.version)
                if server.changed:
                    self.send_header("Last-Modified", server.changed)
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                self.wfile.write(content[start : server.cut])

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("NO_PROXY", "*")
    server = FileServer()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


def left(paths: Paths) -> list[str]:
    return sorted(path.name for path in paths.models.iterdir())


def test_a_file_from_a_url_is_there_whole_and_named(run: Any, paths: Paths, server: FileServer):
    ran = run("models", "add", f"{server.url}/m.gguf?download=true", "--sha256", SHA256.upper())
    assert ran.code == 0 and SHA256 in ran.out and "triops models set local/m" in ran.out
    assert (paths.models / "m.gguf").read_bytes() == WEIGHTS and left(paths) == ["m.gguf"]
    assert "is there already" in run("models", "add", f"{server.url}/m.gguf").err
    assert run("models", "add", f"{server.url}/moved", "--name", "other").code == 0
    assert left(paths) == ["m.gguf", "other.gguf"]


def test_a_download_that_was_cut_goes_on_where_it_stopped(run: Any, paths: Paths, server: FileServer):
    server.cut = 3_000_000
    ran = run("models", "add", f"{server.url}/m.gguf")
    assert ran.code == 1 and f"ended after 3000000 of {len(WEIGHTS)} bytes" in ran.err and "goes on" in ran.err
    server.cut = None
    assert run("models", "add", f"{server.url}/m.gguf", "--sha256", SHA256).code == 0
    assert server.ranges == [None, "bytes=3000000-"] and left(paths) == ["m.gguf"]


@pytest.mark.parametrize("version", [None, 'W/"one"'])
@pytest.mark.parametrize("changed", [None, "Sun, 22 Nov 2026 10:00:00 GMT"])
def test_without_a_strong_tag_the_time_of_the_change_tells_whether_it_goes_on(
    run: Any, paths: Paths, server: FileServer, version: str | None, changed: str | None
):
    server.version, server.changed, server.cut = version, changed, 3_000_000
    err = run("models", "add", f"{server.url}/m.gguf").err
    assert ("goes on where it stopped" in err, "begins anew" in err) == (bool(changed), not changed)
    server.cut = None
    assert run("models", "add", f"{server.url}/m.gguf", "--sha256", SHA256).code == 0
    assert server.ranges == [None, "bytes=3000000-" if changed else None] and left(paths) == ["m.gguf"]


@pytest.mark.parametrize("version", ['"two"', None])
def test_a_part_of_another_version_is_not_gone_on_with(run: Any, paths: Paths, server: FileServer, version: str | None):
    server.cut = 3_000_000
    run("models", "add", f"{server.url}/m.gguf")
    server.cut, server.version, server.content = None, version, WEIGHTS[::-1].replace(WEIGHTS[:4][::-1], b"") + b"x"
    server.content = b"GGUF" + server.content
    assert run("models", "add", f"{server.url}/m.gguf").code == 0
    assert (paths.models / "m.gguf").read_bytes() == server.content


@pytest.mark.parametrize(
    ("content", "arguments", "said"),
    [
        (b"<html>log in</html>", (), "is no GGUF file"),
        (WEIGHTS, ("--sha256", "0" * 64), f"has the SHA-256 {SHA256}, not 0000"),
    ],
)
def test_what_is_not_what_it_should_be_is_not_kept(
    run: Any, paths: Paths, server: FileServer, content: bytes, arguments: tuple[str, ...], said: str
):
    server.content = content
    ran = run("models", "add", f"{server.url}/m.gguf", *arguments)
    assert ran.code == 1 and said in ran.err
    assert left(paths) == []


def test_an_address_that_does_not_answer_is_told_as_it_is(run: Any, paths: Paths, server: FileServer):
    assert "HTTP 404" in run("models", "add", f"{server.url}/n.gguf").err
    assert "cannot be had" in run("models", "add", "http://127.0.0.1:1/n.gguf").err


def test_a_file_from_a_path_is_copied(run: Any, paths: Paths, tmp_path: Path):
    source = tmp_path / "mine.gguf"
    source.write_bytes(WEIGHTS)
    assert run("models", "add", str(source), "--sha256", SHA256).code == 0
    assert (paths.models / "mine.gguf").read_bytes() == WEIGHTS
    assert "No such file" in run("models", "add", str(tmp_path / "none.gguf")).err


@pytest.mark.parametrize("what", ["other", "http://127.0.0.1:1/", "http://127.0.0.1:1/x.bin"])
def test_what_names_no_file_of_weights_is_a_wrong_usage(run: Any, what: str):
    ran = run("models", "add", what)
    assert ran.code == 2 and "names no .gguf file" in ran.err


def test_a_gateway_that_runs_is_told(run: Any, gateway: Any, tmp_path: Path):
    source = tmp_path / "mine.gguf"
    source.write_bytes(WEIGHTS)
    gateway.answers["models.list"] = {"models": []}
    assert run("models", "add", str(source)).code == 0
    assert [call.params for call in gateway.calls] == [{"refresh": True}]
