"""HTTP/1.1 as a whole, through a real router: framing, interim answers, trailers, expectations, hop-by-hop headers, old
clients and servers. What the server got and what the client got are compared byte by byte where bytes matter."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from tests.support.backbone import PostgresServer
from tests.support.routers import Bench, answering
from tests.support.smuggling.answers import Got, read_answers
from tests.support.wait import eventually

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("router-http11"),
    pytest.mark.timeout(60),
]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """Writes down heads and bodies; answers as it is told by `then`."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.connections = 0
        self.then: Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bool]] = self.usual

    def forget(self) -> None:
        self.heads.clear()
        self.bodies.clear()
        self.then = self.usual

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            if not await self.then(head, reader, writer):
                return

    async def usual(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        self.bodies.append(await body_of(head, reader))
        writer.write(answer_to(head))
        return True

    def says(self, answer: bytes, *, closes: bool = False) -> None:
        """Every request gets these bytes."""

        async def then(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
            self.bodies.append(await body_of(head, reader))
            writer.write(answer)
            await writer.drain()
            return not closes

        self.then = then


def answer_to(head: bytes) -> bytes:
    """200 with the request line as its body; none to HEAD."""
    line = head.partition(b"\r\n")[0]
    body = b"" if line.startswith(b"HEAD") else line
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(line), body)


async def body_of(head: bytes, reader: asyncio.StreamReader) -> bytes:
    """As framed: chunks stay as they are, up to and with the trailers."""
    if length := header(head, b"content-length"):
        return await reader.readexactly(int(length[0]))
    if not header(head, b"transfer-encoding"):
        return b""
    body = b""
    while not body.endswith(b"0\r\n"):
        size = await reader.readuntil(b"\r\n")
        body += size
        if int(size, 16):
            body += await reader.readexactly(int(size, 16) + 2)
    while not body.endswith(b"\r\n\r\n"):
        body += await reader.readuntil(b"\r\n")
    return body


def header(head: bytes, name: bytes) -> list[bytes]:
    return re.findall(rb"(?im)^" + name + rb":[ \t]*([^\r]*)", head)


SERVER = Server()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> AsyncIterator[Bench]:
    root: Path = tmp_path_factory.mktemp("http11")
    url = await postgres.create_database(migrated=True)
    async with Bench.open(root, url) as bench, answering(SERVER.connection) as server:
        await bench.route(server)
        await bench.router()
        yield bench
    await postgres.drop_database(url)


@pytest.fixture(autouse=True)
def _forget() -> None:
    SERVER.forget()


def request(bench: Bench, line: str, *headers: str, body: bytes = b"", last: bool = True) -> bytes:
    """`line`: method, path below ada's, and the version if it is not 1.1."""
    method, path, *version = line.split(" ")
    lines = [f"{method} /user/ada/{path} {version[0] if version else 'HTTP/1.1'}", "Host: x"]
    lines += [f"Cookie: {bench.ada.cookie['Cookie']}", *headers]
    lines += ["Connection: close"] if last else []
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


async def ask(bench: Bench, line: str, *headers: str, body: bytes = b"", last: bool = True) -> Got:
    """The one answer to one request."""
    raw = await bench.raw(request(bench, line, *headers, body=body, last=last))
    (got,) = read_answers(raw, [line.partition(" ")[0]])
    return got


CHUNKS = b"2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n"
BODIES = {
    "nothing": ([], b"", b""),
    "length": (["Content-Length: 5"], b"abcde", b"abcde"),
    "zero": (["Content-Length: 0"], b"", b""),
    "chunks": (["Transfer-Encoding: chunked"], CHUNKS, CHUNKS),
    "no chunks": (["Transfer-Encoding: chunked"], b"0\r\n\r\n", b"0\r\n\r\n"),
}


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "REPORT"])
async def test_every_method_with_and_without_a_body(bench: Bench, method: str) -> None:
    for what, (headers, sent, got) in BODIES.items():
        SERVER.forget()
        answer = await ask(bench, f"{method} x?y", *headers, body=sent)
        assert answer.status == 200, what
        assert (answer.body == b"") == (method == "HEAD")
        assert SERVER.heads[0].startswith(f"{method} /user/ada/x?y HTTP/1.1\r\n".encode())
        assert SERVER.bodies == [got], what
        if what == "nothing" and method in ("POST", "PUT", "PATCH"):
            assert header(SERVER.heads[0], b"content-length") == [b"0"], "so that nobody waits for one"


