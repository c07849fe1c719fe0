"""Conversations with a real gateway, had again with ours at the recorded moments: each answer says the same, and each
client hears the same of each run, in the same order; or it stands here why not. (In `chat_queue` the second message of
each pair comes a second after the first, while that one is answered; the recorded gateway took that long to begin.)

`recordings/conversations.jsonl` is what was asked, the lasting part of each answer, and what each connection heard (of
the text and its pieces one word).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from tests.kit.host import open_test_gateway
from tests.kit.wire import Client

Clock = trio.testing.MockClock
Line = dict[str, Any]
OVER = ("chat final", "chat aborted", "chat error")
CONFLICT = {"ok": False, "error": {"code": "INVALID_REQUEST", "details": {"reason": "chat-request-conflict"}}}


def conversations() -> dict[str, list[Line]]:
    path = Path(__file__).parent / "recordings" / "conversations.jsonl"
    found: dict[str, list[Line]] = {}
    for line in map(json.loads, path.read_text("utf-8").splitlines()):
        if "recording" in line:
            found[line["recording"]] = []
        else:
            next(reversed(found.values())).append(line)
    return found


def other_session(line: Line) -> bool:
    return line["params"].get("sessionKey", "").endswith("b")


DIFFERENT: dict[str, list[tuple[Callable[[Line], bool], list[Any]]]] = {
    # A known key for another session is a conflict, and not the other session's `ok`.
    "chat_idempotency": [(other_session, [CONFLICT])],
    # The recorded session had been deleted before.
    "sessions": [(lambda line: line["method"] == "sessions.send", [{"ok": True, "payload": {}}])],
}

WHOLE = ["agent lifecycle start", "text", "agent lifecycle end", "chat final"]
OWN_TURN = dict.fromkeys(
    ("k-2c740-1494245994", "k-2c740-1497350213", "k-2c740-1500683906", "k-2c740-1503782619"), WHOLE
)
"""A message sent during a run has its own run and final, where the recorded gateway drew another id for it, or let the
run before it answer (which ours does between two steps of a run; these have one)."""


def mended(order: list[str]) -> list[str]:
    """What a run should have sounded like: its end, then one terminal event, and nothing after it."""
    terminal = next((word for word in order if word in OVER), None)
    if terminal is None or order == ["chat final"]:  # a command, or a message that another run took in
        return order
    end = "agent lifecycle error" if terminal == "chat error" else "agent lifecycle end"
    text = ["text"] if "text" in order and terminal != "chat error" else []  # the text was the other gateway's apology
    return ["agent lifecycle start", *text, end, terminal]


def heard(client: Client) -> dict[str, list[str]]:
    runs: dict[str, list[str]] = {}
    for frame in client.frames:
        payload = frame.get("payload") or {}
        if frame.get("event") == "chat":
            word = "text" if payload["state"] == "delta" else f"chat {payload['state']}"
        elif frame.get("event") == "agent" and payload["stream"] in ("assistant", "lifecycle"):
            phase = payload["data"].get("phase")
            word = "text" if payload["stream"] == "assistant" else f"agent lifecycle {phase}"
        else:
            continue
        order = runs.setdefault(payload["runId"], [])
        known = word in ("text", "agent lifecycle start", "agent lifecycle end", "agent lifecycle error", *OVER)
        if known and order[-1:] != [word]:
            order.append(word)
    return runs


class Replay:
    """The recorded clients, talking to our gateway when they did."""

    def __init__(self, lines: list[Line]) -> None:
        self.asked = [line for line in lines if "method" in line]
        self.heard = [line for line in lines if "runs" in line]
        self.clients: dict[str, Client] = {}
        self.ids: list[tuple[Line, str]] = []

    async def run(self, path: Path) -> None:
        async with open_test_gateway(path, virtual=True) as host, trio.open_nursery() as nursery:

            async def connect(line: Line, *, task_status: trio.TaskStatus[None]) -> None:
                async with host.client(caps=tuple(line["caps"])) as client:
                    self.clients[line["conn"]] = client
                    task_status.started()
                    await client.closed()

            began = trio.current_time()
            for line in self.asked:
                await trio.sleep_until(began + line["ms"] / 1000)
                if line["method"] == "connect":
                    await nursery.start(connect, line)
                else:
                    client = self.clients[line["conn"]]
                    self.ids.append((line, await client.ask(line["method"], line["params"])))
            await trio.sleep(30)
            nursery.cancel_scope.cancel()

    def answers(self, line: Line, request_id: str) -> list[Line]:
        frames = self.clients[line["conn"]].frames
        return [frame for frame in frames if frame["type"] == "res" and frame["id"] == request_id]


@pytest.mark.parametrize(("name", "lines"), conversations().items())
async def test_a_recorded_conversation_goes_the_same_way(
    tmp_path: Path, autojump_clock: Clock, name: str, lines: list[Line]
) -> None:
    replay = Replay(lines)
    await replay.run(tmp_path)
    for line, request_id in replay.ids:
        expected = line["answers"]
        for applies, instead in DIFFERENT.get(name, ()):
            if applies(line):
                expected = instead
        answers = replay.answers(line, request_id)
        assert [answer["ok"] for answer in answers] == [answer["ok"] for answer in expected], (line, answers)
        for answer, wanted in zip(answers, expected, strict=True):
            part = "payload" if wanted["ok"] else "error"
            assert wanted[part].items() <= answer[part].items(), (line, answer)
    for line in replay.heard:
        client = replay.clients[line["conn"]]
        ours, own = heard(client), set(line["runs"])
        assert {run: OWN_TURN.get(run) or mended(order) for run, order in line["runs"].items() if run in ours} == {
            run: order for run, order in ours.items() if run in own
        }
        # Ids of runs that the recorded gateway drew are not known here.
        assert own <= set(ours) or name in ("sessions", "chat_queue"), (line["conn"], own - set(ours))
        told = {frame["event"] for frame in client.frames if frame["type"] == "event"}
        assert told & {"session.message", "sessions.changed"} >= set(line["events"])
        assert set(line["events"]) or not told & {"session.message", "sessions.changed"}
