import base64
import hashlib
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from triops.gateway.devices import normalise_metadata, payloads, raw_key, verify_proof
from triops.gateway.errors import WireError
from triops.gateway.schema.connect import ConnectParams

NOW = 1_795_344_104_289
NONCE = "0fde4f76-cfc7-4a4e-8ead-eafd67c28975"
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
RAW = KEY.public_key().public_bytes_raw()


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


PUBLIC = b64(RAW)


def connect(device: dict[str, Any] | None = None, **fields: Any) -> ConnectParams:
    proof = {
        "id": hashlib.sha256(RAW).hexdigest(),
        "publicKey": PUBLIC,
        "signedAt": NOW,
        "nonce": NONCE,
        "signature": "-",
    }
    client = {"id": "cli", "version": "1", "platform": " Linux ", "mode": "cli", "deviceFamily": "DESK"}
    base = {"minProtocol": 4, "maxProtocol": 4, "client": client, "scopes": ["operator.read", "operator.write"]}
    return msgspec.convert(base | {"auth": {"token": "t"}} | fields | {"device": proof | (device or {})}, ConnectParams)


def signed(params: ConnectParams, payload: str) -> ConnectParams:
    assert params.device is not None
    signature = b64(KEY.sign(payload.encode()))
    return msgspec.structs.replace(params, device=msgspec.structs.replace(params.device, signature=signature))


def verify(params: ConnectParams, *, now_ms: int = NOW, nonce: str = NONCE) -> str:
    assert params.device is not None
    return verify_proof(params, params.device, nonce=nonce, now_ms=now_ms)


def refusal(params: ConnectParams, **about: Any) -> tuple[str, str, str]:
    with pytest.raises(WireError) as caught:
        verify(params, **about)
    shape = caught.value.shape
    assert shape.code == "INVALID_REQUEST"
    assert shape.details is not None
    return shape.message, shape.details["code"], shape.details["reason"]


ID = hashlib.sha256(RAW).hexdigest()
V2 = f"v2|{ID}|cli|cli|operator|operator.read,operator.write|{NOW}|t|{NONCE}"
V3 = f"v3|{ID}|cli|cli|operator|operator.read,operator.write|{NOW}|t|{NONCE}|linux|desk"


@pytest.mark.parametrize("payload", [V2, V3])
def test_both_payloads_prove_the_device(payload: str) -> None:
    assert verify(signed(connect(), payload)) == PUBLIC


def test_the_payloads_are_tried_newest_first() -> None:
    params = connect()
    assert params.device is not None
    assert payloads(params, params.device) == (V3.encode(), V2.encode())


@pytest.mark.parametrize(
    ("auth", "token"),
    [
        ({}, ""),
        ({"password": "p"}, ""),
        ({"token": "", "deviceToken": "d"}, ""),
        ({"deviceToken": "d", "bootstrapToken": "b"}, "d"),
        ({"bootstrapToken": "b"}, "b"),
    ],
)
def test_the_first_token_that_is_there_is_signed(auth: dict[str, str], token: str) -> None:
    payload = f"v2|{ID}|cli|cli|operator||{NOW}|{token}|{NONCE}"
    assert verify(signed(connect(auth=auth, scopes=[]), payload)) == PUBLIC


@pytest.mark.parametrize(
    "changed",
    [
        V3.replace("v3|", "v1|"),
        V3.replace("|cli|cli|", "|cli|ui|"),
        V3.replace("|operator|", "|node|"),
        V3.replace("operator.write|", "operator.admin|"),
        V3.replace(str(NOW), str(NOW + 1)),
        V3.replace("|t|", "|u|"),
        V3.replace("|linux|", "|Linux|"),
        V3.removesuffix("|desk"),
        V3.replace(NONCE, "another"),
    ],
)
def test_a_signature_of_anything_else_is_invalid(changed: str) -> None:
    expected = ("device signature invalid", "DEVICE_AUTH_SIGNATURE_INVALID", "device-signature")
    assert refusal(signed(connect(), changed)) == expected


