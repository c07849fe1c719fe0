import pytest
import trio
from tests.bench.test_cli import bench

from triops.bench.driver import Turn
from triops.bench.mock_model import Mark
from triops.bench.selfcheck import HELD_MS, PLACES, faults, growth, measure
from triops.bench.turns import phases

STEPS = {"ACK": 1, "REQUEST": 2, "FIRST": 3, "DELTA": 4, "ITL": 5, "LAST": 5, "FINAL": 6}
"""By place, the number of the moment before which it holds up: sent, acked, received, first, delta, last, final."""


def seen(place: str, ms: float) -> dict[str, float]:
    """The phases of a turn whose moments lie 1 ms apart, with a hold on an injected clock."""
    sent, acked, received, first, delta, last, final = (
        round((moment + ms * (moment >= STEPS[place])) * 1e6) for moment in range(7)
    )
    if place == "DELTA":
        last -= round(ms * 1e6)  # the model does not wait for the gateway
    turn = Turn("r", "s", sent=sent, acked=acked, first_delta=delta, final=final)
    return phases(turn, [Mark("r", received, first, last)])


def test_five_milliseconds_are_found_in_the_phase_into_which_they_were_put():
    shifts = {place: growth([seen(place, HELD_MS)], [seen(place, 2 * HELD_MS)]) for place in PLACES}
    assert set().union(*shifts.values()) >= set().union(*PLACES.values())
    assert faults(shifts) == []


@pytest.mark.parametrize("place", PLACES)
def test_a_delay_that_is_found_elsewhere_or_nowhere_is_a_fault(place: str):
    elsewhere = next(other for other in PLACES if PLACES[other] != PLACES[place])
    assert faults({place: growth([seen(elsewhere, 5)], [seen(elsewhere, 10)])})
    nothing = faults({place: growth([seen(place, 5)], [seen(place, 5.4)])})
    assert len(nothing) >= len(PLACES[place])
    assert "grew by 0.40 ms, not by 5" in "".join(nothing)


@pytest.mark.slow  # holds up fourteen turns
async def test_every_place_of_the_floor_can_be_held_up(model_url: str):
    with trio.fail_after(20):
        shifts = await measure(1)
    assert shifts.keys() == PLACES.keys()
    assert all(found.keys() >= set().union(*PLACES.values()) for found in shifts.values())


@pytest.mark.soak
def test_five_milliseconds_are_found_here_and_now(capsys: pytest.CaptureFixture[str]):
    assert bench("selfcheck", "--pairs", "300") == 0
    print(capsys.readouterr().out)
