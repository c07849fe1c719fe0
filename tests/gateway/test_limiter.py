import pytest

from triops.gateway.errors import WireError
from triops.gateway.limiter import MAX_KEYS, AuthLimiter, Peer, peer_key
from triops.gateway.locality import normalise_address

LOOPBACK = Peer("127.0.0.1", exempt=True)
REMOTE = Peer("203.0.113.7", exempt=False)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(clock: Clock) -> AuthLimiter:
    return AuthLimiter(clock)


def fail(limiter: AuthLimiter, peer: Peer, times: int = 1) -> float:
    """Guess wrong; the delay of the last guess."""
    delay = -1.0
    for _ in range(times):
        with limiter.reserve(peer) as attempt:
            delay = attempt.delay
            attempt.failed()
    return delay


def retry_after(limiter: AuthLimiter, peer: Peer) -> float:
    with pytest.raises(WireError, match="too many failed authentication attempts") as caught:
        limiter.reserve(peer)
    assert caught.value.shape.retry_after_ms is not None
    return caught.value.shape.retry_after_ms / 1000


def delay(limiter: AuthLimiter, peer: Peer) -> float:
    with limiter.reserve(peer) as attempt:
        return attempt.delay


def test_ten_failures_a_minute_are_free(limiter: AuthLimiter) -> None:
    assert fail(limiter, LOOPBACK, 10) == 0


def test_loopback_is_delayed_longer_and_longer_and_never_locked_out(limiter: AuthLimiter, clock: Clock) -> None:
    fail(limiter, LOOPBACK, 10)
    assert [fail(limiter, LOOPBACK) for _ in range(7)] == [0.25, 0.5, 1, 2, 4, 5, 5]
    for _ in range(100):
        clock.now += 1
        assert fail(limiter, LOOPBACK, 3) == 5
        clock.now += 5


def test_a_peer_guesses_ten_times_a_delay_over_however_many_sockets(limiter: AuthLimiter, clock: Clock) -> None:
    fail(limiter, LOOPBACK, 20)
    clock.now += 5
    attempts = [limiter.reserve(LOOPBACK) for _ in range(10)]
    assert retry_after(limiter, LOOPBACK) == 1
    for attempt in attempts:
        with attempt:
            attempt.failed()  # and its client leaves without waiting
    clock.now += 4.9
    assert retry_after(limiter, LOOPBACK) == 1
    clock.now += 0.1
    assert delay(limiter, LOOPBACK) == 5


def test_failures_are_forgotten_after_a_minute(limiter: AuthLimiter, clock: Clock) -> None:
    fail(limiter, LOOPBACK, 5)
    clock.now += 30
    fail(limiter, LOOPBACK, 6)
    assert delay(limiter, LOOPBACK) == 0.5
    clock.now += 29.9
    assert delay(limiter, LOOPBACK) == 0.5
    clock.now += 0.1
    assert delay(limiter, LOOPBACK) == 0


def test_another_address_is_locked_out_for_five_minutes(limiter: AuthLimiter, clock: Clock) -> None:
    fail(limiter, REMOTE, 10)
    assert retry_after(limiter, REMOTE) == 300
    clock.now += 299
    assert retry_after(limiter, REMOTE) == 1
    clock.now += 1
    assert delay(limiter, REMOTE) == 0


def test_a_lock_out_is_not_prolonged_by_knocking(limiter: AuthLimiter, clock: Clock) -> None:
    fail(limiter, REMOTE, 10)
    for _ in range(300):
        clock.now += 1
        if clock.now < 1300:
            retry_after(limiter, REMOTE)
    assert delay(limiter, REMOTE) == 0


def test_one_address_does_not_shut_out_another(limiter: AuthLimiter) -> None:
    fail(limiter, REMOTE, 10)
    assert delay(limiter, Peer("203.0.113.8", exempt=False)) == 0.25
    assert delay(limiter, LOOPBACK) == 0.25


def test_many_addresses_together_slow_everybody_down(limiter: AuthLimiter, clock: Clock) -> None:
    for number in range(20):
        fail(limiter, Peer(f"203.0.113.{number}", exempt=False))
    assert delay(limiter, LOOPBACK) == 5
    clock.now += 60
    assert delay(limiter, LOOPBACK) == 0


def test_guesses_at_the_same_time_are_not_each_the_first(limiter: AuthLimiter) -> None:
    attempts = [limiter.reserve(REMOTE) for _ in range(10)]
    assert retry_after(limiter, REMOTE) == 1
    for attempt in attempts:
        attempt.failed()
    assert retry_after(limiter, REMOTE) == 300


def test_an_attempt_that_learnt_nothing_counts_for_nothing(limiter: AuthLimiter) -> None:
    for _ in range(50):
        with limiter.reserve(REMOTE):
            pass
    with pytest.raises(RuntimeError), limiter.reserve(REMOTE):
        raise RuntimeError
    assert delay(limiter, REMOTE) == 0


def test_an_attempt_is_settled_once(limiter: AuthLimiter) -> None:
    with limiter.reserve(REMOTE) as attempt:
        attempt.failed()
        attempt.failed()
        attempt.succeeded()
    assert fail(limiter, REMOTE, 9) == 0
    assert retry_after(limiter, REMOTE) == 300


def test_a_success_clears_the_peers_own_failures_only(limiter: AuthLimiter) -> None:
    fail(limiter, REMOTE, 9)
    with limiter.reserve(REMOTE) as attempt:
        attempt.succeeded()
    assert fail(limiter, REMOTE, 9) == 5  # all peers' failures still count
    assert delay(limiter, LOOPBACK) == 5


def test_a_storm_of_right_secrets_is_not_delayed(limiter: AuthLimiter) -> None:
    storm = [limiter.reserve(LOOPBACK) for _ in range(64)]
    assert {attempt.delay for attempt in storm} == {0}
    for attempt in storm:
        attempt.succeeded()


def test_peers_have_one_key_each() -> None:
    mapped = peer_key(normalise_address("::ffff:203.0.113.7"), loopback=False, origin=None)
    assert mapped == peer_key("203.0.113.7", loopback=False, origin="http://x") == REMOTE
    assert peer_key("127.0.0.1", loopback=True, origin=None) == LOOPBACK


def test_a_web_page_is_a_peer_of_its_own_and_not_exempt(limiter: AuthLimiter) -> None:
    page = peer_key("127.0.0.1", loopback=True, origin="http://LOCALHOST:3000")
    assert page == Peer("browser-origin:http://localhost:3000", exempt=False)
    fail(limiter, page, 10)
    assert retry_after(limiter, page) == 300
    assert delay(limiter, LOOPBACK) == 0.25


def test_memory_is_bounded_and_the_longest_unused_goes_first(limiter: AuthLimiter, clock: Clock) -> None:
    fail(limiter, REMOTE, 10)
    for number in range(MAX_KEYS - 1):
        delay(limiter, Peer(str(number), exempt=False))
    assert retry_after(limiter, REMOTE) == 300
    for number in range(MAX_KEYS - 1):
        delay(limiter, Peer(str(number + MAX_KEYS), exempt=False))
    assert retry_after(limiter, REMOTE) == 300
    delay(limiter, Peer("one", exempt=False))
    for number in range(MAX_KEYS - 1):
        delay(limiter, Peer(str(number), exempt=False))
    clock.now += 60
    assert delay(limiter, REMOTE) == 0
