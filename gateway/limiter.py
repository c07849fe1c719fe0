"""How often a peer may guess a secret wrong (design: Limits). Knows no sockets and never waits; the clock is given.

An attempt is reserved before the first await, and until it is settled it uses up one of the peer's tries: guesses
made at the same time are not each the first one. A right secret is never delayed. A wrong one is told late, and holds
one of its peer's `LIMIT` places until then, whether or not anybody still waits for the answer: since nothing is
compared while all are held, a peer guesses at most `LIMIT` times per delay, over however many sockets. Where nobody can
guess the secret (a long token) that bound would protect nothing, and one program of this machine that knocks without
pause would shut all others out: there an exempt peer's secret is always compared.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from math import inf

import msgspec

from triops.gateway.auth import rate_limited

LIMIT = 10
WINDOW = 60.0  # seconds
LOCKOUT = 300.0  # seconds
FIRST_DELAY, MAX_DELAY = 0.25, 5.0  # seconds
BUSY_RETRY = 1.0  # seconds, for a peer whose tries are all under way
MAX_KEYS = 10_000  # past it the longest unused is forgotten; the limit over all peers still holds
_REMEMBERED = LIMIT + 5  # failures: as many as the delay still grows with


class Peer(msgspec.Struct, frozen=True):
    """Whom failures are counted for."""

    key: str
    exempt: bool
    """Its failures are delayed, and it is never locked out."""


def peer_key(address: str, *, loopback: bool, origin: str | None) -> Peer:
    """The peer at `address` (normalised). A web page on this machine is its own peer: it must neither hide among the
    user's programs nor shut them out."""
    if loopback and origin is not None:
        return Peer(f"browser-origin:{origin.lower()}", exempt=False)
    return Peer(address, exempt=loopback)


class _Record:
    def __init__(self) -> None:
        self.failures: deque[float] = deque(maxlen=_REMEMBERED)
        self.reserved = 0
        self.held: list[float] = []
        """Until when its delayed failures hold their places."""
        self.locked_until = -inf

    def count(self, now: float) -> int:
        """Failures within the window."""
        while self.failures and self.failures[0] <= now - WINDOW:
            self.failures.popleft()
        return len(self.failures)

    def fail(self, now: float) -> None:
        self.failures.append(now)
        if self.count(now) >= LIMIT:
            self.locked_until = now + LOCKOUT


class Attempt:
    """One look at a secret: compare, settle, and tell a failure `delay` seconds later. Left without being settled (the
    client is gone, the task was cancelled) it counts for nothing, for nothing was learnt."""

    def __init__(self, clock: Callable[[], float], own: _Record, everyone: _Record, delay: float) -> None:
        self.delay = delay
        self._clock = clock
        self._own = own
        self._everyone = everyone
        self._open = True
        own.reserved += 1

    def __enter__(self) -> "Attempt":
        return self

    def __exit__(self, *_: object) -> None:
        self._settle()

    def succeeded(self) -> None:
        """The secret was right: the peer's own failures are forgotten. Settle at once, before awaiting anything."""
        if self._settle():
            self._own.failures.clear()

    def failed(self) -> float:
        """The secret was wrong: say so after this many seconds."""
        if self._settle():
            now = self._clock()
            self._own.fail(now)
            self._everyone.fail(now)
            self._own.held.append(now + self.delay)
        return self.delay

    def _settle(self) -> bool:
        was, self._open = self._open, False
        self._own.reserved -= was
        return was


class AuthLimiter:
    """Failures per peer and over all peers: past `LIMIT` in a `WINDOW` they are told late, later each time, and a
    peer that is not exempt is locked out. `clock` gives seconds and never runs back; `guessable` says that the secret
    may be found by trying."""

    def __init__(self, clock: Callable[[], float], *, guessable: bool = True) -> None:
        self._clock = clock
        self._guessable = guessable
        self._all = _Record()
        self._peers: OrderedDict[str, _Record] = OrderedDict()

    def reserve(self, peer: Peer) -> Attempt:
        """Reserve one attempt; sync. Use it in a `with` block.

        Raises:
            WireError: the peer is locked out, or all its places are held; with `retryAfterMs`.
        """
        now = self._clock()
        record = self._peers.setdefault(peer.key, _Record())
        self._peers.move_to_end(peer.key)
        if len(self._peers) > MAX_KEYS:
            self._peers.popitem(last=False)
        failures = record.count(now)
        if not peer.exempt and (now < record.locked_until or failures + record.reserved >= LIMIT):
            raise rate_limited(max(record.locked_until - now, BUSY_RETRY))
        record.held = [until for until in record.held if until > now]
        past = max(failures, self._all.count(now)) - LIMIT
        delay = 0.0 if past < 0 else min(FIRST_DELAY * 2.0**past, MAX_DELAY)
        bounded = self._guessable or not peer.exempt
        if bounded and delay and len(record.held) + record.reserved >= LIMIT:
            raise rate_limited(BUSY_RETRY)
        return Attempt(self._clock, record, self._all, delay)
