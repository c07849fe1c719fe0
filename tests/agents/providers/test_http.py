import datetime
import ipaddress
import json
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import h11
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from triops.agents.errors import ProviderError
from triops.agents.providers.faults import Faults
from triops.agents.providers.http import (
    CONNECT_LIMIT,
    KEEP_ALIVE,
    HttpClient,
    _merged,
    is_local,
)
from triops.agents.providers.routes import Trust

KEY = "canary-9f2d77aa"
FAULTS = Faults("it")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
CUT = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}"
Expect = Callable[..., Awaitable[ProviderError]]


@pytest.fixture
def failing() -> Expect:
    """The error that a request ends with."""

    async def fail(client: HttpClient, url: str, **fields: Any) -> ProviderError:
        with pytest.raises(ProviderError) as caught:
            async with client.stream("GET", url, {"authorization": f"Bearer {KEY}"}, **fields) as response:
                await response.body()
        assert KEY not in f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"
        return caught.value

    return fail


async def test_a_connection_serves_one_request_after_the_other(server, http):
    server.answers = [[OK]]
    for _ in range(3):
        assert await http.get_json(f"{server.url}/v1/models?a=b", {"X-Extra": "1"}, FAULTS) == {}
    assert server.connections == 1
    assert server.asked[-1].target == b"/v1/models?a=b"
    assert server.header("host") == server.url.removeprefix("http://") and server.header("x-extra") == "1"


@pytest.mark.parametrize(
    "headers",
    [{"a b": "x"}, {"x": f"{KEY}\r\nx: y"}, {"x": f"{KEY}\x1b[m"}, {"x": f"{KEY} \N{CYRILLIC SMALL LETTER YU}"}],
)
async def test_what_no_header_can_say_is_refused_without_repeating_it_and_nothing_is_sent(server, http, headers):
    with pytest.raises(ProviderError, match="characters that HTTP does not allow") as caught:
        await http.get_json(server.url, headers, FAULTS)
    assert caught.value.kind == "format" and caught.value.__context__ is None and not server.asked


async def test_a_body_that_has_no_room_at_once_arrives_whole(server, http):
    server.answers = [[OK]]
    numbers = list(range(1_000_000))
    async with http.stream("POST", server.url, {}, json.dumps(numbers).encode()) as response:
        assert await response.body() == b"{}" and server.bodies == [numbers]


async def test_requests_at_once_have_connections_of_their_own(server, http, patient_clock):
    server.answers = [[0.05, OK]]
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(http.get_json, server.url, {}, FAULTS)
    assert server.connections == 3


