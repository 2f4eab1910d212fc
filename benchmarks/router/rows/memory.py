"""Memory of one worker: with 1,000 and 100,000 routes, and with thousands of WebSockets that are open and silent."""

from __future__ import annotations

from typing import Any

from benchmarks.router import load, wrk
from benchmarks.router.cores import Cores, open_files_max
from benchmarks.router.peers import PEERS
from benchmarks.router.rows.websockets import upgrade
from benchmarks.router.stage import staged
from tests.support.backbone import PostgresServer

MANY_ROUTES = 100_000
COMPARED = ("orrery", "configurable-http-proxy")
"""Whose memory grows with routes that are added one by one; the others read files that nobody has."""
WEBSOCKETS = 10_000
SPARE_FILES = 500


def websockets() -> int:
    """As many as wanted, or as a proxy may open: it needs two descriptors for each."""
    return min(WEBSOCKETS, (open_files_max() - SPARE_FILES) // 2)


async def measure(postgres: PostgresServer, cores: Cores, peers: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    count = websockets()
    async with staged(postgres, cores) as stage:
        for peer in peers:
            async with PEERS[peer].start(stage) as proxy:
                await stage.served(proxy.url, wrk.PATH)
                before_mb = proxy.rss_mb()
                async with load.idle(proxy, upgrade(stage, proxy.url), count):
                    with_mb = proxy.rss_mb()
            found[peer] = {
                "routes_1000_mb": round(before_mb, 1),
                "websockets": count,
                "with_websockets_mb": round(with_mb, 1),
                "kb_per_websocket": round((with_mb - before_mb) * 1000 / count, 1),
            }
    compared = [peer for peer in COMPARED if peer in peers]
    if compared:
        async with staged(postgres, cores, routes=MANY_ROUTES) as stage:
            for peer in compared:
                async with PEERS[peer].start(stage) as proxy:
                    await stage.served(proxy.url, wrk.PATH)
                    found[peer]["routes_100000_mb"] = round(proxy.rss_mb(), 1)
    return found
