"""Inputs that nobody would send, to what stands at the door: frames, handshakes, HTTP heads. Seeded; `dev.py fuzz`.

Each input is a valid one that was damaged. Nothing may escape but what the part says that it raises, nothing may take
long, and nobody may be let in who did not prove himself.
"""

import json
import random
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import trio
import trio.testing

from triops.gateway.auth import check_shared
from triops.gateway.devices import verify_proof
from triops.gateway.errors import WireError
from triops.gateway.http.head import HeadError, parse_head
from triops.gateway.locality import check_host, check_origin, locality, single_header
from triops.gateway.pairing import Admit, Facts, decide
from triops.gateway.session import Authenticate, Close, Dispatch, GatewaySession, State
from triops.runtime.secrets import Secret

SECRET = Secret("the-secret-that-is-never-offered")
SLOW = 1.0  # seconds for one input
PARAMS: dict[str, Any] = {
    "minProtocol": 4,
    "maxProtocol": 4,
    "client": {"id": "gateway-client", "version": "1", "platform": "x", "mode": "backend"},
    "caps": ["tool-events"],
    "role": "operator",
    "scopes": ["operator.admin"],
    "device": {"id": "d", "publicKey": "AAAA", "signature": "AAAA", "signedAt": 1, "nonce": "n"},
    "auth": {"token": "guess", "deviceToken": "guess", "password": "guess"},
}
VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    2**63,
    1e308,
    "",
    "\x00",
    "é" * 300,
    "operator.admin",
    "none",
    [],
    {},
    [[]],
    "4",
]
HEAD = (
    b"GET /rpc/status?x=1 HTTP/1.1\r\nHost: localhost:18789\r\nOrigin: http://localhost:18789\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nAuthorization: Bearer x\r\nContent-Length: 2\r\n\r\n{}"
)
PIECES = [
    b"\r\n",
    b"\n",
    b" ",
    b"\t",
    b"\x00",
    b":",
    b"@",
    b"/",
    b"%2f",
    b"\xff",
    b"evil.com",
    b"127.0.0.1",
    b"[::1]",
    b",",
]
OURS = re.compile(r"(localhost|127\.\d+\.\d+\.\d+|\[[0-9a-f:.]+\])(:\d{1,5})?", re.IGNORECASE)


def damaged_json(draw: random.Random, value: Any) -> Any:
    """`value` with some members lost, doubled in name or of another kind."""
    if draw.random() < 0.04:
        return draw.choice(VALUES)
    if isinstance(value, dict):
        kept = {key: damaged_json(draw, member) for key, member in value.items() if draw.random() > 0.06}  # type: ignore
        return kept | {"strange": 1} if draw.random() < 0.02 else kept
    return [damaged_json(draw, member) for member in value] if isinstance(value, list) else value  # type: ignore


def damaged_bytes(draw: random.Random, data: bytes) -> bytes:
    """`data` with some bytes cut, doubled or replaced."""
    for _ in range(draw.randint(0, 4)):
        start = draw.randrange(len(data) + 1)
        end = min(len(data), start + draw.choice((0, 0, 1, 2, 8, 64)))
        data = data[:start] + draw.choice((b"", draw.choice(PIECES), data[start:end] * 2)) + data[end:]
    return data


def connect_frame(draw: random.Random) -> str:
    return json.dumps({"type": "req", "id": "c", "method": "connect", "params": damaged_json(draw, PARAMS)})


def frame(draw: random.Random) -> None:
    """A connection that hears some frames, whole and damaged, and is never let in."""
    session = GatewaySession(nonce="n")
    actions = session.opened(1)
    for _ in range(draw.randint(1, 4)):
        text = damaged_bytes(draw, connect_frame(draw).encode()).decode("utf-8", "replace")
        match draw.random():
            case chance if chance < 0.05:
                actions += session.binary_frame()
            case chance if chance < 0.1:
                actions += session.timed_out()
            case _:
                actions += session.text_frame(text)
    assert not any(isinstance(action, Dispatch) for action in actions), "dispatched before it was let in"
    assert session.state is not State.READY
    assert all(len(action.reason.encode()) <= 123 for action in actions if isinstance(action, Close))


def handshake(draw: random.Random) -> None:
    """A connect without the secret, from here or elsewhere."""
    session = GatewaySession(nonce="n")
    session.opened(1)
    for action in session.text_frame(connect_frame(draw)):
        if not isinstance(action, Authenticate):
            continue
        params = action.params
        place = locality(draw.choice(("127.0.0.1", "::1", "10.0.0.9", "::ffff:127.0.0.1", "fe80::1%lo", "")), ())
        shared = check_shared(params.auth, draw.choice(("token", "password")), SECRET.matches, locality=place)
        try:
            key = verify_proof(params, params.device, nonce="n", now_ms=1) if params.device else None
        except WireError:
            return
        assert key is None, "a proof that nobody made"
        decided = decide(
            Facts(
                params=params,
                locality=place,
                address="10.0.0.9",
                has_origin=draw.random() < 0.3,
                shared=shared,
                secret_generation="",
                now_ms=1,
                new_token=Secret("new"),
                new_request_id="r",
            )
        )
        assert not isinstance(decided, Admit), "let in without a secret"


def head(draw: random.Random) -> None:
    """A request's head, and who it says that it is for."""
    try:
        parsed = parse_head(damaged_bytes(draw, HEAD))
    except HeadError:
        return
    if parsed is None:
        return
    host, origin = (single_header(parsed.headers, name) for name in (b"host", b"origin"))
    if not check_host(host, bind_host="127.0.0.1"):
        return
    assert host is not None
    assert OURS.fullmatch(host), host
    try:
        check_origin(origin, host=host, locality=locality("127.0.0.1", parsed.headers), local_pages=True)
    except WireError:
        return
    assert origin is None or OURS.fullmatch(origin.lower().removeprefix("http://").removeprefix("https://")), origin


TARGETS: dict[str, Callable[[random.Random], None]] = {"frame": frame, "handshake": handshake, "head": head}


def campaign(count: int, seed: int) -> None:
    """Try `count` inputs, a third for each target. What fails is raised with the seed that shows it again."""
    for name, target in TARGETS.items():
        longest = 0.0
        for number in range(count // len(TARGETS)):
            start = time.perf_counter()
            try:
                target(random.Random(f"{name}/{seed}/{number}"))
            except Exception as error:
                raise AssertionError(f"{name}/{seed}/{number}: {error!r}") from error
            longest = max(longest, time.perf_counter() - start)
        assert longest < SLOW, f"{name}: one input took {longest:.1f} s"
        print(f"{name}: {count // len(TARGETS)} inputs, the longest took {longest * 1000:.1f} ms", flush=True)


if __name__ == "__main__":
    from tests.kit.fuzz_streams import streams  # it imports this module

    count, seed = (int(text) for text in (*sys.argv[1:3], "100000", "0")[:2])
    campaign(count, seed)
    trio.run(streams, count // 10, seed, clock=trio.testing.MockClock(autojump_threshold=0))
