"""Routers come and go under load, and nobody notices: no request is lost, and WebSockets are told why they end."""

from __future__ import annotations

import asyncio
import itertools
import select
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from orrery_events.tasks import end_tasks
from orrery_router.dataplane.handover import ignore_new_connections
from tests.support.routers import Bench, RouterProcess, answering, head_of, serving
from tests.support.smuggling.answers import read_answers
from tests.support.wait import eventually

pytestmark = [pytest.mark.timeout(120)]


@pytest.fixture
async def bench(tmp_path: Path, database_url: str) -> AsyncIterator[Bench]:
    async with Bench.open(tmp_path, database_url) as bench:
        yield bench


async def echo(request: web.Request) -> web.Response:
    return web.Response(text=f"{request.raw_path} {len(await request.read())}")


async def websocket(request: web.Request) -> web.WebSocketResponse:
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    talk: asyncio.Task[None] | None = None
    async for message in ws:
        if message.data == "talk":
            talk = asyncio.create_task(keep_talking(ws))
        else:
            await ws.send_str(str(message.data))
    CLOSED[ws.close_code or 0] += 1
    await end_tasks(*([talk] if talk else []))
    return ws


async def keep_talking(ws: web.WebSocketResponse) -> None:
    with suppress(ConnectionError):
        while True:
            await ws.send_str("hello")
            await asyncio.sleep(0.01)  # no state to wait for: a program that prints


CLOSED: Counter[int] = Counter()
"""How WebSockets ended, as their servers saw it."""


def application() -> web.Application:
    app = web.Application()
    app.router.add_get("/user/ada/ws", websocket)
    app.router.add_route("*", "/{path:.*}", echo)
    return app


class Visitor:
    """A client without any second try: whatever goes wrong is counted. It keeps its connection until it is told that
    this was the last answer."""

    def __init__(self, bench: Bench, *, keeps: bool, method: str, pause_s: float = 0.0) -> None:
        self.bench, self.keeps, self.method, self.pause_s = bench, keeps, method, pause_s
        self.done = self.told_to_go = 0
        self.failures: list[str] = []
        self.connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.numbers = itertools.count()

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                await self.visit(f"/user/ada/{self.method}{next(self.numbers)}")
                self.done += 1
            except (OSError, AssertionError, asyncio.IncompleteReadError) as error:
                self.failures.append(f"{self.method} keeps={self.keeps}: {error!r}")
                self.close()
            await asyncio.sleep(self.pause_s)  # no state to wait for: somebody reads what came
        self.close()

    async def visit(self, path: str) -> None:
        if self.connection is None:
            self.connection = await asyncio.open_connection("127.0.0.1", self.bench.port)
        reader, writer = self.connection
        body = b"x" * 100 if self.method == "POST" else b""
        cookie = self.bench.ada.cookie["Cookie"]
        more = f"Content-Length: {len(body)}\r\n" if body else ""
        more += "" if self.keeps else "Connection: close\r\n"
        writer.write(f"{self.method} {path} HTTP/1.1\r\nHost: x\r\nCookie: {cookie}\r\n{more}\r\n".encode() + body)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        (answer,) = read_answers(head + await reader.readexactly(length), [self.method])
        assert (answer.status, answer.body) == (200, f"{path} {len(body)}".encode()), answer
        if answer.values(b"connection") == [b"close"]:
            self.told_to_go += 1
            self.close()

    def close(self) -> None:
        if self.connection is not None:
            self.connection[1].close()
            self.connection = None


@pytest.mark.slow
async def test_a_rolling_restart_under_load_loses_no_request(bench: Bench) -> None:
    """Old and new connections, safe methods and others, some with pauses; every router is replaced twice."""
    async with serving(application()) as url:
        await bench.route(url)
        routers: dict[str, RouterProcess] = {}
        for slot in ("router-1", "router-2"):
            routers[slot] = await bench.router(slot)
        visitors = [
            Visitor(bench, keeps=keeps, method=method, pause_s=pause_s)
            for keeps, method, pause_s in itertools.product((True, False), ("GET", "POST"), (0.0, 0.01, 0.3))
        ]
        visitors += [Visitor(bench, keeps=False, method="GET") for _ in range(6)]
        stop = asyncio.Event()
        tasks = [asyncio.create_task(visitor.run(stop)) for visitor in visitors]
        for slot in ("router-1", "router-2") * 2:
            before = {id(visitor): visitor.done for visitor in visitors}
            assert await routers[slot].stop() == 0
            routers[slot] = await bench.router(slot)
            await eventually(lambda: all(v.done > before[id(v)] for v in visitors))  # noqa: B023 (awaited at once)
        stop.set()
        await asyncio.gather(*tasks)
    failures = [failure for visitor in visitors for failure in visitor.failures]
    done = sum(visitor.done for visitor in visitors)
    assert not failures, f"{len(failures)} of {done}: {failures[:5]}"
    assert done > 1000
    assert all(visitor.told_to_go for visitor in visitors if visitor.keeps), "old connections were told to go"


