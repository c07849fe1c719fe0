"""`triops bench reconnect`: from a dropped line to knowing all that was missed: the hello, then the history with the
answer that came meanwhile."""

import uuid

import msgspec
import trio

from triops.bench.driver import Driver, Turn, now, open_driver
from triops.bench.load import TURN_LIMIT, closed_loop, new_session
from triops.bench.scenario import open_subjects, timed
from triops.bench.subjects import Subject, Targets
from triops.bench.turns import Block, Record

SEEN = 20
"""Turns that the session holds before."""


class Message(msgspec.Struct, frozen=True):
    role: str = ""
    content: msgspec.Raw = msgspec.Raw()


class History(msgspec.Struct, frozen=True):
    messages: list[Message] = []


async def measure(targets: Targets, turns: int) -> list[Block]:
    """Lose the line in each of `turns` turns right after its ack, and come back when the answer is there.

    Raises:
        BenchFailed: a subject did not start, refused, or closed the connection.
    """
    blocks: list[Block] = []
    async with open_subjects(targets) as (_, subjects):
        for subject, driver in subjects:
            session = new_session()
            await closed_loop(driver, [session], SEEN)
            blocks += [
                await timed(lambda s=subject, d=driver, k=session: reconnect_once(s, d, k)) for _ in range(turns)
            ]
    return blocks


async def reconnect_once(subject: Subject, watcher: Driver, session: str) -> list[Record]:
    """One turn whose line is lost; `watcher` stays connected, and tells when the answer is there."""
    word = uuid.uuid4().hex
    turn, found = Turn(word, session), dict[str, float]()
    with trio.move_on_after(TURN_LIMIT):
        async with open_driver(subject.url, subject.token) as leaving:
            params = {"sessionKey": session, "message": f"SAY:{word}", "idempotencyKey": word}
            turn.sent = now()
            await leaving.ask("chat.send", params)
            turn.acked = now()
        await watcher.ask("agent.wait", {"runId": word, "timeoutMs": int(TURN_LIMIT * 1000)})
        begun = now()
        async with open_driver(subject.url, subject.token) as back:
            found["hello"] = (now() - begun) / 1e6
            history = await back.ask("chat.history", {"sessionKey": session, "limit": 50})
            turn.final = now()
        found["caught_up"] = (turn.final - begun) / 1e6
        turn.state = "final" if holds(history, word) else "behind"
    return [Record(subject.name, "reconnect", turn, found)]


def holds(history: msgspec.Raw, word: str) -> bool:
    """Whether an answer in the history has that word."""
    found = msgspec.json.decode(history, type=History)
    return any(m.role == "assistant" and word in bytes(m.content).decode() for m in found.messages)
