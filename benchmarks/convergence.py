"""From an append to the routing tables of two routers, at a steady rate on the whole platform.

    python -m benchmarks.convergence [--rate 200] [--seconds 20] [--rounds 5]

Runs `orrery up` and appends `route.set` events from outside, one append each, evenly spaced. Two figures: how long an
append took to be acknowledged, and how long after it was recorded each router had it in its table (the routers' own
histogram, `orrery_route_convergence_seconds`; within a bucket the quantile is interpolated). Of the two routers the
slower one counts.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import time
from typing import Any

import aiohttp

from benchmarks import report
from orrery_cli.datadir import DataDir
from orrery_events.bus import Bus
from orrery_events.catalog.route import RouteSet, route_id_of
from orrery_events.catalog.server import server_stream
from orrery_events.ids import new_id
from orrery_events.log import EventLog, create_pool
from tests.support.platform import Platform

BUCKET = re.compile(r'orrery_route_convergence_seconds_bucket\{le="([^"]+)"\} (\S+)')
SETTLE_S = 3.0
WARM_UP = 200
SHARES = (50, 95, 99)


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


async def one_round(platform: Platform, log: EventLog, rate: float, seconds: float) -> dict[str, dict[str, float]]:
    before = await buckets(platform)
    took = await append_steadily(log, rate, int(rate * seconds))
    await asyncio.sleep(SETTLE_S)
    after = await buckets(platform)
    tables = [
        {f"p{share}": quantile(before[slot], after[slot], share / 100) for share in SHARES} for slot in sorted(after)
    ]
    return {
        "acknowledged_ms": {f"p{share}": round(report.quantile(took, share / 100), 2) for share in SHARES},
        "in_every_table_ms": {q: round(max(table[q] for table in tables), 2) for q in tables[0]},
    }


async def measure(rate: float, seconds: float, rounds: int) -> dict[str, Any]:
    platform = Platform()
    try:
        await platform.start()
        secrets = DataDir(platform.data_dir)
        # As a service does it: after each commit the relay is nudged over NATS.
        bus = Bus(secrets.secret("nats_url"), name="bench")
        await bus.start()
        await bus.wait_connected(10)
        pool = await create_pool(secrets.secret("database_url"), application_name="bench")
        log = EventLog(pool, producer="bench", nudge=bus.nudge)
        await log.start()
        await append_steadily(log, rate, WARM_UP)
        await asyncio.sleep(SETTLE_S)
        taken = [await one_round(platform, log, rate, seconds) for _ in range(rounds)]
        await log.close()
        await pool.close()
        await bus.stop()
    finally:
        await asyncio.to_thread(platform.stop)
    medians = {what: {q: statistics.median(one[what][q] for one in taken) for q in taken[0][what]} for what in taken[0]}
    return {"rate_per_s": rate, "events": int(rate * seconds) * rounds, **medians, "rounds": taken}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    report.write("convergence", asyncio.run(measure(given.rate, given.seconds, given.rounds)))


if __name__ == "__main__":
    main()
