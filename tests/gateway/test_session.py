import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triops.gateway.errors import ErrorShape, WireError
from triops.gateway.frames import StateVersion
from triops.gateway.schema.connect import (
    AttachmentPolicy,
    Features,
    HelloAuth,
    HelloOk,
    Policy,
    Server,
    Snapshot,
)
from triops.gateway.session import Action, Authenticate, Close, Dispatch, GatewaySession, Send, State, close_reason

HELLO = HelloOk(
    server=Server(version="1", conn_id="c"),
    features=Features((), ()),
    snapshot=Snapshot(presence=(), health={}, state_version=StateVersion(1, 1), uptime_ms=1),
    auth=HelloAuth(method="token", role="operator", scopes=()),
    policy=Policy(max_payload=1, max_buffered_bytes=1, tick_interval_ms=1, attachments=AttachmentPolicy(1, 1)),
)


def request(method: str = "health", id: str = "1", **params: Any) -> str:
    return json.dumps({"type": "req", "id": id, "method": method, "params": params})


def connect(low: int = 4, high: int = 4, *, client: str = "cli", mode: str = "cli", **fields: Any) -> str:
    about = {"id": client, "version": "1", "platform": "linux", "mode": mode}
    return request("connect", "c1", minProtocol=low, maxProtocol=high, client=about, **fields)


def opened() -> GatewaySession:
    session = GatewaySession(nonce="the-nonce")
    session.opened(1)
    return session


def deciding() -> GatewaySession:
    session = opened()
    session.text_frame(connect())
    return session


def ready() -> GatewaySession:
    session = deciding()
    session.admitted(HELLO)
    return session


def closing() -> GatewaySession:
    session = ready()
    session.answered(None)
    for _ in range(11):
        session.answered(ErrorShape(code="INVALID_REQUEST", message="unauthorized role: operator"))
    return session


def refusal(actions: list[Action], *, code: str = "INVALID_REQUEST") -> tuple[str, str, int, str]:
    """Id and message of the error, code and reason of the close; the actions must be just these two."""
    send, close = actions
    assert isinstance(send, Send)
    assert isinstance(close, Close)
    frame = json.loads(send.frame)
    assert not frame["ok"]
    assert frame["error"]["code"] == code
    return frame["id"], frame["error"]["message"], close.code, close.reason


def test_the_client_is_challenged_first() -> None:
    session = GatewaySession(nonce="n")
    (challenge,) = session.opened(5)
    assert challenge == Send(b'{"type":"event","event":"connect.challenge","payload":{"nonce":"n","ts":5}}')


def test_a_connect_is_to_be_decided_on() -> None:
    session = opened()
    (action,) = session.text_frame(connect(scopes=["operator.read"]))
    assert isinstance(action, Authenticate)
    assert action.params.scopes == ("operator.read",)
    (hello,) = session.admitted(HELLO)
    assert isinstance(hello, Send)
    frame = json.loads(hello.frame)
    assert (frame["id"], frame["ok"], frame["payload"]["type"]) == ("c1", True, "hello-ok")
    assert session.state is State.READY


def test_a_refused_connect_is_told_and_closed() -> None:
    error = WireError("NOT_PAIRED", "pairing required")
    assert refusal(deciding().refused(error), code="NOT_PAIRED") == ("c1", "pairing required", 1008, "pairing required")
    assert refusal(deciding().refused(error, reason="with more"), code="NOT_PAIRED")[3] == "with more"


@pytest.mark.parametrize(
    ("text", "close"),
    [
        ("", Close(1000, "malformed JSON: Expecting value: line 1 column 1 (char 0)")),
        ("[]", Close(1008, "invalid request frame")),
        ('{"type":"event","event":"x"}', Close(1008, "invalid request frame")),
        ("[" * 65_536, Close(1000, "JSON nested too deep")),
        ("[" * 65_537, Close(1009, "preauth payload too large")),
        ("ä" * 32_769, Close(1009, "preauth payload too large")),
        ("\ud800" * 30_000, Close(1009, "preauth payload too large")),
    ],
)
def test_what_is_no_request_closes_without_an_answer(text: str, close: Close) -> None:
    session = opened()
    assert session.text_frame(text) == [close]
    assert session.state is State.CLOSING


def test_the_first_request_must_be_connect() -> None:
    text = "invalid handshake: first request must be connect"
    assert refusal(opened().text_frame(request("health", "7"))) == ("7", text, 1008, text)


