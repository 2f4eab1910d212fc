"""What a client gets, read strictly by a parser that is not the router's (h11)."""

from __future__ import annotations

import h11
import msgspec


class Got(msgspec.Struct, frozen=True):
    """One answer."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    informational: tuple[int, ...] = ()
    trailers: list[tuple[bytes, bytes]] = []

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key == name]


class Broken(AssertionError):
    """What came is no sequence of whole answers."""


def read_answers(data: bytes, methods: list[str], *, closed: bool = True) -> list[Got]:
    """The answers to requests with these methods, in order. Raises Broken for anything that a strict client would not
    take, for half an answer, and for bytes that belong to none."""
    found: list[Got] = []
    for method in methods:
        if not data:
            return found
        got, data = _one(data, method, closed=closed)
        found.append(got)
    if data:
        raise Broken(f"bytes that nobody asked for: {data[:200]!r}")
    return found


def _one(data: bytes, method: str, *, closed: bool) -> tuple[Got, bytes]:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    connection.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    head: h11.Response | None = None
    informational: list[int] = []
    body = b""
    told_end = False
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as error:
            raise Broken(f"{error}: {data[:400]!r}") from None
        if isinstance(event, h11.InformationalResponse):
            informational.append(event.status_code)
        elif isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            rest = connection.trailing_data[0]
            headers, trailers = list(head.headers), list(event.headers)
            return Got(head.status_code, headers, body, tuple(informational), trailers), bytes(rest)
        elif event is h11.NEED_DATA and closed and not told_end:
            told_end = True
            connection.receive_data(b"")
        else:
            raise Broken(f"no whole answer ({event!r}): {data[:400]!r}")
