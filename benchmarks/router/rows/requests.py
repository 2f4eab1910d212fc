"""Requests per second with short replies: 16 and 128 connections, one head again and again or another each time."""

from __future__ import annotations

from typing import Any

from benchmarks.router import wrk
from benchmarks.router.cores import Proxy
from benchmarks.router.stage import Stage

CONNECTIONS = (16, 128)


async def measure(stage: Stage, proxy: Proxy, seconds: int) -> dict[str, Any]:
    scripts = {"same": wrk.same_head(stage), "differing": wrk.differing_head(stage, proxy.url)}
    found = {}
    for connections in CONNECTIONS:
        for heads, script in scripts.items():
            key = f"{heads}_heads_{connections}"
            found[key] = await wrk.load(proxy, script, connections=connections, seconds=seconds)
    return found
