"""Replays what a real gateway of this protocol was sent, and compares what the sans-IO half answers with what it did.

The little shell below does what the connection does between an action and the next input: it reads and writes records.
Random ids and tokens are the recording's, so answers can be compared whole.
"""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from triops.gateway.auth import check_shared
from triops.gateway.devices import verify_proof
from triops.gateway.errors import WireError
from triops.gateway.frames import StateVersion
from triops.gateway.pairing import Admit, Facts, Refuse, decide
from triops.gateway.records import DeviceToken, PairedDevice, PendingPairing
from triops.gateway.schema.connect import (
    AttachmentPolicy,
    ConnectParams,
    Features,
    HelloAuth,
    HelloOk,
    Policy,
    Server,
    Snapshot,
)
from triops.gateway.session import Action, Authenticate, Close, Dispatch, GatewaySession, Send
from triops.runtime.secrets import Secret

RECORDINGS = Path(__file__).parent / "recordings"
SECRET = Secret("peer-token")
MALFORMED = "malformed JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"

DIFFERENT_REASONS = {
    # A person who debugs a client is told more than the recorded empty reason.
    "malformed": MALFORMED,
    "binary-first": "binary frame",
    "preauth-oversize": "preauth payload too large",
    "silent": "handshake timeout",
}


class World:
    """The records of one gateway, and the recording's answers that say which ids and tokens were drawn."""

    def __init__(self, *, auto_approve_local: bool = True) -> None:
        self.auto_approve_local = auto_approve_local
        self.devices: dict[str, PairedDevice] = {}
        self.pending: dict[str, PendingPairing] = {}
        self.stored: list[PendingPairing] = []

    def decide(
        self, params: ConnectParams, *, nonce: str, now: int, origin: bool, drawn: dict[str, str]
    ) -> Admit | Refuse:
        shared = check_shared(params.auth, "token", SECRET.matches, locality="direct_local")
        proof = params.device
        try:
            key = verify_proof(params, proof, nonce=nonce, now_ms=now) if proof else None
        except WireError as error:
            return Refuse(error=error, close_reason=str(error))
        decision = decide(
            Facts(
                params=params,
                locality="direct_local",
                address="127.0.0.1",
                has_origin=origin,
                shared=shared,
                public_key=key,
                device=self.devices.get(proof.id) if proof else None,
                pending=self.pending.get(proof.id) if proof else None,
                auto_approve_local=self.auto_approve_local,
                secret_generation="",
                now_ms=now,
                new_token=Secret(drawn["token"]),
                new_request_id=drawn["request"],
            )
        )
        if isinstance(decision, Refuse) and decision.pending is not None:
            self.pending[decision.pending.device_id] = decision.pending
            self.stored.append(decision.pending)
        if isinstance(decision, Admit) and decision.device is not None:
            self.devices[decision.device.device_id] = decision.device
            self.pending.pop(decision.device.device_id, None)
        return decision

    def approve(self, request_id: str, token: str, now: int) -> None:
        asked = next(pending for pending in self.pending.values() if pending.request_id == request_id)
        del self.pending[asked.device_id]
        self.devices[asked.device_id] = PairedDevice(
            device_id=asked.device_id,
            public_key=asked.public_key,
            client_id=asked.client_id,
            client_mode=asked.client_mode,
            platform=asked.platform,
            roles=asked.roles,
            scopes=asked.scopes,
            tokens=(DeviceToken(token=Secret(token), role="operator", scopes=asked.scopes, created_at_ms=now),),
            approved_via="owner",
            created_at_ms=now,
            approved_at_ms=now,
        )