async def test_what_one_read_held_comes_in_one_piece(server, http):
    server.answers = [
        [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", 0.02, b"1\r\na\r\n1\r\nb\r\n0\r\n\r\n"]
    ]
    async with http.stream("GET", server.url, {}) as response:
        assert [await response.read(), await response.read(), await response.read()] == [b"ab", b"", b""]


async def test_a_body_without_a_length_ends_with_its_connection(server, http):
    server.answers = [[b"HTTP/1.1 200 OK\r\n\r\nall of it", "drop"]]
    async with http.stream("GET", server.url, {}) as response:
        assert await response.body() == b"all of it"


async def test_bad_answers_are_typed(server, http):
    server.answers = [[b"HTTP/1.1 401 No\r\nContent-Length: 4\r\n\r\nnope"], [OK.replace(b"{}", b"{x")]]
    for kind in ("auth", "format"):
        with pytest.raises(ProviderError) as caught:
            await http.get_json(server.url, {}, FAULTS)
        assert caught.value.kind == kind and str(caught.value).startswith("it ")


async def test_a_connection_that_the_peer_closed_is_not_used_again(server, http, patient_clock):
    server.answers = [[OK, "drop"], [OK]]
    assert await http.get_json(server.url, {}, FAULTS) == {}
    await trio.sleep(0.01)
    assert await http.get_json(server.url, {}, FAULTS) == {}
    assert server.connections == 2


async def test_a_connection_that_lay_unused_too_long_is_not_used_again(server, http, patient_clock):
    server.answers = [[OK]]
    await http.get_json(server.url, {}, FAULTS)
    await trio.sleep(KEEP_ALIVE + 1)
    await http.get_json(server.url, {}, FAULTS)
    assert server.connections == 2


@pytest.fixture
def full_port() -> Iterator[int]:
    """A port whose listener takes nobody more: connecting to it hangs."""
    if sys.platform != "linux":
        pytest.skip("elsewhere a full backlog refuses or accepts")
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, ExitStack() as stack:
        for _ in range(2):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


async def test_a_cancelled_connect_leaves_the_client_usable(server, http, patient_clock, full_port):
    server.answers = [[OK]]
    with trio.move_on_after(5) as scope:
        await http.get_json(f"http://127.0.0.1:{full_port}", {}, FAULTS)
    assert scope.cancelled_caught
    assert await http.get_json(server.url, {}, FAULTS) == {}


@pytest.mark.parametrize("answer", [[None], [CUT, None]])
async def test_a_cancelled_request_closes_its_connection_only(server, http, patient_clock, answer):
    server.answers = [answer, [OK]]
    with trio.move_on_after(5) as scope:
        await http.get_json(server.url, {}, FAULTS)
    assert scope.cancelled_caught
    assert await http.get_json(server.url, {}, FAULTS) == {}
    assert server.connections == 2


async def test_leaving_a_body_early_closes_its_connection(server, http):
    server.answers = [[CUT], [OK]]
    async with http.stream("GET", server.url, {}) as response:
        assert response.status == 200
    await http.get_json(server.url, {}, FAULTS)
    assert server.connections == 2


async def test_an_exception_in_the_block_goes_through_as_it_is(server, http):
    server.answers = [[OK]]
    with pytest.raises(trio.TooSlowError):
        async with http.stream("GET", server.url, {}):
            raise trio.TooSlowError
    with pytest.raises(OSError, match="mine"):
        async with http.stream("GET", server.url, {}):
            raise OSError("mine")


@pytest.mark.parametrize("answer", [[None], [b"HTTP/1.1 20", None], [CUT, None]])
async def test_silence_is_a_timeout(server, http, failing, patient_clock, answer):
    server.answers = [answer]
    start = trio.current_time()
    error = await failing(http, server.url, idle=77.0)
    assert (error.kind, error.retryable) == ("timeout", True) and "silent for 77 s" in str(error)
    assert 77 <= trio.current_time() - start < 79


async def test_a_peer_that_keeps_talking_is_not_silent(server, http, patient_clock):
    server.answers = [[b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n", 70.0, b"a", 70.0, b"b", 70.0, b"c"]]
    async with http.stream("GET", server.url, {}, idle=77.0) as response:
        assert await response.body() == b"abc"


async def test_a_connect_that_hangs_is_a_timeout(failing, http, patient_clock, full_port):
    start = trio.current_time()
    error = await failing(http, f"http://127.0.0.1:{full_port}")
    assert (error.kind, error.retryable) == ("timeout", True) and "could not connect" in str(error)
    assert CONNECT_LIMIT <= trio.current_time() - start < CONNECT_LIMIT + 1


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (["drop"], "connection"),
        ([b"HTTP/1.1 200 OK\r\ncont", "drop"], "connection"),
        ([OK[:-1], "drop"], "connection"),
        ([b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabc", "drop"], "connection"),
        ([b"SSH-2.0-OpenSSH_9.9\r\n\r\n", "drop"], "format"),
        ([b"\x15\x03\x01\x00\x02\x02\x16", b"\r\n\r\n", "drop"], "format"),
        ([b"HTTP/1.1 200 OK\r\n" + b"x" * 200_000, "drop"], "format"),
        ([b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "drop"], "format"),
    ],
)
async def test_a_broken_answer_is_typed_and_names_the_host(server, http, failing, answer, kind):
    server.answers = [answer]
    error = await failing(http, server.url)
    assert error.kind == kind and error.retryable == (kind == "connection")
    assert server.url.removeprefix("http://") in str(error)


async def test_nobody_there_is_a_connection_error(http, failing, closed_port):
    error = await failing(http, f"http://user:{KEY}@127.0.0.1:{closed_port}/v1?key={KEY}")
    assert (error.kind, error.retryable) == ("connection", True)
    assert f"127.0.0.1:{closed_port}" in str(error) and "baseUrl" in str(error)


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    "url", ["", "localhost:11434", "ftp://x/y", "http://", "http://a b/", "http://h:99999/", "http://h/ü"]
)
async def test_what_is_no_address_is_said_so(http, failing, url):
    with pytest.raises(ProviderError, match="baseUrl") as caught:
        async with http.stream("GET", url, {}):
            pass
    assert not caught.value.retryable


@pytest.mark.parametrize("key", ["canary\nHost: evil", "canary-ü", "canary-\x00"])
async def test_a_key_that_cannot_be_sent_is_not_repeated(server, http, key):
    server.answers = [[OK]]
    with pytest.raises(ProviderError) as caught:
        await http.get_json(server.url, {"authorization": f"Bearer {key}"}, FAULTS)
    assert "canary" not in str(caught.value) and caught.value.__cause__ is None
    assert server.asked == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a reset throws away what was received")
async def test_an_answer_before_the_body_was_taken_is_still_read(nursery, http):
    async def refuse(stream: trio.SocketStream) -> None:
        await stream.receive_some(100)
        await stream.send_all(b"HTTP/1.1 413 Too much\r\nconnection: close\r\ncontent-length: 3\r\n\r\nbig")
        await trio.sleep(0.2)
        stream.socket.close()

    listeners = await nursery.start(trio.serve_tcp, refuse, 0)
    url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
    with trio.fail_after(5):
        async with http.stream("POST", url, {}, b"x" * 20_000_000) as response:
            assert response.status == 413


async def test_closing_the_client_closes_what_it_kept(server, nursery):
    server.answers = [[OK]]
    closed = trio.Event()

    async def watch(stream: trio.SocketStream) -> None:
        await server.serve(stream)
        closed.set()

    listeners = await nursery.start(trio.serve_tcp, watch, 0)
    http = HttpClient()
    await http.get_json(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}", {}, FAULTS)
    http.close()
    with trio.fail_after(2):
        await closed.wait()


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets")
async def test_a_unix_socket_takes_the_place_of_the_host(server, nursery, tmp_path):
    path = str(tmp_path / "m.sock")
    listening = trio.socket.socket(trio.socket.AF_UNIX)
    await listening.bind(path)
    listening.listen()
    nursery.start_soon(partial(trio.serve_listeners, server.serve, [trio.SocketListener(listening)]))
    server.answers = [[OK]]
    http = HttpClient(uds=path)
    assert await http.get_json("http://localhost/v1/models", {}, FAULTS) == {}
    assert await http.get_json("http://localhost/v1/models", {}, FAULTS) == {}
    assert server.connections == 1 and server.header("host") == "localhost"
    http.close()


async def test_a_unix_socket_that_is_not_there_is_a_connection_error(failing, tmp_path):
    error = await failing(HttpClient(uds=str(tmp_path / "none.sock")), "http://localhost/")
    assert error.kind == "connection"


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1:1234/v1", True),
        ("http://[::1]:1/", True),
        ("http://192.168.1.5/v1", True),
        ("http://localhost:11434", True),
        ("http://nas.local/v1", True),
        ("https://api.openai.com/v1", False),
        ("https://8.8.8.8/", False),
    ],
)
def test_a_server_at_home_is_told_by_its_address(url, local):
    assert is_local(url) is local


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate of 127.0.0.1 and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    today = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(certificate.public_bytes(pem) + private)
    return path