def listener(port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind(("127.0.0.1", port))
    made.listen(1024)
    made.settimeout(0.5)
    return made


async def test_no_connection_that_a_listener_was_dealt_is_lost_when_it_closes() -> None:
    """What happens in the moment of closing, drawn out: the kernel's part of a rolling restart."""
    with listener(0) as old, ExitStack() as stack:
        port = old.getsockname()[1]
        new = stack.enter_context(listener(port))

        async def visit() -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                return await reader.read()
            finally:
                writer.close()

        def serve(one: socket.socket, word: bytes) -> int:
            """Answers all who are waiting."""
            for number in itertools.count():
                try:
                    connection = one.accept()[0]
                except TimeoutError:
                    return number
                connection.sendall(word)
                connection.close()
            raise AssertionError

        early = [asyncio.create_task(visit()) for _ in range(100)]
        await eventually(lambda: len(select.select([old, new], [], [], 0)[0]) == 2)
        assert ignore_new_connections(old)
        late = [asyncio.create_task(visit()) for _ in range(100)]
        served = await asyncio.to_thread(serve, old, b"old")
        old.close()
        while served < 200:
            served += await asyncio.to_thread(serve, new, b"new")
        assert set(await asyncio.gather(*early)) == {b"old", b"new"}
        assert set(await asyncio.gather(*late)) == {b"new"}


async def test_websockets_are_told_that_their_router_ends(bench: Bench) -> None:
    """1012, service restart; and not all in the same moment. Servers that speak meanwhile are no hindrance."""
    CLOSED.clear()
    async with serving(application()) as url, aiohttp.ClientSession() as http:
        await bench.route(url)
        router = await bench.router(ORRERY_WEBSOCKET_DRAIN_S="1", ORRERY_DRAIN_TIMEOUT_S="10")
        loop = asyncio.get_running_loop()
        opened = [
            await http.ws_connect(f"{bench.url}/user/ada/ws", headers=bench.ada.cookie, origin=bench.url)
            for _ in range(20)
        ]

        async def end(ws: aiohttp.ClientWebSocketResponse) -> tuple[float, int]:
            async for message in ws:
                assert message.data == "hello"
            return loop.time(), ws.close_code or 0

        for number, ws in enumerate(opened):
            await ws.send_str("hello" if number % 4 else "talk")

        ends = [asyncio.create_task(end(ws)) for ws in opened]
        router.terminate()
        ended = [await one for one in ends]
        assert {code for _, code in ended} == {1012}
        times = sorted(at for at, _ in ended)
        assert 0.5 < times[-1] - times[0] < 8
        assert await asyncio.to_thread(router.process.wait, 10) == 0, router.log
        await eventually(lambda: CLOSED.total() == 20)
        assert set(CLOSED) <= {1000, 1012}, "and it is a clean end on the other side"


async def test_nothing_is_put_into_the_midst_of_a_frame(bench: Bench) -> None:
    """However long the server says nothing: what it began is what the browser would go on to read."""
    begun = b"\x82\x7e\x03\xe8" + b"half"

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
        writer.write(switch + b"\x81\x02hi" + begun)
        await reader.read()

    async with answering(half) as url:
        await bench.route(url)
        router = await bench.router(ORRERY_WEBSOCKET_DRAIN_S="0")
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.port)
        wish = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAA\r\n"
        cookie = bench.ada.cookie["Cookie"]
        writer.write(f"GET /user/ada/ws HTTP/1.1\r\nHost: x\r\nCookie: {cookie}\r\n{wish}\r\n".encode())
        assert b" 101 " in await head_of(reader)
        assert await reader.readexactly(4 + len(begun)) == b"\x81\x02hi" + begun
        router.terminate()
        assert await asyncio.wait_for(reader.read(), 20) == b""
        writer.close()
        assert await asyncio.to_thread(router.process.wait, 20) == 0, router.log


async def test_a_router_that_nobody_uses_ends_at_once(bench: Bench) -> None:
    """An old connection that says nothing more does not hold it up for long."""
    async with serving(application()) as url:
        await bench.route(url)
        router = await bench.router()
        visitor = Visitor(bench, keeps=True, method="GET")
        await visitor.visit("/user/ada/x")
        began = asyncio.get_running_loop().time()
        assert await router.stop() == 0
        assert asyncio.get_running_loop().time() - began < 8
        assert visitor.connection is not None
        assert await visitor.connection[0].read() == b"", "closed, not reset"
        visitor.close()
