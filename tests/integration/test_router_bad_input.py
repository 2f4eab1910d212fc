"""What is not right, from either side, is answered clearly, and nothing of it reaches the other side."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.backbone import PostgresServer
from tests.support.routers import Bench, RouterProcess, answering, head_of
from tests.support.wait import eventually

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("router-bad-input"),
    pytest.mark.timeout(90),
]

HEAD_BYTES_MAX = 8192
BODY_BYTES_MAX = 100_000
RECEIVED: list[bytes] = []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> AsyncIterator[Bench]:
    root: Path = tmp_path_factory.mktemp("routers")
    url = await postgres.create_database(migrated=True)
    async with Bench.open(root, url) as bench, answering(upstream) as server:
        await bench.route(server)
        await bench.route("http://127.0.0.1:9", server="gone")
        await bench.instance("auth", server)
        await bench.router(
            ORRERY_HEAD_BYTES_MAX=str(HEAD_BYTES_MAX),
            ORRERY_MAX_BODY_BYTES=str(BODY_BYTES_MAX),
            ORRERY_HEADER_TIMEOUT_S="1",
            ORRERY_BODY_TIMEOUT_S="1",
            ORRERY_UPSTREAM_RESPONSE_TIMEOUT_S="1",
        )
        yield bench
    await postgres.drop_database(url)


@pytest.fixture(autouse=True)
def _forget() -> None:
    RECEIVED.clear()


async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers as the request's path asks for."""
    while head := await head_of(reader):
        RECEIVED.append(head)
        how = head.split(b" ")[1].rpartition(b"/")[2]
        if how == b"silent":
            await asyncio.Event().wait()
        if how in (b"half", b"closes", b"garbage", b"big", b"two-lengths", b"split"):
            writer.write(ILL[how])
            await writer.drain()
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


ILL = {
    b"half": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it",
    b"closes": b"",
    b"garbage": b"SSH-2.0-OpenSSH_9.2\r\n",
    b"big": b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: %s\r\n" % (i, b"x" * 1000) for i in range(200)) + b"\r\n",
    b"two-lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nok",
    b"split": b"HTTP/1.1 200 OK\r\nX: a\nSet-Cookie: b\r\nContent-Length: 2\r\n\r\nok",
}

