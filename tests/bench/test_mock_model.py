import http.client
import json
import socket
from collections.abc import Generator
from urllib.parse import urlsplit

import pytest

OPENAI, ANTHROPIC = "/v1/chat/completions", "/v1/messages"


class Model:
    """One kept-alive connection."""

    def __init__(self, url: str) -> None:
        self.http = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)

    def post(self, path: str, text: str, *, stream: bool = True) -> tuple[int, str]:
        body = {"model": "mock-1", "stream": stream, "messages": [{"role": "user", "content": text}]}
        self.http.request("POST", path, json.dumps(body))
        return self.answer()

    def get(self, path: str) -> tuple[int, str]:
        self.http.request("GET", path)
        return self.answer()

    def answer(self) -> tuple[int, str]:
        response = self.http.getresponse()
        return response.status, response.read().decode()

    def marks(self) -> dict[str, dict[str, int]]:
        return {mark["run"]: mark for mark in json.loads(self.get("/marks")[1])}


@pytest.fixture
def model(model_url: str) -> Generator[Model]:
    found = Model(model_url)
    found.marks()
    yield found
    found.http.close()


def test_openai_streams_chunks_and_a_usage_and_done_on_a_kept_alive_connection(model: Model):
    connected = model.http.sock
    for _ in range(3):
        status, body = model.post(OPENAI, "SAY:hello")
        events = [line[6:] for line in body.split("\n\n") if line]
        assert status == 200
        assert events.pop() == "[DONE]"
        chunks = [json.loads(event) for event in events]
        deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
        assert [delta["content"] for delta in deltas if "content" in delta] == ["", "hello"]
        assert chunks[-1]["usage"]["completion_tokens"] == 1
    assert model.http.sock is connected


def test_anthropic_streams_named_events(model: Model):
    status, body = model.post(ANTHROPIC, "TOKENS:2")
    assert status == 200
    names = [line[7:] for line in body.splitlines() if line.startswith("event: ")]
    assert names == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert [json.loads(line[6:])["type"] for line in body.splitlines() if line.startswith("data: ")] == names


def test_every_request_leaves_one_mark_which_is_given_once(model: Model):
    model.post(OPENAI, "RUN:instant TOKENS:3")
    model.post(ANTHROPIC, "RUN:paced TOKENS:3 ITL:1")
    model.post(OPENAI, "RUN:failed FAIL:503")
    marks = model.marks()
    assert set(marks) == {"instant", "paced", "failed"}
    assert 0 < marks["instant"]["received"] <= marks["instant"]["first"] == marks["instant"]["last"]
    assert marks["instant"]["last"] <= marks["paced"]["received"] <= marks["paced"]["first"] < marks["paced"]["last"]
    assert [marks[run]["status"] for run in ("instant", "paced", "failed")] == [200, 200, 503]
    assert model.marks() == {}


def test_a_failure_says_so_in_words_and_keeps_the_connection(model: Model):
    status, body = model.post(OPENAI, "FAIL:429")
    assert (status, json.loads(body)["error"]["message"]) == (429, "told to fail")
    assert model.post(OPENAI, "hello")[0] == 200


@pytest.mark.parametrize(("text", "stream"), [("TOKENS:many", True), ("hello", False)])
def test_what_the_mock_cannot_do_is_refused(model: Model, text: str, stream: bool):
    assert model.post(OPENAI, text, stream=stream)[0] == 400
    assert model.get("/v1/unknown")[0] == 404


def test_a_drop_ends_the_connection_in_the_middle_of_the_stream(model: Model):
    with pytest.raises(http.client.IncompleteRead) as dropped:
        model.post(OPENAI, "TOKENS:9 DROP:2 ITL:1")
    assert dropped.value.partial.count(b'"content"') == 3  # the empty one of the start, and two tokens


def test_models_are_listed(model: Model):
    status, body = model.get("/v1/models")
    assert (status, [entry["id"] for entry in json.loads(body)["data"]]) == (200, ["mock-1"])


def test_requests_may_come_in_pieces_and_behind_each_other(model_url: str):
    body = json.dumps({"stream": True, "messages": [{"role": "user", "content": "SAY:one TOKENS:2 ITL:1"}]}).encode()
    request = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (OPENAI.encode(), len(body), body)
    parts = urlsplit(model_url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as peer:
        for byte in request[:60]:
            peer.sendall(bytes([byte]))
        peer.sendall(request[60:] + request)
        received = b""
        while received.count(b"0\r\n\r\n") < 2:
            received += peer.recv(65_536)
    assert received.count(b"HTTP/1.1 200") == 2
    assert received.index(b"[DONE]") < received.rindex(b"HTTP/1.1 200"), "the second answer comes after the first"


def test_pauses_before_the_first_byte_and_the_end_lie_between_the_marks(model: Model):
    status, body = model.post(OPENAI, "RUN:slow SAY:hello FIRST:2 LAST:3")
    assert (status, "hello" in body, body.endswith("[DONE]\n\n")) == (200, True, True)
    mark = model.marks()["slow"]
    assert mark["first"] - mark["received"] > 1_900_000
    assert mark["last"] - mark["first"] > 2_900_000
