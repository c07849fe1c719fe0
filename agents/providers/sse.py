"""Server-sent events out of bytes that were cut anywhere; knows nothing of HTTP, JSON or models.

The grammar is the HTML standard's (section 9.2.6, "Interpreting an event stream"); `id` and `retry` are skipped, since
nothing here reconnects, and `event`, since every format says its kind in the data, too.
"""

from triops.agents.errors import ProviderError

EVENT_LIMIT = 1 << 20
"""Bytes of one line, and of one event's lines together."""


class SseParser:
    """Bytes in, events out. One parser serves one stream."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._after_cr = False
        self._first = True
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The events that `data` completes, of each its data; what is incomplete waits for the next call.

        Raises:
            ProviderError: `format`, a line or an event is longer than `EVENT_LIMIT`.
        """
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]  # the second half of a CRLF that was cut in two
        if not data:
            return []
        self._after_cr = data.endswith(b"\r")
        events: list[bytes] = []
        for line in data.splitlines(keepends=True):
            self._size += len(line)
            if self._size > EVENT_LIMIT:
                raise ProviderError("format", f"the provider sent an event of more than {EVENT_LIMIT} bytes")
            if not line.endswith((b"\n", b"\r")):
                self._line += line  # the last one, cut
                break
            if self._line:
                line = bytes(self._line) + line
                self._line.clear()
            if (event := self._take(line.rstrip(b"\r\n"))) is not None:
                events.append(event)
        return events

    def _take(self, line: bytes) -> bytes | None:
        if self._first:
            self._first = False
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line:
            event = b"\n".join(self._data) if self._data else None
            self._data, self._size = [], 0
            return event
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
        elif not self._data:
            self._size = 0  # a comment between events: a stream may keep itself alive for hours with these
        return None