@pytest.fixture
async def secure_url(server, nursery, authority) -> str:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(authority)

    async def serve(stream: trio.SocketStream) -> None:
        try:
            await server.serve(trio.SSLStream(stream, context, server_side=True, https_compatible=True))
        except* trio.BrokenResourceError:
            pass  # a client that refuses the certificate

    listeners = await nursery.start(trio.serve_tcp, serve, 0)
    return f"https://127.0.0.1:{listeners[0].socket.getsockname()[1]}"


@pytest.fixture
async def trusting(authority):
    client = HttpClient(environ={"SSL_CERT_FILE": str(authority)})
    yield client
    client.close()


async def test_https_streams_and_keeps_its_connection(server, secure_url, trusting):
    server.answers = [[OK]]
    for _ in range(2):
        async with trusting.stream("POST", f"{secure_url}/v1/x?y=z", {"a": "b"}, b'{"q": 1}') as response:
            assert await response.body() == b"{}"
    assert server.connections == 1 and server.asked[0].target == b"/v1/x?y=z" and server.bodies[0] == {"q": 1}


@pytest.mark.parametrize(
    ("answer", "kind"), [(["drop"], "connection"), ([OK[:-1], "drop"], "connection"), ([None], "timeout")]
)
async def test_https_failures_are_typed_as_plain_ones(
    server, secure_url, trusting, failing, patient_clock, answer, kind
):
    server.answers = [answer]
    error = await failing(trusting, secure_url, idle=30)
    assert (error.kind, error.retryable) == (kind, True) and "127.0.0.1:" in str(error)


