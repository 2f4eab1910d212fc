"""From an append to the routing tables of four routers, at a steady rate on the whole platform.

    python -m benchmarks.convergence [--rate 500] [--routers 4] [--routes 10000] [--seconds 20] [--rounds 5]

Runs `orrery up`, sets the routes that are to be there already, and appends `route.set` events from outside, one append
each, evenly spaced. Three figures: how long an append took to be acknowledged; how long after it was recorded each
router had it in its table (the routers' own histogram, `orrery_route_convergence_seconds`; within a bucket the quantile
is interpolated; of the routers the slowest one counts); and the processor time that each process spent on one event.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import time
from typing import Any

import aiohttp
import psutil
import uvloop

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
AT_ONCE = 500
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


async def processor_s(platform: Platform) -> dict[str, float]:
    """Processor time that each process has used so far, children included; `bench` is this one."""
    used = {"bench": sum(psutil.Process().cpu_times()[:2])}
    for row in await platform.status():
        if row["pid"]:
            process = psutil.Process(row["pid"])
            family = [process, *process.children(recursive=True)]
            used[row["slot"]] = sum(sum(one.cpu_times()[:2]) for one in family)
    return used


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


async def fill(log: EventLog, routes: int) -> None:
    """Routes of other people, which are there before and do not change."""
    events = []
    for number in range(routes):
        prefix = f"/user/person-{number}/"
        events.append(
            RouteSet(
                route_id=route_id_of(prefix), prefix=prefix, target=f"http://127.0.0.1:{10_000 + number % 50_000}",
                owner_id=f"person-{number}", owner_name=f"person-{number}", server_id=new_id(), generation=1,
            )
        )  # fmt: skip
    for start in range(0, routes, AT_ONCE):
        await log.append(server_stream(new_id()), events[start : start + AT_ONCE])


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
    before, used_before = await buckets(platform), await processor_s(platform)
    took = await append_steadily(log, rate, int(rate * seconds))
    await asyncio.sleep(SETTLE_S)
    after, used = await buckets(platform), await processor_s(platform)
    tables = [
        {f"p{share}": quantile(before[slot], after[slot], share / 100) for share in SHARES} for slot in sorted(after)
    ]
    return {
        "acknowledged_ms": {f"p{share}": round(report.quantile(took, share / 100), 2) for share in SHARES},
        "in_every_table_ms": {q: round(max(table[q] for table in tables), 2) for q in tables[0]},
        "processor_ms_per_event": {
            slot: round(1000 * (used[slot] - used_before[slot]) / len(took), 3) for slot in used
        },
    }


async def measure(given: argparse.Namespace) -> dict[str, Any]:
    rate, seconds = given.rate, given.seconds
    platform = Platform(routers=given.routers)
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
        await fill(log, given.routes)
        await append_steadily(log, rate, WARM_UP)
        await asyncio.sleep(SETTLE_S)
        taken = [await one_round(platform, log, rate, seconds) for _ in range(given.rounds)]
        await log.close()
        await pool.close()
        await bus.stop()
    finally:
        await asyncio.to_thread(platform.stop)
    medians = {what: {q: statistics.median(one[what][q] for one in taken) for q in taken[0][what]} for what in taken[0]}
    shape = {"rate_per_s": rate, "routers": given.routers, "routes": given.routes}
    return {**shape, "events": int(rate * seconds) * given.rounds, **medians, "rounds": taken}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=float, default=500.0)
    parser.add_argument("--routers", type=int, default=4)
    parser.add_argument("--routes", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # As every service has it.
        report.write("convergence", runner.run(measure(given)))


if __name__ == "__main__":
    main()