def hello(decision: Admit) -> HelloOk:
    token = decision.token
    return HelloOk(
        server=Server(version="1", conn_id="c"),
        features=Features((), ()),
        snapshot=Snapshot(presence=(), health={}, state_version=StateVersion(1, 1), uptime_ms=1),
        auth=HelloAuth(
            method=decision.method,
            role=decision.role,
            scopes=decision.scopes,
            device_token=token.token.reveal() if token else None,
            issued_at_ms=token.issued_at_ms if token else None,
        ),
        policy=Policy(max_payload=1, max_buffered_bytes=1, tick_interval_ms=30_000, attachments=AttachmentPolicy(1, 1)),
    )


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RECORDINGS / name).read_text("utf-8").splitlines()]


def comparable(frame: dict[str, Any]) -> dict[str, Any]:
    """A frame without what no gateway can repeat: clocks, and what of `hello-ok` is not this half's business."""
    payload = frame.get("payload", {})
    if payload.get("type") == "hello-ok":
        auth = {name: value for name, value in payload["auth"].items() if name != "issuedAtMs"}
        return {**frame, "payload": {"type": "hello-ok", "auth": auth}}
    if "remediationHint" in (details := frame.get("error", {}).get("details", {})):
        # Ours says it of every refusal, and names the command (`test_remedies`).
        details = {name: value for name, value in details.items() if name != "remediationHint"}
        return {**frame, "error": {**frame["error"], "details": details}}
    if frame.get("event") == "connect.challenge":
        # Capabilities are what the gateway has; this one has no model-catalog snapshot to send.
        return {**frame, "payload": {"nonce": payload["nonce"], "ts": payload["ts"]}}
    return frame


def drawn(recorded: list[dict[str, Any]]) -> dict[str, str]:
    """The random values that the recorded answers show."""
    token, request = (re.search(rf'"{key}": "([^"]+)"', json.dumps(recorded)) for key in ("deviceToken", "requestId"))
    return {"token": token[1] if token else "unused", "request": request[1] if request else "unused"}


