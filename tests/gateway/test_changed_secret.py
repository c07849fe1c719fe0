"""What stood on a secret that was changed, or on an approval that was taken back, does nothing any more."""

from pathlib import Path
from typing import Any

import pytest
import trio
from tests.kit.host import TOKEN, TestHost, open_test_gateway

LATER = ("POST /rpc/chat.send", b'{"sessionKey": "main", "message": "SAY:late", "idempotencyKey": "late"}')


async def answer_of(stream: trio.abc.ReceiveStream) -> bytes:
    data = b""
    with trio.move_on_after(5):
        while part := bytes(await stream.receive_some()):
            data += part
            if b"\r\n\r\n" in data:
                break
    return data


async def begun(host: TestHost, line: str, size: int, **headers: str) -> Any:
    """A request whose head is admitted and whose body is still to come."""
    stream = host.dial()
    head = {
        "Host": f"127.0.0.1:{host.port}",
        "Authorization": f"Bearer {TOKEN}",
        "Content-Length": str(size),
        **headers,
    }
    lines = [f"{line} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", ""]
    await stream.send_all("\r\n".join(lines).encode())
    await trio.testing.wait_all_tasks_blocked(0.01)
    return stream


@pytest.mark.parametrize(
    ("line", "body", "headers"),
    [
        ("POST /rpc/chat.send", LATER[1], {}),
        ("POST /rpc/gateway.token.rotate", b"{}", {}),
        ("POST /v1/runs", b'{"input": "SAY:late"}', {}),
        ("GET /sessions/main/history", b"{}", {"Accept": "text/event-stream"}),
    ],
)
async def test_a_body_that_comes_after_the_secret_was_changed_is_refused(
    tmp_path: Path, line: str, body: bytes, headers: dict[str, str]
) -> None:
    async with open_test_gateway(tmp_path) as host:
        await host.rpc("chat.send", {"sessionKey": "main", "message": "SAY:x", "idempotencyKey": "x"}, final=True)
        stream = await begun(host, line, len(body), **headers)
        await host.rpc("gateway.token.rotate")
        new = host.runtime.paths.token.read_text()
        await stream.send_all(body)
        assert b" 401 " in (await answer_of(stream)).split(b"\r\n")[0]
        assert host.runtime.paths.token.read_text() == new
        assert len(host.model.requests) == 1
        await trio.aclose_forcefully(stream)


async def test_an_answer_under_way_is_cut_and_its_run_stopped(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        body = b'{"sessionKey": "main", "message": "HANG", "idempotencyKey": "k"}'
        stream = await begun(host, "POST /rpc/chat.send?wait=final", len(body))
        await stream.send_all(body)
        while not host.model.requests:  # noqa: ASYNC110 - the run is asked for by another task
            await trio.sleep(0.01)
        await host.rpc("gateway.token.rotate")
        assert b" 401 " in (await answer_of(stream)).split(b"\r\n")[0]
        assert (await host.runtime.runs.wait("k")).stop_reason == "rpc"
        await trio.aclose_forcefully(stream)


async def test_of_many_changes_at_once_the_one_in_the_file_holds(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host:
        for _ in range(5):
            token = host.runtime.paths.token.read_text().strip() if host.runtime.paths.token.exists() else TOKEN
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(host.http, "POST", "/rpc/gateway.token.rotate", {})
                    nursery.start_soon(
                        lambda token=token: host.http("POST", "/rpc/gateway.token.rotate", {}, token=token)
                    )
            token = host.runtime.paths.token.read_text().strip()
            assert (await host.http("GET", "/status", token=token)).status == 200


async def test_what_a_socket_says_after_it_is_to_be_closed_is_not_done(tmp_path: Path) -> None:
    async with open_test_gateway(tmp_path) as host, host.client(lockstep=True) as client:
        (connection,) = host.gateway.services.fanout.connections()
        await client.ask("health")  # its answer is being written, for nobody reads it
        await trio.testing.wait_all_tasks_blocked(0.01)
        connection.close(4001, "client invalidated: device-removed")  # pyright: ignore[reportAttributeAccessIssue] - it is one
        for number in range(5):
            await client.ask("chat.send", {"sessionKey": "main", "message": "SAY:x", "idempotencyKey": f"k{number}"})
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert await host.runtime.store.write(lambda db: db.execute("SELECT id FROM runs").fetchall()) == []
        assert (await client.closed()).code == 4001
