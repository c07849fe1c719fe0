"""`triops bench chat`: how long a person waits for an answer, on any gateway of this protocol, beside the floor."""

from collections.abc import Sequence

from triops.bench.load import MESSAGE
from triops.bench.scenario import Scenario, measure_turns
from triops.bench.subjects import Targets
from triops.bench.turns import Block

PACE = "ITL:10 "
"""Of a model that takes its time: 10 ms between two tokens."""


def scenarios(concurrency: Sequence[int], *, paced: bool = False, history: int = 0) -> list[Scenario]:
    """Fresh sessions one by one, then that many sessions at once, a paced model, a long history."""
    found = [Scenario("fresh sessions", fresh=True), *at_once(concurrency)]
    if paced:
        found.append(Scenario("paced model", message=PACE + MESSAGE))
    if history:
        found.append(Scenario(f"history of {history}", history=history))
    return found


def at_once(concurrency: Sequence[int]) -> list[Scenario]:
    names = {1: "one session"}
    return [Scenario(names.get(n, f"{n} at once"), n, plotted=True) for n in concurrency]


async def measure(
    targets: Targets, turns: int, concurrency: Sequence[int], *, paced: bool = False, history: int = 0
) -> list[Block]:
    """`turns` per scenario and subject. Raises BenchFailed as `measure_turns` does."""
    return await measure_turns(targets, scenarios(concurrency, paced=paced, history=history), turns)
