"""Header lines that are read without a parser: none that a parser would read in another way."""

from __future__ import annotations

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orrery_router.dataplane import limits
from orrery_router.dataplane.head import Fields, KnownHeads, fields_of
from orrery_router.lines import line_of
from tests.unit.test_router_heads import HEADERS, USUAL

OTHER_LINES = [
    b"X: a\tb", b"X:  a", b"X: a ", b"X:a", b"X: \x80", b"X: ", b"X:", b"X", b"", b" X: a", b"X : a", b": a",
    b"X\x80: a", b"X: a\x00", b"X: a\rb", b"X: a\nb", b"X: a\r\n b", b"X: a\r\n\r\nX: b", b"Host: y", b"Host: x/",
    b"Content-Length: 0", b"Content-Length: 5", b"Transfer-Encoding: chunked", b"Upgrade: websocket",
    b"Expect: 100-continue", b"Connection: close", b"Connection: upgrade", b"Connection: keep-alive, X",
    b"Proxy-Connection: close", b"Keep-Alive: 5", b"TE: trailers", b"Trailer: X",
]  # fmt: skip


@settings(max_examples=500, deadline=None, derandomize=True)
@given(USUAL, HEADERS, st.sampled_from(["", "X: y\r\n", "User-Agent: a b\r\n", "Connection: Keep-Alive\r\n"]))
def test_lines_that_need_no_parser_are_what_the_parser_finds(usual: str, headers: str, more: str) -> None:
    block = (usual + more + headers + "\r\n").encode("latin-1")
    read = KnownHeads().read(block)
    if read is None:
        return
    found, varying = read
    parsed = Parsed()
    parser = httptools.HttpRequestParser(parsed)
    parser.feed_data(b"GET / HTTP/1.1\r\n" + block)
    assert parsed.messages == 1
    assert parser.should_keep_alive()
    assert not parser.should_upgrade()
    wanted = [line_of(*header) for header in parsed.headers]
    assert varying == [line for line in wanted if line.varies]
    assert found.lines == [line for line in wanted if not line.varies]
    assert fields_of(parsed.headers).safe_to_know
    told = Fields(found.lines)
    assert told.safe_to_know
    assert (told.host, told.listed, told.text, told.keep_alive) == (
        found.host, found.listed, found.text, found.keep_alive,
    )  # fmt: skip


def test_usual_lines_need_no_parser() -> None:
    assert KnownHeads().read(b"Host: x\r\nUser-Agent: Mozilla/5.0 (X11)\r\nCookie: a=b; c=d\r\n\r\n") is not None


@pytest.mark.parametrize("line", OTHER_LINES)
def test_other_lines_need_a_parser(line: bytes) -> None:
    assert KnownHeads().read(b"Host: x\r\n" + line + b"\r\nA: b\r\n\r\n") is None
    assert KnownHeads().read(b"Host: x\r\nA: b\r\n" + line + b"\r\n\r\n") is None


def test_too_many_lines_need_a_parser() -> None:
    lines = b"".join(b"X-%d: y\r\n" % n for n in range(limits.HEADERS_MAX))
    assert KnownHeads().read(b"Host: x\r\n" + lines + b"\r\n") is None


class Parsed:
    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.messages = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_message_complete(self) -> None:
        self.messages += 1