async def test_pipelined_requests_with_bodies_of_every_kind(bench: Bench) -> None:
    kinds = list(itertools.product(("GET", "POST", "HEAD", "PUT"), BODIES)) * 2
    sent, methods = b"", []
    for number, (method, what) in enumerate(kinds):
        headers, body, _ = BODIES[what]
        methods.append(method)
        sent += request(bench, f"{method} {number}", *headers, body=body, last=number == len(kinds) - 1)
    answers = read_answers(await bench.raw(sent), methods)
    assert len(answers) == len(kinds)
    wanted = [b"" if m == "HEAD" else f"{m} /user/ada/{n} HTTP/1.1".encode() for n, (m, _) in enumerate(kinds)]
    assert [answer.body for answer in answers] == wanted, "in order"
    assert SERVER.bodies == [BODIES[what][2] for _, what in kinds]


async def test_a_request_that_comes_byte_by_byte(bench: Bench) -> None:
    headers, body, got = BODIES["chunks"]
    reader, writer = await asyncio.open_connection("127.0.0.1", bench.port)
    writer.transport.get_extra_info("socket").setsockopt(6, 1, 1)
    for byte in request(bench, "POST drip", *headers, "X: y", body=body):
        writer.write(bytes([byte]))
        await asyncio.sleep(0)
    (answer,) = read_answers(await reader.read(), ["POST"])
    assert answer.status == 200
    assert SERVER.bodies[0].replace(b"1\r\nc\r\n1\r\nd\r\n1\r\ne\r\n", b"3\r\ncde\r\n").endswith(b"0\r\n\r\n")
    assert b"".join(re.findall(rb"[0-9]\r\n([a-e]+)\r\n", SERVER.bodies[0])) == b"abcde"
    assert got
    writer.close()


async def test_an_answer_that_comes_byte_by_byte(bench: Bench) -> None:
    for raw, body in (
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde", b"abcde"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n3\r\ncde\r\n0\r\nX-T: z\r\n\r\n", b"abcde"),
        (b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", b""),
    ):

        async def drip(
            head: bytes,
            reader: asyncio.StreamReader,
            writer: asyncio.StreamWriter,
            raw: bytes = raw,
        ) -> bool:
            writer.transport.get_extra_info("socket").setsockopt(6, 1, 1)
            for byte in raw:
                writer.write(bytes([byte]))
                await asyncio.sleep(0)
            return True

        SERVER.then = drip
        assert (await ask(bench, "GET x")).body == body


async def test_trailers_of_a_request_go_on(bench: Bench) -> None:
    trailers = (
        b"X-Checksum: 5\r\nAuthorization: x\r\nX-Forwarded-For: 1.2.3.4\r\nCookie: a=b\r\nHost: y\r\n"
        b"X_Request_Id: z\r\n"
    )
    body = b"5\r\nabcde\r\n0\r\n" + trailers + b"\r\n"
    answer = await ask(bench, "POST x", "Transfer-Encoding: chunked", "Trailer: X-Checksum", body=body)
    assert answer.status == 200
    assert SERVER.bodies[0].startswith(b"5\r\nabcde\r\n0\r\n")
    assert b"X-Checksum: 5\r\n" in SERVER.bodies[0]
    for name in (b"authorization", b"x-forwarded-for", b"cookie", b"host", b"x_request_id"):
        assert name + b":" not in SERVER.bodies[0].lower(), "nothing that says who asks or from where"


async def test_trailers_of_an_answer_go_on(bench: Bench) -> None:
    SERVER.says(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Checksum\r\n\r\n5\r\nabcde\r\n0\r\n"
        b"X-Checksum: 5\r\nSet-Cookie: a=b\r\n\r\n"
    )
    got = await ask(bench, "GET x")
    assert (got.body, got.trailers) == (b"abcde", [(b"x-checksum", b"5")])


