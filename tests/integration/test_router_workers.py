"""One router as several processes that share its port."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from aiohttp import web

from tests.support.routers import Bench, RouterProcess, answering, head_of, serving
from tests.support.wait import eventually

pytestmark = [pytest.mark.timeout(120)]


class Parent:
    """A router of two workers."""

    def __init__(self, process: RouterProcess) -> None:
        self.process = process

    @property
    def ops_url(self) -> str:
        return str(next(line["ops_url"] for line in self.process.lines() if line["event"] == "workers_started"))

    async def ops(self, path: str) -> tuple[int, str]:
        async with aiohttp.ClientSession() as http, http.get(self.ops_url + path) as answer:
            return answer.status, await answer.text()

    async def workers(self) -> list[dict[str, Any]]:
        async with aiohttp.ClientSession() as http, http.get(self.ops_url + "/status") as answer:
            return list((await answer.json())["workers"])

    async def is_ready(self) -> bool:
        assert self.process.process.poll() is None, self.process.log
        return "workers_started" in self.process.log and (await self.ops("/readyz"))[0] == 200


@pytest.fixture
async def bench(tmp_path: Path, database_url: str) -> AsyncIterator[Bench]:
    async with Bench.open(tmp_path, database_url) as bench:
        yield bench


async def launched(bench: Bench, **env: str) -> Parent:
    parent = Parent(bench.launch(ORRERY_WORKERS="2", **env))
    await eventually(parent.is_ready, timeout_s=40)
    return parent


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def hello() -> web.Application:
    async def say(_request: web.Request) -> web.Response:
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", say)
    return app


async def served_by(parent: Parent) -> dict[str, float]:
    """Worker → requests that it answered well."""
    text = (await parent.ops("/metrics"))[1]
    found = re.findall(r'^orrery_router_requests_total\{worker="(\d)",code_class="2xx".*\} (\S+)$', text, re.MULTILINE)
    return {worker: float(count) for worker, count in found}


async def test_two_workers_share_a_port_and_one_that_dies_is_replaced(bench: Bench) -> None:
    async with serving(hello()) as upstream:
        await bench.route(upstream)
        parent = await launched(bench)
        slots = [row["slot"] for row in await bench.pool.fetch("SELECT slot FROM es.instances ORDER BY slot")]
        assert slots == ["router-1.1", "router-1.2"]
        done: Counter[int] = Counter()
        stop = asyncio.Event()

        async def visit() -> None:
            while not stop.is_set():
                try:
                    done[(await bench.fetch("/user/ada/", headers=bench.ada.cookie))[0]] += 1
                except aiohttp.ClientConnectionError:
                    done[0] += 1  # It was the dead one's connection.

        visitors = [asyncio.create_task(visit()) for _ in range(4)]

        async def both_served() -> bool:
            return all([(await served_by(parent)).get(worker, 0) > 3 for worker in "12"])

        await eventually(both_served)
        first, second = await parent.workers()
        os.kill(first["pid"], signal.SIGKILL)

        async def replaced() -> bool:
            assert (await parent.ops("/readyz"))[0] == 200
            now = await parent.workers()
            return bool(now[0]["pid"] != first["pid"] and now[0]["ready"] and now[1]["pid"] == second["pid"])

        await eventually(replaced, timeout_s=30)
        text = (await parent.ops("/metrics"))[1]
        assert "orrery_workers_ended_total 1.0" in text
        await eventually(both_served)
        stop.set()
        await asyncio.gather(*visitors)
        assert set(done) <= {0, 200}
        assert done[0] < 10 < done[200], done
        files = (bench.root / "data" / "snapshots" / "router").iterdir()
        assert {file.name for file in files} == {"router-1.1.snapshot", "router-1.2.snapshot"}


async def test_the_end_drains_all_of_them(bench: Bench) -> None:
    began, go_on = [], asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")
        began.append(1)
        await go_on.wait()
        writer.write(b"after")
        await writer.drain()

    async with answering(slow) as upstream:
        await bench.route(upstream)
        parent = await launched(bench)
        pids = [worker["pid"] for worker in await parent.workers()]
        answers = [asyncio.create_task(bench.fetch("/user/ada/", headers=bench.ada.cookie)) for _ in range(8)]
        await eventually(lambda: len(began) == 8)
        parent.process.terminate()

        async def unready() -> bool:
            return (await parent.ops("/readyz"))[0] == 503

        await eventually(unready)
        go_on.set()
        assert [body for _, _, body in await asyncio.gather(*answers)] == [b"firstafter"] * 8
        assert await asyncio.to_thread(parent.process.process.wait, 20) == 0
        assert all(gone(pid) for pid in pids)


async def test_workers_do_not_outlive_their_parent(bench: Bench) -> None:
    parent = await launched(bench)
    pids = [worker["pid"] for worker in await parent.workers()]
    await parent.process.kill()
    await eventually(lambda: all(gone(pid) for pid in pids), timeout_s=20)


async def test_what_cannot_start_is_not_tried_for_ever(bench: Bench) -> None:
    router = bench.launch(ORRERY_WORKERS="2", ORRERY_TRUSTED_PROXIES="nonsense")
    assert await asyncio.to_thread(router.process.wait, 30) == 1
    assert "ORRERY_TRUSTED_PROXIES is not usable" in router.log
    async with serving(hello()) as taken:
        router = bench.launch(ORRERY_WORKERS="2", ORRERY_PORT=taken.rpartition(":")[2])
        assert await asyncio.to_thread(router.process.wait, 30) == 1
        assert "is in use by another process" in router.log
    path = str(bench.root / "s").replace("/", "%2F")
    for listen, says in ((f"http+unix://{path}", "put {slot} into its path"), ("http://127.0.0.1:0", "instead of 0")):
        router = bench.launch(ORRERY_WORKERS="2", ORRERY_LISTEN=listen)
        assert await asyncio.to_thread(router.process.wait, 30) == 1
        assert says in router.log


async def test_workers_listen_where_they_are_told(bench: Bench) -> None:
    shared = f"http://127.0.0.1:{bench.port}"
    path = str(bench.root / "{slot}.sock").replace("/", "%2F")
    async with serving(hello()) as upstream:
        await bench.route(upstream)
        parent = await launched(bench, ORRERY_LISTEN=f"{shared},http+unix://{path}", ORRERY_PORT="0")
        status = json.loads((await parent.ops("/status"))[1])
        assert status["url"] == shared
        assert (await bench.fetch("/user/ada/", headers=bench.ada.cookie))[0] == 200
        for number in (1, 2):
            connector = aiohttp.UnixConnector(str(bench.root / f"router-1.{number}.sock"))
            async with (
                aiohttp.ClientSession(connector=connector, headers=bench.ada.cookie) as http,
                http.get("http://localhost/user/ada/") as answer,
            ):
                assert (answer.status, await answer.text()) == (200, "hello")