class Connection:
    """A recorded connection, and what comes out here when its inbound frames go in."""

    def __init__(self, name: str, world: World, recording: list[dict[str, Any]]) -> None:
        self.name = name
        self.world = world
        self.lines = [line for line in recording if line["conn"] == name]
        self.run = [line for line in recording if line["conn"].startswith(name.split("/")[0])]
        self.recorded = [line | {"frame": comparable(line["frame"])} for line in self.lines if line["dir"] != "c2s"]
        self.out: list[dict[str, Any]] = []
        challenge = self.lines[0]["frame"]["payload"]
        self.now: int = challenge["ts"]
        self.session = GatewaySession(nonce=challenge["nonce"])

    def replay(self) -> None:
        self.take(self.session.opened(self.now))
        for line in self.lines:
            if line["dir"] == "c2s":
                self.receive(line)
        if self.name == "silent":
            self.take(self.session.timed_out())

    def receive(self, line: dict[str, Any]) -> None:
        frame = line.get("frame")
        if "binary" in line:
            self.take(self.session.binary_frame())
        elif "raw" in line:
            self.take(self.session.text_frame(line["raw"]))
        elif isinstance(frame, dict) and "_cut" in frame:
            self.take(self.session.text_frame("x" * frame["_cut"]))
        else:
            self.take(self.session.text_frame(json.dumps(frame)))

    def take(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send(frame):
                    self.out.append({"conn": self.name, "dir": "s2c", "frame": comparable(json.loads(frame))})
                case Close(code, reason):
                    self.out.append({"conn": self.name, "dir": "close", "frame": {"code": code, "reason": reason}})
                case Authenticate(params):
                    self.take(self.decide(params))
                case Dispatch(request) if request.method == "device.pair.approve":
                    request_id = msgspec.json.decode(request.params)["requestId"]
                    self.world.approve(request_id, drawn(self.run)["token"], self.now)
                case Dispatch():
                    pass  # what a handler answers is not this half's business

    def decide(self, params: ConnectParams) -> list[Action]:
        origin = "with_origin" in self.name
        ids = drawn(self.recorded)
        decision = self.world.decide(params, nonce=self.session.nonce, now=self.now, origin=origin, drawn=ids)
        if isinstance(decision, Admit):
            return self.session.admitted(hello(decision))
        return self.session.refused(decision.error, reason=decision.close_reason)


def replay(name: str, world: World) -> list[tuple[str, list[dict[str, Any]], list[dict[str, Any]]]]:
    """Per connection in the order they began: its name, what was recorded outbound, and what came out here."""
    recording = lines(name)
    connections = [Connection(conn, world, recording) for conn in dict.fromkeys(line["conn"] for line in recording)]
    for connection in connections:
        connection.replay()
    return [(connection.name, connection.recorded, connection.out) for connection in connections]


def without_later_close(recorded: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the close that the recording client, or a method of later, made on a connection that stood."""
    stood = any(line["frame"].get("ok") for line in recorded)
    return [line for line in recorded if not (stood and line["dir"] == "close")]


@pytest.mark.parametrize("name", ["handshake_errors.jsonl", "handshake_accepted.jsonl"])
def test_handshakes_end_as_recorded(name: str) -> None:
    seen = 0
    for _conn, recorded, out in replay(name, World()):
        assert out == without_later_close(recorded)
        seen += 1
    assert seen >= 7


def test_raw_handshake_errors_end_as_recorded_with_reasons_where_there_were_none() -> None:
    for conn, recorded, out in replay("handshake_raw_errors.jsonl", World()):
        if conn in DIFFERENT_REASONS:
            assert recorded[-1]["frame"]["reason"] == ""
            recorded[-1]["frame"]["reason"] = DIFFERENT_REASONS[conn]
        assert out == recorded


def test_pairing_is_required_refreshed_and_upgraded_as_recorded() -> None:
    world = World(auto_approve_local=False)
    runs = replay("handshake_pairing.jsonl", world)
    requested: list[dict[str, Any]] = []
    for _conn, recorded, out in runs:
        events = [line["frame"] for line in recorded if line["frame"].get("event", "").startswith("device.pair.")]
        requested += [event["payload"] for event in events if event["event"] == "device.pair.requested"]
        frames = [line for line in without_later_close(recorded) if line["frame"] not in events]
        assert out == frames
    assert len(runs) == 8
    # The upgrade's request is also the payload of its event.
    mine = json.loads(msgspec.json.encode(world.stored[-1]))
    assert {**mine, "ts": 0} == {**requested[0], "ts": 0, "remoteIp": "127.0.0.1"}


def test_frames_after_connect_are_answered_as_recorded_and_malformed_ones_too() -> None:
    handlers = ("unknown method", "invalid chat.send params")
    for conn, recorded, out in replay("frames_after_connect.jsonl", World()):
        malformed = {"code": "INVALID_REQUEST", "message": f"invalid request frame: {MALFORMED}"}
        answers = [line["frame"] for line in out]
        if conn == "A":  # the recorded gateway said nothing to `{nope`
            answers.remove({"type": "res", "id": "invalid", "ok": False, "error": malformed})
        expected = [line["frame"] for line in without_later_close(recorded)]
        assert answers == [
            frame for frame in expected if not frame.get("error", {}).get("message", "").startswith(handlers)
        ]


def test_a_node_is_refused_where_the_recorded_gateway_took_it_in_and_leaves_nothing_behind() -> None:
    """For now: of what it was recorded to get, hello, events and answers, it gets the challenge and a clear no."""
    world = World()
    ((_, recorded, out),) = replay("handshake_node_role.jsonl", world)
    challenge, hello = recorded[:2]
    assert hello["frame"]["payload"]["auth"]["role"] == "node"
    words = "role not supported: this gateway takes no nodes"
    error = {"code": "INVALID_REQUEST", "message": words, "details": {"code": "ROLE_NOT_SUPPORTED", "role": "node"}}
    assert [line["frame"] for line in out] == [
        challenge["frame"],
        {"type": "res", "id": "r1", "ok": False, "error": error},
        {"code": 1008, "reason": words},
    ]
    assert (world.devices, world.pending) == ({}, {})
