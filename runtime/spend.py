"""What models may cost: by run and by day, in tokens and in money. Counts what providers say that they counted.

The messages in the store are the record; memory holds the sum of the day, read from them when the day is first asked
for. So a restart forgets nothing, and a turn without a limit pays nothing.
"""

from datetime import datetime, timedelta
from functools import partial
from zoneinfo import ZoneInfo

import msgspec
import trio

from triops.agents.errors import LimitReached
from triops.agents.messages import Usage
from triops.runtime.clock import Clock
from triops.runtime.config import Config, SpendLimit
from triops.runtime.store import spend
from triops.runtime.store.sqlite import Store

_KEPT = "what it did is kept"


class Spent(msgspec.Struct):
    """Tokens and USD so far."""

    tokens: int = 0
    usd: float = 0.0

    def add(self, usage: Usage) -> None:
        self.tokens += usage.total_tokens
        self.usd += usage.cost.total


class Spend:
    """The limits, and what the day cost so far. Belongs to the Trio thread."""

    def __init__(self, config: Config, store: Store, clock: Clock) -> None:
        self.limits = config.models.spend
        self._store = store
        self._clock = clock
        zone = config.agents.defaults.user_timezone
        self._zone = ZoneInfo(zone) if zone else None
        self._today = Spent()
        self._ends = 0
        """When the day that is counted is over, in milliseconds."""
        self._reading = trio.Lock()

    def add(self, usage: Usage, run: Spent) -> None:
        """A call of a model was paid for; sync."""
        run.add(usage)
        self._today.add(usage)

    async def check(self, run: Spent) -> None:
        """To be called before each call of a model.

        Raises:
            LimitReached: the run or the day has had what it may cost.
        """
        limits = self.limits
        _check(run, limits.per_run, "this run", "perRun", f"{_KEPT}; send a message to let it go on")
        if limits.per_day != SpendLimit():
            async with self._reading:
                if self._clock() >= self._ends:
                    await self._begin_day()
            _check(self._today, limits.per_day, "today", "perDay", f"{_KEPT}; it counts anew at midnight")

    async def _begin_day(self) -> None:
        now = datetime.fromtimestamp(self._clock() / 1000, self._zone)
        start = now.replace(hour=0, minute=0, second=0, microsecond=0)
        self._today = Spent(*await self._store.read(partial(spend.since, start=round(start.timestamp() * 1000))))
        end = datetime.combine((start + timedelta(days=1)).date(), start.time(), start.tzinfo)
        self._ends = round(end.timestamp() * 1000)


def _check(spent: Spent, limit: SpendLimit, whose: str, key: str, advice: str) -> None:
    for unit, used, most in (("tokens", spent.tokens, limit.tokens), ("usd", spent.usd, limit.usd)):
        if most is not None and used >= most:
            amount = f"{used:,} of {most:,} tokens" if unit == "tokens" else f"${used:.2f} of ${most:.2f}"
            words = f"the spend limit is reached: {whose} used {amount} (models.spend.{key}.{unit})"
            raise LimitReached(f"{words}; {advice}, or raise the limit")
