"""Whatever clients and operators do in whatever order, nobody has a scope that nobody approved, and what was taken back
stays so: the door's own transactions on a database in memory, against a model of what was approved; then a whole
gateway, whose open sockets end with what they stand on."""

import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tests.kit.host import TOKEN, TestHost, open_test_gateway
from tests.kit.wire import Client, Closed, Refused, connect_params
from trio.testing import MockClock

from triops.gateway import approvals
from triops.gateway.approvals import Approver
from triops.gateway.auth import check_shared
from triops.gateway.client import DeviceIdentity
from triops.gateway.door import decide_with_records
from triops.gateway.locality import Locality
from triops.gateway.pairing import Admit, Facts
from triops.gateway.records import (
    load_all_pending,
    load_device,
    load_devices,
    load_pending,
    pairing_request,
    save_pending,
)
from triops.gateway.schema.connect import ClientInfo, ConnectParams, Credentials, DeviceProof
from triops.gateway.scopes import SCOPES, effective
from triops.runtime.errors import Invalid
from triops.runtime.secrets import Secret
from triops.runtime.store.migrations import migrate

DEVICES = ["one", "two"]
CLIENTS = [("gateway-client", "backend"), ("cli", "cli"), ("openclaw-control-ui", "webchat"), ("openclaw-ios", "ui")]
asked_scopes = st.lists(st.sampled_from((*SCOPES, "operator.everything")), max_size=4, unique=True).map(tuple)
some_scopes = st.lists(st.sampled_from(SCOPES), max_size=4, unique=True).map(tuple)
some_device = st.sampled_from(DEVICES)
some_approver = st.just(("operator.admin",)) | some_scopes


