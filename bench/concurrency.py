"""`triops bench concurrency`: what many people at once make of the latency.

Closed loops answer "how fast with n busy sessions"; open ones "what does who comes wait, at this rate of arrivals".
"""

from collections.abc import Sequence

from triops.bench.chat import at_once
from triops.bench.scenario import Scenario, measure_turns
from triops.bench.subjects import Targets
from triops.bench.turns import Block


async def measure(targets: Targets, turns: int, sessions: Sequence[int], rates: Sequence[int]) -> list[Block]:
    """`turns` per number of sessions, rate and subject. Raises BenchFailed as `measure_turns` does."""
    arrivals = [Scenario(f"{rate}/s arrive", rate=rate) for rate in rates]
    return await measure_turns(targets, [*at_once(sessions), *arrivals], turns)
