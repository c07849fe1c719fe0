"""Whatever clients and operators do in whatever order, nobody has a scope that nobody approved, and what was taken back
stays so: the door's own transactions on a database in memory, against a model of what was approved."""

from typing import Any

import apsw
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from triops.gateway import approvals
from triops.gateway.approvals import Approver
from triops.gateway.auth import check_shared
from triops.gateway.door import decide_with_records
from triops.gateway.locality import Locality
from triops.gateway.pairing import Admit, Facts, upgrade
from triops.gateway.records import load_all_pending, load_device, load_devices, load_pending, save_pending
from triops.gateway.schema.connect import ClientInfo, ConnectParams, Credentials, DeviceProof
from triops.gateway.scopes import SCOPES, effective
from triops.runtime.errors import Invalid
from triops.runtime.secrets import Secret
from triops.runtime.store.migrations import migrate

DEVICES = ["one", "two"]
CLIENTS = [("gateway-client", "backend"), ("cli", "cli"), ("openclaw-control-ui", "webchat"), ("openclaw-ios", "ui")]
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
        self.approved: dict[str, frozenset[str]] = {}
        """By an operator, or by connecting on this machine with the gateway's own secret."""
        self.known: dict[str, list[str]] = {device: [] for device in DEVICES}
        """Every token that a device ever heard."""
        self.dead: set[str] = set()

    def _draw(self) -> str:
        self.drawn += 1
        return f"drawn-{self.drawn}"

    def _live(self, device: str) -> str | None:
        record = load_device(self.db, device)
        token = record.token_for("operator") if record else None
        return token.token.reveal() if token and token.revoked_at_ms is None else None

    def _replaced(self, device: str, before: str | None) -> None:
        """What opened something and is no more the device's token opens nothing for ever."""
        after = self._live(device)
        if before is not None and before != after:
            self.dead.add(before)
        if after is not None and after not in self.known[device]:
            self.known[device].append(after)

    @rule(
        device=some_device,
        scopes=some_scopes,
        client=st.sampled_from(CLIENTS),
        place=st.sampled_from(["direct_local", "remote"]),
        origin=st.booleans(),
        offer=st.sampled_from(["secret", "wrong", "nothing", "token"]),
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
        auth = Credentials(token={"secret": self.secret.reveal(), "wrong": "guess"}.get(offer), device_token=token)
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
            if place == "remote":
                assert granted <= self.approved[device], "a remote device is never upgraded silently"
            elif client != ("gateway-client", "backend") or origin:
                self.approved[device] = effective((*self.approved.get(device, ()), *decided.scopes))
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
            approvals.approve(self.db, asked.request_id, by, now=self.now, token=token)
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
            asked = upgrade(record, load_pending(self.db, device), scopes, now=self.now, new_id=self._draw())
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
                    issued = approvals.rotate(self.db, device, "operator", wanted, by, now=self.now, token=token)
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
        self._replaced(device, before)

    @rule()
    def rotate_the_gateways_own(self) -> None:
        self.secret = Secret(self._draw())

    @rule(minutes=st.integers(1, 6))
    def wait(self, minutes: int) -> None:
        self.now += minutes * 60_000

    @invariant()
    def no_record_says_more_than_was_approved(self) -> None:
        for device in load_devices(self.db):
            assert effective(device.scopes) <= self.approved[device.device_id]
            for token in device.tokens:
                assert effective(token.scopes) <= self.approved[device.device_id]

    def teardown(self) -> None:
        self.db.close()


Door.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestDoor = Door.TestCase
