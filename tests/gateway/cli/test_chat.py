"""`triops chat` against a scripted gateway: in this process, and under a pseudo-terminal for what is typed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from tests.kit.typist import Typist
from trio_websocket import ConnectionClosed, WebSocketRequest, serve_websocket

from triops.gateway.cli import chat
from triops.runtime.instance import hold_instance
from triops.runtime.paths import Paths, prepare_state

MODEL = {"provider": "local", "id": "tiny", "tags": ["default", "demo"]}


class ScriptedGateway:
    """Echoes, but for `fail`, `refuse`, `silent`, `hang` and `wait` (until aborted) and `whole` (without deltas).

    `drop` and `stopping` it echoes when they come again; the first time it goes away, or refuses as it is about to.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.once = {"drop", "stopping"}
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
                    case "chat.send" if params["message"] in self.once:
                        self.once.remove(params["message"])
                        if params["message"] == "drop":
                            await socket.aclose(1012, "service restart")
                        error = {"code": "UNAVAILABLE", "message": "no", "details": {"reason": "stopping"}}
                        await send({**answer, "ok": False, "error": error})
                    case "chat.send" if params["message"] == "refuse":
                        await send({**answer, "ok": False, "error": {"code": "INVALID_REQUEST", "message": "no"}})
                    case "chat.send":
                        run_id, text = params["idempotencyKey"], params["message"]
                        await send({**answer, "payload": {"runId": run_id, "status": "started"}})
                        model = {"phase": "model", "provider": "local", "model": "tiny"}
                        await event("agent", runId=run_id, stream="lifecycle", data=model)
                        await event("chat", runId=run_id, state="status", phase="starting_model")
                        retry = {"phase": "retrying", "reason": "too many requests", "attempt": 1, "maxAttempts": 2}
                        why = retry if text == "busy" else {"phase": "x"}
                        await event("agent", runId=run_id, stream="run_status", data=why)
                        if text == "busy":
                            await event("agent", runId=run_id, stream="lifecycle", data=model | {"model": "other"})
                        if text == "fail":
                            await event("chat", runId=run_id, state="error", errorMessage="no credit")
                            continue
                        if text == "silent":
                            await event("chat", runId=run_id, state="final")
                            continue
                        if text == "wait":
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


@contextlib.contextmanager
def piped(monkeypatch: pytest.MonkeyPatch, data: bytes) -> Iterator[None]:
    reader, writer = os.pipe()
    with open(writer, "wb") as pipe:
        pipe.write(data)
    with open(reader) as stdin, monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", stdin)
        yield


def test_one_shot_streams_the_answer_headed_by_its_model(run: Any, scripted: ScriptedGateway):
    ran = run("chat", "hello", "there")
    assert ran == (
        0,
        "You said: hello there\n",
        "[local/tiny: installed; a demonstration model, do not expect much]\n",
    )
    method, params = scripted.requests[0]
    assert (method, params["client"]["id"], params["auth"]) == ("connect", "cli", {"token": "the-token"})


def test_what_a_run_waits_for_is_said_before_its_answer(run: Any, scripted: ScriptedGateway):
    ran = run("chat", "busy")
    assert (ran.code, ran.out) == (0, "You said: busy\n") and ran.err == (
        "[too many requests; trying again, 1 of 2]\n[local/other: in place of the default one]\n"
    )


def test_a_pipe_is_the_message(run: Any, scripted: ScriptedGateway, monkeypatch: pytest.MonkeyPatch):
    for arguments, said in (([], "from a \ufffd pipe"), (["about", "this:"], "about this:\n\nfrom a \ufffd pipe")):
        with piped(monkeypatch, b"from a \xff pipe\n"):
            assert run("chat", *arguments).out == f"You said: {said}\n"
    with piped(monkeypatch, b""):
        assert run("chat").code == 2
    with piped(monkeypatch, b""):
        assert run("chat", "alone").out == "You said: alone\n"
    monkeypatch.setattr(sys, "stdin", None)
    assert run("chat").code == 2
    assert run("chat", "alone").out == "You said: alone\n"


