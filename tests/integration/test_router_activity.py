"""What counts as use of a server, as JupyterHub counts it: answers below 300 when they end, bytes of requests' bodies,
WebSocket frames in either direction; neither redirects nor errors, and nothing that never reached the server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from orrery_events.bus import Bus
from orrery_events.catalog.server import server_id_of
from orrery_events.subjects import ACTIVITY_ROOT
from tests.support.backbone import NatsServer
from tests.support.routers import Bench, serving
from tests.support.wait import eventually

pytestmark = [pytest.mark.timeout(60)]

FINISH = asyncio.Event()
GREETED = asyncio.Event()


async def answer(request: web.Request) -> web.StreamResponse:
    how = request.path.split("/")[3]
    if how.startswith("ws"):
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        if how == "ws-out":
            await ws.send_str("hello")
        async for _ in ws:
            GREETED.set()
        return ws
    if how == "unfinished":
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        await FINISH.wait()
        return response
    return web.Response(status=int(how.partition("-")[2]))


class Heard:
    """Which servers were reported as used, by name."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._ids: set[str] = set()

    async def hear(self, message: object) -> None:
        self._ids |= set(json.loads(message.data)["servers"])  # type: ignore[attr-defined]

    def has(self, name: str) -> bool:
        return server_id_of(self._bench.ada.user_id, name) in self._ids


@pytest_asyncio.fixture
async def stage(tmp_path: Path, database_url: str, nats_server: NatsServer) -> AsyncIterator[tuple[Bench, Heard, str]]:
    FINISH.clear()
    GREETED.clear()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with Bench.open(tmp_path, database_url, nats_server.url) as bench, serving(app) as url:
        heard = Heard(bench)
        bus = Bus(nats_server.relay_url, name="test")
        await bus.start()
        bench.stack.push_async_callback(bus.stop)
        assert await bus.wait_connected(10)
        await bus.subscribe(f"{ACTIVITY_ROOT}.>", heard.hear)
        yield bench, heard, url


async def test_what_counts_as_use(stage: tuple[Bench, Heard, str]) -> None:
    bench, heard, url = stage
    cookie, plain = bench.ada.cookie, aiohttp.ClientSession()
    used = {"get-200", "post-201", "get-204", "body-500", "chunks-404", "ws-out", "ws-in"}
    unused = {"get-302", "get-404", "get-500", "stranger-200", "ws-idle", "unfinished", "get-304"}
    for name in used | unused | {"last-200"}:
        await bench.route(url, server=name)
    await bench.router(ORRERY_ACTIVITY_INTERVAL_S="0.2")

    async def chunks() -> AsyncIterator[bytes]:
        yield b"x"

    async with plain as http:
        for name in ("get-200", "get-204", "get-302", "get-304", "get-404", "get-500"):
            assert (await bench.fetch(f"/user/ada/{name}/", headers=cookie))[0] == int(name[4:])
        await bench.fetch("/user/ada/post-201/", method="POST", headers=cookie)
        await bench.fetch("/user/ada/body-500/", method="POST", headers=cookie, data=b"x")
        await bench.fetch("/user/ada/chunks-404/", method="PUT", headers=cookie, data=chunks())
        await bench.fetch("/user/ada/stranger-200/", method="POST", data=b"x")
        headers = {**cookie, "Origin": bench.url}
        sockets = {
            name: await http.ws_connect(f"{bench.url}/user/ada/{name}/", headers=headers)
            for name in ("ws-out", "ws-in", "ws-idle")
        }
        assert (await sockets["ws-out"].receive(5)).data == "hello"
        await sockets["ws-in"].send_str("hello")
        await asyncio.wait_for(GREETED.wait(), 5)
        async with http.get(f"{bench.url}/user/ada/unfinished/", headers=cookie) as unfinished:
            assert await unfinished.content.readexactly(5) == b"first"
            # What is used last is reported last: then everything else has been.
            await bench.fetch("/user/ada/last-200/", headers=cookie)
            await eventually(lambda: heard.has("last-200"))
            assert {name for name in used | unused if heard.has(name)} == used
            FINISH.set()
            assert await unfinished.content.read() == b""
        await eventually(lambda: heard.has("unfinished"))
        for socket in sockets.values():
            await socket.close()
