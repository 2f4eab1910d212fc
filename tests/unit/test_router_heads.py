"""Heads and targets that nobody would write: whatever comes, what is forwarded is what was asked for and allowed.

The same cases every time; `make fuzz` looks further."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.inprocess import SESSION, TOKEN, Case, Wired, check_alike, check_forwarded, plane
from tests.support.smuggling.answers import Broken, read_answers

METHODS = st.sampled_from(["GET", "POST", "HEAD", "PUT", "OPTIONS", "DELETE", "PATCH", "get", "CONNECT", "X", ""])
PIECES = st.sampled_from(
    [
        "/user/ada/", "/user/ada", "/user/bob/", "/", "//", "..", ".", "%2e", "%2E%2e", "%252e", "%2f", "%5c", "\\", "a", "?", "&x=", "#",
        TOKEN, "%00", "%0d%0a", "%ff", ";", "=", "@", ":", "http://x", "http://x/user/ada/", "%", "%zz", "\x80", " ", "\t", "\x0b", "\x7f",
    ]
)  # fmt: skip
TARGETS = st.lists(PIECES, max_size=6).map("".join) | PIECES.map(lambda piece: f"/user/ada/{piece}")
NAMES = st.sampled_from(
    [
        "Host", "Content-Length", "Transfer-Encoding", "Connection", "Cookie", "cookie", "Authorization", "X-Forwarded-For", "X_Forwarded_For",
        "Forwarded", "Upgrade", "Expect", "TE", "Trailer", "Keep-Alive", "Proxy-Connection", "Referer", "X-A", "X-Real-IP", "X_Orrery_Edge",
        "Content_Length", "x-request-id", "Content-Length ", "Transfer-Encoding\t", "X\x0b", "", "X-A\x00", "X\xe4",
    ]
)  # fmt: skip
VALUES = st.sampled_from(
    [
        "x", "", "5", "0", "5, 5", "+5", "chunked", "chunked, identity", "xchunked", "close", "keep-alive", "Upgrade", "websocket", "h2c",
        "X-A", "X-Forwarded-For, Authorization, Host", "content-length", "100-continue", SESSION,
        f"a=b; {SESSION}; c=d", f"token {TOKEN}", f"Bearer {TOKEN}", f"http://x/?token={TOKEN}", "10.0.0.1", "\x80", "a\rb", "a\nb",
        "\x00", "a\r\n b", "\tx\t", "x" * 300, "for=1.2.3.4",
    ]
)  # fmt: skip
ENDS = st.sampled_from(["\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\n", "\r", "\r\n ", " \r\n", "\r\r\n"])
HEADERS = st.lists(st.tuples(NAMES, VALUES, ENDS), max_size=6).map(
    lambda lines: "".join(f"{name}: {value}{end}" for name, value, end in lines)
)
USUAL = st.sampled_from(["", "Host: x\r\n", "Host: x\r\n", "Host: x\r\nContent-Length: 5\r\n", "Host: x\r\nTransfer-Encoding: chunked\r\n"])  # fmt: skip
VERSIONS = st.sampled_from(["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/1.1 ", ""])
BODIES = st.sampled_from(
    ["", "", "abcde", "5\r\nabcde\r\n0\r\n\r\n", "0\r\n\r\n", "5\nabcde\r\n0\r\n\r\n", "0\r\nX-A: y\r\n\r\n", "5;x\r\nabcde\r\n0\r\n\r\n"]
)  # fmt: skip
REQUESTS = st.builds(
    lambda method, target, version, usual, headers, body: f"{method} {target} {version}\r\n{usual}{headers}\r\n{body}",
    METHODS, TARGETS, VERSIONS, USUAL, HEADERS, BODIES,
)  # fmt: skip
STREAMS = st.lists(REQUESTS, min_size=1, max_size=3).map(lambda parts: "".join(parts).encode("latin-1"))


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in pairwise(edges)]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(STREAMS, st.lists(st.integers(0, 2000), max_size=4))
def test_what_is_forwarded_is_what_was_asked_for(
    loop: asyncio.AbstractEventLoop, data: bytes, places: list[int]
) -> None:
    async def run() -> None:
        made = plane()
        # Twice: the second time all header lines are known. And once in pieces, which must make no difference.
        whole = [await sent(made, [data]) for _ in range(2)]
        pieces = await sent(made, cut(data, places))
        for case in (*whole, pieces):
            check_forwarded(case, data)
        check_alike([*whole, pieces])

    loop.run_until_complete(run())


async def sent(made: tuple[object, Wired], pieces: list[bytes]) -> Case:
    case = Case(made)  # type: ignore[arg-type]
    await case.send(pieces)
    return case


STATUS = st.sampled_from(
    ["HTTP/1.1 200 OK", "HTTP/1.1 200 OK", "HTTP/1.1 204 x", "HTTP/1.1 304 x", "HTTP/1.1 103 x", "HTTP/1.1 100 x", "HTTP/1.1 101 x", "HTTP/1.0 200 OK",
     "HTTP/1.1 099 x", "HTTP/1.1 999 x", "HTTP/1.1 200 \x00", "HTTP/1.1 2 0", "HTTP/2 200 OK", "X", ""]
)  # fmt: skip
ANSWER_NAMES = st.sampled_from(
    ["Content-Length", "Transfer-Encoding", "Connection", "Set-Cookie", "Upgrade", "X-A", "Keep-Alive", "Trailer", "Content-Length ", "X\x00", "content-length"]
)  # fmt: skip
ANSWERS = st.lists(
    st.builds(
        lambda status, usual, headers, body: f"{status}\r\n{usual}{headers}\r\n{body}",
        STATUS,
        st.sampled_from(["", "Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n"]),
        st.lists(st.tuples(ANSWER_NAMES, VALUES, ENDS), max_size=4).map(lambda ls: "".join(f"{n}: {v}{e}" for n, v, e in ls)),
        BODIES,
    ),
    min_size=1,
    max_size=3,
).map(lambda parts: "".join(parts).encode("latin-1"))  # fmt: skip


@settings(max_examples=400, deadline=None, derandomize=True)
@given(ANSWERS)
def test_whatever_a_server_says_a_client_can_read_it(loop: asyncio.AbstractEventLoop, answer: bytes) -> None:
    """Or it sees its connection end in the middle of an answer; and nobody gets a second answer to one request."""
    request = b"GET /user/ada/x HTTP/1.1\r\nHost: x\r\n\r\n"

    async def run() -> None:
        case = Case(plane())
        await case.send([request, request], answer)
        case.servers_leave()
        await asyncio.sleep(0)
        try:
            read_answers(case.wire.sent, ["GET", "GET"])
        except Broken as broken:
            assert case.wire.closed, broken  # noqa: PT017
            assert "nobody asked" not in str(broken), broken  # noqa: PT017

    loop.run_until_complete(run())
