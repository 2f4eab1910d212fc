"""Servers that answer with tricks: a visitor gets one answer that a strict client understands, or a clear refusal, and
nobody else gets anything of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from tests.support.backbone import PostgresServer
from tests.support.routers import Bench, answering, head_of
from tests.support.smuggling.answers import Got, read_answers
from tests.support.smuggling.responses import REPLIES, Reply

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("router-hostile-servers"),
    pytest.mark.timeout(60),
]

NAMES = list(REPLIES)
REQUESTS: list[bytes] = []
"""Heads, as they reached the server."""
ANSWERED, SAID = asyncio.Event(), asyncio.Event()
"""A visitor has a whole answer; the server said what nobody asked for, and the router hung up."""


async def hostile(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers as the path's last piece says, which is a number in NAMES or a word to be repeated."""
    while head := await head_of(reader):
        REQUESTS.append(head)
        word = head.split(b" ")[1].rpartition(b"/")[2]
        if not word.isdigit():
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(word), word))
            continue
        reply = REPLIES[NAMES[int(word)]]
        writer.write(reply.raw)
        await writer.drain()
        if reply.closes:
            return
        if reply.later:
            await ANSWERED.wait()
            writer.write(reply.later)
            assert await reader.read() == b"", "no other request was sent behind it"
            SAID.set()
            return


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> AsyncIterator[Bench]:
    root: Path = tmp_path_factory.mktemp("hostile")
    url = await postgres.create_database(migrated=True)
    async with Bench.open(root, url) as bench, answering(hostile) as server:
        await bench.route(server)
        await bench.router()
        yield bench
    await postgres.drop_database(url)


def request(bench: Bench, word: str, method: str = "GET", more: str = "") -> bytes:
    cookie = bench.ada.cookie["Cookie"]
    return f"{method} /user/ada/{word} HTTP/1.1\r\nHost: x\r\nCookie: {cookie}\r\n{more}\r\n".encode()


@pytest.mark.parametrize("name", NAMES)
async def test_a_visitor_gets_one_answer_or_a_refusal(bench: Bench, name: str) -> None:
    reply, number = REPLIES[name], str(NAMES.index(name))
    cut = False
    ANSWERED.clear()
    SAID.clear()
    try:
        # The next request on the visitor's own connection must not get more of this answer either.
        more = "Connection: close\r\n" if reply.later else ""
        both = request(bench, number, reply.method, more) + request(bench, "own", more="Connection: close\r\n")
        answer = await bench.raw(both)
    except ConnectionError:
        answer, cut = b"", True
    if "cut" not in reply.outcomes or answer:
        check(reply, answer)
    if reply.later:
        ANSWERED.set()
        await asyncio.wait_for(SAID.wait(), 5)
    for word in ("next", "after"):
        (got,) = read_answers(await bench.raw(request(bench, word, more="Connection: close\r\n")), ["GET"])
        assert (got.status, got.body) == (200, word.encode()), "the next request gets its own answer"
    assert not cut or "cut" in reply.outcomes


def check(reply: Reply, answer: bytes) -> None:
    head = answer.partition(b"\r\n\r\n")[0]
    for line in head.split(b"\r\n"):
        assert b"\r" not in line
        assert b"\n" not in line
        assert not line.startswith((b" ", b"\t")), "nothing is folded"
    if "cut" in reply.outcomes and not answer.startswith(b"HTTP/1.1 502 "):
        with pytest.raises(AssertionError):
            read_answers(answer, [reply.method])
        assert b"smuggled" not in answer
        return
    got, *others = read_answers(answer, [reply.method, "GET"])
    assert [other.body for other in others] == [b"own"] or (not others and got.values(b"connection") == [b"close"])
    assert b"smuggled" not in answer.lower()
    if got.status == 502:
        assert "refused" in reply.outcomes, answer
        assert b"x-request-id" in dict(got.headers), "it is our own page"
        return
    assert "answered" in reply.outcomes, answer[:300]
    assert (got.status, got.body) == (reply.status, reply.body)
    check_framing(got)


def check_framing(got: Got) -> None:
    assert len(got.values(b"content-length")) + len(got.values(b"transfer-encoding")) <= 1
    if got.status in (101, 204):
        assert not got.values(b"content-length")
    assert not got.values(b"keep-alive")


async def test_a_switch_that_nobody_asked_for_does_not_uncover_the_next_request(bench: Bench) -> None:
    """If it did, the server would read the visitor's own credentials on the rest of the connection."""
    number = str(NAMES.index("nothing asked for a switch"))
    REQUESTS.clear()
    with suppress(ConnectionError):
        await bench.raw(request(bench, number) + request(bench, "next", more="Connection: close\r\n"))
    assert not [head for head in REQUESTS if b"session" in head.lower()], "no cookie of the platform"
    assert all(b"X-Forwarded-For" in head for head in REQUESTS), "nothing went past the router"


async def test_endless_heads_take_no_memory(bench: Bench) -> None:
    process = psutil.Process(bench.routers[0].pid)
    before = process.memory_info().rss
    for name in ("a first header without an end", "a reason without an end", "a trailer without an end"):
        with suppress(ConnectionError):
            await bench.raw(request(bench, str(NAMES.index(name)), more="Connection: close\r\n"))
    assert process.memory_info().rss - before < 8 * 2**20