async def test_a_cancelled_https_body_leaves_the_client_usable(server, secure_url, trusting):
    server.answers = [[CUT, None], [OK]]
    with trio.CancelScope() as scope:
        async with trusting.stream("GET", secure_url, {}) as response:
            assert await response.read() == b"{}"
            scope.cancel()
            await response.read()
    assert scope.cancelled_caught
    assert await trusting.get_json(secure_url, {}, FAULTS) == {}


async def test_an_unknown_certificate_is_refused_for_good(secure_url, http, failing):
    error = await failing(http, secure_url)
    assert (error.kind, error.retryable) == ("tls_certificate", False) and "SSL_CERT_FILE" in str(error)


async def test_https_to_a_plain_port_says_so(server, http, failing):
    server.answers = [[OK]]
    error = await failing(http, server.url.replace("http:", "https:"))
    assert error.kind == "connection" and "TLS" in str(error)


async def test_nobody_there_over_https_is_a_connection_error(http, failing, closed_port):
    error = await failing(http, f"https://127.0.0.1:{closed_port}")
    assert (error.kind, error.retryable) == ("connection", True) and "could not connect" in str(error)


class ProxyServer:
    """Hears CONNECT, answers it with `answer`, and then passes everything on to `port`."""

    def __init__(self, port: int, answer: bytes = b"HTTP/1.1 200 Go\r\n\r\n") -> None:
        self.port = port
        self.answer = answer
        self.heads: list[bytes] = []

    async def serve(self, stream: trio.SocketStream) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += bytes(await stream.receive_some(1))
        self.heads.append(head)
        await stream.send_all(self.answer)
        if b" 200 " not in self.answer:
            await stream.aclose()
            return
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as other, trio.open_nursery() as both:
            both.start_soon(self._pass, stream, other, both.cancel_scope)
            both.start_soon(self._pass, other, stream, both.cancel_scope)

    async def _pass(self, source: trio.abc.Stream, sink: trio.abc.Stream, scope: trio.CancelScope) -> None:
        try:
            async for data in source:
                await sink.send_all(bytes(data))
        except trio.BrokenResourceError:
            pass
        scope.cancel()


@pytest.fixture
def proxied(nursery):
    """A client behind a proxy that leads to a port."""

    async def client(proxy: ProxyServer, scheme: str = "https", **more: Any) -> HttpClient:
        listeners = await nursery.start(trio.serve_tcp, proxy.serve, 0)
        port = listeners[0].socket.getsockname()[1]
        return HttpClient(environ={f"{scheme.upper()}_PROXY": f"http://me:secret@127.0.0.1:{port}"}, **more)

    return client


async def test_https_goes_through_a_tunnel_and_the_server_does_not_see_the_proxys_login(server, secure_url, proxied):
    proxy = ProxyServer(int(secure_url.rpartition(":")[2]))
    client = await proxied(proxy, trust={"model.test": Trust(anything=True)})
    server.answers = [[OK]]
    for _ in range(2):
        assert await client.get_json("https://model.test/v1/models", {}, FAULTS) == {}
    (head,) = proxy.heads
    assert head.startswith(b"CONNECT model.test:443 HTTP/1.1\r\n") and b"proxy-authorization: Basic bWU6" in head
    assert server.asked[0].target == b"/v1/models" and server.header("proxy-authorization") is None
    client.close()


