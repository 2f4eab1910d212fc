"""Messages per second through WebSockets that echo, one message under way on each."""

from __future__ import annotations

from typing import Any

from benchmarks.router import load
from benchmarks.router.cores import Proxy
from benchmarks.router.frames import KEY
from benchmarks.router.stage import Stage
from benchmarks.router.upstreams import ECHO

CONNECTIONS = (64, 1000)
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": KEY.decode(),
}


def upgrade(stage: Stage, url: str) -> str:
    """The head of a browser that opens a WebSocket."""
    return stage.head(url, "GET", f"{ECHO}api/kernels/1/channels", {**UPGRADE, "Origin": url})


async def measure(stage: Stage, proxy: Proxy, seconds: int) -> dict[str, Any]:
    found = {}
    for connections in CONNECTIONS:
        head = upgrade(stage, proxy.url)
        done = await load.swarm(proxy, "websocket", head, connections=connections, seconds=seconds)
        found[f"connections_{connections}"] = {
            "per_s": round(done.per_s),
            "cpu_s_per_10000": round(done.cpu_s / done.done * 10_000, 3),
            "busy": round(done.cpu_s / done.wall_s, 2),
        }
    return found
