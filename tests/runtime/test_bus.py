"""Who hears what: by kind, in order, and none the less for who fails or leaves."""

from contextlib import ExitStack

from triops.runtime.bus import Bus
from triops.runtime.events import HeartbeatEvent, ModelsChanged, RuntimeEvent
from triops.runtime.logs import Log, Record

CHANGED, BEAT = ModelsChanged(1), HeartbeatEvent(payload={})


def test_listeners_hear_in_order_what_they_asked_for_as_long_as_they_listen() -> None:
    bus, heard = Bus(Log()), list[tuple[str, RuntimeEvent]]()
    with bus.subscribe(lambda event: heard.append(("all", event))):
        bus.publish(CHANGED)
        with bus.subscribe(lambda event: heard.append(("some", event)), ModelsChanged):
            bus.publish(CHANGED)
            bus.publish(BEAT)
        bus.publish(CHANGED)
    bus.publish(CHANGED)
    assert heard == [("all", CHANGED), ("all", CHANGED), ("some", CHANGED), ("all", BEAT), ("all", CHANGED)]
    assert bus.statistics().subscribers == 0 and bus.statistics().published == 5


def test_a_listener_that_fails_is_logged_each_time_and_costs_the_others_nothing() -> None:
    log, heard = list[Record](), list[object]()
    bus = Bus(Log(log.append))

    def fail(event: object) -> None:
        raise ZeroDivisionError("its own fault")

    with bus.subscribe(fail), bus.subscribe(heard.append):
        bus.publish(CHANGED)
        bus.publish(BEAT)
    assert heard == [CHANGED, BEAT]
    assert [record.message for record in log] == ["a bus listener failed"] * 2


def test_who_leaves_or_comes_while_an_event_is_told_changes_nothing_for_that_event() -> None:
    bus, heard = Bus(Log()), list[object]()
    with ExitStack() as leaving, ExitStack() as coming:

        def change(event: object) -> None:
            leaving.close()
            coming.enter_context(bus.subscribe(lambda event: heard.append("new")))

        with bus.subscribe(change, ModelsChanged):
            leaving.enter_context(bus.subscribe(lambda event: heard.append("old")))
            bus.publish(CHANGED)
        bus.publish(CHANGED)
    assert heard == ["old", "new"]