async def test_http_through_a_proxy_names_the_whole_address(server, nursery):
    server.answers = [[OK]]
    client = HttpClient(environ={"http_proxy": server.url.replace("//", "//me:secret@")})
    assert await client.get_json("http://model.test:8080/v1/models?a=b", {}, FAULTS) == {}
    assert server.asked[0].target == b"http://model.test:8080/v1/models?a=b"
    assert server.header("host") == "model.test:8080" and server.header("proxy-authorization") == "Basic bWU6c2VjcmV0"
    client.close()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 407 No\r\ncontent-length: 0\r\n\r\n", "it wants another login"),
        (b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", "HTTP 503"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "it is no HTTP proxy, or hung up"),
        (b"", "it is no HTTP proxy, or hung up"),
    ],
)
async def test_a_proxy_that_refuses_is_named_with_its_variable(proxied, failing, answer, words):
    client = await proxied(ProxyServer(0, answer))
    error = await failing(client, "https://model.test/v1")
    assert error.kind == "connection" and f"does not connect to model.test:443 ({words})" in str(error)
    assert "correct HTTPS_PROXY" in str(error) and "secret" not in str(error)


async def test_a_proxy_that_is_not_there_is_said_to_be_the_proxy(failing, closed_port):
    client = HttpClient(environ={"HTTPS_PROXY": f"http://127.0.0.1:{closed_port}"})
    error = await failing(client, "https://model.test/v1")
    assert f"could not connect to the proxy 127.0.0.1:{closed_port}, named in HTTPS_PROXY" in str(error)


@pytest.mark.parametrize("how", ["SSL_CERT_FILE", "ca", "PEM", "anything"])
async def test_a_certificate_of_ones_own_is_believed_by_choice(server, secure_url, authority, how):
    server.answers = [[OK]]
    pem = authority.read_text()
    trust = {
        "ca": Trust(str(authority)),
        "PEM": Trust(pem[: pem.index("-----BEGIN PRIVATE")]),
        "anything": Trust("", True),
    }
    name = secure_url.removeprefix("https://")
    client = HttpClient(
        environ={"SSL_CERT_FILE": str(authority)} if how == "SSL_CERT_FILE" else {},
        trust={name: trust[how]} if how in trust else {},
    )
    assert await client.get_json(secure_url, {}, FAULTS) == {}
    client.close()


@pytest.mark.parametrize(("patience", "told"), [(5, 1), (0, 0), (20, 0)])
async def test_an_answer_over_tls_that_comes_late_is_told_of_and_arrives(
    server, secure_url, authority, patient_clock, patience, told
):
    server.answers = [[10.0, OK]]
    client = HttpClient(environ={"SSL_CERT_FILE": str(authority)}, patience=patience)
    words: list[str] = []
    async with client.stream("GET", secure_url, {}, idle=30, late=words.append) as response:
        assert await response.body() == b"{}"
    assert len(words) == told
    client.close()


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@settings(max_examples=50, deadline=None)
@given(
    words=st.lists(st.binary(min_size=1, max_size=30), max_size=8),
    form=st.sampled_from([b"%x\r\n", b"00%X\r\n", b"%x;a=b\r\n"]),
    data=st.data(),
)
def test_merged_chunks_say_what_they_said(words, form, data):
    body = b"".join(form % len(word) + word + b"\r\n" for word in words)
    cut = data.draw(st.integers(0, len(body)))
    wire = h11.Connection(h11.CLIENT)
    wire.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    wire.send(h11.EndOfMessage())
    wire.receive_data(CHUNKED + _merged(body[:cut]) + body[cut:] + b"0\r\n\r\n")
    events = list(iter(wire.next_event, h11.NEED_DATA))
    assert isinstance(events[-1], h11.EndOfMessage)
    assert b"".join(bytes(event.data) for event in events if isinstance(event, h11.Data)) == b"".join(words)


@pytest.mark.parametrize("cut", range(9))
async def test_chunks_arrive_wherever_they_are_cut(server, http, patient_clock, cut):
    body = b"3\r\none\r\n" * 3
    server.answers = [[CHUNKED + b"3\r\none\r\n" + body[:cut], 1.0, body[cut:] + body + b"0\r\n\r\n"]]
    for _ in range(2):  # the second over the same connection
        async with http.stream("GET", server.url, {}) as response:
            assert await response.body() == b"one" * 7
    assert server.connections == 1
