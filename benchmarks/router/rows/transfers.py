"""A mebibyte down and up, four at a time."""

from __future__ import annotations

from typing import Any

from benchmarks.router import load
from benchmarks.router.cores import Proxy
from benchmarks.router.stage import Stage
from benchmarks.router.upstreams import DOWNLOAD, MEBIBYTE, UPLOADS

CONNECTIONS = 4


async def measure(stage: Stage, proxy: Proxy, seconds: int) -> dict[str, Any]:
    heads = {
        "download": stage.head(proxy.url, "GET", DOWNLOAD),
        "upload": stage.head(proxy.url, "POST", f"{UPLOADS}file", {"Content-Length": str(MEBIBYTE)}),
    }
    found = {}
    for kind, head in heads.items():
        done = await load.swarm(proxy, kind, head, connections=CONNECTIONS, seconds=seconds)
        gigabytes = done.done * MEBIBYTE / 1e9
        found[kind] = {
            "gb_per_s": round(gigabytes / done.wall_s, 3),
            "cpu_s_per_gb": round(done.cpu_s / gigabytes, 3),
            "busy": round(done.cpu_s / done.wall_s, 2),
        }
    return found
