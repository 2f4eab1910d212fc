"""Latency at a rate that every proxy can keep up with: half of what configurable-http-proxy can do at most."""

from __future__ import annotations

from typing import Any

import msgspec

from benchmarks.router import load, wrk
from benchmarks.router.cores import Proxy
from benchmarks.router.peers import PEERS
from benchmarks.router.stage import Stage

CONNECTIONS_MAX = 512
YARDSTICK = "configurable-http-proxy"
YARDSTICK_CONNECTIONS = 16
YARDSTICK_S = 3


async def choose_pace(stage: Stage) -> None:
    """Before the first round, so that all rounds and proxies have the same."""
    if PEERS[YARDSTICK].present:
        async with PEERS[YARDSTICK].start(stage) as proxy:
            await stage.served(proxy.url, wrk.PATH)
            script = wrk.same_head(stage)
            await wrk.load(proxy, script, connections=YARDSTICK_CONNECTIONS, seconds=1)
            top = await wrk.load(proxy, script, connections=YARDSTICK_CONNECTIONS, seconds=YARDSTICK_S)
            stage.pace_per_s = top["per_s"] / 2


async def measure(stage: Stage, proxy: Proxy, seconds: int) -> dict[str, Any]:
    """Twice as long as the others: of a thousand requests one is the p99.9."""
    head = stage.head(proxy.url, "GET", wrk.PATH)
    found = await load.paced(proxy, head, connections=CONNECTIONS_MAX, seconds=2 * seconds, rate_per_s=stage.pace_per_s)
    return {"rate_per_s": round(stage.pace_per_s), **msgspec.to_builtins(found)}