def test_wrong_connect_params_are_told_whole_and_closed_with_what_fits() -> None:
    name = "ü" * 200
    unknown: dict[str, Any] = {name: 1}
    _, message, code, reason = refusal(opened().text_frame(connect(**unknown)))
    assert message == f"invalid connect params: at root: unexpected property '{name}'"
    assert code == 1008
    assert message.startswith(reason)
    assert len(reason.encode()) in (119, 120)
    assert refusal(opened().text_frame('{"type":"req","id":"1","method":"connect"}'))[1] == (
        "invalid connect params: must have required property 'minProtocol'"
    )


@pytest.mark.parametrize(
    ("low", "high", "mode", "spoken"),
    [
        (4, 4, "cli", True),
        (1, 9, "cli", True),
        (3, 4, "cli", True),
        (4, 5, "cli", True),
        (5, 9, "cli", False),
        (1, 3, "cli", False),
        (5, 3, "cli", False),
        (3, 3, "probe", True),
        (1, 3, "probe", True),
        (4, 4, "probe", True),
        (1, 2, "probe", False),
        (5, 5, "probe", False),
    ],
)
def test_a_protocol_that_both_know_is_needed(low: int, high: int, mode: str, spoken: bool) -> None:
    actions = opened().text_frame(connect(low, high, mode=mode))
    if spoken:
        assert isinstance(actions[0], Authenticate)
        return
    assert refusal(actions) == ("c1", "protocol mismatch", 1002, "protocol mismatch")
    assert isinstance(actions[0], Send)
    details = json.loads(actions[0].frame)["error"]["details"]
    assert "protocol 4" in details.pop("remediationHint")
    assert details == {
        "code": "PROTOCOL_MISMATCH",
        "clientMinProtocol": low,
        "clientMaxProtocol": high,
        "expectedProtocol": 4,
        "minimumProbeProtocol": 3,
    }


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"role": "king"}, "invalid role"),
        ({"role": "node"}, "role not supported: this gateway takes no nodes"),
        ({"role": "node", "client": "node-host", "mode": "node", "low": 3, "high": 3}, None),
        ({"role": "worker"}, "invalid-handshake"),
        ({"client": "openclaw-worker"}, "invalid-handshake"),
        ({"mode": "worker"}, "invalid-handshake"),
    ],
)
def test_other_roles_are_refused_before_anything_is_asked_of_them(about: dict[str, Any], message: str | None) -> None:
    message = message or "role not supported: this gateway takes no nodes"
    assert refusal(opened().text_frame(connect(**about))) == ("c1", message, 1008, message)


def test_a_node_can_tell_why_it_was_refused() -> None:
    send = opened().text_frame(connect(role="node"))[0]
    assert isinstance(send, Send)
    details = json.loads(send.frame)["error"]["details"]
    assert "role operator" in details.pop("remediationHint")
    assert details == {"code": "ROLE_NOT_SUPPORTED", "role": "node"}


def test_only_the_first_request_connects() -> None:
    for text in (request("connect", "9"), connect().replace("c1", "9")):
        (answer,) = ready().text_frame(text)
        assert isinstance(answer, Send)
        assert json.loads(answer.frame) == {
            "type": "res",
            "id": "9",
            "ok": False,
            "error": {"code": "INVALID_REQUEST", "message": "connect is only valid as the first request"},
        }


def test_a_wrong_frame_is_answered_and_the_socket_stays_open() -> None:
    session = ready()
    for text, id, message in (
        ("", "invalid", "invalid request frame: malformed JSON: Expecting value: line 1 column 1 (char 0)"),
        ('{"type":"req","id":7,"method":"m"}', 7, "invalid request frame: at /id: must be string"),
    ):
        (answer,) = session.text_frame(text)
        assert isinstance(answer, Send)
        frame = json.loads(answer.frame)
        assert (frame["id"], frame["error"]) == (id, {"code": "INVALID_REQUEST", "message": message})
    assert session.state is State.READY


def test_a_role_that_is_not_said_is_the_operators() -> None:
    assert isinstance(opened().text_frame(connect())[0], Authenticate)
    assert isinstance(opened().text_frame(connect(mode="node", client="node-host", role="operator"))[0], Authenticate)


def test_early_frames_are_taken_up_after_the_greeting_in_order() -> None:
    session = deciding()
    assert session.text_frame(request(id="a")) == []
    assert session.text_frame("{nope") == []
    assert session.text_frame(request(id="b")) == []
    hello, first, malformed, second = session.admitted(HELLO)
    assert isinstance(hello, Send)
    assert isinstance(first, Dispatch)
    assert first.request.id == "a"
    assert isinstance(malformed, Send)
    assert isinstance(second, Dispatch)
    assert second.request.id == "b"
    (later,) = session.text_frame(request(id="c"))
    assert isinstance(later, Dispatch)


