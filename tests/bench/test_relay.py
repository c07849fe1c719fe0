import http.client
import json
from collections.abc import Generator

import pytest
from tests.bench.conftest import announced
from tests.bench.test_mock_model import ANTHROPIC, OPENAI, Model

RELAY = "triops.bench.relay"


@pytest.fixture
def relay(model_url: str) -> Generator[Model]:
    """A relay before the mock, which stands for a real endpoint: what it says is known, and that it was asked."""
    with announced(RELAY, "--to", f"{model_url}/v1/", "--name", "there") as url:
        found = Model(url)
        yield found
        found.http.close()


def test_an_answer_passes_under_the_endpoints_own_name_and_leaves_marks(relay: Model):
    connected = None
    for run in ("a1", "b2"):
        status, body = relay.post(OPENAI, f"SAY:hello ITL:1 RUN:{run}")
        assert status == 200
        chunks = [json.loads(line[6:]) for line in body.split("\n\n") if line and "[DONE]" not in line]
        assert {chunk["model"] for chunk in chunks} == {"there"}
        assert body.endswith("data: [DONE]\n\n")
        connected = connected or relay.http.sock
        assert relay.http.sock is connected
    marks = relay.marks()
    assert list(marks) == ["a1", "b2"]
    for mark in marks.values():
        assert 0 < mark["received"] <= mark["first"] <= mark["last"]
        assert mark["status"] == 200
    assert relay.marks() == {}, "each mark is given once"


def test_a_refusal_of_the_endpoint_passes_as_it_is(relay: Model):
    status, body = relay.post(OPENAI, "FAIL:429 RUN:c")
    assert status == 429
    assert json.loads(body)["error"]["message"] == "told to fail"
    assert relay.marks()["c"]["status"] == 429


def test_half_an_answer_is_told_by_hanging_up(relay: Model):
    with pytest.raises(http.client.IncompleteRead):
        relay.post(OPENAI, "TOKENS:5 ITL:1 DROP:2 RUN:d")


def test_an_endpoint_that_is_not_there_is_a_502_that_says_so():
    with announced(RELAY, "--to", "http://127.0.0.1:9/v1", "--name", "x") as url:
        asker = Model(url)
        status, body = asker.post(OPENAI, "RUN:e")
        asker.http.close()
    assert status == 502
    assert "could not connect to 127.0.0.1:9" in json.loads(body)["error"]["message"]


@pytest.mark.parametrize(("path", "status"), [(ANTHROPIC, 404), ("/v1/models", 404)])
def test_it_speaks_one_wire_format(relay: Model, path: str, status: int):
    assert relay.post(path, "hello")[0] == status


def test_what_is_no_request_is_refused(relay: Model):
    relay.http.request("POST", OPENAI, "no json")
    assert relay.answer()[0] == 400
    assert relay.get("/v1/models")[0] == 200
