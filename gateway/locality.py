"""Where a peer is, and whether its `Host` and `Origin` headers are ones that we serve. Pure; knows no credentials.

Names are never resolved: a name that resolves to 127.0.0.1 today is how a web page reaches a local port. Anything that
is not spelled as it should be is refused.
"""

import re
from collections.abc import Collection, Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Literal

from triops.gateway.errors import WireError

Locality = Literal["direct_local", "remote", "proxied"]
"""Protocol §6.1, narrowed: a peer is local if its socket is and nothing says that it speaks for another. The classes
that trust a container's private network on the word of a `Host` header are `remote` here. `proxied` peers cannot be
told apart, and are refused at the upgrade (403, `proxy_attribution_required`)."""

Headers = Iterable[tuple[bytes, bytes]]
"""Raw, with lower-case names, as an HTTP parser gives them."""

_PROXY_HEADERS = frozenset((b"forwarded", b"via", b"x-real-ip", b"x-client-ip", b"true-client-ip"))
_PROXY_PREFIXES = (b"x-forwarded", b"tailscale-", b"cf-")

_AUTHORITY = re.compile(r"(\[[0-9a-f.]*:[0-9a-f:.]*\]|[0-9a-z.-]*[0-9a-z])(?::([1-9][0-9]{0,4}))?")
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(.+)")
_PORTS = {"http": 80, "https": 443}


def parse_address(host: str) -> IPv4Address | IPv6Address | None:
    """An IP literal with its zone dropped and an IPv4-mapped address taken for what it is; `None` for anything else."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def normalise_address(host: str) -> str:
    """The one spelling of a peer's address that limits are kept by."""
    address = parse_address(host)
    return host if address is None else str(address)


def is_loopback(host: str) -> bool:
    """Whether a peer's address is one of this machine's loopback addresses."""
    address = parse_address(host)
    return address is not None and address.is_loopback


def locality(peer: str, headers: Headers) -> Locality:
    """Class of the peer whose socket's address is `peer`."""
    if any(name in _PROXY_HEADERS or name.startswith(_PROXY_PREFIXES) for name, _ in headers):
        return "proxied"
    return "direct_local" if is_loopback(peer) else "remote"


def single_header(headers: Headers, name: bytes) -> str | None:
    """The value of header `name`, `None` if it is absent; one that is there twice gives what no check here accepts."""
    values = [value.decode("latin-1") for key, value in headers if key == name]
    return ", ".join(values) if values else None


def check_host(host: str | None, *, bind_host: str) -> bool:
    """Whether `Host` names us: `localhost`, a loopback literal or the address we are bound to, with any port or none.

    A foreign name may have been rebound to us; a port cannot, and tunnels and port maps change it. Bound to every
    address, we take any address literal: no name can be made to point at one.
    """
    name, _ = _authority(host, 80)
    if name in ("localhost", bind_host.lower()):
        return True
    address, bound = parse_address(name), parse_address(bind_host)
    return address is not None and (
        address.is_loopback or address == bound or (bound is not None and bound.is_unspecified)
    )


def is_browser(client_id: str, client_mode: str) -> bool:
    """Whether a client with these names runs in a web page, and so must have an `Origin`."""
    return client_id in ("openclaw-control-ui", "openclaw-browser-copilot", "webchat-ui") or client_mode == "webchat"


def check_origin(
    origin: str | None,
    *,
    host: str | None,
    locality: Locality,
    browser: bool = False,
    allowed: Collection[str] = (),
    local_pages: bool = False,
) -> None:
    """Refuse a web page that has no business here (protocol §5.8); requests without `Origin` pass unless `browser`.

    `host` is the `Host` header, already checked. `allowed` is `gateway.controlUi.allowedOrigins` as the configuration
    gives them: in lower case, without a slash at their end and without `*`. `local_pages` lets
    in pages of any port of this machine (the Control UI's development server): only where a credential is asked for
    too, which no page has that the user did not give it to.

    Raises:
        WireError: the page is not let in.
    """
    if origin is None:
        if browser:
            raise _origin_refused("origin missing or invalid")
        return
    origin = origin.lower()
    match = _ORIGIN.fullmatch(origin)
    if match is None or _AUTHORITY.fullmatch(match[2]) is None:
        raise _origin_refused("origin missing or invalid")
    if origin in allowed:
        return
    if (default_port := _PORTS.get(match[1])) is not None:
        its = name, _ = _authority(match[2], default_port)
        address, own = parse_address(name), its == _authority(host, default_port)
        loopback = name == "localhost" or (address is not None and address.is_loopback)
        if own and (address is not None and address.is_private):
            return
        if loopback and locality == "direct_local" and (own or local_pages):
            return
    raise _origin_refused("origin not allowed")


def _authority(text: str | None, default_port: int) -> tuple[str, int]:
    """Name and port of `host[:port]`; an empty name for what is not exactly that."""
    match = _AUTHORITY.fullmatch((text or "").lower())
    if match is None or (port := int(match[2] or default_port)) > 65535:
        return "", 0
    return match[1].strip("[]"), port


def _origin_refused(reason: str) -> WireError:
    return WireError(
        "INVALID_REQUEST",
        "origin not allowed (open the Control UI from the gateway host "
        "or allow it in gateway.controlUi.allowedOrigins)",
        details={"code": "CONTROL_UI_ORIGIN_NOT_ALLOWED", "reason": reason},
    )
