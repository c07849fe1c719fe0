"""The way to a server: its address, through which proxy, whose certificates to believe. Knows no requests or answers.

The variables are those of curl: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`, in small letters too.
"""

import ipaddress
import re
import ssl
import sys
from base64 import b64encode
from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import unquote, urlsplit

import h11
import msgspec
import trio

from triops.agents.errors import ProviderError

HEAD_LIMIT = 1 << 14
_TEXT = re.compile(r"[ -~]*")
_HOST = re.compile(r"[\w.:-]+")


class Target(msgspec.Struct, frozen=True):
    """Where a URL leads."""

    secure: bool
    host: str
    port: int
    name: str
    """`host:port`: what errors may say of a URL, whose user and query may be secret."""
    path: str

    @property
    def authority(self) -> str:
        """`host:port`, always with both."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def origin(self) -> tuple[bool, str]:
        """What a kept connection can be used for again."""
        return self.secure, self.name

    def head(self, headers: Mapping[str, str], body: bytes) -> list[tuple[bytes, bytes]]:
        """The header lines to send. Raises `ValueError` for a value that is no plain text."""
        lines = {"host": self.name, **{name.lower(): value.strip() for name, value in headers.items()}}
        lines["content-length"] = str(len(body))
        if not all(map(str.isprintable, lines.values())):
            raise ValueError("a control character")
        return [(name.encode("ascii"), value.encode("ascii")) for name, value in lines.items()]


@lru_cache(maxsize=256)
def target_of(url: str) -> Target:
    """Raises `ProviderError` for what is no http(s) address."""
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").encode("idna").decode()
    except ValueError:  # what IDNA cannot encode raises a kind of it
        parts, port, host = urlsplit(""), None, ""
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(host) or not _TEXT.fullmatch(path) or " " in path:
        raise ProviderError("connection", "baseUrl is no http(s) address; write it like http://127.0.0.1:11434/v1")
    secure = parts.scheme == "https"
    name = (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
    return Target(secure, host, port or (443 if secure else 80), name, path)


class Trust(msgspec.Struct, frozen=True):
    """Which certificates to believe beyond those of the system."""

    ca: str = ""
    """A file of certificates, or their text (PEM)."""
    anything: bool = False
    """Believe every certificate."""


class Proxy(msgspec.Struct, frozen=True):
    """A proxy that speaks HTTP; `login` is the header that it wants, or empty."""

    host: str
    port: int
    login: str
    variable: str

    @property
    def headers(self) -> dict[str, str]:
        return {"proxy-authorization": self.login} if self.login else {}


def proxy_of(secure: bool, host: str, port: int, environ: Mapping[str, str]) -> Proxy | None:
    """The proxy that leads to `host`; None: there is none, or `NO_PROXY` names it, or it is this machine.

    Raises:
        ProviderError: the variable names a proxy that cannot be used; its words do not repeat the value.
    """
    names = (f"{'https' if secure else 'http'}_proxy", "all_proxy")
    variable = next((name for low in names for name in (low, low.upper()) if environ.get(name)), None)
    if variable is None or _is_direct(host, port, environ.get("no_proxy") or environ.get("NO_PROXY") or ""):
        return None
    value = environ[variable].strip()
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        address = parts.hostname, parts.port or 80
    except ValueError:
        parts, address = urlsplit(""), (None, 0)
    if parts.scheme != "http" or not address[0]:
        raise ProviderError(
            "connection", f"{variable} names no proxy of the form http://host:port; correct or unset it"
        )
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else ""
    basic = f"Basic {b64encode(login.encode()).decode()}" if login else ""
    return Proxy(address[0], address[1], basic, variable)


def _is_direct(host: str, port: int, listed: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if host == "localhost" or host.endswith(".localhost") or (address is not None and address.is_loopback):
        return True
    for entry in filter(None, (part.strip().lower() for part in listed.split(","))):
        name, _, number = entry.rpartition(":") if entry.count(":") == 1 else (entry, "", "")
        if number and number != str(port):
            continue
        name = name.removeprefix("*").removeprefix(".")
        if not name or host == name or host.endswith(f".{name}"):
            return True
        try:
            if address is not None and address in ipaddress.ip_network(name.strip("[]"), strict=False):
                return True
        except ValueError:
            pass  # a name, not a network
    return False


async def open_tunnel(stream: trio.SocketStream, proxy: Proxy, authority: str) -> None:
    """Have the proxy connect `stream` with `authority`, `host:port`.

    Raises:
        ProviderError: it will not; the connection is of no use any more.
    """
    wire = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_LIMIT)
    headers = [("host", authority), *proxy.headers.items()]
    await stream.send_all(wire.send(h11.Request(method="CONNECT", target=authority, headers=headers)) or b"")
    try:
        while not isinstance(event := wire.next_event(), h11.Response):
            if event is h11.NEED_DATA:
                wire.receive_data(bytes(await stream.receive_some(HEAD_LIMIT)))
    except (h11.RemoteProtocolError, trio.BrokenResourceError) as error:
        raise _no_way(proxy, authority, "it is no HTTP proxy, or hung up") from error
    if not 200 <= event.status_code < 300:
        why = "it wants another login" if event.status_code == 407 else f"HTTP {event.status_code}"
        raise _no_way(proxy, authority, why)


def _no_way(proxy: Proxy, authority: str, why: str) -> ProviderError:
    words = f"the proxy {proxy.host}:{proxy.port} does not connect to {authority} ({why})"
    return ProviderError("connection", f"{words}; correct {proxy.variable}, or name the host in NO_PROXY")


def tls_context(trust: Trust, environ: Mapping[str, str]) -> ssl.SSLContext:
    """Reads files for tens of milliseconds.

    Raises:
        ProviderError: `tls_certificate`, what was named cannot be read.
    """
    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    if sys.platform != "win32" and not (paths.cafile or paths.capath):
        import certifi  # a Python that was built without a place for certificates, as on macOS

        context.load_verify_locations(certifi.where())
    for where, value in (("SSL_CERT_FILE", environ.get("SSL_CERT_FILE", "")), ("request.tls.ca", trust.ca)):
        try:
            if value.startswith("-----BEGIN"):
                context.load_verify_locations(cadata=value)
            elif value:
                context.load_verify_locations(value)
        except (OSError, ValueError) as error:
            words = f"{where} names no file of certificates (PEM) that can be read: {error}"
            raise ProviderError("tls_certificate", words) from error
    if trust.anything:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
