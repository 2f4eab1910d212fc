"""What a hundred thousand routes cost a router: memory, start, start from disk, look-ups.

    python -m benchmarks.table [--routes 100000] [--rounds 3]

A real router process on a real Postgres: its resident memory without routes and with them, each with a user and a
server of its own and without; how long it takes from its start until it is ready; the same from its snapshot, with
Postgres killed. Look-ups are timed in this process on a table of the same size.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
import timeit
from pathlib import Path
from typing import Any

import psutil

from benchmarks import report
from orrery_events.catalog.route import RouteSet, route_id_of
from orrery_events.catalog.server import Ready, server_id_of
from orrery_events.catalog.user import UserCreated
from orrery_events.ids import derived_id
from orrery_events.registry import Event
from orrery_router.domain import route_of, slim
from orrery_router.table import Table
from tests.support.backbone import PostgresServer
from tests.support.routers import Bench, RouterProcess
from tests.support.wait import eventually

AT_ONCE = 600
PATHS = {"depth 2": "/user/user-777/", "depth 4": "/user/user-777/lab/tree", "none": "/nowhere/x"}


def facts(number: int, *, people: bool) -> list[Event]:
    name, user_id = f"user-{number}", derived_id("user", str(number))
    server_id, prefix = server_id_of(user_id, ""), f"/user/{name}/"
    route = RouteSet(
        route_id=route_id_of(prefix), prefix=prefix, target=f"http://127.0.0.1:{10_000 + number % 50_000}",
        owner_id=user_id, owner_name=name, server_id=server_id, generation=1, secret_header="Authorization",
        secret_prefix="token ",
    )  # fmt: skip
    if not people:
        return [route]
    created = UserCreated(user_id=user_id, name=name, created_at=time.time())
    return [created, route, Ready(server_id=server_id, user_id=user_id, user_name=name, generation=1)]


async def started(bench: Bench, slot: str) -> tuple[RouterProcess, dict[str, float]]:
    began = time.perf_counter()
    router = await bench.router(slot)
    took = time.perf_counter() - began
    rebuilt = [line["duration_s"] for line in router.lines() if line["event"] == "tail.rebuilt"]
    memory = psutil.Process(router.pid).memory_info().rss / 1e6
    return router, {"ready_s": round(took, 2), "rss_mb": round(memory, 1), "rebuild_s": rebuilt[-1] if rebuilt else 0.0}


async def one(routes: int, *, people: bool) -> dict[str, Any]:
    server = PostgresServer()
    server.launch()
    try:
        await server.ready()
        root = Path(tempfile.mkdtemp(prefix="orrery-bench-"))
        async with Bench.open(root, await server.create_database(migrated=True)) as bench:
            router, empty = await started(bench, "empty")
            await router.stop()
            events = [event for number in range(routes) for event in facts(number, people=people)]
            for start in range(0, len(events), AT_ONCE):
                await bench.log.append(f"fill-{start}", events[start : start + AT_ONCE])
            await bench.pool.execute("ANALYZE es.events, es.latest")
            router, full = await started(bench, "full")
            file = root / "data" / "snapshots" / "router" / "full.snapshot"
            await eventually(file.is_file, timeout_s=60)
            await router.stop()
            await server.kill()
            router, restored = await started(bench, "full")
            await router.kill()
            return {
                "events": len(events), "empty": empty, "full": full, "from_disk": restored,
                "growth_mb": round(full["rss_mb"] - empty["rss_mb"], 1),
                "snapshot_mb": round(file.stat().st_size / 1e6, 1),
            }  # fmt: skip
    finally:
        server.remove()


def look_ups(routes: int, rounds: int) -> dict[str, int]:
    """Nanoseconds of one look-up."""
    table = Table()
    for number in range(routes):
        event = facts(number, people=False)[0]
        assert isinstance(event, RouteSet)
        table.set(slim(route_of(event)))
    return {
        what: round(min(timeit.repeat(lambda: table.find_plain("", path), number=100_000, repeat=rounds)) * 1e4)  # noqa: B023
        for what, path in PATHS.items()
    }


def measure(routes: int, rounds: int) -> dict[str, Any]:
    alone = [asyncio.run(one(routes, people=False)) for _ in range(rounds)]
    peopled = [asyncio.run(one(routes, people=True)) for _ in range(rounds)]
    return {
        "routes": routes,
        "growth_mb": {
            "routes": statistics.median(each["growth_mb"] for each in alone),
            "routes_users_and_servers": statistics.median(each["growth_mb"] for each in peopled),
        },
        "look_up_ns": look_ups(routes, max(3, rounds)),
        "routes_alone": alone,
        "with_users_and_servers": peopled,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--routes", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    report.write("table", measure(given.routes, given.rounds))


if __name__ == "__main__":
    main()
