"""PROXY protocol in front of a router: real connections, with and without TLS behind the header."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio

from orrery_router.dataplane.proxy_protocol import SIGNATURE
from tests.integration.test_router_tls import application
from tests.support.backbone import PostgresServer
from tests.support.certificates import Authority
from tests.support.platform import free_port
from tests.support.routers import Bench, RouterProcess, serving
from tests.support.wait import eventually

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("router-proxy-protocol"),
    pytest.mark.timeout(90),
]

V1 = b"PROXY TCP4 198.51.100.7 10.0.0.1 51000 443\r\n"
ADDRESSES = socket.inet_aton("198.51.100.8") + socket.inet_aton("10.0.0.1") + (51000).to_bytes(2, "big") + b"\x01\xbb"
V2 = SIGNATURE + b"\x21\x11\x00\x0c" + ADDRESSES
BY_TLS = SIGNATURE + b"\x21\x11\x00\x14" + ADDRESSES + b"\x20\x00\x05\x01\x00\x00\x00\x00"
V6 = (
    SIGNATURE
    + b"\x21\x21\x00\x24"
    + socket.inet_pton(socket.AF_INET6, "2001:db8::9")
    + socket.inet_pton(socket.AF_INET6, "::1")
    + (51000).to_bytes(2, "big")
    + (8443).to_bytes(2, "big")
)
LOCAL = SIGNATURE + b"\x20\x00\x00\x00"
UNIX = SIGNATURE + b"\x21\x31\x00\xd8" + bytes(216)
UNSPECIFIED = SIGNATURE + b"\x21\x00\x00\x03\x04\x00\x00"


class Edge:
    """A router that expects PROXY protocol: plain, by TLS and by unix socket; and one that trusts nobody."""

    def __init__(self, bench: Bench, root: Path) -> None:
        self.bench = bench
        self.plain, self.tls, self.open, self.untrusting, self.redirect = (free_port() for _ in range(5))
        self.path = root / "p.sock"
        self.authority = Authority(root)
        self.pair = self.authority.issue("cert", "127.0.0.1")
        self.router: RouterProcess

    async def start(self) -> None:
        unix = str(self.path).replace("/", "%2F")
        self.router = await self.bench.router(
            "proxied",
            ORRERY_LISTEN=f"http://127.0.0.1:{self.plain},https://127.0.0.1:{self.tls},http+unix://{unix},"
            f"http://127.0.0.1:{self.open}?proxy_protocol=off",
            ORRERY_TLS_CERT_FILES=str(self.pair[0]),
            ORRERY_TLS_KEY_FILES=str(self.pair[1]),
            ORRERY_PROXY_PROTOCOL="true",
            ORRERY_TRUSTED_PROXIES="127.0.0.0/8,unix",
            ORRERY_REDIRECT_PORT=str(self.redirect),
        )
        await self.bench.router("untrusting", ORRERY_LISTEN=f"http://127.0.0.1:{self.untrusting}?proxy_protocol=on")

    def request(self, **headers: str) -> bytes:
        told = {"Host": "hub.example.org", "Connection": "close", **self.bench.ada.cookie, **headers}
        return b"GET /user/ada/x HTTP/1.1\r\n" + b"".join(f"{n}: {v}\r\n".encode() for n, v in told.items()) + b"\r\n"

    async def answer(self, *pieces: bytes, port: int = 0, path: Path | None = None) -> bytes:
        """To these bytes, each sent when the one before must have arrived."""
        if path is not None:
            reader, writer = await asyncio.open_unix_connection(str(path))
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", port or self.plain)
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            return await asyncio.wait_for(reader.read(), 10)
        except ConnectionError:
            return b""
        finally:
            writer.close()

    async def refused(self) -> float:
        _, text = await self.router.ops("/metrics")
        wanted = 'orrery_router_requests_refused_total{code="proxy_protocol"} '
        return sum(float(line.removeprefix(wanted)) for line in text.splitlines() if line.startswith(wanted))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> AsyncIterator[Edge]:
    root = tmp_path_factory.mktemp("pp")
    url = await postgres.create_database(migrated=True)
    async with Bench.open(root, url) as bench, serving(application()) as server:
        await bench.route(server)
        edge = Edge(bench, root)
        await edge.start()
        yield edge
    await postgres.drop_database(url)


def told(answer: bytes) -> dict[str, str]:
    """The headers that the server got."""
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    return dict(json.loads(answer.partition(b"\r\n\r\n")[2])["headers"])


@pytest.mark.parametrize(
    ("header", "address", "proto", "port"),
    [
        (V1, "198.51.100.7", "http", "443"),
        (V2, "198.51.100.8", "http", "443"),
        (BY_TLS, "198.51.100.8", "https", "443"),  # But for that the same as before, the request byte by byte.
        (V6, "2001:db8::9", "http", "8443"),
        (LOCAL, "127.0.0.1", "http", ""),
        (UNIX, "127.0.0.1", "http", ""),
        (UNSPECIFIED, "127.0.0.1", "http", ""),
        (b"PROXY UNKNOWN\r\n", "127.0.0.1", "http", ""),
    ],
)
async def test_a_server_is_told_whom_the_header_names(
    edge: Edge, header: bytes, address: str, proto: str, port: str
) -> None:
    for pieces in ((header + edge.request(),), (header, edge.request()), (header[:7], header[7:], edge.request())):
        got = told(await edge.answer(*pieces))
        assert got["X-Forwarded-For"] == address
        assert got["X-Forwarded-Proto"] == proto
        assert got["X-Forwarded-Port"] == (port or "80"), "a trusted proxy that says nothing else: the usual one"


async def test_the_header_may_come_byte_by_byte(edge: Edge) -> None:
    for header in (V1, V2):
        got = told(await edge.answer(*(bytes([byte]) for byte in header), edge.request()))
        assert got["X-Forwarded-For"].startswith("198.51.100.")


async def test_whom_the_header_names_is_not_believed_for_it(edge: Edge) -> None:
    forged = {"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil.example"}
    got = told(await edge.answer(V1 + edge.request(**forged)))
    assert got["X-Forwarded-For"] == "198.51.100.7"
    assert got["X-Forwarded-Proto"] == "http"
    assert got["X-Forwarded-Host"] == "hub.example.org"
    got = told(await edge.answer(LOCAL + edge.request(**forged)))
    assert got["X-Forwarded-For"] == "6.6.6.6, 127.0.0.1", "the proxy itself is"


@pytest.mark.parametrize("header", [V1, V2])
@pytest.mark.parametrize("at_once", [True, False])
async def test_tls_begins_right_behind_the_header(edge: Edge, header: bytes, at_once: bool) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.tls)
    if at_once:  # Held back by the system until the handshake's first bytes are there, too.
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    writer.write(header)
    await writer.start_tls(edge.authority.trusting(), server_hostname="127.0.0.1")
    writer.write(edge.request())
    got = told(await asyncio.wait_for(reader.read(), 10))
    writer.close()
    assert got["X-Forwarded-For"].startswith("198.51.100.")
    assert (got["X-Forwarded-Proto"], got["X-Forwarded-Port"]) == ("https", "443")


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"PROXY TCP4 198.51.100.7 10.0.0.1 51000 443 5\r\n",
        V1.replace(b"\r\n", b"\n"),
        b"PROXY " + b"x" * 200,
        SIGNATURE + b"\x21\x11\xff\xff" + bytes(100),
        SIGNATURE + b"\x31\x11\x00\x0c" + ADDRESSES,
        V1[:20],
        b"",
    ],
)
async def test_without_a_proper_header_nothing_is_answered(edge: Edge, sent: bytes) -> None:
    before = await edge.refused()
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.plain)
    writer.write(sent)
    if sent in (b"", V1[:20]):
        writer.write_eof()
    with suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 4) == b"", "closed at once"
    writer.close()
    await eventually(lambda: counted(edge, before + 1))


async def counted(edge: Edge, count: float) -> bool:
    return await edge.refused() >= count


async def test_a_header_that_does_not_end_is_not_waited_for_long(edge: Edge) -> None:
    before, began = await edge.refused(), time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.plain)
    writer.write(V1[:20])
    assert await asyncio.wait_for(reader.read(), 20) == b""
    assert 3 < time.monotonic() - began < 15
    writer.close()
    await eventually(lambda: counted(edge, before + 1))


async def test_only_trusted_proxies_are_heard(edge: Edge) -> None:
    assert await edge.answer(V1 + edge.request(), port=edge.untrusting) == b""


async def test_other_listeners_have_their_own_way(edge: Edge) -> None:
    got = told(await edge.answer(V2 + edge.request(), path=edge.path))
    assert got["X-Forwarded-For"] == "198.51.100.8"
    got = told(await edge.answer(edge.request(), port=edge.open))
    assert got["X-Forwarded-For"] == "127.0.0.1"
    assert (await edge.answer(V1 + edge.request(), port=edge.open)).startswith(b"HTTP/1.1 400 ")
    redirected = await edge.answer(V1 + edge.request(), port=edge.redirect)
    assert f"Location: https://hub.example.org:{edge.tls}/user/ada/x".encode() in redirected
