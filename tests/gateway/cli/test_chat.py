"""`triops chat` against a scripted gateway: in this process, and under a pseudo-terminal for what is typed."""

import contextlib
import io
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketRequest, serve_websocket

from triops.runtime.instance import hold_instance
from triops.runtime.paths import Paths, prepare_state

MODEL = {"provider": "local", "id": "tiny", "tags": ["default", "demo"]}


class ScriptedGateway:
    """Echoes, but for the texts `fail`, `refuse`, `silent`, `hang` (until aborted) and `whole` (without deltas)."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.port = 0
        self._ready = threading.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope = trio.CancelScope()

    def run(self) -> None:
        trio.run(self._main)

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        thread = threading.Thread(target=self.run)
        thread.start()
        assert self._ready.wait(5)
        try:
            yield
        finally:
            assert self._token
            self._token.run_sync_soon(self._scope.cancel)
            thread.join()

    async def _main(self) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                server = await nursery.start(serve_websocket, self._serve, "127.0.0.1", 0, None)
                self.port = server.port
                self._token = trio.lowlevel.current_trio_token()
                self._ready.set()

    async def _serve(self, request: WebSocketRequest) -> None:
        socket = await request.accept()

        async def send(frame: dict[str, Any]) -> None:
            await socket.send_message(json.dumps(frame))

        async def event(name: str, **payload: Any) -> None:
            await send({"type": "event", "event": name, "payload": payload})

        with contextlib.suppress(ConnectionClosed):
            await event("connect.challenge", nonce="n", ts=1)
            while True:
                frame = json.loads(await socket.get_message())
                method, params = frame["method"], frame["params"]
                self.requests.append((method, params))
                answer: dict[str, Any] = {"type": "res", "id": frame["id"], "ok": True}
                match method:
                    case "connect":
                        await send({**answer, "payload": {"policy": {"tickIntervalMs": 30_000}}})
                    case "status":
                        await send({**answer, "payload": {"models": {"default": "local/tiny", "why": "installed"}}})
                    case "models.list":
                        await send({**answer, "payload": {"models": [MODEL]}})
                    case "chat.send" if params["message"] == "refuse":
                        await send({**answer, "ok": False, "error": {"code": "INVALID_REQUEST", "message": "no"}})
                    case "chat.send":
                        run_id, text = params["idempotencyKey"], params["message"]
                        await send({**answer, "payload": {"runId": run_id, "status": "started"}})
                        model = {"phase": "model", "provider": "local", "model": "tiny"}
                        await event("agent", runId=run_id, stream="lifecycle", data=model)
                        await event("chat", runId=run_id, state="status", phase="starting_model")
                        if text == "fail":
                            await event("chat", runId=run_id, state="error", errorMessage="no credit")
                            continue
                        if text == "silent":
                            await event("chat", runId=run_id, state="final")
                            continue
                        if text != "whole":
                            await event("chat", runId=run_id, state="delta", deltaText="You said: ")
                        if text == "hang":
                            continue
                        if text != "whole":
                            await event("chat", runId=run_id, state="delta", deltaText=text)
                        said = [{"type": "text", "text": f"You said: {text}"}]
                        await event("chat", runId=run_id, state="final", message={"content": said})
                    case _:
                        await send({**answer, "payload": {}})


@pytest.fixture
def scripted(paths: Paths) -> Iterator[ScriptedGateway]:
    """A scripted gateway that runs on the state folder."""
    prepare_state(paths)
    paths.token.write_text("the-token")
    gateway = ScriptedGateway()
    with gateway.serving():
        with hold_instance(paths) as instance, instance.published(f"http://127.0.0.1:{gateway.port}", "0"):
            yield gateway


def test_one_shot_streams_the_answer_headed_by_its_model(run: Any, scripted: ScriptedGateway):
    ran = run("chat", "hello", "there")
    assert ran == (
        0,
        "You said: hello there\n",
        "[local/tiny: installed; a demonstration model, do not expect much]\n",
    )
    method, params = scripted.requests[0]
    assert (method, params["client"]["id"], params["auth"]) == ("connect", "cli", {"token": "the-token"})


def test_a_pipe_is_the_message(run: Any, scripted: ScriptedGateway, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"from a \xff pipe\n")))
    assert run("chat").out == "You said: from a \ufffd pipe\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    assert run("chat").code == 2


def test_an_answer_without_deltas_is_shown_at_its_end(run: Any, scripted: ScriptedGateway):
    assert run("chat", "whole").out == "You said: whole\n"


def test_a_silent_run_says_so(run: Any, scripted: ScriptedGateway):
    ran = run("chat", "silent")
    assert (ran.code, ran.out) == (0, "\n")
    assert "no reply" in ran.err


def test_session_and_model_are_the_ones_asked_for(run: Any, scripted: ScriptedGateway):
    assert run("chat", "hi", "--session", "agent:main:x", "--model", "p/m").code == 0
    assert ("sessions.create", {"key": "agent:main:x", "model": "p/m"}) in scripted.requests
    assert dict(scripted.requests)["chat.send"]["sessionKey"] == "agent:main:x"


def test_json_is_one_object(run: Any, scripted: ScriptedGateway):
    ran = run("chat", "hi", "--json")
    answer = json.loads(ran.out)
    assert {**answer, "runId": ""} == {
        "runId": "",
        "state": "final",
        "text": "You said: hi",
        "error": None,
        "model": "local/tiny",
    }
    assert ran.err == ""


@pytest.mark.parametrize(("text", "said"), [("fail", "no credit"), ("refuse", "no")])
def test_what_failed_fails_the_command(run: Any, scripted: ScriptedGateway, text: str, said: str):
    ran = run("chat", text)
    assert (ran.code, ran.err) == (1, f"triops: {said}\n")


def test_a_gateway_that_does_not_answer_is_named(run: Any):
    ran = run("chat", "hi", "--url", "http://127.0.0.1:9")
    assert ran.code == 1
    assert "cannot be reached" in ran.err
    assert "triops gateway start" in ran.err


posix_only = pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals and signals")


class Typist:
    """`triops chat` in a pseudo-terminal."""

    def __init__(self) -> None:
        import pty

        self.master, slave = pty.openpty()
        # In a session of its own with this terminal, so that ^C reaches it and nobody else.
        code = (
            "import fcntl, os, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
            "from triops.gateway.cli.main import main; main(['chat'])"
        )
        environ = {**os.environ, "TERM": "dumb"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=slave, stdout=slave, stderr=slave, env=environ
        )
        os.close(slave)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def until(self, text: str, *, typing: str = "") -> None:
        """Read until `text` is on the screen, and forget what came up to there; `typing` is typed until it is."""
        deadline = time.monotonic() + 10
        while text not in self.seen:
            assert time.monotonic() < deadline, f"waited for {text!r}, saw {self.seen!r}"
            self.type(typing)
            if select.select([self.master], [], [], 0.2 if typing else 10)[0]:
                self.seen += os.read(self.master, 4096).decode()
        self.seen = self.seen.partition(text)[2]

    def close(self) -> int:
        try:
            return self.process.wait(5)
        finally:
            self.process.kill()
            os.close(self.master)


@posix_only
@pytest.mark.slow
def test_back_and_forth_ctrl_c_aborts_the_answer_and_not_the_program(scripted: ScriptedGateway):
    typist = Typist()
    typist.until("> ")
    typist.type("first\n")
    typist.until("[local/tiny: installed")
    typist.until("You said: first")
    typist.until("> ")
    typist.type("hang\n")
    typist.until("You said: ")
    typist.type("\x03")
    typist.until("(aborted)")
    typist.until("> ")
    # Again and again: what comes in the instant before line editing waits, it sees with the next key only.
    typist.until("(Ctrl-D or /exit leaves)", typing="half a line\x03")
    typist.until("> ")
    typist.type("fail\n")
    typist.until("no credit")
    typist.until("> ")
    typist.type("last\n")
    typist.until("You said: last")
    typist.until("> ")
    typist.type("\x04")
    assert typist.close() == 0
    methods = [method for method, _ in scripted.requests]
    assert methods.count("chat.send") == 4
    assert methods.count("chat.abort") == 1


@posix_only
@pytest.mark.slow
def test_ctrl_c_in_one_shot_aborts_the_run(scripted: ScriptedGateway):
    command = [sys.executable, "-m", "triops.gateway.cli.main", "chat", "hang"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.read(5) == b"You s"
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 130
        assert process.stderr.read().endswith(b"(aborted)\n")
    assert scripted.requests[-1][0] == "chat.abort"


@posix_only
@pytest.mark.slow
def test_exit_leaves(scripted: ScriptedGateway):
    typist = Typist()
    typist.until("> ")
    typist.type("/exit\n")
    assert typist.close() == 0