def test_a_silent_pipe_does_not_keep_a_message(run: Any, scripted: ScriptedGateway, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chat, "PIPE_SECONDS", 0)
    reader, writer = os.pipe()
    with open(reader), open(writer, "wb"):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", open(reader, closefd=False))  # noqa: SIM115 - no owner: it closes nothing
            ran = run("chat", "hello")
    assert (ran.code, ran.out) == (0, "You said: hello\n")
    assert "nothing came from the pipe" in ran.err


@pytest.mark.parametrize("text", ["drop", "stopping"])
def test_a_question_whose_gateway_goes_away_is_asked_again_under_its_key(
    run: Any, scripted: ScriptedGateway, text: str
):
    ran = run("chat", text)
    assert (ran.code, ran.out) == (0, f"You said: {text}\n")
    assert ran.err.startswith("(the gateway is gone; this chat goes on with the next one)\n")
    first, second = (params for method, params in scripted.requests if method == "chat.send")
    assert first == second


def test_a_gateway_that_was_named_is_not_replaced(run: Any, scripted: ScriptedGateway):
    ran = run("chat", "drop", "--url", f"http://127.0.0.1:{scripted.port}")
    assert (ran.code, ran.out) == (1, "")
    assert "gateway connection closed: 1012" in ran.err


def test_an_answer_without_deltas_is_shown_at_its_end(run: Any, scripted: ScriptedGateway):
    assert run("chat", "whole").out == "You said: whole\n"


def test_a_silent_run_says_so(run: Any, scripted: ScriptedGateway):
    ran = run("chat", "silent")
    assert (ran.code, ran.out) == (0, "")
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
    assert run("chat", text) == (1, "", f"triops: {said}\n")
    ran = run("chat", text, "--json")
    assert (ran.code, ran.out, json.loads(ran.err)["error"]["message"]) == (1, "", said)


def test_a_gateway_that_does_not_answer_is_named(run: Any):
    ran = run("chat", "hi", "--url", "http://127.0.0.1:9")
    assert ran.code == 1
    assert "cannot be reached" in ran.err
    assert "triops gateway start" in ran.err


posix_only = pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals and signals")


@posix_only
@pytest.mark.slow
def test_back_and_forth_ctrl_c_aborts_the_answer_and_not_the_program(scripted: ScriptedGateway):
    typist = Typist()
    typist.until("(Ctrl-D or /exit leaves, Ctrl-C stops an answer)")
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
    typist.type("drop\n")
    typist.until("(the gateway is gone; this chat goes on with the next one)")
    typist.until("You said: drop")
    typist.until("> ")
    typist.type("last\n")
    typist.until("You said: last")
    typist.until("> ")
    typist.type("\x04")
    assert typist.close() == 0
    methods = [method for method, _ in scripted.requests]
    assert methods.count("chat.send") == 6
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
@pytest.mark.parametrize(("number", "typed"), [(signal.SIGTERM, ""), (signal.SIGTERM, "hang\n"), (signal.SIGHUP, "")])
def test_a_signal_ends_it_in_order(scripted: ScriptedGateway, number: int, typed: str):
    typist = Typist()
    typist.until("> ")
    typist.type(typed)
    if typed:
        typist.until("You said: ")
    typist.process.send_signal(number)
    if not typed:
        typist.type("\n")  # what comes in the instant before line editing waits, it sees with the next key only
    assert typist.close() == 128 + number
    assert [method for method, _ in scripted.requests].count("chat.abort") == bool(typed)


@posix_only
@pytest.mark.slow
def test_who_looks_is_told_that_the_answer_is_waited_for(scripted: ScriptedGateway):
    typist = Typist(term="xterm")
    typist.until("> ")
    typist.type("wait\n")
    typist.until("waiting for the answer")
    typist.type("\x03")
    typist.until("\x1b[K")
    typist.until("(aborted)")
    typist.until("> ")
    typist.type("\x04")
    assert typist.close() == 0


@posix_only
@pytest.mark.slow
def test_exit_leaves(scripted: ScriptedGateway):
    typist = Typist()
    typist.until("> ")
    typist.type("/exit\n")
    assert typist.close() == 0
