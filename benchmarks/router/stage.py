"""What every measurement needs: a log with routes, upstreams, a browser's head, and room for files."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from benchmarks.router.cores import Cores
from benchmarks.router.upstreams import Upstreams
from orrery_events.catalog.route import RouteSet, route_id_of
from tests.support.backbone import NatsServer, PostgresServer
from tests.support.routers import Bench, Person
from tests.support.wait import eventually

ROUTES = 1000
APPENDED_AT_ONCE = 500
PACE_PER_S = 2500.0
HEADERS = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "Accept-Language": "en-GB,en;q=0.9,de;q=0.8",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Sec-Fetch-Dest": "document",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Site": "same-origin",
    "Sec-CH-UA": '"Chromium";v="156", "Not.A/Brand";v="24"',
    "Sec-CH-UA-Platform": '"Linux"',
    "Upgrade-Insecure-Requests": "1",
}
"""Of the size that a browser sends; every proxy gets the same, with the cookies of a signed-in person."""

Route = tuple[str, str]
"""Prefix and target."""


def prefix_of(number: int) -> str:
    return f"/user/ada/s{number}/"


def routes_to(target: str, count: int) -> list[Route]:
    return [(prefix_of(number), target) for number in range(count)]


def route_set(owner: Person, prefix: str, target: str) -> RouteSet:
    name = prefix.strip("/").rpartition("/")[2]
    return RouteSet(
        route_id=route_id_of(prefix), prefix=prefix, target=target, policy="owner", owner_id=owner.user_id,
        owner_name=owner.name, server_id=name, server_name=name, generation=1,
    )  # fmt: skip


@dataclass
class Stage:
    """Everything but the proxy."""

    root: Path
    cores: Cores
    bench: Bench
    upstreams: Upstreams
    routes: list[Route]
    pace_per_s: float = PACE_PER_S
    """At which latency is measured: half of what configurable-http-proxy can do here, where it is installed."""

    @property
    def headers(self) -> dict[str, str]:
        return {**HEADERS, "Cookie": f"_xsrf=2|abcdef|0123456789|1789000000; {self.bench.ada.cookie['Cookie']}"}

    def head(self, url: str, method: str, path: str, more: dict[str, str] | None = None) -> str:
        """A browser's request to a proxy, up to the empty line."""
        host = url.removeprefix("http://")
        lines = [f"{name}: {value}" for name, value in {"Host": host, **self.headers, **(more or {})}.items()]
        return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""])

    async def add_routes(self, routes: Sequence[Route]) -> None:
        """To the log."""
        ada = self.bench.ada
        for start in range(0, len(routes), APPENDED_AT_ONCE):
            events = [route_set(ada, prefix, target) for prefix, target in routes[start : start + APPENDED_AT_ONCE]]
            await self.bench.log.append(f"route-{routes[start][0]}", events)

    async def served(self, url: str, path: str, *, timeout_s: float = 30) -> None:
        """Waits until a proxy answers 200."""

        async def is_served() -> bool:
            try:
                async with http.get(url + path, headers=self.headers) as answer:
                    return answer.status == 200
            except aiohttp.ClientError:
                return False

        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http:
            await eventually(is_served, timeout_s=timeout_s, interval_s=0.01, what=f"{url}{path} is served")


def folder() -> Path:
    """nginx's workers are somebody else when it is started as root."""
    root = Path(tempfile.mkdtemp(prefix="orrery-bench-"))
    root.chmod(0o777)
    return root


@asynccontextmanager
async def staged(postgres: PostgresServer, cores: Cores, *, routes: int = ROUTES) -> AsyncIterator[Stage]:
    """A stage of its own, with a database and a NATS of its own."""
    root = await asyncio.to_thread(folder)
    try:
        async with AsyncExitStack() as stack:
            nats = NatsServer()
            stack.callback(nats.remove)
            nats.launch()
            await nats.ready()
            database_url = await postgres.create_database(migrated=True)
            upstreams = await stack.enter_async_context(Upstreams.open(root, cores.load))
            bench = await stack.enter_async_context(Bench.open(root, database_url, nats.url))
            await bench.relay(nats.relay_url)
            table = [*routes_to(upstreams.replies, routes - 2), *upstreams.special]
            stage = Stage(root, cores, bench, upstreams, table)
            await stage.add_routes(table)
            yield stage
    finally:
        await asyncio.to_thread(shutil.rmtree, root, ignore_errors=True)
