"""All routes back after `kill -9`: by replay, or fed anew over the REST API as JupyterHub does it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

from benchmarks.router import chp
from benchmarks.router.cores import Cores, on
from benchmarks.router.stage import Stage, prefix_of, staged
from tests.support.backbone import PostgresServer

ROUTES = 10_000
PROBED = range(0, ROUTES - 2, 500)


async def probe(stage: Stage, url: str) -> None:
    """The last route, then others: AssertionError where one is missing."""
    for number in (*reversed(PROBED), ROUTES - 3):
        await stage.served(url, prefix_of(number), timeout_s=5)


async def ours(stage: Stage) -> float:
    """Seconds from the kill until the table is whole again."""
    bench = stage.bench
    with on(stage.cores.proxy):
        first = await bench.router()
    await stage.served(bench.url, prefix_of(0))
    began = time.perf_counter()
    await first.kill()
    with on(stage.cores.proxy):
        second = bench.launch()
    await stage.served(bench.url, prefix_of(ROUTES - 3))
    took_s = time.perf_counter() - began
    await probe(stage, bench.url)
    for router in (first, second):
        bench.routers.remove(router)
        await asyncio.to_thread(router.remove)
    return took_s


async def theirs(stage: Stage) -> float:
    """The same, with whoever feeds it at the ready and restarting it at once."""
    async with chp.empty(stage) as first:
        await first.feed(stage.routes)
        began = time.perf_counter()
        os.kill(first.proxy.process.pid, signal.SIGKILL)
    async with chp.empty(stage) as second:
        await second.feed(stage.routes)
        took_s = time.perf_counter() - began
        await probe(stage, second.proxy.url)
    return took_s


HOW = {"orrery": ours, "configurable-http-proxy": theirs}


async def measure(postgres: PostgresServer, cores: Cores, peers: list[str]) -> dict[str, Any]:
    async with staged(postgres, cores, routes=ROUTES) as stage:
        return {
            peer: {"routes": ROUTES, "all_back_s": round(await how(stage), 3)}
            for peer, how in HOW.items()
            if peer in peers
        }
