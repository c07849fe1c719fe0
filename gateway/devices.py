"""Proof that a client holds its device's key (protocol §5.3): Ed25519 over this connection's nonce. Pure; knows no
records of devices. The cryptography is imported when the first device is there: starting up does without it."""

import base64
import binascii
import hashlib
import string

from triops.gateway.errors import WireError
from triops.gateway.schema.connect import ConnectParams, DeviceProof

MAX_SKEW_MS = 120_000
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_SPKI_PREFIX = bytes.fromhex("302a300506032b6570032100")  # what DER puts before the 32 bytes of an Ed25519 key


def verify_proof(params: ConnectParams, device: DeviceProof, *, nonce: str, now_ms: int) -> str:
    """Check `device`, in the protocol's order.

    Returns:
        The public key in its one spelling, base64url without padding.

    Raises:
        WireError: the proof does not hold.
    """
    key = raw_key(device.public_key)
    if not key or hashlib.sha256(key).hexdigest() != device.id:
        raise _refused("device identity mismatch", "DEVICE_ID_MISMATCH", "device-id-mismatch")
    if abs(now_ms - device.signed_at) > MAX_SKEW_MS:
        raise _refused("device signature expired", "SIGNATURE_EXPIRED", "device-signature-stale")
    if not device.nonce.strip():
        raise _refused("device nonce required", "NONCE_REQUIRED", "device-nonce-missing")
    if device.nonce.strip() != nonce:
        raise _refused("device nonce mismatch", "NONCE_MISMATCH", "device-nonce-mismatch")
    if len(key) != 32:
        raise _refused("device public key invalid", "PUBLIC_KEY_INVALID", "device-public-key")
    if not _signed(key, _decode(device.signature), payloads(params, device)):
        raise _refused("device signature invalid", "SIGNATURE_INVALID", "device-signature")
    return base64.urlsafe_b64encode(key).rstrip(b"=").decode()


def payloads(params: ConnectParams, device: DeviceProof) -> tuple[bytes, bytes]:
    """What the device may have signed: payload v3, payload v2."""
    auth, client = params.auth, params.client
    offered = (auth.token, auth.device_token, auth.bootstrap_token)
    token = next((secret for secret in offered if secret is not None), "")
    fields = (
        *(device.id, client.id, client.mode, params.role, ",".join(params.scopes)),
        *(str(device.signed_at), token, device.nonce),
    )
    about = (normalise_metadata(client.platform), normalise_metadata(client.device_family))
    return "|".join(("v3", *fields, *about)).encode(), "|".join(("v2", *fields)).encode()


def normalise_metadata(text: str | None) -> str:
    """A client's platform or device family, as it is signed and compared: trimmed, ASCII letters in lower case."""
    return (text or "").strip().translate(_LOWER)


def raw_key(text: str) -> bytes:
    """The bytes of a public key in base64url, base64 or PEM; empty if it is none of them."""
    body = "".join(line for line in text.splitlines() if not line.strip().startswith(("-----BEGIN", "-----END")))
    return _decode("".join(body.split())).removeprefix(_SPKI_PREFIX)


def _decode(text: str) -> bytes:
    plain = text.translate({ord("-"): "+", ord("_"): "/"}).rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _signed(key: bytes, signature: bytes, candidates: tuple[bytes, ...]) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    public = Ed25519PublicKey.from_public_bytes(key)
    for payload in candidates:
        try:
            public.verify(signature, payload)
        except InvalidSignature:
            continue
        return True
    return False


def _refused(message: str, code: str, reason: str) -> WireError:
    return WireError("INVALID_REQUEST", message, details={"code": f"DEVICE_AUTH_{code}", "reason": reason})
