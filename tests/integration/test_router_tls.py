"""TLS at the router's own door: real certificates, real handshakes."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from tests.support.backbone import PostgresServer
from tests.support.certificates import Authority
from tests.support.platform import free_port
from tests.support.routers import SECRET_KEY, Bench, RouterProcess, serving
from tests.support.wait import eventually

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("router-tls"),
    pytest.mark.timeout(90),
]

HSTS = "max-age=31536000"


class Edge:
    """A router with TLS, and what clients need to know of it."""

    def __init__(self, bench: Bench, root: Path) -> None:
        self.bench, self.root = bench, root
        self.authority = Authority(root)
        self.port, self.redirect_port = free_port(), free_port()
        self.pairs = [
            self.authority.issue("first", "127.0.0.1", "localhost"),
            self.authority.issue("second", "hub.example.org", "*.apps.example.org"),
        ]
        self.trusting = self.authority.trusting()
        self.router: RouterProcess

    def environment(self) -> dict[str, str]:
        return {
            "ORRERY_PORT": str(self.port),
            "ORRERY_TLS_CERT_FILES": ",".join(str(cert) for cert, _ in self.pairs),
            "ORRERY_TLS_KEY_FILES": ",".join(str(key) for _, key in self.pairs),
            "ORRERY_REDIRECT_PORT": str(self.redirect_port),
            "ORRERY_HSTS_MAX_AGE_S": "31536000",
            "ORRERY_TLS_HANDSHAKE_TIMEOUT_S": "1",
            "ORRERY_CONNECTIONS_MAX": "40",
        }

    async def connect(
        self, *, name: str = "localhost", context: ssl.SSLContext | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=context or self.trusting, server_hostname=name, limit=2**22
        )

    async def shown(self, name: str = "localhost") -> int:
        """The serial number of the certificate that is shown for a name."""
        _, writer = await self.connect(name=name)
        try:
            return serial_of(writer)
        finally:
            writer.close()

    async def fetch(self, path: str, *, headers: dict[str, str] | None = None, method: str = "GET") -> Any:
        """Status, headers and body."""
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self.trusting, force_close=True)) as http,
            http.request(
                method,
                f"https://127.0.0.1:{self.port}{path}",
                headers={**self.bench.ada.cookie, **(headers or {})},
                allow_redirects=False,
            ) as answer,
        ):
            return answer.status, answer.headers, await answer.read()


def serial_of(writer: asyncio.StreamWriter) -> int:
    certificate = writer.get_extra_info("ssl_object").getpeercert()
    return int(certificate["serialNumber"], 16)


async def echo(request: web.Request) -> web.Response:
    body = await request.read()
    headers = {"Strict-Transport-Security": "max-age=1"} if "hsts" in request.query else {}
    return web.json_response(
        {"headers": [list(h) for h in request.headers.items()], "length": len(body)}, headers=headers
    )


async def websocket(request: web.Request) -> web.WebSocketResponse:
    ws = web.WebSocketResponse(max_msg_size=0)
    await ws.prepare(request)
    async for message in ws:
        await ws.send_bytes(message.data)
    return ws


async def download(request: web.Request) -> web.Response:
    return web.Response(body=bytes(range(256)) * 4096 * 16)


def application() -> web.Application:
    app = web.Application(client_max_size=2**26)
    app.router.add_get("/user/ada/ws", websocket)
    app.router.add_get("/user/ada/big", download)
    app.router.add_route("*", "/{path:.*}", echo)
    return app


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> AsyncIterator[Edge]:
    root = tmp_path_factory.mktemp("tls")
    url = await postgres.create_database(migrated=True)
    async with Bench.open(root, url) as bench, serving(application()) as server:
        await bench.route(server)
        edge = Edge(bench, root)
        edge.router = await bench.router("tls", **edge.environment())
        yield edge
    await postgres.drop_database(url)


async def test_a_server_is_told_that_its_visitor_came_by_tls(edge: Edge) -> None:
    status, _, body = await edge.fetch("/user/ada/x")
    headers = dict(json.loads(body)["headers"])
    assert status == 200
    assert headers["X-Forwarded-Proto"] == "https"
    assert headers["X-Forwarded-Port"] == str(edge.port)
    assert headers["X-Forwarded-For"] == "127.0.0.1"


async def test_a_page_of_the_same_origin_may_act_and_its_plain_twin_may_not(edge: Edge) -> None:
    here = f"https://127.0.0.1:{edge.port}"
    assert (await edge.fetch("/user/ada/x", method="POST", headers={"Origin": here}))[0] == 200
    plain = f"http://127.0.0.1:{edge.port}"
    assert (await edge.fetch("/user/ada/x", method="POST", headers={"Origin": plain}))[0] == 403


async def test_every_answer_by_tls_says_that_it_stays_so(edge: Edge) -> None:
    for path in ("/user/ada/x", "/nowhere", "/", "/user/ada/x?hsts"):
        status, headers, _ = await edge.fetch(path)
        # A browser heeds the first and no other (RFC 6797 §8.1).
        assert headers.getall("Strict-Transport-Security")[0] == HSTS, (path, status)
    reader, writer = await edge.connect()
    writer.write(b"GET / HTTP/9.9\r\n\r\n")
    assert b"\r\nStrict-Transport-Security: " + HSTS.encode() in await asyncio.wait_for(reader.read(), 10)
    writer.close()


async def test_a_websocket_and_much_data_pass(edge: Edge) -> None:
    connector = aiohttp.TCPConnector(ssl=edge.trusting)
    async with aiohttp.ClientSession(connector=connector, headers=edge.bench.ada.cookie) as http:
        url = f"https://127.0.0.1:{edge.port}/user/ada/"
        async with http.ws_connect(url + "ws", max_msg_size=0) as ws:
            for size in (1, 2**16, 2**21):
                await ws.send_bytes(b"x" * size)
                assert len(await ws.receive_bytes()) == size
        async with http.get(url + "big") as answer:
            assert len(await answer.read()) == 2**24
        async with http.post(url + "up", data=io.BytesIO(b"y" * 2**24)) as answer:
            assert (await answer.json())["length"] == 2**24


async def test_the_name_that_is_asked_for_chooses_the_certificate(edge: Edge) -> None:
    first, second = await edge.shown("localhost"), await edge.shown("hub.example.org")
    assert first != second
    assert await edge.shown("x.apps.example.org") == second
    with pytest.raises(ssl.SSLCertVerificationError):
        await edge.shown("y.x.apps.example.org")


@pytest.mark.parametrize(
    ("lowest", "highest", "passes"),
    [
        (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3, True),
    ],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_old_versions_are_not_spoken(
    edge: Edge, lowest: ssl.TLSVersion, highest: ssl.TLSVersion, passes: bool
) -> None:
    context = edge.authority.trusting()
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version, context.maximum_version = lowest, highest
    if passes:
        _, writer = await edge.connect(context=context)
        writer.close()
    else:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await edge.connect(context=context)


async def test_new_files_are_taken_while_connections_go_on(edge: Edge) -> None:
    before = await edge.shown()
    reader, writer = await edge.connect()
    edge.authority.issue("first", "127.0.0.1", "localhost", days=2)

    async def changed() -> bool:
        return await edge.shown() != before

    await eventually(changed)
    writer.write(f"GET /user/ada/x HTTP/1.1\r\nHost: x\r\nCookie: {edge.bench.ada.cookie['Cookie']}\r\n\r\n".encode())
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    assert serial_of(writer) == before, "the connection that was open is the old one"
    writer.close()


async def test_broken_files_change_nothing_until_they_are_put_right(edge: Edge) -> None:
    before = await edge.shown()
    cert_file, key_file = edge.pairs[0]
    kept = cert_file.with_suffix(".kept")
    shutil.copy(cert_file, kept)
    refused = [line for line in edge.router.lines() if line["event"] == "tls_files_refused"]

    def is_refused_again() -> bool:
        now = [line for line in edge.router.lines() if line["event"] == "tls_files_refused"]
        return len(now) > len(refused)

    for broken in (b"not a certificate", (edge.root / "second.pem").read_bytes()):
        cert_file.write_bytes(broken)
        await eventually(is_refused_again)
        refused = [line for line in edge.router.lines() if line["event"] == "tls_files_refused"]
        assert "put right" in refused[-1]["consequence"]
        assert await edge.shown() == before
    assert "the key is not the certificate's" in refused[-1]["reason"]
    key_file.unlink()
    await eventually(is_refused_again)
    assert await edge.shown() == before
    edge.authority.issue("first", "127.0.0.1", "localhost")

    async def changed() -> bool:
        return await edge.shown() != before

    await eventually(changed)


async def test_a_handshake_that_goes_nowhere_is_ended_and_counted(edge: Edge) -> None:
    before = await refused(edge, "tls")
    silent = await asyncio.open_connection("127.0.0.1", edge.port)
    plain = await asyncio.open_connection("127.0.0.1", edge.port)
    plain[1].write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    began = time.monotonic()
    for reader, writer in (plain, silent):
        with suppress(ConnectionError):
            assert not (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP")
        writer.close()
    assert 0.5 < time.monotonic() - began < 9, "by then and not before"
    await eventually(lambda: at_least(edge, "tls", before + 2))


async def test_handshakes_count_among_the_connections(edge: Edge) -> None:
    silent = [await asyncio.open_connection("127.0.0.1", edge.port) for _ in range(40)]
    with pytest.raises((ConnectionError, ssl.SSLError)):
        await edge.connect()
    assert await refused(edge, "connections") >= 1
    for _, writer in silent:
        writer.close()

    async def passes() -> bool:
        try:
            return await edge.shown() > 0
        except (ConnectionError, ssl.SSLError):
            return False

    await eventually(passes)


async def refused(edge: Edge, code: str) -> float:
    _, text = await edge.router.ops("/metrics")
    wanted = f'orrery_router_requests_refused_total{{code="{code}"}} '
    return sum(float(line.removeprefix(wanted)) for line in text.splitlines() if line.startswith(wanted))


async def at_least(edge: Edge, code: str, count: float) -> bool:
    return await refused(edge, code) >= count


@pytest.mark.parametrize(
    ("request_line", "host", "status", "location"),
    [
        ("GET /a%20b/?x=1&y=%2F", "hub.example.org", 301, "https://hub.example.org:{port}/a%20b/?x=1&y=%2F"),
        ("HEAD /", "hub.example.org:8080", 301, "https://hub.example.org:{port}/"),
        ("POST /x", "[::1]:80", 308, "https://[::1]:{port}/x"),
        ("DELETE /x", "127.0.0.1", 308, "https://127.0.0.1:{port}/x"),
        ("GET http://other.example/x?y", "hub.example.org", 301, "https://other.example:{port}/x?y"),
        ("GET //evil.example/x", "hub.example.org", 301, "https://hub.example.org:{port}//evil.example/x"),
        ("GET /x", "evil/../x", 400, ""),
        ("GET /x", "a\x00b", 400, ""),
        ("OPTIONS *", "hub.example.org", 400, ""),
        ("CONNECT hub.example.org:443", "hub.example.org", 405, ""),
        ("GET /much", "hub.example.org", 431, ""),
    ],
)
async def test_plain_http_is_told_to_come_by_tls(
    edge: Edge, request_line: str, host: str, status: int, location: str
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.redirect_port)
    request_line = request_line.replace("much", "much" * 10_000)
    writer.write(f"{request_line} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\n\r\nhello".encode())
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer
    lines = answer.partition(b"\r\n\r\n")[0].split(b"\r\n")
    wanted = [f"Location: {location.format(port=edge.port)}".encode()] if location else []
    assert [line for line in lines if line.startswith(b"Location:")] == wanted
    assert answer.count(b"HTTP/1.1") == 1, "one answer, and the connection ends"
    assert b"Strict-Transport-Security" not in answer, "which means nothing without TLS"


async def test_only_who_shows_a_certificate_passes_if_it_is_asked_for(edge: Edge) -> None:
    clients = Authority(edge.root, "clients")
    port = free_port()
    cert_file, key_file = edge.authority.issue("third", "127.0.0.1")
    await edge.bench.router(
        "mtls",
        ORRERY_LISTEN=f"https://127.0.0.1:{port}",
        ORRERY_TLS_CERT_FILES=str(cert_file),
        ORRERY_TLS_KEY_FILES=str(key_file),
        ORRERY_TLS_CLIENT_CA_FILE=str(clients.file),
    )

    async def ask(pair: tuple[Path, Path] | None) -> bytes:
        context = edge.authority.trusting(pair)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        try:
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return await asyncio.wait_for(reader.read(), 10)
        finally:
            writer.close()

    assert (await ask(clients.issue("known", "somebody"))).startswith(b"HTTP/1.1 302 ")
    for pair in (None, edge.authority.issue("stranger", "somebody")):
        try:
            answer = await ask(pair)
        except (ssl.SSLError, ConnectionError):
            continue
        assert answer == b"", "nothing was asked of the router"


async def test_what_cannot_work_is_said_at_start(edge: Edge) -> None:
    router = edge.bench.launch("wrong", ORRERY_PORT="0", ORRERY_TLS_CERT_FILES=str(edge.root / "nowhere.pem"))
    assert await asyncio.to_thread(router.process.wait, 30) == 1
    assert "nowhere.pem: No such file" in router.log
    assert SECRET_KEY not in router.log
    assert "Traceback" not in router.log
