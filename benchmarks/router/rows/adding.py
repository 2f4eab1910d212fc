"""From adding a route until it is served: one, ten and fifty at a time, with 1,000 there already.

Ours: an append to the log, served by both of two replicas. configurable-http-proxy: a POST. Traefik: a new file, or
keys in Redis, written as jupyterhub-traefik-proxy does it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks import report
from benchmarks.router import chp, redis, traefik
from benchmarks.router.client import Client
from benchmarks.router.cores import Cores, on
from benchmarks.router.stage import Stage, prefix_of, route_set, staged
from benchmarks.router.tools import is_there
from orrery_events.bus import Bus
from orrery_events.catalog.server import server_stream
from orrery_events.log import EventLog
from tests.support.backbone import PostgresServer
from tests.support.platform import free_port

AT_ONCE = (1, 10, 50)
BATCHES = {1: 40, 10: 8, 50: 4}
BUDGET_S = 3.0
"""For all batches of one size; at least two are run."""
SERVED_TIMEOUT_S = 30.0
POLL_FIRST_S, POLL_MAX_S = 0.001, 0.02
"""A proxy that is asked all the time has less time to read its configuration."""

Add = Callable[[str, str], Awaitable[None]]
"""Prefix and target; returns when the proxy, or whoever keeps its routes, has acknowledged."""


@dataclass
class Adder:
    """How routes are added, and by whom they must then be served."""

    add: Add
    urls: list[str]


@asynccontextmanager
async def ours(stage: Stage) -> AsyncIterator[Adder]:
    """Two replicas, each on a port of its own so that both can be asked."""
    bench = stage.bench
    ports = [free_port(), free_port()]
    with on(stage.cores.proxy):
        routers = [bench.launch(f"router-{port}", ORRERY_PORT=str(port)) for port in ports]
    # As a service does it: after each commit the relay is nudged over NATS.
    bus = Bus(bench.nats_url, name="bench-adder")
    await bus.start()
    await bus.wait_connected(10)
    log = EventLog(bench.pool, producer="bench-adder", nudge=bus.nudge)
    await log.start()

    async def add(prefix: str, target: str) -> None:
        event = route_set(bench.ada, prefix, target)
        await log.append(server_stream(event.server_id), [event])

    try:
        for router in routers:
            await router.ready()
        yield Adder(add, [f"http://127.0.0.1:{port}" for port in ports])
    finally:
        await log.close()
        await bus.stop()
        for router in routers:
            bench.routers.remove(router)
            await asyncio.to_thread(router.remove)


@asynccontextmanager
async def theirs(stage: Stage) -> AsyncIterator[Adder]:
    async with chp.empty(stage) as found:
        await found.feed(stage.routes)
        yield Adder(found.add, [found.proxy.url])


@asynccontextmanager
async def traefik_file(stage: Stage) -> AsyncIterator[Adder]:
    async with traefik.with_file(stage, traefik.STOCK) as found:
        yield Adder(found.add, [found.proxy.url])


@asynccontextmanager
async def traefik_redis(stage: Stage) -> AsyncIterator[Adder]:
    async with redis.started(stage) as store:
        await store.set(traefik.flat(traefik.dynamic(stage.routes, {})))
        providers = {"redis": {"endpoints": [store.address], "rootKey": traefik.ROOT_KEY}}
        async with traefik.started(stage, providers, traefik.STOCK) as proxy:

            async def add(prefix: str, target: str) -> None:
                await store.set(traefik.flat(traefik.dynamic([(prefix, target)], {})))

            yield Adder(add, [proxy.url])


HOW: dict[str, Callable[[Stage], AbstractAsyncContextManager[Adder]]] = {
    "orrery": ours,
    "configurable-http-proxy": theirs,
    "traefik": traefik_file,
    "traefik-redis": traefik_redis,
}


def chosen(peers: list[str]) -> list[str]:
    """With Redis, too, where Traefik is measured and Redis is installed."""
    redis_too = "traefik" in peers and is_there("redis-server")
    return [peer for peer in HOW if peer in peers or (peer == "traefik-redis" and redis_too)]


class Timer:
    """Adds routes and waits for them."""

    def __init__(self, stage: Stage, adder: Adder) -> None:
        self.stage, self.adder = stage, adder
        self.clients = {url: Client(url) for url in adder.urls}

    async def one(self, number: int) -> tuple[float, float]:
        """Milliseconds until acknowledged and until served by all."""
        prefix = prefix_of(number)
        requests = {url: self.stage.head(url, "GET", prefix).encode() for url in self.clients}
        began = time.perf_counter()
        await self.adder.add(prefix, self.stage.upstreams.replies)
        acknowledged = time.perf_counter()
        await asyncio.gather(*(self.served(url, request) for url, request in requests.items()))
        return 1000 * (acknowledged - began), 1000 * (time.perf_counter() - began)

    async def served(self, url: str, request: bytes) -> None:
        """Asks until it is answered 200; TimeoutError if it never is."""
        async with asyncio.timeout(SERVED_TIMEOUT_S):
            wait_s = POLL_FIRST_S
            while await self.clients[url].ask(request) != 200:
                await asyncio.sleep(wait_s)
                wait_s = min(POLL_MAX_S, wait_s * 1.5)

    async def batches(self, at_once: int, numbers: itertools.count[int]) -> dict[str, float]:
        took: list[tuple[float, float]] = []
        began = time.perf_counter()
        for batch in range(BATCHES[at_once]):
            if batch >= 2 and time.perf_counter() - began > BUDGET_S:
                break
            took += await asyncio.gather(*(self.one(next(numbers)) for _ in range(at_once)))
        acknowledged, visible = zip(*took, strict=True)
        return {
            "acknowledged_p50_ms": round(report.quantile(acknowledged, 0.5), 2),
            "served_p50_ms": round(report.quantile(visible, 0.5), 2),
            "served_p99_ms": round(report.quantile(visible, 0.99), 2),
        }

    async def all(self, numbers: itertools.count[int]) -> dict[str, Any]:
        for url in self.adder.urls:
            await self.stage.served(url, prefix_of(0))
        try:
            # The first ones open the connections.
            await self.batches(max(AT_ONCE), numbers)
            return {f"at_once_{at_once}": await self.batches(at_once, numbers) for at_once in AT_ONCE}
        finally:
            for client in self.clients.values():
                client.close()


async def measure(postgres: PostgresServer, cores: Cores, peers: list[str]) -> dict[str, Any]:
    async with staged(postgres, cores) as stage:
        numbers = itertools.count(len(stage.routes))
        found = {}
        for peer in chosen(peers):
            async with HOW[peer](stage) as adder:
                found[peer] = await Timer(stage, adder).all(numbers)
        return found
