"""Long streams: WebSockets and Server-Sent Events that last, uploads and downloads of any size, slow readers.

In constant memory, and without a timeout where there must be none."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import psutil
import pytest
import pytest_asyncio
from aiohttp import web

from tests.support.backbone import PostgresServer
from tests.support.routers import Bench, serving
from tests.support.wait import eventually

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("router-streams"),
    pytest.mark.timeout(120),
]

MIB, GB = 2**20, 10**9
RSS_MORE_MAX = 24 * MIB
PIECE = bytes(range(256)) * 1024
BOUND_S = "0.5"
"""Of everything that has one: what outlives it is not bound by it."""


async def websocket(request: web.Request) -> web.WebSocketResponse:
    ws = web.WebSocketResponse(max_msg_size=0, protocols=("chat", "superchat"), compress="compress" in request.query)
    await ws.prepare(request)
    async for message in ws:
        if message.data == "close":
            await ws.close(code=4321, message=b"as you wish")
        elif message.data == "flood":
            while not ws.closed:
                await ws.send_bytes(PIECE)
                SENT.append(len(PIECE))
        elif message.type is aiohttp.WSMsgType.TEXT:
            await ws.send_str(message.data)
        else:
            await ws.send_bytes(message.data)
    CLOSES.append(ws.close_code)
    return ws


async def deaf(request: web.Request) -> web.WebSocketResponse:
    """A server that reads nothing until it is let go."""
    ws = web.WebSocketResponse(max_msg_size=0)
    await ws.prepare(request)
    if request.transport is not None:
        request.transport.pause_reading()
    await LET_GO.wait()
    return ws


async def events(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for number in range(int(request.query["count"])):
        await TICKS.get()
        await response.write(f"id: {number}\ndata: tick\n\n".encode())
    return response


async def download(request: web.Request) -> web.StreamResponse:
    size = int(request.query["size"])
    response = web.StreamResponse()
    if "length" in request.query:
        response.content_length = size
    await response.prepare(request)
    for _ in range(size // len(PIECE)):
        await response.write(PIECE)
    return response


async def upload(request: web.Request) -> web.Response:
    total = 0
    async for piece in request.content.iter_any():
        total += len(piece)
    return web.json_response({"total": total})


SENT: list[int] = []
CLOSES: list[int | None] = []
TICKS: asyncio.Queue[None] = asyncio.Queue()
LET_GO = asyncio.Event()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> AsyncIterator[Bench]:
    root: Path = tmp_path_factory.mktemp("streams")
    url = await postgres.create_database(migrated=True)
    app = web.Application(client_max_size=0)
    app.router.add_get("/user/ada/ws", websocket)
    app.router.add_get("/user/ada/deaf", deaf)
    app.router.add_get("/user/ada/events", events)
    app.router.add_get("/user/ada/download", download)
    app.router.add_route("*", "/user/ada/upload", upload)
    async with Bench.open(root, url) as bench, serving(app) as server:
        await bench.route(server)
        await bench.router(
            ORRERY_IDLE_TIMEOUT_S=BOUND_S, ORRERY_BODY_TIMEOUT_S=BOUND_S, ORRERY_HEADER_TIMEOUT_S=BOUND_S,
            ORRERY_UPSTREAM_RESPONSE_TIMEOUT_S="5",
        )  # fmt: skip
        yield bench
    await postgres.drop_database(url)


@pytest_asyncio.fixture(loop_scope="module")
async def http(bench: Bench) -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=None, sock_read=60)
    async with aiohttp.ClientSession(headers={**bench.ada.cookie, "Origin": bench.url}, timeout=timeout) as http:
        yield http


class Memory:
    """How much the router has grown since."""

    def __init__(self, bench: Bench) -> None:
        self._process = psutil.Process(bench.routers[0].pid)
        self._before, self._most = self._process.memory_info().rss, 0

    def look(self) -> int:
        self._most = max(self._most, self._process.memory_info().rss - self._before)
        return self._most


async def test_a_message_of_64_mib(bench: Bench, http: aiohttp.ClientSession) -> None:
    memory = Memory(bench)
    message = os.urandom(MIB) * 64
    async with http.ws_connect(f"{bench.url}/user/ada/ws", max_msg_size=0) as ws:
        sending = asyncio.create_task(ws.send_bytes(message))
        got = await ws.receive(60)
        await sending
        assert hashlib.sha256(got.data).digest() == hashlib.sha256(message).digest()
    assert memory.look() < RSS_MORE_MAX


async def test_what_two_ends_agree_on_is_theirs(bench: Bench, http: aiohttp.ClientSession) -> None:
    """Subprotocol, compression, fragments, ping and pong, close codes: the router has no part in them."""
    url = f"{bench.url}/user/ada/ws?compress"
    async with http.ws_connect(url, protocols=("superchat",), compress=15, autoping=False) as ws:
        assert (ws.protocol, ws.compress) == ("superchat", 15)
        await ws.send_str("x" * 100_000)
        assert (await ws.receive(5)).data == "x" * 100_000
        for size in (0, 1, 125, 126, 65535, 65536):
            await ws.send_bytes(bytes(size))
            assert (await ws.receive(5)).data == bytes(size), size
        await ws.ping(b"are you there")
        pong = await ws.receive(5)
        assert (pong.type, pong.data) == (aiohttp.WSMsgType.PONG, b"are you there")
        await ws.send_str("close")
        closed = await ws.receive(5)
        assert (closed.type, closed.data, closed.extra) == (aiohttp.WSMsgType.CLOSE, 4321, "as you wish")
    CLOSES.clear()
    async with http.ws_connect(f"{bench.url}/user/ada/ws") as ws:
        await ws.close(code=3456)
    await eventually(lambda: 3456 in CLOSES)


async def test_fragments_stay_fragments(bench: Bench) -> None:
    """Byte by byte: text in three frames with a ping between them."""
    reader, writer = await asyncio.open_connection("127.0.0.1", bench.port)
    writer.write(
        f"GET /user/ada/ws HTTP/1.1\r\nHost: {bench.host}\r\nCookie: {bench.ada.cookie['Cookie']}\r\n"
        "Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
    mask = b"\0\0\0\0"  # of a client's frames; this one changes nothing
    frames = (b"\x01\x82" + mask + b"ab", b"\x00\x81" + mask + b"c", b"\x89\x80" + mask, b"\x80\x82" + mask + b"de")
    for byte in b"".join(frames):
        writer.write(bytes([byte]))
        await writer.drain()
    assert await asyncio.wait_for(reader.readexactly(9), 5) == b"\x8a\x00\x81\x05abcde"
    writer.close()


async def test_idle_websockets_are_kept(bench: Bench, http: aiohttp.ClientSession) -> None:
    """For longer than every bound of an HTTP connection."""
    async with http.ws_connect(f"{bench.url}/user/ada/ws") as ws:
        idle, writer = await asyncio.open_connection("127.0.0.1", bench.port)
        for _ in range(2):  # Connections between two requests end meanwhile.
            assert await asyncio.wait_for(idle.read(), 10) == b""
            writer.close()
            idle, writer = await asyncio.open_connection("127.0.0.1", bench.port)
        writer.close()
        await ws.send_str("still there")
        assert (await ws.receive(5)).data == "still there"


async def test_events_for_long(bench: Bench, http: aiohttp.ClientSession) -> None:
    """Each arrives when it is sent, however long the pauses, and the router keeps none."""
    count = 3000
    memory = Memory(bench)
    async with http.get(f"{bench.url}/user/ada/events?count={count}") as answer:
        for number in range(count):
            if number == 1:  # A pause longer than the bounds.
                idle, writer = await asyncio.open_connection("127.0.0.1", bench.port)
                assert await asyncio.wait_for(idle.read(), 10) == b""
                writer.close()
            TICKS.put_nowait(None)
            assert await answer.content.readuntil(b"\n\n") == f"id: {number}\ndata: tick\n\n".encode()
        assert await answer.content.read() == b""
    assert memory.look() < 8 * MIB


async def test_a_slow_reader_of_a_websocket_slows_its_server_down(bench: Bench, http: aiohttp.ClientSession) -> None:
    memory = Memory(bench)
    SENT.clear()
    async with http.ws_connect(f"{bench.url}/user/ada/ws", max_msg_size=0) as ws:
        await ws.send_str("flood")
        await eventually(lambda: SENT)
        transport = ws.get_extra_info("socket")
        assert transport is not None
        protocol = ws._response.connection.transport  # type: ignore[union-attr]
        protocol.pause_reading()  # type: ignore[union-attr]
        steady = -1

        def stands_still() -> bool:
            nonlocal steady
            still, steady = len(SENT) == steady, len(SENT)
            return still

        await eventually(stands_still, interval_s=0.5, timeout_s=30)
        assert memory.look() < RSS_MORE_MAX
        protocol.resume_reading()  # type: ignore[union-attr]
        await eventually(lambda: len(SENT) > steady)
        protocol.abort()  # type: ignore[union-attr]


async def test_a_slow_server_of_a_websocket_slows_its_client_down(bench: Bench, http: aiohttp.ClientSession) -> None:
    memory = Memory(bench)
    sent = 0
    LET_GO.clear()
    async with http.ws_connect(f"{bench.url}/user/ada/deaf", max_msg_size=0) as ws:

        async def flood() -> None:
            nonlocal sent
            while True:
                await ws.send_bytes(PIECE)
                sent += len(PIECE)

        flooding = asyncio.create_task(flood())
        steady = -1

        def stands_still() -> bool:
            nonlocal steady
            still, steady = sent == steady, sent
            return still and sent > 0

        await eventually(stands_still, interval_s=0.5, timeout_s=30)
        assert sent < 64 * MIB, "the kernel's buffers, not the router's memory"
        assert memory.look() < RSS_MORE_MAX
        flooding.cancel()
        LET_GO.set()
        ws._response.close()


async def through(bench: Bench, http: aiohttp.ClientSession, size: int) -> None:
    """A download and an upload of a size, with a length and in chunks, in constant memory."""
    memory, size = Memory(bench), size // len(PIECE) * len(PIECE)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(size // len(PIECE)):
            yield PIECE

    for more, headers in (("&length=1", {"Content-Length": str(size)}), ("", {})):
        async with http.get(f"{bench.url}/user/ada/download?size={size}{more}") as answer:
            total = 0
            async for got in answer.content.iter_any():
                total += len(got)
                memory.look()
        assert total == size
        async with http.put(f"{bench.url}/user/ada/upload", data=pieces(), headers=headers) as answer:
            assert await answer.json() == {"total": size}
            assert memory.look() < RSS_MORE_MAX, f"{memory.look() / MIB:.1f} MiB more"


async def test_512_mib_each_way_in_constant_memory(bench: Bench, http: aiohttp.ClientSession) -> None:
    await through(bench, http, 512 * MIB)


@pytest.mark.long
@pytest.mark.skipif("ORRERY_TEST_LONG" not in os.environ, reason="make test-long runs it")
@pytest.mark.timeout(1800)
async def test_10_gb_each_way_in_constant_memory(bench: Bench, http: aiohttp.ClientSession) -> None:
    await through(bench, http, 10 * GB)