GET = "GET /user/ada/ HTTP/1.1\r\nHost: x\r\n"
POST = "POST /user/ada/ HTTP/1.1\r\nHost: x\r\n"
MALFORMED = {
    "no request at all": "\x16\x03\x01\x02\x00\x01",
    "another protocol": "SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "no version": "GET /user/ada/\r\nHost: x\r\n\r\n",
    "a version of its own": "GET /user/ada/ HTTP/3.7\r\nHost: x\r\n\r\n",
    "no host": "GET /user/ada/ HTTP/1.1\r\n\r\n",
    "two hosts": GET + "Host: y\r\n\r\n",
    "a host that is none": "GET /user/ada/ HTTP/1.1\r\nHost: x/y\r\n\r\n",
    "two lengths": POST + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "the same length twice": POST + "Content-Length: 1\r\nContent-Length: 1\r\n\r\na",
    "a list of lengths": POST + "Content-Length: 1, 1\r\n\r\na",
    "a signed length": POST + "Content-Length: +1\r\n\r\na",
    "a negative length": POST + "Content-Length: -1\r\n\r\na",
    "a hexadecimal length": POST + "Content-Length: 0x1\r\n\r\na",
    "an endless length": POST + "Content-Length: 99999999999999999999\r\n\r\na",
    "length and chunks": POST + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": POST + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    "chunks twice": POST + "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "two codings": POST + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "a coding that hides": POST + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a coding behind a tab": POST + "Transfer-Encoding:\tchunked, x\r\n\r\n0\r\n\r\n",
    "chunks for HTTP/1.0": "POST /user/ada/ HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": GET + "X-A : b\r\n\r\n",
    "a folded header": GET + "X-A: b\r\n c\r\n\r\n",
    "a header without a name": GET + ": b\r\n\r\n",
    "a header without a colon": GET + "nonsense\r\n\r\n",
    "a name with a space": GET + "X A: b\r\n\r\n",
    "NUL in a value": GET + "X-A: b\x00c\r\n\r\n",
    "CR in a value": GET + "X-A: b\rc\r\n\r\n",
    "a bare line feed": "GET /user/ada/ HTTP/1.1\nHost: x\n\n",
    "a line feed in a header": GET + "X-A: b\nX-B: c\r\n\r\n",
    "a chunk without a size": POST + "Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
    "a chunk longer than it says": POST + "Transfer-Encoding: chunked\r\n\r\n2\r\nabcd\r\n0\r\n\r\n",
    "a fragment": "GET /user/ada/#x HTTP/1.1\r\nHost: x\r\n\r\n",
    "no path": "GET user/ada/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "dot segments": "GET /user/ada/../bob/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "encoded dot segments": "GET /user/ada/%2e%2e/bob/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "twice encoded dot segments": "GET /user/ada/%252e%252e/bob/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "a target with credentials": "GET http://a@b/user/ada/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "a tunnel": "CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "every server at once": "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("what", MALFORMED)
async def test_malformed_requests_are_refused(bench: Bench, what: str) -> None:
    text = MALFORMED[what]
    first, _, rest = text.partition("\r\n")
    signed_in = f"{first}\r\nCookie: {bench.ada.cookie['Cookie']}\r\n{rest}" if "HTTP/" in first else text
    answer = await bench.raw(signed_in.encode("latin-1"), end=what == "no request at all")
    status = answer.split(b" ")[1]
    assert status == (b"405" if what == "a tunnel" else b"400"), answer
    assert answer.count(b"HTTP/1.1 4") == 1, "and the connection ends: what follows cannot be trusted"
    assert b"Connection: close" in answer
    # Of a body, the part before the mistake may have gone on; it never became a whole request.
    assert not RECEIVED or "chunk" in what


@pytest.mark.parametrize("path", ["/user%2fada/", "/user//ada/", "//user/ada/", "/user/ada%2f", "/user/%61da%00/"])
async def test_a_prefix_is_matched_as_it_is_spelled(bench: Bench, path: str) -> None:
    """What is routed is what is forwarded: no spelling finds a route that the upstream would read otherwise."""
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nCookie: {bench.ada.cookie['Cookie']}\r\n\r\n"
    assert (await bench.raw(request.encode())).split(b" ")[1] in (b"400", b"403", b"404")
    assert not RECEIVED


async def test_heads_have_a_limit(bench: Bench) -> None:
    for head in (
        f"{GET}X: {'x' * HEAD_BYTES_MAX}\r\n\r\n",
        f"GET /user/ada/?{'x' * HEAD_BYTES_MAX} HTTP/1.1\r\nHost: x\r\n\r\n",
        GET + "".join(f"X-{i}: x\r\n" for i in range(129)) + "\r\n",
        GET + "".join(f"X-{i}: {'x' * 100}\r\n" for i in range(100)) + "\r\n",
    ):
        answer = await bench.raw(head.encode())
        assert answer.startswith(b"HTTP/1.1 431 "), answer
        body = answer.partition(b"\r\n\r\n")[2]
        assert "larger than 8192 bytes" in body.decode() or "more than 128 headers" in body.decode()
    endless = await bench.raw(f"{GET}X: {'x' * 3 * HEAD_BYTES_MAX}".encode())
    assert endless.startswith(b"HTTP/1.1 431 "), "nobody waits for the end of it"
    assert not RECEIVED


async def test_bodies_have_limits(bench: Bench) -> None:
    def post(path: str, framing: str) -> bytes:
        return f"POST {path} HTTP/1.1\r\nHost: x\r\nCookie: {bench.ada.cookie['Cookie']}\r\n{framing}\r\n\r\n".encode()

    told = await bench.raw(post("/user/ada/", f"Content-Length: {BODY_BYTES_MAX + 1}"))
    assert told.startswith(b"HTTP/1.1 413 ")
    assert not RECEIVED
    piece = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    untold = await bench.raw(post("/user/ada/", "Transfer-Encoding: chunked") + piece * 3)
    assert untold.startswith(b"HTTP/1.1 413 ")
    RECEIVED.clear()
    told = await bench.raw(post("/hub/login", f"Content-Length: {2**20 + 1}"))
    assert told.startswith(b"HTTP/1.1 413 ")
    assert not RECEIVED
    fits = post("/user/ada/", f"Content-Length: {BODY_BYTES_MAX}\r\nConnection: close") + bytes(BODY_BYTES_MAX)
    assert b"200 OK" in await bench.raw(fits)


async def test_clients_that_dawdle(bench: Bench) -> None:
    """Slow loris: each byte in time, the whole of it not."""
    reader, writer = await asyncio.open_connection("127.0.0.1", bench.port)
    dripping = asyncio.create_task(drip(writer, GET))
    assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 408 ")
    dripping.cancel()
    writer.close()
    post = POST.replace("/user/ada/", "/user/ada/silent")
    head = f"{post}Cookie: {bench.ada.cookie['Cookie']}\r\nContent-Length: 10\r\n\r\n12345"
    assert (await bench.raw(head.encode())).startswith(b"HTTP/1.1 408 ")


async def drip(writer: asyncio.StreamWriter, text: str) -> None:
    with suppress(OSError):
        for byte in text.encode() + b"X: " + b"x" * 1000:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.05)  # no state to wait for: slowness is what is tested


