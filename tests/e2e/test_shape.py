"""The four parts and their inboxes, read off Trio's own task tree and the gateway's own status."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trio
from tests.kit.host import open_test_gateway


def tree(task: trio.lowlevel.Task) -> dict[str, Any]:
    """A task's children by name, each with its own."""
    return {child.name: tree(child) for nursery in task.child_nurseries for child in nursery.child_tasks}


def nurseries(task: trio.lowlevel.Task) -> Iterator[set[str]]:
    """The names of the tasks in each nursery below a task."""
    for nursery in task.child_nurseries:
        yield {child.name for child in nursery.child_tasks}
        for child in nursery.child_tasks:
            yield from nurseries(child)


def named(task: trio.lowlevel.Task, name: str) -> list[trio.lowlevel.Task]:
    found = [task] if task.name == name else []
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            found += named(child, name)
    return found


async def test_each_part_is_one_named_task_and_they_nest_in_the_order_of_their_shutdown(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        await client.say("HANG", key="k", session="agent:main:busy")
        await client.event("agent", runId="k")
        root = trio.lowlevel.current_root_task()
        assert root is not None
        for part in ("gateway", "agent-run supervisor", "cron scheduler", "model warm-up"):
            assert len(named(root, part)) == 1, part
        # A run is a child call of its lane's worker, which is the supervisor's child and no client's.
        (supervisor,) = named(root, "agent-run supervisor")
        assert tree(supervisor).keys() == {"lane agent:main:busy"}
        (gateway,) = named(root, "gateway")
        assert {"fan-out", "tick", "health"} <= tree(gateway).keys()
        assert {"writer", "keep-alive"} <= tree(named(root, "client under test")[0]).keys()
        # Runs are opened before services, services before the gateway: what is opened last is closed first.
        order = [
            part
            for group in nurseries(root)
            for part in ("agent-run supervisor", "cron scheduler", "gateway")
            if part in group
        ]
        assert order == ["agent-run supervisor", "cron scheduler", "gateway"]
        await client.request("chat.abort", {"sessionKey": "agent:main:busy"})
        await client.terminal("k")


def handled(gateway: trio.lowlevel.Task) -> bool:
    """Whether a client's own task is among the gateway's."""
    return any("run_handler" in name for group in nurseries(gateway) for name in group)


async def test_a_client_over_a_socket_is_a_task_of_the_gateway(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        async with await trio.open_tcp_stream("127.0.0.1", host.port):
            root = trio.lowlevel.current_root_task()
            assert root is not None
            (gateway,) = named(root, "gateway")
            with trio.fail_after(5):
                while not handled(gateway):  # noqa: ASYNC110 - the kernel tells no event
                    await trio.lowlevel.checkpoint()


async def test_every_inbox_stands_in_the_status(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client():
        statistics = (await host.http("GET", "/status")).body["statistics"]
        assert (statistics["runs"]["inbox"], statistics["runs"]["inbox_capacity"]) == (0, 256)
        assert (statistics["cron"]["inbox"], statistics["cron"]["inbox_capacity"]) == (0, 64)
        assert (statistics["warmup"]["inbox"], statistics["warmup"]["inbox_capacity"]) == (0, 16)
        (connection,) = statistics["connections"]
        assert {"frames", "bytes", "merged"} <= connection.keys()
        assert statistics["bus"]["subscribers"] == 3  # the fan-out, the feeds, the deliveries
        assert statistics["runs"]["lanes"]["lanes"] == 0


async def test_nothing_is_left_when_it_is_over(tmp_path: Path) -> None:
    task = trio.lowlevel.current_task()
    before = [len(nursery.child_tasks) for nursery in task.child_nurseries]
    async with open_test_gateway(tmp_path) as host, host.client() as client:
        await client.say("SAY:x", key="k")
        await client.terminal("k")
    assert [len(nursery.child_tasks) for nursery in task.child_nurseries] == before
    assert host.runtime.bus.statistics().subscribers == 0
    assert host.gateway.services.fanout.connections() == []
