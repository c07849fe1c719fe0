import itertools
from functools import partial

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from triops.bench import load
from triops.bench.driver import Driver, Turn, now
from triops.bench.load import closed_loop, new_session, open_loop
from triops.bench.turns import phases


class Instant(Driver):
    """A driver whose gateway answers at once, except that it stalls for ever on the turn number `stall`."""

    def __init__(self, stall: int = -1) -> None:
        super().__init__(trio.testing.memory_stream_pair()[0])
        self.turns: list[Turn] = []
        self.messages: list[str] = []
        self._stall = stall

    async def chat(self, turn: Turn, message: str) -> None:
        turn.sent = now()
        self.turns.append(turn)
        self.messages.append(message)
        if len(self.turns) - 1 == self._stall:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        turn.final, turn.state = now(), "final"


async def test_a_closed_loop_shares_its_turns_among_the_sessions():
    driver = Instant()
    done = await closed_loop(driver, ["a", "b"], 7, message="ITL:1 RUN:")
    assert {turn.session for turn in done} == {"a", "b"}
    assert sorted(driver.messages) == sorted(f"ITL:1 RUN:{turn.run}" for turn in done)
    assert len(done) == 7


async def test_who_comes_in_an_open_loop_waits_for_nobody():
    driver = Instant(stall=0)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(open_loop, driver, 5, 10_000.0, seed=0))
            while sum(turn.final > 0 for turn in driver.turns) < 4:  # noqa: ASYNC110, RUF100  steps, no time
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    assert len({turn.session for turn in driver.turns}) == 5, "who comes while others wait is no part of their turns"
    assert driver.turns[0].final == 0


async def test_no_arrival_is_sent_before_it_is_due():
    driver = Instant()
    done = await open_loop(driver, 20, 100_000.0, seed=0)
    assert len(done) == 20
    assert all(0 < turn.due <= turn.sent for turn in done)


async def test_all_who_come_while_the_generator_stalls_wait_from_their_intended_arrival():
    class Stalls(Instant):
        async def chat(self, turn: Turn, message: str) -> None:
            until = now() + 50_000_000 * (not self.turns)
            while now() < until:
                pass
            await super().chat(turn, message)

    done = await open_loop(Stalls(), 20, 1_000.0, seed=0)
    waited = [phases(turn, ())["total"] for turn in sorted(done, key=lambda turn: turn.due)]
    assert len({turn.due for turn in done}) == 20, "each has the moment at which it was to come"
    assert sum(ms > 10 for ms in waited) >= 10, "not the first alone"


@pytest.mark.parametrize("seed", [0, 1])
async def test_people_arrive_as_they_please_and_as_many_a_second_as_was_said(
    seed: int, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(load, "now", lambda: round(trio.current_time() * 1e9))
    begun, done = trio.current_time(), await open_loop(Instant(), 200, 50.0, seed=seed)
    arrivals = sorted(turn.due / 1e9 - begun for turn in done)
    assert arrivals[-1] == pytest.approx(4.0, abs=0.002)
    gaps = [later - earlier for earlier, later in itertools.pairwise(arrivals)]
    assert max(gaps) > 3 * 0.02 > 0.02 / 3 > min(gaps)


async def test_a_turn_that_is_given_up_keeps_what_was_seen_of_it(autojump_clock: MockClock):
    driver = Instant(stall=0)
    (turn,) = await closed_loop(driver, ["a"], 1)
    assert (turn.state, turn.sent > 0, turn.final) == ("timeout", True, 0)


def test_waiting_for_a_stalled_sender_counts_as_latency():
    turn = Turn("r", "s", due=1_000_000, sent=21_000_000, acked=22_000_000, final=25_000_000, state="final")
    assert phases(turn, ()) == pytest.approx({"sending": 20, "ack": 21, "total": 24})


def test_no_two_sessions_have_one_key():
    assert len({new_session() for _ in range(100)}) == 100
