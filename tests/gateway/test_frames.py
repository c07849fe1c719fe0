import json
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triops.gateway.errors import ErrorShape, WireError
from triops.gateway.frames import (
    InvalidFrame,
    MalformedFrame,
    Request,
    StateVersion,
    decode_params,
    decode_request,
    encode_error,
    encode_event,
    encode_response,
    fault_text,
)


def frame(**fields: Any) -> str:
    return json.dumps({"type": "req", "id": "1", "method": "m"} | fields)


def test_a_request_keeps_its_params_as_bytes() -> None:
    request = decode_request(frame(params={"a": [1, 2]}, traceparent="00-x", expectedProfileId="p"))
    assert (request.id, request.method) == ("1", "m")
    assert json.loads(bytes(request.params)) == {"a": [1, 2]}
    assert (request.traceparent, request.expected_profile_id) == ("00-x", "p")


@pytest.mark.parametrize(
    ("text", "id", "fault"),
    [
        ("[]", "invalid", "must be object"),
        ("null", "invalid", "must be object"),
        ('{"type":"req","method":"m"}', "invalid", "must have required property 'id'"),
        ('{"id":"1","method":"m"}', "1", "must have required property 'type'"),
        ('{"type":"req","id":7,"method":"m"}', 7, "at /id: must be string"),
        ('{"type":"req","id":true,"method":"m"}', "invalid", "at /id: must be string"),
        ('{"type":"req","id":1.5,"method":"m"}', "invalid", "at /id: must be string"),
        (f'{{"type":"req","id":{2**53},"method":"m"}}', "invalid", "at /id: must be string"),
        ('{"type":"req","id":{"a":1},"method":"m"}', "invalid", "at /id: must be string"),
        (frame(id=""), "", "at /id: must NOT have fewer than 1 characters"),
        (frame(method=3), "1", "at /method: must be string"),
        (frame(params={}, extra=1, more=2), "1", "at root: unexpected property 'extra'"),
        (frame(traceparent="x" * 129), "1", "at /traceparent: must NOT have more than 128 characters"),
        (
            '{"type":"event","event":"h","payload":{}}',
            "invalid",
            "must have required property 'id'; at root: unexpected property 'event'; "
            "at /type: must be equal to constant",
        ),
        (frame(id=1, method=""), 1, "at /id: must be string; at /method: must NOT have fewer than 1 characters"),
    ],
)
def test_a_wrong_frame_is_told_in_the_validators_words(text: str, id: str | int, fault: str) -> None:
    with pytest.raises(InvalidFrame) as caught:
        decode_request(text)
    assert caught.value.id == id
    assert type(caught.value.id) is type(id)
    assert str(caught.value) == f"invalid request frame: {fault}"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "malformed JSON: Expecting value: line 1 column 1"),
        ("{nope", "malformed JSON: Expecting property name .*: line 1 column 2"),
        (frame()[:-1], "malformed JSON: Expecting ',' delimiter"),
        (frame() + " x", "malformed JSON: Extra data"),
        ('{"type":"req","id":"a\ud800","method":"m"}', "malformed JSON"),
        ('{"type":"req","id":"1","method":"m","params":NaN}', "malformed JSON: Out of range float"),
        ('{"type":"req","id":"1","method":"m","params":"\\uZZZZ"}', "malformed JSON: Invalid .* escape"),
        ('{"type":"req","id":"1","method":"m","params":' + "[" * 100_000 + "]" * 100_000 + "}", "JSON nested too deep"),
        ("[" * 100_000, "JSON nested too deep"),
        (b"\xff\xfe", "malformed JSON"),
    ],
)
def test_what_is_no_json_or_too_deep_is_malformed_and_says_where(text: str | bytes, fault: str) -> None:
    with pytest.raises(MalformedFrame, match=f"^{fault}"):
        decode_request(text)


