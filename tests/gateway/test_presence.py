"""Who is here."""

from triops.gateway.presence import KEEP_GONE_MS, Presence
from triops.gateway.schema.connect import ClientInfo

ME = ClientInfo(
    id="openclaw-tui", version="2", platform="linux", mode="ui", display_name="My terminal", instance_id="i1"
)


class Clock:
    now = 1_000_000

    def __call__(self) -> int:
        return self.now


def test_the_gateway_itself_comes_first_and_is_always_fresh() -> None:
    clock = Clock()
    presence = Presence(clock, version="1.2.3")
    clock.now += 5
    (me,) = presence.entries()
    assert (me.mode, me.reason, me.version, me.ts) == ("gateway", "self", "1.2.3", clock.now)
    assert me.text is not None
    assert "1.2.3" in me.text


def test_a_client_is_shown_while_it_is_here_and_for_some_minutes_after() -> None:
    clock = Clock()
    presence = Presence(clock, version="1")
    assert presence.connected("c", ME, scopes=("operator.read",), address="127.0.0.1")
    _, entry = presence.entries()
    assert (entry.host, entry.mode, entry.ip, entry.instance_id) == ("My terminal", "ui", "127.0.0.1", "i1")
    assert (entry.reason, entry.scopes, entry.online_since) == ("connect", ("operator.read",), clock.now)
    clock.now += 1000
    assert presence.gone("c")
    _, entry = presence.entries()
    assert (entry.reason, entry.ts) == ("disconnect", clock.now)
    clock.now += KEEP_GONE_MS - 1
    assert len(presence.entries()) == 2
    clock.now += 1
    assert len(presence.entries()) == 1


def test_single_commands_and_backends_are_not_shown_and_change_nothing() -> None:
    presence = Presence(Clock(), version="1")
    for mode in ("cli", "backend", "probe"):
        client = ClientInfo(id="cli", version="1", platform="x", mode=mode)
        assert not presence.connected(mode, client, scopes=(), address="127.0.0.1")
        assert not presence.gone(mode)
    assert presence.version == 1


def test_each_change_has_a_version_of_its_own() -> None:
    presence = Presence(Clock(), version="1")
    presence.connected("c", ME, scopes=(), address="127.0.0.1")
    presence.gone("c")
    assert presence.version == 3
