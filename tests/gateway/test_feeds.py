"""What single runs told, kept for those that follow them."""

import pytest
import trio
import trio.testing

from triops.gateway.errors import WireError
from triops.gateway.feeds import MAX_KEPT, Feed, Feeds
from triops.runtime.events import RunDelta, RunEnded, RunInfo
from triops.runtime.runs.state import RunState, Terminal


def info(run_id: str) -> RunInfo:
    return RunInfo(
        run_id=run_id,
        session_key="agent:main:main",
        spelled_key="agent:main:main",
        session_id="s",
        agent_id="main",
        source="chat",
        origin="",
        tool_events=False,
    )


def delta(run_id: str, seq: int = 1) -> RunDelta:
    return RunDelta(info(run_id), seq, 0, 1, "x")


def end(run_id: str) -> RunEnded:
    return RunEnded(info(run_id), 9, 0, Terminal(state=RunState.FINAL))


async def test_a_follower_waits_for_what_its_run_tells_and_hears_no_other_run() -> None:
    feeds = Feeds()
    heard: list[object] = []

    async def read(feed: Feed) -> None:
        while not feed.over:
            heard.extend(await feed.after(len(heard)))

    with feeds.follow("a") as feed:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, feed)
            for event in (delta("a"), delta("b"), end("a")):
                feeds.hear(event)
                await trio.testing.wait_all_tasks_blocked()
        assert heard == [delta("a"), end("a")]


def test_a_feed_goes_with_its_last_follower_unless_it_is_kept() -> None:
    feeds = Feeds()
    with feeds.follow("a") as one:
        with feeds.follow("a") as other:
            assert one is other
        feeds.hear(delta("a"))
        assert one.told == [delta("a")]
        assert feeds.keep("a")
        assert not feeds.keep("a")
    assert feeds.get("a") is one
    feeds.drop("a")
    assert feeds.get("a") is None
    feeds.hear(delta("a"))


def test_of_too_many_kept_feeds_the_oldest_that_is_over_goes() -> None:
    feeds = Feeds()
    for n in range(MAX_KEPT):
        with feeds.follow(str(n)):
            feeds.keep(str(n))
    with feeds.follow("more"):
        with pytest.raises(WireError, match="followed already"):
            feeds.keep("more")
        feeds.hear(end("5"))
        assert feeds.keep("more")
    assert feeds.get("5") is None
    assert feeds.get("0") is not None