def test_a_lone_surrogate_of_a_client_becomes_the_replacement_character() -> None:
    request = decode_request(
        r'{"type":"req","id":"a\ud800","method":"m","params":{"\ude00":"\\ud800 \ud83d\ude00 \ud83d\n\u0000"}}'
    )
    assert request.id == "a\ufffd"
    assert json.loads(bytes(request.params)) == {"\ufffd": "\\ud800 \U0001f600 \ufffd\n\0"}
    with pytest.raises(InvalidFrame, match="unexpected property 'x'") as caught:
        decode_request(r'{"type":"req","id":"1","method":"m","x":"\ud800"}')
    assert caught.value.id == "1"
    assert decode_params("m", decoder, msgspec.Raw(rb'{"message":"\ud800"}')) == Params("\ufffd")


@pytest.mark.slow
@given(
    st.one_of(
        st.text(),
        st.binary(),
        st.recursive(
            st.none() | st.integers() | st.floats() | st.text(),
            lambda c: st.lists(c) | st.dictionaries(st.sampled_from(["type", "id", "method", "params", "x"]), c),
        ).map(json.dumps),
    )
)
def test_no_input_raises_anything_else(text: str | bytes) -> None:
    try:
        assert decode_request(text).id
    except (InvalidFrame, MalformedFrame) as error:
        json.loads(
            encode_error(getattr(error, "id", "invalid"), ErrorShape(code="INVALID_REQUEST", message=str(error)))
        )


