import pytest

from triops.bench.driver import Turn
from triops.bench.mock_model import Mark
from triops.bench.turns import BARE, Block, Record, phases, results, steady

MS = 1_000_000


def turn(**times: float) -> Turn:
    found = Turn("r", "s", state="final")
    for name, at in times.items():
        setattr(found, name, round(at * MS))
    return found


def mark(received: float, first: float, last: float) -> Mark:
    return Mark("r", round(received * MS), round(first * MS), round(last * MS))


def block(subject: str, overheads: list[float], *, begun: float = 0, wall: float = 100, cpu: float = 10) -> Block:
    """Turns one after the other, from `begun` ms on, each as long as its overhead."""
    found: list[Record] = []
    at = begun
    for overhead in overheads:
        found.append(Record(subject, "one session", turn(sent=at, final=at + overhead), {"overhead": overhead}))
        at += overhead
    ended, window = steady([record.turn for record in found], 1)[1:]
    return Block(found, round(wall * MS), round(cpu * MS), ended=ended, window_ns=window)


def test_phases_are_counted_from_the_send_and_from_the_model_s_marks():
    found = phases(turn(sent=10, acked=11, first_delta=17, final=25), [mark(12, 15, 22)])
    assert found == pytest.approx(
        {
            "ack": 1,
            "first_delta": 7,
            "total": 15,
            "model_request": 2,
            "model": 10,
            "overhead": 5,
            "first_byte_to_delta": 2,
            "last_byte_to_final": 3,
        }
    )


def test_the_model_s_own_time_is_summed_over_a_turn_with_tools():
    found = phases(turn(sent=0, final=30), [mark(1, 2, 6), mark(10, 11, 20)])
    assert found == pytest.approx(
        {"total": 30, "model_request": 1, "model": 15, "overhead": 15, "last_byte_to_final": 10}
    )


def test_a_turn_without_marks_or_end_has_the_phases_that_it_has():
    assert phases(turn(sent=1, acked=2, final=5), []) == pytest.approx({"ack": 1, "total": 4})
    assert phases(turn(sent=1, acked=2), [mark(2, 3, 4)]) == pytest.approx({"ack": 1})


def test_what_the_gateway_told_of_itself_stands_beside_what_was_seen():
    seen = turn(sent=1, final=5)
    seen.phases = {"plan": 1.5, "commit": 2.0}
    assert phases(seen, []) == pytest.approx({"total": 4, "gateway_plan": 1.5, "gateway_commit": 2.0})


def test_results_compare_every_subject_with_the_floor():
    blocks = [block("triops", [4.0, 4.0]), block("floor", [2.0, 2.0])] * 5
    ours, floor = results(blocks)
    assert (ours.subject, ours.ratio, floor.subject, floor.ratio) == ("triops", 2.0, "floor", None)
    assert ours.ratio_interval is not None
    assert (ours.ratio_interval.low, ours.ratio_interval.high) == (2.0, 2.0)
    assert ours.metrics["overhead"].count == 10
    assert (ours.generator_cpu_ms, ours.generator_busy) == (5.0, 0.1)


def test_without_a_floor_there_is_no_ratio():
    (ours,) = results([block("triops", [4.0])])
    assert (ours.ratio, ours.ratio_interval) == (None, None)
    assert ours.overhead_interval is not None


def test_failed_turns_are_counted_and_left_out_of_the_numbers():
    mixed = block("triops", [4.0, 4.0, 400.0])
    mixed.records[2].turn.state = "error"
    (found,) = results([mixed])
    assert found.failed == 1
    assert found.metrics["overhead"].max == 4.0


def test_the_rate_leaves_out_how_a_block_runs_empty():
    steady = block("triops", [10.0] * 11, begun=50, wall=5_000)
    (found,) = results([steady])
    assert found.turns_per_second == pytest.approx(100)


def test_the_rate_of_a_block_in_which_all_started_at_once_is_that_of_the_whole():
    (found,) = results([block("triops", [10.0], wall=20)])
    assert found.turns_per_second == pytest.approx(50)


def wave(sessions: int, turns: int, first: float, later: float) -> list[Turn]:
    """A closed loop whose first turns take longer, for all of them begin at once."""
    free, found = [(0.0, n) for n in range(sessions)], list[Turn]()
    for number in range(turns):
        at, session = min(free)
        end = at + (first if number < sessions else later) + session / 1000
        free[session] = end, session
        found.append(turn(sent=at, final=end))
    return found


def test_many_at_once_are_looked_at_while_all_are_at_work():
    kept, ended, window = steady(wave(4, 40, 20, 10), 4)
    assert len(kept) == 32
    assert all(found.final - found.sent < 11 * MS for found in kept), "not those that began together"
    rate, latency = ended / window * 1e9, sum(found.final - found.sent for found in kept) / len(kept) / 1e9
    assert rate * latency == pytest.approx(4, rel=0.1), "as many at work as there are sessions (Little)"
    together = [turn(sent=n, final=20) for n in range(40)]  # one read may hold the ends of many
    assert len(steady(together, 4)[0]) == 32
    failed = wave(4, 40, 20, 10)
    failed[0].state = "error"
    assert failed[0] in steady(failed, 4)[0]


def test_hardly_any_turns_are_all_looked_at():
    assert len(steady(wave(4, 8, 20, 10), 4)[0]) == 8


def test_a_block_whose_turns_were_all_given_up_has_no_rate():
    lost = [Record("triops", "one session", Turn("r", "s", sent=1), {})] * 3
    ended, window = steady([record.turn for record in lost], 1)[1:]
    assert results([Block(lost, 100 * MS, MS, ended=ended, window_ns=window)])[0].turns_per_second == 0


def test_the_endpoint_alone_keeps_the_generator_at_work_and_is_valid():
    (found,) = results([block(BARE, [4.0], wall=10, cpu=9.5)])
    assert (found.generator_busy, found.invalid) == (0.95, "")


def test_few_pairs_of_blocks_have_a_ratio_and_no_interval():
    ours, _ = results([block("triops", [4.0]), block("floor", [2.0]), block("triops", [1.0]), block("floor", [2.0])])
    assert (ours.ratio, ours.ratio_interval) == (1.0, None), "the mean of what the pairs say"


def test_a_generator_from_which_others_took_the_core_counts_as_busy():
    (found,) = results([Block(block("triops", [4.0]).records, 100 * MS, 10 * MS, working_ns=95 * MS)])
    assert found.invalid == "the generator was the bottleneck (at work 95% of the time)"


@pytest.mark.parametrize(("late", "invalid"), [(1, False), (30, True)])
def test_arrivals_that_the_generator_sent_late_tell_nothing_of_the_subject(late: float, invalid: bool):
    seen = [turn(due=100, sent=100 + delay, final=110 + delay) for delay in (0, 0, late)]
    records = [Record("triops", "open", turn, phases(turn, ())) for turn in seen]
    (found,) = results([Block(records, 100 * MS, 10 * MS)])
    assert ("sent late" in found.invalid) == invalid
