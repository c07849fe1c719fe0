"""Frames of the protocol (§2): text to `Request`, results and events to text. Knows neither methods nor connections.

Clients of this protocol were written against the texts of a JSON-schema validator, so a fault of a frame or of its
params is told in those words. No input makes anything here raise but `WireError` and `MalformedFrame`.
"""

import json
import re
from typing import Annotated, Any, Literal, TypeVar, cast

import msgspec

from triops.gateway.errors import ErrorShape, WireError

T = TypeVar("T")
Str1 = Annotated[str, msgspec.Meta(min_length=1)]
Uint = Annotated[int, msgspec.Meta(ge=0)]
RequestId = str | int
"""What a response echoes: a string, or the number of a request that was refused for having one."""

NO_ID = "invalid"
"""`id` of the response to a frame that has none."""


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One call. `params` stay bytes until the method's type is known; `traceparent` and `expectedProfileId` are
    accepted and mean nothing to a gateway of one user."""

    type: Literal["req"]
    id: Str1
    method: Str1
    params: msgspec.Raw = msgspec.Raw()
    traceparent: Annotated[str, msgspec.Meta(max_length=128)] | None = None
    expected_profile_id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = msgspec.field(
        default=None, name="expectedProfileId"
    )


class MalformedFrame(Exception):
    """The text is no JSON, or nests too deep to be read; the message says where."""


class InvalidFrame(Exception):
    """The text is JSON but no request; `id` is what its refusal echoes."""

    def __init__(self, id: RequestId, text: str) -> None:
        super().__init__(f"invalid request frame: {text}")
        self.id = id


_UNREADABLE = (ValueError, RecursionError)
# The errors of msgspec, json and encodings are ValueErrors; depth is a RecursionError.

_requests = msgspec.json.Decoder(Request)
_anything = msgspec.json.Decoder()
_encoder = msgspec.json.Encoder()


def decode_request(text: str | bytes) -> Request:
    """Read one inbound frame.

    Raises:
        MalformedFrame: it is no JSON.
        InvalidFrame: it is JSON of another shape.
    """
    try:
        try:
            return _decode(_requests, text)
        except msgspec.ValidationError:
            value = _decode(_anything, text)
    except _UNREADABLE as error:
        raise MalformedFrame(_malformed(error)) from error
    raise _explain(value)


def _decode(decoder: msgspec.json.Decoder[T], text: str | bytes) -> T:
    """Other JSON libraries let lone surrogates through; here each becomes U+FFFD, as in their output."""
    try:
        return decoder.decode(text)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        plain = json.dumps(json.loads(text), ensure_ascii=False, allow_nan=False)
        return decoder.decode(plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def _malformed(error: Exception) -> str:
    return "JSON nested too deep" if isinstance(error, RecursionError) else f"malformed JSON: {error}"


_PROPERTIES = {field.encode_name: field.type for field in msgspec.structs.fields(Request) if field.name != "params"}


def _explain(value: Any) -> InvalidFrame:
    """Say what is wrong with a frame: the first missing and the first unknown property, and each wrong one."""
    if not isinstance(value, dict):
        return InvalidFrame(NO_ID, "must be object")
    frame = cast("dict[str, Any]", value)
    faults = [f"must have required property '{name}'" for name in ("type", "id", "method") if name not in frame][:1]
    faults += [f"at root: unexpected property '{name}'" for name in frame if name not in (*_PROPERTIES, "params")][:1]
    for name in filter(frame.__contains__, _PROPERTIES):
        try:
            msgspec.convert(frame[name], _PROPERTIES[name])
        except msgspec.ValidationError as error:
            faults.append(f"at /{name}: {'must be equal to constant' if name == 'type' else fault_text(str(error))}")
    id = frame.get("id")
    echoed = isinstance(id, str) or (type(id) is int and abs(id) < 2**53)
    return InvalidFrame(cast("RequestId", id) if echoed else NO_ID, "; ".join(faults))


def decode_params(method: str, decoder: msgspec.json.Decoder[T], params: msgspec.Raw) -> T:
    """Read a call's `params`; absent ones and `null` are `{}`.

    Raises:
        WireError: they do not fit, with the path and what was expected there.
    """
    raw = bytes(params)
    try:
        return _decode(decoder, b"{}" if raw in (b"", b"null") else raw)
    except msgspec.ValidationError as error:
        raise WireError("INVALID_REQUEST", f"invalid {method} params: {fault_text(str(error))}") from error
    except _UNREADABLE as error:
        raise WireError("INVALID_REQUEST", f"invalid {method} params: {_malformed(error)}") from error


_WHERE = re.compile(r"(.*?)(?: - at (?:`key` in )?`(\$[^`]*)`)?", re.DOTALL)
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")
_EXPECTED = re.compile(r"Expected `([^`]+)`")
_TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}
_RULES = tuple(
    (re.compile(pattern, re.DOTALL), template)
    for pattern, template in (
        (r"Object missing required field `(.*)`", r"must have required property '\1'"),
        (r"Object contains unknown field `(.*)`", r"unexpected property '\1'"),
        (r"Invalid (?:enum )?value .*", "must be equal to one of the allowed values"),
        (r"Expected `str` of length >= (\d+)", r"must NOT have fewer than \1 characters"),
        (r"Expected `str` of length <= (\d+)", r"must NOT have more than \1 characters"),
        (r"Expected `array` of length >= (\d+)", r"must NOT have fewer than \1 items"),
        (r"Expected `array` of length <= (\d+)", r"must NOT have more than \1 items"),
        (r"Expected `str` matching regex '(.*)'", r'must match pattern "\1"'),
        (r"Expected `\w+` ([<>]=? .*)", r"must be \1"),
    )
)


def fault_text(message: str) -> str:
    """What a `msgspec.ValidationError` says, in the words of the schema validator that clients know."""
    where = cast("re.Match[str]", _WHERE.fullmatch(message))
    told, path = _told(where[1]), where[2] or ""
    # The key of a map, which msgspec does not name, is `*`.
    pointer = "".join(f"/{name or index.replace('...', '*')}" for name, index in _STEP.findall(path))
    if pointer:
        return f"at {pointer}: {told}"
    return f"at root: {told}" if told.startswith("unexpected") else told


def _told(what: str) -> str:
    for pattern, template in _RULES:
        if found := pattern.fullmatch(what):
            return found.expand(template)
    if found := _EXPECTED.match(what):
        return "must be " + ",".join(_TYPES.get(name, name) for name in found[1].split(" | "))
    return what.replace("`", "'")


class Response(msgspec.Struct, frozen=True, tag_field="type", tag="res"):
    """The answer to a request: `payload` if `ok`, else `error`."""

    id: RequestId
    ok: bool
    payload: Any = msgspec.UNSET
    error: ErrorShape | msgspec.UnsetType = msgspec.UNSET


class StateVersion(msgspec.Struct, frozen=True):
    """Counters that ride on `presence` and `health` events."""

    presence: int
    health: int


class EncodedEvent(msgspec.Struct, frozen=True):
    """An event whose payload is already text; only its number differs between the clients that get it."""

    prefix: bytes
    suffix: bytes = b"}"

    def frame(self, seq: int | None) -> bytes:
        """The event as client's number `seq`; `None` for events outside the numbering."""
        return self.prefix + self.suffix if seq is None else b'%b,"seq":%d%b' % (self.prefix, seq, self.suffix)


def encode_response(id: RequestId, payload: Any) -> bytes:
    """The frame that answers request `id` with `payload`."""
    return _encode(Response(id, True, payload))


def encode_error(id: RequestId, error: ErrorShape) -> bytes:
    """The frame that refuses request `id`."""
    return _encode(Response(id, False, error=error))


def encode_event(event: str, payload: Any, *, state_version: StateVersion | None = None) -> EncodedEvent:
    """Encode `payload` once, for however many clients; keys come in the order that the protocol emits them in."""
    prefix = b'{"type":"event","event":%b,"payload":%b' % (_encoder.encode(event), _encode(payload))
    if state_version is None:
        return EncodedEvent(prefix)
    return EncodedEvent(prefix, b',"stateVersion":%b}' % _encoder.encode(state_version))


def _encode(value: Any) -> bytes:
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError:
        # A file name that is no UTF-8 reached a result: a client must not lose its frame for it.
        return json.dumps(msgspec.to_builtins(value), ensure_ascii=False).encode("utf-8", "replace")