class Inner(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    some_name: Annotated[str, msgspec.Meta(min_length=1, max_length=3)] = "a"
    count: Annotated[int, msgspec.Meta(ge=1, lt=9)] = 1
    kind: Literal["x", "y"] = "x"
    tags: Annotated[list[str], msgspec.Meta(min_length=1, max_length=2)] = msgspec.field(default_factory=lambda: ["t"])
    pattern: Annotated[str, msgspec.Meta(pattern="^[a-z]+$")] = "a"
    flags: dict[str, bool] = {}
    ratio: float | None = None


class One(msgspec.Struct, tag="one", tag_field="kind", forbid_unknown_fields=True):
    x: int


class Two(msgspec.Struct, tag="two", tag_field="kind"):
    y: bool


class Params(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    message: str
    inner: Inner | None = None
    choice: One | Two | None = None
    free: Any = None


decoder = msgspec.json.Decoder(Params)


@pytest.mark.parametrize(
    ("params", "fault"),
    [
        ({}, "must have required property 'message'"),
        ([], "must be object"),
        ({"message": "x", "foo": 1}, "at root: unexpected property 'foo'"),
        ({"message": "x", "a - at `$.b`": 1}, "at root: unexpected property 'a - at `$.b`'"),
        ({"message": 1}, "at /message: must be string"),
        ({"message": "x", "inner": {"foo": 1}}, "at /inner: unexpected property 'foo'"),
        ({"message": "x", "inner": 3}, "at /inner: must be object,null"),
        ({"message": "x", "inner": {"someName": ""}}, "at /inner/someName: must NOT have fewer than 1 characters"),
        ({"message": "x", "inner": {"someName": "long"}}, "at /inner/someName: must NOT have more than 3 characters"),
        ({"message": "x", "inner": {"count": 0}}, "at /inner/count: must be >= 1"),
        ({"message": "x", "inner": {"count": 9}}, "at /inner/count: must be <= 8"),
        ({"message": "x", "inner": {"count": 1.5}}, "at /inner/count: must be integer"),
        ({"message": "x", "inner": {"kind": "z"}}, "at /inner/kind: must be equal to one of the allowed values"),
        ({"message": "x", "inner": {"tags": []}}, "at /inner/tags: must NOT have fewer than 1 items"),
        ({"message": "x", "inner": {"tags": ["a", "b", "c"]}}, "at /inner/tags: must NOT have more than 2 items"),
        ({"message": "x", "inner": {"tags": ["a", 2]}}, "at /inner/tags/1: must be string"),
        ({"message": "x", "inner": {"pattern": "1"}}, 'at /inner/pattern: must match pattern "^[a-z]+$"'),
        ({"message": "x", "inner": {"flags": {"a": 1}}}, "at /inner/flags/*: must be boolean"),
        ({"message": "x", "inner": {"ratio": "x"}}, "at /inner/ratio: must be number,null"),
        ({"message": "x", "choice": {"kind": "three"}}, "at /choice/kind: must be equal to one of the allowed values"),
        ({"message": "x", "choice": {"kind": "one"}}, "at /choice: must have required property 'x'"),
        ({"message": "x", "choice": {"kind": 3}}, "at /choice/kind: must be string"),
    ],
)
def test_wrong_params_are_told_with_their_path(params: Any, fault: str) -> None:
    with pytest.raises(WireError) as caught:
        decode_params("chat.send", decoder, msgspec.Raw(json.dumps(params).encode()))
    assert caught.value.shape == ErrorShape(code="INVALID_REQUEST", message=f"invalid chat.send params: {fault}")


def test_an_unknown_words_of_the_decoder_stay_readable() -> None:
    assert fault_text("Number out of range - at `$.a`") == "at /a: Number out of range"


@pytest.mark.parametrize("raw", [b"", b"null"])
def test_absent_params_are_an_empty_object(raw: bytes) -> None:
    assert decode_params("m", msgspec.json.Decoder(Inner), msgspec.Raw(raw)) == Inner()
    with pytest.raises(WireError, match="must have required property 'message'"):
        decode_params("m", decoder, msgspec.Raw(raw))


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (b"{", "malformed JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (b'{"message":"x","free":' + b"[" * 100_000, "JSON nested too deep"),
        (b'{"message":NaN}', "malformed JSON: Out of range float"),
    ],
)
def test_unreadable_params_are_refused(raw: bytes, fault: str) -> None:
    with pytest.raises(WireError) as caught:
        decode_params("m", decoder, msgspec.Raw(raw))
    assert caught.value.shape.code == "INVALID_REQUEST"
    assert caught.value.shape.message.startswith(f"invalid m params: {fault}")


def test_an_event_is_encoded_once_and_numbered_per_client() -> None:
    event = encode_event("tick", {"ts": 1})
    assert event.frame(1) == b'{"type":"event","event":"tick","payload":{"ts":1},"seq":1}'
    assert event.frame(207) == b'{"type":"event","event":"tick","payload":{"ts":1},"seq":207}'
    assert event.frame(None) == b'{"type":"event","event":"tick","payload":{"ts":1}}'


def test_state_versions_follow_the_number() -> None:
    event = encode_event('a"b', None, state_version=StateVersion(2, 3))
    assert event.frame(1) == (
        b'{"type":"event","event":"a\\"b","payload":null,"seq":1,"stateVersion":{"presence":2,"health":3}}'
    )
    assert "seq" not in json.loads(event.frame(None))


def test_a_response_has_a_payload_or_an_error() -> None:
    assert encode_response("a", {"ok": True}) == b'{"type":"res","id":"a","ok":true,"payload":{"ok":true}}'
    assert encode_error(7, ErrorShape(code="FORBIDDEN", message="m")) == (
        b'{"type":"res","id":7,"ok":false,"error":{"code":"FORBIDDEN","message":"m"}}'
    )


def test_a_lone_surrogate_in_a_result_costs_a_character_not_the_frame() -> None:
    name = b"caf\xe9.txt".decode("utf-8", "surrogateescape")
    assert json.loads(encode_response("a", {"name": name}))["payload"] == {"name": "caf?.txt"}
    assert json.loads(encode_event("e", {"name": name}).frame(1))["payload"] == {"name": "caf?.txt"}


def test_what_is_encoded_is_json_for_any_floats() -> None:
    assert json.loads(encode_response("a", [float("nan"), float("inf")]))["payload"] == [None, None]


def test_requests_do_not_change() -> None:
    with pytest.raises(AttributeError):
        Request(type="req", id="1", method="m").id = "2"  # type: ignore[misc]  # that it cannot be assigned is the test