async def test_a_server_that_wants_a_body_says_so(bench: Bench) -> None:
    async def then(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        assert header(head, b"expect") == [b"100-continue"]
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        SERVER.bodies.append(await body_of(head, reader))
        writer.write(OK)
        return True

    SERVER.then = then
    reader, writer = await asyncio.open_connection("127.0.0.1", bench.port)
    writer.write(request(bench, "PUT x", "Expect: 100-continue", "Content-Length: 5"))
    assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5) == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"abcde")
    (got,) = read_answers(await reader.read(), ["PUT"])
    assert (got.status, SERVER.bodies) == (200, [b"abcde"])
    writer.close()


async def test_a_server_that_does_not_want_a_body_says_so(bench: Bench) -> None:
    """417: the client, who does not send its body, gets the answer, and its connection can carry nothing more."""

    async def then(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n")
        SERVER.bodies.append(await reader.read())
        return False

    SERVER.then = then
    raw = await bench.raw(request(bench, "PUT x", "Expect: 100-continue", "Content-Length: 60", last=False))
    (got,) = read_answers(raw, ["PUT"])
    assert (got.status, got.values(b"connection")) == (417, [b"close"])
    await eventually(lambda: SERVER.bodies)
    assert len(SERVER.heads) == 1


async def test_an_answer_before_the_whole_request(bench: Bench) -> None:
    """The client learns of it while it still sends, and neither connection is used again."""

    async def then(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await reader.read()
        return False

    SERVER.then = then
    before = SERVER.connections
    reader, writer = await asyncio.open_connection("127.0.0.1", bench.port)
    writer.write(request(bench, "PUT x", "Content-Length: 100000000", last=False) + bytes(1000))
    (got,) = read_answers(await asyncio.wait_for(reader.read(), 10), ["PUT"])
    assert (got.status, got.body, got.values(b"connection")) == (413, b"big", [b"close"])
    writer.close()
    SERVER.forget()
    assert (await ask(bench, "GET y")).status == 200
    assert SERVER.connections > before


async def test_interim_answers_go_on(bench: Bench) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </x.css>; rel=preload\r\n\r\n"
    SERVER.says(hints + b"HTTP/1.1 102 Processing\r\n\r\n" + hints + OK)
    got = await ask(bench, "GET x")
    assert (got.informational, got.status, got.body) == ((103, 102, 103), 200, b"ok")
    raw = await bench.raw(request(bench, "GET x HTTP/1.0"))
    assert raw.startswith(b"HTTP/1.1 200 OK\r\n"), "HTTP/1.0 knows none"


async def test_headers_of_one_connection_end_there(bench: Bench) -> None:
    SERVER.says(
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive, X-Own\r\nKeep-Alive: timeout=5\r\n"
        b"X-Own: 1\r\nProxy-Authenticate: x\r\nUpgrade: h2c\r\nTrailer: X\r\nX-Stays: 1\r\n\r\nok"
    )
    own = (
        "Connection: X-Mine, keep-alive",
        "X-Mine: 1",
        "Keep-Alive: timeout=5",
        "Proxy-Connection: x",
        "TE: trailers",
    )
    got = await ask(bench, "GET x", *own, "Proxy-Authorization: x", "X-Stays: 1")
    names = {name for name, _ in got.headers}
    assert names == {b"content-length", b"x-stays", b"connection"}
    assert got.values(b"connection") == [b"close"], "ours"
    for name in (b"x-mine", b"keep-alive", b"proxy-connection", b"te", b"proxy-authorization", b"connection"):
        assert header(SERVER.heads[0], name) == [], name
    assert header(SERVER.heads[0], b"x-stays") == [b"1"]


async def test_nobody_takes_our_own_headers_away(bench: Bench) -> None:
    await ask(bench, "GET x", "Connection: X-Forwarded-For, X-Request-Id, Authorization, Host, Content-Length")
    for name in (b"x-forwarded-for", b"x-request-id", b"authorization", b"host"):
        assert len(header(SERVER.heads[0], name)) == 1, name


async def test_what_frames_an_answer_is_not_taken_away(bench: Bench) -> None:
    """Else a server could swallow what its visitor's connection brings next."""
    SERVER.says(b"HTTP/1.1 200 OK\r\nConnection: Content-Length\r\nContent-Length: 2\r\n\r\nok")
    raw = await bench.raw(request(bench, "GET 1", last=False) + request(bench, "GET 2"))
    assert [got.body for got in read_answers(raw, ["GET", "GET"])] == [b"ok", b"ok"]


@pytest.mark.parametrize("status", [204, 304])
async def test_answers_without_a_body_keep_connections(bench: Bench, status: int) -> None:
    SERVER.says(f"HTTP/1.1 {status} x\r\nETag: y\r\n\r\n".encode())
    before = SERVER.connections
    raw = await bench.raw(b"".join(request(bench, f"GET {n}", last=n == 4) for n in range(5)))
    answers = read_answers(raw, ["GET"] * 5)
    assert [(got.status, got.body) for got in answers] == [(status, b"")] * 5
    assert not any(got.values(b"transfer-encoding") for got in answers)
    assert SERVER.connections <= before + 1


async def test_old_clients_and_old_servers(bench: Bench) -> None:
    answers = {
        b"HTTP/1.0 200 OK\r\n\r\nabcde": True,
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nabcde": True,
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nabcde": False,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n": False,
        b"HTTP/1.1 200 OK\r\n\r\nabcde": True,
    }
    for answer, closes in answers.items():
        for version, keeps in itertools.product(("HTTP/1.0", "HTTP/1.1"), (True, False)):
            SERVER.says(answer, closes=closes)
            own = "Connection: keep-alive" if keeps else "Connection: close"
            if version == "HTTP/1.1" and keeps:
                raw = await bench.raw(request(bench, "GET 1", own, last=False) + request(bench, "GET 2"))
                got = read_answers(raw, ["GET", "GET"])
                assert [one.body for one in got] == [b"abcde"] * 2
            else:
                raw = await bench.raw(request(bench, f"GET 1 {version}", own, last=False))
                (one,) = read_answers(raw, ["GET"])
                assert (one.body, one.values(b"connection")) == (b"abcde", [b"close"]), (answer, version)
            if version == "HTTP/1.0":
                assert b"chunked" not in raw


async def test_targets_in_absolute_form(bench: Bench) -> None:
    for method in ("GET", "POST"):
        SERVER.forget()
        text = f"{method} HTTP://Other.example:81/user/ada/x?y=http://z/ HTTP/1.1\r\nHost: x\r\n"
        raw = await bench.raw(f"{text}Cookie: {bench.ada.cookie['Cookie']}\r\nConnection: close\r\n\r\n".encode())
        assert raw.startswith(b"HTTP/1.1 200 ")
        assert SERVER.heads[0].startswith(f"{method} /user/ada/x?y=http://z/ HTTP/1.1\r\n".encode())
        assert header(SERVER.heads[0], b"host") == [b"Other.example:81"], "not Host (RFC 9112, section 3.2.2)"
        assert header(SERVER.heads[0], b"x-forwarded-host") == [b"Other.example:81"]


@pytest.mark.parametrize("protocol", ["h2c", "TLS/1.0", "IRC/6.9, RTA/x11", "foo", "websocket/13"])
async def test_other_upgrades_are_refused_cleanly(bench: Bench, protocol: str) -> None:
    got = await ask(bench, "GET x", "Connection: Upgrade", f"Upgrade: {protocol}", last=False)
    assert (got.status, got.values(b"connection")) == (400, [b"close"])
    assert not SERVER.heads


async def test_a_client_library_and_ours_understand_each_other(bench: Bench) -> None:
    """aiohttp on one connection: everything in turn."""
    connector = aiohttp.TCPConnector(limit=1)
    async with aiohttp.ClientSession(connector=connector, headers=bench.ada.cookie) as http:
        for number in range(50):
            data = bytes(number * 100) if number % 2 else None
            async with http.request("POST" if data else "GET", f"{bench.url}/user/ada/{number}", data=data) as answer:
                assert answer.status == 200
                assert (await answer.read()).endswith(b"/user/ada/%d HTTP/1.1" % number)