class Door(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.db: Any = apsw.Connection(":memory:")
        migrate(self.db)
        self.now = 1_000_000
        self.drawn = 0
        self.secret = Secret("the-gateways-own")
        self.old_secret = "the-one-before"
        self.approved: dict[str, frozenset[str]] = {}
        """By an operator, or by connecting on this machine with the gateway's own secret."""
        self.known: dict[str, list[str]] = {device: [] for device in DEVICES}
        """Every token that a device ever heard."""
        self.dead: set[str] = set()
        self.bound: set[str] = set()
        """Tokens of pages, which came by the gateway's secret and end with it."""

    def _draw(self) -> str:
        self.drawn += 1
        return f"drawn-{self.drawn}"

    def _live(self, device: str) -> str | None:
        record = load_device(self.db, device)
        token = record.live_token(self.secret.reveal()) if record else None
        return token.token.reveal() if token else None

    def _replaced(self, device: str, before: str | None) -> None:
        """What opened something and is no more the device's token opens nothing for ever."""
        after = self._live(device)
        if before is not None and before != after:
            self.dead.add(before)
        if after is not None and after not in self.known[device]:
            self.known[device].append(after)

    @rule(
        device=some_device,
        scopes=asked_scopes,
        client=st.sampled_from(CLIENTS),
        place=st.sampled_from(["direct_local", "remote"]),
        origin=st.booleans(),
        offer=st.sampled_from(["secret", "wrong", "old", "nothing", "token"]),
        which=st.integers(0, 3),
        other=st.booleans(),
    )
    def connect(
        self,
        device: str,
        scopes: tuple[str, ...],
        client: tuple[Any, Any],
        place: Locality,
        origin: bool,
        offer: str,
        which: int,
        other: bool,
    ) -> None:
        heard = [token for who, tokens in self.known.items() if (who != device) is other for token in tokens]
        token = heard[-1 - which % len(heard)] if offer == "token" and heard else None
        secrets = {"secret": self.secret.reveal(), "old": self.old_secret, "wrong": "guess"}
        auth = Credentials(token=secrets.get(offer), device_token=token)
        params = ConnectParams(
            min_protocol=4,
            max_protocol=4,
            client=ClientInfo(id=client[0], version="1", platform="x", mode=client[1]),
            scopes=scopes,
            device=DeviceProof(id=device, public_key="", signature="s", signed_at=1, nonce="n"),
            auth=auth,
        )
        before = self._live(device)
        facts = Facts(
            params=params,
            locality=place,
            address="10.0.0.9",
            has_origin=origin,
            shared=check_shared(auth, "token", self.secret.matches, locality=place),
            secret_generation=self.secret.reveal(),
            now_ms=self.now,
            new_token=Secret(self._draw()),
            new_request_id=self._draw(),
        )
        decided = decide_with_records(self.db, facts, f"key of {device}").decision
        if not isinstance(decided, Admit):
            assert self._live(device) == before, "who is refused changes nothing that opens"
            return
        granted = effective(decided.scopes)
        if decided.method == "device-token":
            assert not other, "another's token"
            assert token not in self.dead
            assert token == before
            assert granted <= self.approved[device]
        else:
            assert offer == "secret"
            assert decided.token is None or decided.token.token.reveal() not in self.dead
            if place == "remote":
                assert granted <= self.approved[device], "a remote device is never upgraded silently"
            elif client != ("gateway-client", "backend") or origin:
                self.approved[device] = effective((*self.approved.get(device, ()), *decided.scopes))
            if "webchat" in client and decided.token is not None:
                self.bound.add(decided.token.token.reveal())
        self._replaced(device, before)

    def _by(self, scopes: tuple[str, ...], device: str | None) -> Approver:
        return Approver(effective(scopes), device)

    @rule(which=st.integers(0, 5), scopes=some_approver, own=st.sampled_from([None, *DEVICES]), accept=st.booleans())
    def decide(self, which: int, scopes: tuple[str, ...], own: str | None, accept: bool) -> None:
        waiting = load_all_pending(self.db, now=self.now)
        if not waiting:
            return
        asked, by = waiting[which % len(waiting)], self._by(scopes, own)
        before = self._live(asked.device_id)
        try:
            if not accept:
                approvals.reject(self.db, asked.request_id, by, now=self.now)
                return
            token = Secret(self._draw())
            approvals.approve(self.db, asked.request_id, by, now=self.now, token=token, generation=self.secret.reveal())
        except Invalid:
            assert self._live(asked.device_id) == before
            return
        assert effective(asked.scopes) <= by.scopes, "nobody approves more than he may"
        assert own in (None, asked.device_id) or "operator.admin" in by.scopes
        self.approved[asked.device_id] = effective((*self.approved.get(asked.device_id, ()), *asked.scopes))
        self._replaced(asked.device_id, before)

    @rule(device=some_device, scopes=some_scopes)
    def ask_for_more(self, device: str, scopes: tuple[str, ...]) -> None:
        record = load_device(self.db, device)
        if record is not None:
            asked = pairing_request(record, load_pending(self.db, device), scopes, now=self.now, new_id=self._draw())
            save_pending(self.db, asked, now=self.now)

    @rule(
        device=some_device,
        scopes=some_approver,
        wanted=st.none() | some_scopes,
        own=st.sampled_from([None, *DEVICES]),
        what=st.sampled_from(["rotate", "revoke", "remove", "rename"]),
    )
    def take_back(
        self, device: str, scopes: tuple[str, ...], wanted: tuple[str, ...] | None, own: str | None, what: str
    ) -> None:
        before, by = self._live(device), self._by(scopes, own)
        token = Secret(self._draw())
        try:
            match what:
                case "rotate":
                    about = {"now": self.now, "token": token, "generation": self.secret.reveal()}
                    issued = approvals.rotate(self.db, device, "operator", wanted, by, **about)
                    assert effective(issued.scopes) <= by.scopes
                    assert effective(issued.scopes) <= self.approved[device]
                case "revoke":
                    approvals.revoke(self.db, device, "operator", by, now=self.now)
                case "remove":
                    approvals.remove(self.db, device, by)
                    self.approved.pop(device)
                case _:
                    approvals.rename(self.db, device, "name", by)
        except Invalid:
            assert self._live(device) == before
            return
        assert own in (None, device) or "operator.admin" in by.scopes
        if what != "rename":
            self.dead.update(self.known[device])
        if what == "rotate" and before in self.bound:
            self.bound.add(token.reveal())
        self._replaced(device, before)

    @rule()
    def rotate_the_gateways_own(self) -> None:
        self.old_secret, self.secret = self.secret.reveal(), Secret(self._draw())
        self.dead |= self.bound

    @rule(minutes=st.integers(1, 6))
    def wait(self, minutes: int) -> None:
        self.now += minutes * 60_000

    @invariant()
    def no_record_says_more_than_was_approved(self) -> None:
        for device in load_devices(self.db):
            assert set(SCOPES).issuperset(device.scopes), "nothing is kept that is no scope"
            assert effective(device.scopes) <= self.approved[device.device_id]
            for token in device.tokens:
                assert set(SCOPES).issuperset(token.scopes)
                assert effective(token.scopes) <= self.approved[device.device_id]

    def teardown(self) -> None:
        self.db.close()


Door.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestDoor = Door.TestCase


# -- sockets that are open -------------------------------------------------------------------------------------------

IDENTITIES = [DeviceIdentity(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)) for number in (1, 2)]
FAR = "10.0.0.9"


class Held:
    """A socket past its hello, and what it stands on."""

    def __init__(self, client: Client, device: str, *, by_secret: bool) -> None:
        self.client = client
        self.device = device
        self.by_secret = by_secret
        """Its own proof, or that of the page whose token it is, was the gateway's secret."""