def test_too_many_early_frames_close() -> None:
    session = deciding()
    for _ in range(16):
        assert session.text_frame(request()) == []
    assert session.text_frame(request()) == [Close(1008, "too many pending handshake frames")]
    assert session.admitted(HELLO) == []


def test_a_big_early_frame_closes() -> None:
    assert deciding().text_frame("x" * 65_537) == [Close(1009, "preauth payload too large")]


def test_nothing_is_dispatched_for_who_was_refused() -> None:
    session = deciding()
    session.text_frame(request())
    assert [type(action) for action in session.refused(WireError("NOT_PAIRED", "no"))] == [Send, Close]
    assert session.text_frame(request()) == []


def test_a_silent_socket_is_closed_with_a_reason() -> None:
    assert opened().timed_out() == [Close(1000, "handshake timeout")]
    session = deciding()
    assert session.timed_out() == [Close(1000, "handshake timeout")]
    assert session.admitted(HELLO) == []
    assert session.refused(WireError("NOT_PAIRED", "late")) == []
    assert session.timed_out() == []


@pytest.mark.parametrize("standing", [opened, deciding, ready, closing])
def test_what_was_ended_from_outside_hears_nothing_any_more(standing: Callable[[], GatewaySession]) -> None:
    session = standing()
    session.end()
    assert session.state is State.CLOSING
    assert session.text_frame(request()) == session.timed_out() == []
    new = GatewaySession(nonce="n")
    new.end()
    assert new.state is State.NEW, "it is not open yet, and is told when it is"


def test_a_time_out_that_comes_too_late_does_no_harm() -> None:
    session = ready()
    assert session.timed_out() == []
    assert session.state is State.READY


def test_a_binary_frame_is_no_frame() -> None:
    assert opened().binary_frame() == [Close(1000, "binary frame")]
    assert deciding().binary_frame() == [Close(1000, "binary frame")]
    assert closing().binary_frame() == []
    (answer,) = ready().binary_frame()
    assert isinstance(answer, Send)
    assert json.loads(answer.frame)["error"]["message"] == "invalid request frame: must be object"


def test_big_frames_are_the_sockets_business_once_the_client_is_in() -> None:
    (action,) = ready().text_frame(request(text="x" * 100_000))
    assert isinstance(action, Dispatch)


def test_the_eleventh_call_in_a_row_that_the_role_may_not_closes() -> None:
    session = ready()
    wrong = ErrorShape(code="INVALID_REQUEST", message="unauthorized role: operator")
    other = ErrorShape(code="INVALID_REQUEST", message="unknown method: x")
    for answer in (None, other):
        for _ in range(10):
            assert session.answered(wrong) == []
        assert session.answered(answer) == []
    for _ in range(10):
        assert session.answered(wrong) == []
    assert session.answered(wrong) == [Close(1008, "repeated unauthorized calls")]
    assert session.answered(wrong) == []


def test_what_cannot_happen_is_our_fault() -> None:
    with pytest.raises(AssertionError, match="OPENED in READY"):
        ready().opened(1)
    with pytest.raises(AssertionError, match="ADMITTED in CONNECT"):
        opened().admitted(HELLO)
    with pytest.raises(AssertionError, match="ENDED in NEW"):
        GatewaySession(nonce="n").refused(WireError("NOT_PAIRED", "x"))


def test_reasons_fit_a_close_frame() -> None:
    assert close_reason("short") == "short"
    assert close_reason("x" * 200) == "x" * 120
    assert close_reason("x" + "€" * 100) == "x" + "€" * 39
    assert close_reason("a\ud800") == "a?"


frames = st.one_of(
    st.text(max_size=50),
    st.sampled_from([connect(), request(), request("connect"), "[]", "{nope", '{"type":"req","id":7,"method":"m"}']),
)


@pytest.mark.slow
@given(st.lists(st.one_of(frames, st.sampled_from([None, True, False, 15.0])), max_size=30))
def test_nothing_a_client_sends_gets_past_the_handshake_or_escapes(inputs: list[str | bool | float | None]) -> None:
    """`None` is a binary frame, a float the time-out; True and False are decisions, given only when one is due."""
    session = opened()
    admitted = closed = False
    for item in inputs:
        match item:
            case str():
                actions = session.text_frame(item)
            case None:
                actions = session.binary_frame()
            case bool():
                if session.state is not State.DECIDING:
                    continue
                admitted = item
                actions = session.admitted(HELLO) if item else session.refused(WireError("NOT_PAIRED", "x"))
            case _:
                actions = session.timed_out()
        assert not closed or actions == []
        assert admitted or not any(isinstance(action, Dispatch) for action in actions)
        closed = closed or any(isinstance(action, Close) for action in actions)
        assert closed is (session.state is State.CLOSING)
