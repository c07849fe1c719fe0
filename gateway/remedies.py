"""What a person does about a refusal at the door: `details.remediationHint`, with the one command that mends it."""

import msgspec

from triops.gateway.errors import ErrorShape

_WHERE = "On the gateway's machine, this says where its token lies: triops connect-info"
_WHERE_ELSE = "On the gateway's machine, this says where its password is set: triops connect-info"
_AGAIN = "Connect once with the gateway's own token; this shows it: triops gateway token show"
_IDENTITY = "Let the device make itself a new identity, connect again, and let it in: triops devices approve"
_ADDRESS = "Use the address that this shows, directly or through a tunnel: triops connect-info"

_REMEDIES = {
    "AUTH_TOKEN_MISSING": _WHERE,
    "AUTH_TOKEN_MISMATCH": _WHERE,
    "AUTH_TOKEN_NOT_CONFIGURED": _WHERE,
    "AUTH_PASSWORD_MISSING": _WHERE_ELSE,
    "AUTH_PASSWORD_MISMATCH": _WHERE_ELSE,
    "AUTH_PASSWORD_NOT_CONFIGURED": _WHERE_ELSE,
    "AUTH_BOOTSTRAP_TOKEN_INVALID": f"Setup codes are not supported. {_AGAIN}",
    "AUTH_DEVICE_TOKEN_MISMATCH": f"The stored device token was replaced or revoked. {_AGAIN}",
    "AUTH_SCOPE_MISMATCH": f"Ask for less. For more: {_AGAIN[0].lower()}{_AGAIN[1:]}",
    "AUTH_RATE_LIMITED": f"Wait, then try with the right secret. {_WHERE}",
    "AUTH_UNAUTHORIZED": "Without a secret only programs of the gateway's machine get in: triops connect-info",
    "DEVICE_IDENTITY_REQUIRED": _WHERE,
    "CONTROL_UI_DEVICE_IDENTITY_REQUIRED": _ADDRESS,
    "CONTROL_UI_ORIGIN_NOT_ALLOWED": f"{_ADDRESS} - or list the page's origin in gateway.controlUi.allowedOrigins",
    "HOST_NOT_ALLOWED": _ADDRESS,
    "PROXY_ATTRIBUTION_REQUIRED": f"Reverse proxies and Tailscale Serve are not supported. {_ADDRESS}",
    "DEVICE_AUTH_DEVICE_ID_MISMATCH": _IDENTITY,
    "DEVICE_AUTH_PUBLIC_KEY_INVALID": _IDENTITY,
    "DEVICE_AUTH_SIGNATURE_INVALID": _IDENTITY,
    "DEVICE_AUTH_SIGNATURE_EXPIRED": "Set the clocks of the device and of the gateway's machine right; compare: date",
    "DEVICE_AUTH_NONCE_REQUIRED": "The client must sign the challenge of this connection: update it",
    "DEVICE_AUTH_NONCE_MISMATCH": "The client must sign the challenge of this connection: update it",
    "PROTOCOL_MISMATCH": "Use a client that speaks protocol 4; the gateway's version: triops --version",
    "ROLE_NOT_SUPPORTED": "Connect as role operator: this gateway runs no tools on other devices",
}
"""By `details.code`."""


def remedied(error: ErrorShape) -> ErrorShape:
    """`error` with what mends it, if that is known; once is enough."""
    details = error.details or {}
    code, said = details.get("code", ""), details.get("remediationHint", "")
    if code == "PAIRING_REQUIRED" and "triops" not in said:
        remedy = f"{said} On the gateway's machine: triops devices approve {details['requestId']}"
    else:
        remedy = _REMEDIES.get(code, "")
    return msgspec.structs.replace(error, details=details | {"remediationHint": remedy}) if remedy else error
