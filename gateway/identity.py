"""A device's own key pair: who it is to every gateway, and its signature under a gateway's challenge."""

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triops.runtime.paths import write_new

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


class DeviceIdentity:
    """An Ed25519 key by which gateways know this device (protocol: device identity and signature)."""

    def __init__(self, key: "Ed25519PrivateKey") -> None:
        public = key.public_key().public_bytes_raw()
        self._key = key
        self.id = hashlib.sha256(public).hexdigest()
        self.public_key = _base64url(public)

    @classmethod
    def load(cls, path: Path) -> "DeviceIdentity":
        """The identity kept in `path` (32 raw bytes, mode 0600), made there the first time."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        while True:
            try:
                return cls(Ed25519PrivateKey.from_private_bytes(path.read_bytes()))
            except FileNotFoundError:
                write_new(path, Ed25519PrivateKey.generate().private_bytes_raw())

    def proof(self, connect: Mapping[str, Any], challenge: Mapping[str, Any]) -> dict[str, Any]:
        """The `device` member that answers `challenge` for these `connect` params: the v3 payload, signed."""
        client, signed_at, nonce = connect["client"], challenge["ts"], challenge["nonce"]
        scopes, token = ",".join(connect["scopes"]), connect.get("auth", {}).get("token", "")
        about = (client.get(name, "").strip().lower() for name in ("platform", "deviceFamily"))
        fields = ("v3", self.id, client["id"], client["mode"], connect["role"], scopes, signed_at, token, nonce, *about)
        signature = _base64url(self._key.sign("|".join(map(str, fields)).encode()))
        proof = {"publicKey": self.public_key, "signature": signature, "signedAt": signed_at, "nonce": nonce}
        return {"id": self.id, **proof}


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
