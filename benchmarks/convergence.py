"""From an append to the routing tables of two routers, at a steady rate on the whole platform.

    python -m benchmarks.convergence [--rate 200] [--seconds 30]

Runs `orrery up` and appends `route.set` events from outside, one append each, evenly spaced. Two figures: how long an
append took to be acknowledged, and how long after it was recorded each router had it in its table (the routers' own
histogram, `orrery_route_convergence_seconds`; within a bucket the quantile is interpolated). Of the two routers the
slower one counts.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import time
from typing import Any

import aiohttp

from benchmarks import report
from orrery_cli.datadir import DataDir
from orrery_cli.embedded.postgres import Postgres
from orrery_events.catalog.route import RouteSet, route_id_of
from orrery_events.catalog.server import server_stream
from orrery_events.ids import new_id
from orrery_events.log import EventLog, create_pool
from tests.support.platform import Platform

BUCKET = re.compile(r'orrery_route_convergence_seconds_bucket\{le="([^"]+)"\} (\S+)')
SETTLE_S = 3.0
WARM_UP = 200


async def buckets(platform: Platform) -> dict[str, dict[float, float]]:
    """Cumulated counts per bucket of every router."""
    found = {}
    async with aiohttp.ClientSession() as http:
        for row in await platform.status():
            if row["service"] == "router":
                async with http.get(f"{row['ops_url']}/metrics") as answer:
                    found[row["slot"]] = {float(le): float(n) for le, n in BUCKET.findall(await answer.text())}
    return found


def quantile(before: dict[float, float], after: dict[float, float], share: float) -> float:
    """Interpolated, in milliseconds."""
    counts = {le: after[le] - before.get(le, 0.0) for le in sorted(after)}
    wanted = share * counts[float("inf")]
    lower, below = 0.0, 0.0
    for le, count in counts.items():
        if count >= wanted:
            return 1000 * (lower + (min(le, 5.0) - lower) * (wanted - below) / max(1e-9, count - below))
        lower, below = le, count
    return float("inf")


async def append_steadily(log: EventLog, rate: float, count: int) -> list[float]:
    """Milliseconds that each append took to be acknowledged."""
    took: list[float] = []

    async def one(number: int) -> None:
        prefix = f"/user/bench/{number % 500}/"
        event = RouteSet(
            route_id=route_id_of(prefix), prefix=prefix, target="http://127.0.0.1:9", policy="owner", owner_id="bench",
            owner_name="bench", server_id=f"bench{number % 500}", server_name=str(number), generation=number,
        )  # fmt: skip
        began = time.perf_counter()
        await log.append(server_stream(new_id()), [event])
        took.append((time.perf_counter() - began) * 1000)

    began = time.perf_counter()
    tasks = []
    for number in range(count):
        await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(one(number)))
    await asyncio.gather(*tasks)
    return took


async def measure(rate: float, seconds: float) -> dict[str, Any]:
    platform = Platform()
    try:
        await platform.start()
        pool = await create_pool(Postgres(DataDir(platform.data_dir).postgres).url(), application_name="bench")
        log = EventLog(pool, producer="bench")
        await log.start()
        await append_steadily(log, rate, WARM_UP)
        await asyncio.sleep(SETTLE_S)
        before = await buckets(platform)
        took = await append_steadily(log, rate, int(rate * seconds))
        await asyncio.sleep(SETTLE_S)
        after = await buckets(platform)
        await log.close()
        await pool.close()
    finally:
        await asyncio.to_thread(platform.stop)
    routers = {
        slot: {f"p{share:g}": round(quantile(before[slot], after[slot], share / 100), 2) for share in (50, 95, 99)}
        for slot in after
    }
    return {
        "rate_per_s": rate,
        "events": len(took),
        "acknowledged_ms": {f"p{s:g}": round(report.quantile(took, s / 100), 2) for s in (50, 95, 99)},
        "in_every_table_ms": {q: max(router[q] for router in routers.values()) for q in ("p50", "p95", "p99")},
        "routers_ms": routers,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    given = parser.parse_args()
    report.write("convergence", asyncio.run(measure(given.rate, given.seconds)))


if __name__ == "__main__":
    main()
