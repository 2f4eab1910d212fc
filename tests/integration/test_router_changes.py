"""Changes of the table disturb nothing that is under way."""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from orrery_events.catalog.route import RouteRemoved, RouteSet, route_id_of
from orrery_events.registry import Event
from tests.support.backbone import NatsServer
from tests.support.routers import Bench, serving
from tests.support.wait import eventually

pytestmark = [pytest.mark.timeout(120)]

CHANGES = 10_000
AT_ONCE = 100
PIECE = bytes(range(256)) * 256
PIECES = 64
"""Of each download: 4 MiB."""


class Upstream:
    """A user's server: long downloads, and an echo."""

    def __init__(self) -> None:
        self.half_way, self.go_on = 0, asyncio.Event()

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/user/ada/download", self.download)
        app.router.add_get("/user/ada/echo", self.echo)
        return app

    async def download(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        for number in range(PIECES):
            if number == PIECES // 2:
                self.half_way += 1
                await self.go_on.wait()
            await answer.write(PIECE)
        return answer

    async def echo(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data)
        return socket


def changes(bench: Bench) -> list[Event]:
    """Routes of others come and go, and that of the requests under way is moved, and at last removed."""
    events: list[Event] = []
    for number in range(CHANGES):
        prefix = "/user/ada/" if number % 50 == 0 else f"/user/somebody-{number % 500}/"
        if number == CHANGES - 1:
            prefix = "/user/ada/"
        if number % 3 == 2 or number == CHANGES - 1:
            events.append(RouteRemoved(route_id=route_id_of(prefix), prefix=prefix))
        else:
            events.append(
                RouteSet(
                    route_id=route_id_of(prefix), prefix=prefix, target=f"http://127.0.0.1:{1 + number}",
                    owner_id=bench.ada.user_id, owner_name="ada", server_id="s", generation=number,
                )
            )  # fmt: skip
    return events


@pytest.mark.invariant(12)
async def test_ten_thousand_changes_disturb_no_request_under_way(
    tmp_path: Path, database_url: str, nats_server: NatsServer
) -> None:
    upstream = Upstream()
    async with serving(upstream.app()) as url, Bench.open(tmp_path, database_url, nats_server.url) as bench:
        await bench.relay(nats_server.relay_url)
        await bench.route(url)
        router = await bench.router()
        async with aiohttp.ClientSession(bench.url, headers=bench.ada.cookie) as http:
            changed = False

            async def download() -> str:
                digest = hashlib.sha256()
                async with http.get("/user/ada/download") as answer:
                    assert answer.status == 200
                    async for piece in answer.content.iter_any():
                        digest.update(piece)
                return digest.hexdigest()

            async def talk() -> list[float]:
                """Seconds that each echo took."""
                took: list[float] = []
                async with http.ws_connect("/user/ada/echo") as socket:
                    while not changed or len(took) < 50:
                        began = time.perf_counter()
                        await socket.send_str(f"{len(took)}")
                        assert await socket.receive_str(timeout=10) == f"{len(took)}"
                        took.append(time.perf_counter() - began)
                return took

            downloads = [asyncio.create_task(download()) for _ in range(4)]
            talks = [asyncio.create_task(talk()) for _ in range(4)]
            await eventually(lambda: upstream.half_way == len(downloads))
            events = changes(bench)
            for start in range(0, CHANGES, AT_ONCE):
                done = await bench.log.append(f"changes-{start}", events[start : start + AT_ONCE])

            async def applied() -> bool:
                return bool((await router.status())["position"] >= done.last_position)

            await eventually(applied, timeout_s=60)
            tails = (await router.status())["tails"]
            assert tails[0]["mode"] == "jetstream"
            changed = True
            upstream.go_on.set()
            assert await asyncio.gather(*downloads) == [hashlib.sha256(PIECE * PIECES).hexdigest()] * len(downloads)
            slowest = max(max(took) for took in await asyncio.gather(*talks))
            assert slowest < 2, f"an echo took {slowest:.2f} s"
            assert (await bench.fetch("/user/ada/download", headers=bench.ada.cookie))[0] == 424, "gone for new ones"