@pytest.mark.parametrize("signature", ["-", "AAAA", "!!", "ü", b64(b"\0" * 64), b64(b"\xff" * 64), b64(b"\0" * 65)])
def test_what_is_no_signature_is_invalid(signature: str) -> None:
    assert refusal(connect({"signature": signature}))[0] == "device signature invalid"


@pytest.mark.parametrize(
    "device",
    [
        {"id": "0" * 64},
        {"id": hashlib.sha256(RAW).hexdigest().upper()},
        {"publicKey": "AAAA"},
        {"publicKey": "!!!"},
        {"publicKey": " "},
        {"publicKey": PUBLIC[:9] + "!!!!" + PUBLIC[9:]},
        {"publicKey": "ключ"},
        {"publicKey": "-----BEGIN PUBLIC KEY-----"},
        {"publicKey": "", "id": hashlib.sha256(b"").hexdigest()} | {"publicKey": "="},
    ],
)
def test_an_id_that_is_not_the_keys_is_refused_first(device: dict[str, str]) -> None:
    expected = ("device identity mismatch", "DEVICE_AUTH_DEVICE_ID_MISMATCH", "device-id-mismatch")
    assert refusal(connect(device | {"signedAt": 1, "nonce": "x"})) == expected


def test_a_signature_is_good_for_two_minutes_either_way() -> None:
    params = signed(connect(), V3)
    assert verify(params, now_ms=NOW + 120_000) == verify(params, now_ms=NOW - 120_000) == PUBLIC
    expected = ("device signature expired", "DEVICE_AUTH_SIGNATURE_EXPIRED", "device-signature-stale")
    assert refusal(params, now_ms=NOW + 120_001) == expected
    assert refusal(params, now_ms=NOW - 120_001) == expected
    assert refusal(connect({"signedAt": 1, "nonce": "x"})) == expected


def test_the_nonce_must_be_this_connections() -> None:
    missing = ("device nonce required", "DEVICE_AUTH_NONCE_REQUIRED", "device-nonce-missing")
    assert refusal(connect({"nonce": " \t"})) == missing
    assert refusal(connect({"nonce": "x"}))[1:] == ("DEVICE_AUTH_NONCE_MISMATCH", "device-nonce-mismatch")
    assert refusal(signed(connect(), V3), nonce="another")[0] == "device nonce mismatch"
    spaced = V3.replace(NONCE, f" {NONCE} ")
    assert verify(signed(connect({"nonce": f" {NONCE} "}), spaced)) == PUBLIC


def test_a_key_of_another_length_is_invalid() -> None:
    for raw in (b"\0" * 31, b"\0" * 33):
        device = {"publicKey": b64(raw), "id": hashlib.sha256(raw).hexdigest()}
        expected = ("device public key invalid", "DEVICE_AUTH_PUBLIC_KEY_INVALID", "device-public-key")
        assert refusal(connect(device)) == expected


def test_keys_come_in_three_spellings_and_have_one() -> None:
    pem = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    for spelling in (PUBLIC, base64.b64encode(RAW).decode(), f" {PUBLIC}= ", pem, pem.replace("\n", "\r\n")):
        assert raw_key(spelling) == RAW
        assert verify(signed(connect({"publicKey": spelling}), V3)) == PUBLIC
    body = pem.split("\n")[1]
    assert raw_key(pem.replace(body, f"{body[:20]}\n{body[20:]}")) == RAW, "its lines may be of any length"
    assert raw_key("AAAx") == b"\0\0\x31", "only padding is taken off"


def test_metadata_is_compared_in_ascii_lower_case() -> None:
    assert normalise_metadata(" MacOS ÄÖ ") == "macos ÄÖ"
    assert normalise_metadata(None) == ""


def test_starting_up_does_without_cryptography() -> None:
    code = "import sys, triops.gateway.session, triops.gateway.pairing; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