@pytest.mark.parametrize(
    ("how", "status", "says"),
    [
        ("closes", 503, "No answer came"),
        ("garbage", 502, "not valid HTTP"),
        ("two-lengths", 502, "not valid HTTP"),
        ("split", 502, "not valid HTTP"),
        ("big", 502, "too large"),
        ("silent", 503, "did not answer in time"),
    ],
)
async def test_servers_that_do_not_answer_well(bench: Bench, how: str, status: int, says: str) -> None:
    got, headers, body = await bench.fetch(f"/user/ada/{how}", headers=bench.ada.cookie)
    assert (got, says in body.decode()) == (status, True), body
    assert ("Retry-After" in headers) == (status == 503)
    assert (await bench.fetch("/user/ada/fine", headers=bench.ada.cookie))[0] == 200, "the next request is not affected"


async def test_half_an_answer_does_not_look_like_a_whole_one(bench: Bench) -> None:
    request = f"GET /user/ada/half HTTP/1.1\r\nHost: x\r\nCookie: {bench.ada.cookie['Cookie']}\r\n\r\n"
    with suppress(ConnectionError):
        answer = await bench.raw(request.encode())
        assert len(answer.partition(b"\r\n\r\n")[2]) < 100
        assert answer.count(b"HTTP/1.1") == 1


async def test_a_server_that_refuses(bench: Bench) -> None:
    status, headers, body = await bench.fetch("/user/ada/gone/", headers={**bench.ada.cookie, "Accept": "text/html"})
    assert (status, headers["Retry-After"]) == (503, "2")
    assert b"This server cannot be reached" in body
    assert b"Try again" in body
    status, _, body = await bench.fetch("/user/ada/gone/api", headers=bench.ada.authorization)
    assert (status, json.loads(body)["status"]) == (503, 503), "a program gets JSON"


async def test_what_was_refused_is_counted(bench: Bench) -> None:
    (router,) = bench.routers
    before = await counted(router)
    await bench.raw(b"GARBAGE\r\n\r\n")

    async def is_counted() -> bool:
        return await counted(router) == before + 1

    await eventually(is_counted)


async def counted(router: RouterProcess) -> float:
    text = (await router.ops("/metrics"))[1]
    found = [line for line in text.splitlines() if line.startswith('orrery_router_requests_refused_total{code="400"}')]
    return float(found[0].split()[-1]) if found else 0.0
