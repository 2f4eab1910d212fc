"""Connections per second that carry one request each, 32 at a time."""

from __future__ import annotations

from typing import Any

from benchmarks.router import wrk
from benchmarks.router.cores import Proxy
from benchmarks.router.stage import Stage

CONNECTIONS = 32


async def measure(stage: Stage, proxy: Proxy, seconds: int) -> dict[str, Any]:
    return await wrk.load(proxy, wrk.same_head(stage, close=True), connections=CONNECTIONS, seconds=seconds)