class World:
    """A gateway, who is connected to it, and every secret that ever opened it."""

    def __init__(self, host: TestHost, sockets: AsyncExitStack) -> None:
        self.host = host
        self.sockets = sockets
        self.held: list[Held] = []
        self.secrets = [TOKEN]
        self.tokens: dict[str, dict[str, bool]] = {device.id: {} for device in IDENTITIES}
        """Those that a device heard and that nobody took back: whether each is bound to the present secret."""
        self.dead: dict[str, list[str]] = {device.id: [] for device in IDENTITIES}

    async def call(self, method: str, **params: Any) -> Any:
        """What an operator's program does; None if there was nothing to do it to."""
        answer = await self.host.http("POST", f"/rpc/{method}", params, token=self.secrets[-1])
        assert answer.status in (200, 400), answer
        return answer.body if answer.status == 200 else None

    async def do(self, what: str, which: int, page: bool, far: bool) -> None:
        device = IDENTITIES[which % 2]
        match what:
            case "approve":
                for asked in (await self.call("device.pair.list"))["pending"]:
                    assert await self.call("device.pair.approve", requestId=asked["requestId"])
            case "device.pair.remove":
                await self.took_back(device, await self.call(what, deviceId=device.id))
            case "device.token.rotate" | "device.token.revoke":
                await self.took_back(device, await self.call(what, deviceId=device.id, role="operator"))
            case "gateway.token.rotate":
                assert await self.call(what)
                self.secrets.append(self.host.runtime.paths.token.read_text("utf-8").strip())
                await self.must_close([held for held in self.held if held.by_secret], "gateway auth changed")
                assert not await self.connect(device, self.secrets[-2], page, far)
                for known in IDENTITIES:
                    await self.bury(known, [token for token, bound in self.tokens[known.id].items() if bound])
            case "secret":
                assert await self.connect(device, self.secrets[-1], page, far) or far, "this machine's own get in"
            case "old secret" if len(self.secrets) > 1:
                assert not await self.connect(device, self.secrets[which % (len(self.secrets) - 1)], page, far)
            case "token" if tokens := list(self.tokens[device.id]):
                await self.connect(device, tokens[-1], page, far)
            case "dead token" if dead := self.dead[device.id]:
                assert not await self.connect(device, dead[which % len(dead)], page, far)
            case _:
                pass  # there is none yet

    async def connect(self, device: DeviceIdentity, secret: str, page: bool, far: bool) -> bool:
        """Come in and stay; whether it was let in."""
        origin = {"Origin": f"http://127.0.0.1:{self.host.port}"} if page else {}
        socket = self.host.socket(FAR if far else "127.0.0.1", headers=origin)
        client = await self.sockets.enter_async_context(socket)
        id, mode = ("openclaw-control-ui", "webchat") if page else ("test", "test")
        params = connect_params(token=secret, client=id, mode=mode, scopes=("operator.read",))
        params["device"] = device.proof(params, await client.event("connect.challenge"))
        try:
            auth = (await client.request("connect", params))["auth"]
        except (Refused, Closed):
            return False
        known, token = self.tokens[device.id], auth["deviceToken"]
        if auth["method"] == "token":
            known[token] = page
            await self.bury(device, [other for other in known if other != token])
        self.held.append(Held(client, device.id, by_secret=auth["method"] == "token" or known[token]))
        return True

    async def bury(self, device: DeviceIdentity, tokens: list[str]) -> None:
        """Those open nothing, from now on."""
        for token in tokens:
            del self.tokens[device.id][token]
            self.dead[device.id].append(token)
            assert not await self.connect(device, token, page=False, far=False)

    async def took_back(self, device: DeviceIdentity, done: Any) -> None:
        if done is not None:
            await self.must_close([held for held in self.held if held.device == device.id], "client invalidated")
            await self.bury(device, list(self.tokens[device.id]))

    async def must_close(self, gone: list[Held], why: str) -> None:
        """Those close within a second; all others go on."""
        with trio.fail_after(1):
            for held in gone:
                closed = await held.client.closed()
                assert (closed.code, closed.reason.startswith(why)) == (4001, True), closed
        self.held = [held for held in self.held if held not in gone]
        for held in self.held:
            assert await held.client.request("health")


async def play(steps: Sequence[tuple[str, int, bool, bool]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with open_test_gateway(Path(folder), virtual=True) as host, AsyncExitStack() as sockets:
            world = World(host, sockets)
            for step in steps:
                await world.do(*step)
            await world.must_close([], "")


CONNECTS = ("secret", "secret", "old secret", "token", "token", "dead token")
TAKES_BACK = ("device.pair.remove", "device.token.rotate", "device.token.revoke", "gateway.token.rotate")
STEP = st.tuples(
    st.sampled_from((*CONNECTS, "approve", *TAKES_BACK)),
    st.integers(0, 5),
    st.booleans(),
    st.sampled_from([False, False, True]),
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(STEP, min_size=6, max_size=24))
def test_a_socket_ends_with_what_it_stands_on_and_what_is_old_opens_nothing(steps: list[Any]) -> None:
    trio.run(partial(play, steps), clock=MockClock(autojump_threshold=0))
