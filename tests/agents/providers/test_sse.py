import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triops.agents.errors import ProviderError
from triops.agents.providers.sse import EVENT_LIMIT, SseParser

STREAM = (
    b"\xef\xbb\xbf: hello\r\n\r\ndata: one\r\n\r\nevent: named\ndata:two\ndata:  three\nid: 7\n\n"
    b"retry: 5\r\rdata\r\rdata: \xc3\xa9\r\n\revent: nothing\n\ndata: [DONE]\n\ndata: unfinished"
)
EVENTS = [b"one", b"two\n three", b"", b"\xc3\xa9", b"[DONE]"]


def test_reads_all_line_ends_comments_names_and_joined_data():
    assert SseParser().feed(STREAM) == EVENTS


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.integers(0, len(STREAM)), max_size=12).map(sorted))
def test_the_cuts_between_reads_do_not_matter(cuts: list[int]):
    parser = SseParser()
    parts = [STREAM[a:b] for a, b in zip([0, *cuts], [*cuts, len(STREAM)], strict=True)]
    assert [event for part in parts for event in parser.feed(part)] == EVENTS


def test_one_byte_at_a_time_is_the_same():
    parser = SseParser()
    assert [event for byte in STREAM for event in parser.feed(bytes([byte]))] == EVENTS


@settings(deadline=None)  # the machine may be busy
@given(st.binary(max_size=400), st.integers(0, 400))
def test_any_bytes_parse_alike_whole_and_cut(data: bytes, cut: int):
    parser = SseParser()
    assert parser.feed(data[:cut]) + parser.feed(data[cut:]) == SseParser().feed(data)


@pytest.mark.parametrize("line", [b"data: ", b": ", b"x"])
def test_an_endless_line_is_refused(line: bytes):
    parser = SseParser()
    parser.feed(line)
    with pytest.raises(ProviderError, match="more than") as caught:
        for _ in range(EVENT_LIMIT // 4096 + 1):
            parser.feed(b"y" * 4096)
    assert caught.value.kind == "format"


def test_an_event_of_endlessly_many_lines_is_refused():
    parser = SseParser()
    with pytest.raises(ProviderError):
        for _ in range(EVENT_LIMIT // 1000 + 1):
            parser.feed(b"data: " + b"y" * 1000 + b"\n")


def test_a_line_just_below_the_limit_is_read():
    data = b"data: " + b"y" * (EVENT_LIMIT - 10) + b"\n\n"
    assert len(SseParser().feed(data)[0]) == EVENT_LIMIT - 10


def test_comments_may_keep_a_stream_alive_for_hours():
    parser = SseParser()
    for _ in range(EVENT_LIMIT // 1000 + 5):
        assert parser.feed(b": " + b"." * 1000 + b"\n") == []
    assert parser.feed(b"data: x\n\n") == [b"x"]
