from pathlib import Path

import pytest

from triops.agents.errors import ProviderError
from triops.agents.providers.routes import Trust, proxy_of, tls_context

PROXY = {"HTTPS_PROXY": "http://one.test:3128", "HTTP_PROXY": "two.test"}


def led(host: str, environ: dict[str, str], *, secure: bool = True, port: int = 443) -> str | None:
    proxy = proxy_of(secure, host, port, environ)
    return proxy and f"{proxy.host}:{proxy.port}"


@pytest.mark.parametrize(
    ("environ", "secure", "proxy"),
    [
        (PROXY, True, "one.test:3128"),
        (PROXY, False, "two.test:80"),
        ({**PROXY, "https_proxy": "http://small.test:1"}, True, "small.test:1"),
        ({"ALL_PROXY": "http://all.test:2"}, False, "all.test:2"),
        ({"HTTP_PROXY": "http://two.test"}, True, None),
        ({"HTTPS_PROXY": ""}, True, None),
        ({}, True, None),
    ],
)
def test_the_variable_of_the_scheme_names_the_proxy(environ: dict[str, str], secure: bool, proxy: str | None):
    assert led("api.test", environ, secure=secure) == proxy


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.1", "::1", "models.localhost"])
def test_this_machine_is_never_reached_through_a_proxy(host: str):
    assert led(host, PROXY) is None


@pytest.mark.parametrize(
    ("listed", "direct"),
    [
        ("api.test", True),
        ("other.test, API.test", True),
        (".test", True),
        ("test", True),
        ("*.test", True),
        ("*", True),
        ("api.test:443", True),
        ("api.test:8443", False),
        ("pi.test", False),
        ("10.0.0.0/8", False),
        ("", False),
    ],
)
def test_no_proxy_names_hosts_their_domains_and_ports(listed: str, direct: bool):
    assert (led("api.test", {**PROXY, "NO_PROXY": listed}) is None) == direct


def test_no_proxy_names_networks():
    environ = {**PROXY, "no_proxy": "192.168.0.0/16,fd00::/8"}
    assert led("192.168.1.5", environ) is None and led("fd00::1", environ) is None
    assert led("10.1.1.5", environ) == "one.test:3128"


def test_a_login_is_sent_and_never_shown():
    proxy = proxy_of(True, "api.test", 443, {"HTTPS_PROXY": "http://me:p%40ss@one.test:1"})
    assert proxy is not None and proxy.headers == {"proxy-authorization": "Basic bWU6cEBzcw=="}


@pytest.mark.parametrize("value", ["socks5://me:secret@one.test:1", "https://me:secret@one.test", "http://one.test:x"])
def test_a_proxy_that_cannot_be_used_is_said_without_its_secret(value: str):
    with pytest.raises(ProviderError, match="HTTPS_PROXY names no proxy of the form") as caught:
        proxy_of(True, "api.test", 443, {"HTTPS_PROXY": value})
    assert "secret" not in str(caught.value)


def test_a_file_of_certificates_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ProviderError, match="SSL_CERT_FILE names no file of certificates") as caught:
        tls_context(Trust(), {"SSL_CERT_FILE": str(tmp_path / "nothing.pem")})
    assert caught.value.kind == "tls_certificate"
    with pytest.raises(ProviderError, match=r"request\.tls\.ca names no file of certificates"):
        tls_context(Trust("-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----"), {})
