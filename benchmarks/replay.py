"""How long a router takes to have its table: 10,000 live routes out of a log of 1,000,000 events, then 100,000.

    python -m benchmarks.replay [--servers 10000] [--events 1000000] [--large 100000] [--rounds 5]

Fills a real Postgres through the ordinary append, with servers that start and stop again and again, then replays as a
router does it: `Tail.start` from `es.latest` in one snapshot. For comparison the same state is folded from the whole
history of the same categories, once. Then the same with `--large` servers that each started twice.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import statistics
import time
from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks import report
from orrery_events.bus import Bus
from orrery_events.catalog.route import RouteRemoved, RouteSet, route_id_of
from orrery_events.catalog.server import Ready, Stopped, server_id_of, server_stream
from orrery_events.catalog.user import UserCreated
from orrery_events.ids import new_id
from orrery_events.log import EventLog, create_pool
from orrery_events.registry import Event
from orrery_events.tail import Tail
from orrery_router.projections import CATEGORIES, RouterState
from tests.support.backbone import PostgresServer

NOWHERE = "nats://127.0.0.1:9"
AT_ONCE = 500
EVENTS_PER_CYCLE = 4
UP, DOWN = "up", "down"


def cycle(number: int, generation: int) -> dict[str, list[Event]]:
    """The events of one start and one stop of a server."""
    user_id, user = f"u{number}", f"user-{number}"
    server_id = server_id_of(user_id, "")
    facts: dict[str, Any] = {"server_id": server_id, "user_id": user_id, "user_name": user, "generation": generation}
    prefix = f"/user/{user}/"
    route_id = route_id_of(prefix)
    route = RouteSet(
        route_id=route_id, prefix=prefix, target=f"http://127.0.0.1:{10_000 + number % 50_000}", policy="owner",
        owner_id=user_id, owner_name=user, server_id=server_id, server_name="", generation=generation,
    )  # fmt: skip
    removed = RouteRemoved(route_id=route_id, prefix=prefix, server_id=server_id, generation=generation)
    return {UP: [route, Ready(**facts)], DOWN: [removed, Stopped(**facts)]}


async def fill(log: EventLog, servers: int, events: int) -> None:
    """Many servers' events in each append: what is read is the same, and it is there in a fraction of the time."""

    async def append_all(kind: str, appended: Iterable[list[Event]]) -> None:
        waiting: list[Event] = []
        for more in appended:
            waiting += more
            if len(waiting) >= AT_ONCE:
                await log.append(server_stream(f"{kind}-{new_id()}"), waiting)
                waiting = []
        if waiting:
            await log.append(server_stream(f"{kind}-{new_id()}"), waiting)

    users: Iterator[list[Event]] = ([UserCreated(user_id=f"u{n}", name=f"user-{n}")] for n in range(servers))
    await append_all("users", users)
    # One event for each user, and the last cycle stops half-way.
    cycles = math.ceil((events + servers) / (servers * EVENTS_PER_CYCLE))
    for generation in range(1, cycles + 1):
        for part in (UP, DOWN)[: 1 if generation == cycles else 2]:
            await append_all(part, (cycle(number, generation)[part] for number in range(servers)))
        print(f"cycle {generation} of {cycles}")


async def replay(log: EventLog) -> tuple[float, int]:
    """Seconds, and the number of routes."""
    bus = Bus(NOWHERE, name="bench")
    tail = Tail(log, bus, RouterState, categories=CATEGORIES, name="bench")
    began = time.perf_counter()
    await tail.start()
    took = time.perf_counter() - began
    routes = len(tail.state.table)
    await tail.stop()
    return took, routes


async def from_history(log: EventLog) -> float:
    """Seconds to the same state by every event there ever was."""
    began = time.perf_counter()
    state = RouterState()
    async with log.snapshot(CATEGORIES) as snapshot:
        async for recorded in snapshot.events():
            state.apply(recorded, recorded.event())
    return time.perf_counter() - began


async def measure(server: PostgresServer, servers: int, events: int, rounds: int) -> dict[str, Any]:
    pool = await create_pool(await server.create_database(migrated=True), application_name="bench")
    log = EventLog(pool, producer="bench")
    await log.start()
    began = time.perf_counter()
    await fill(log, servers, events)
    filled_s = time.perf_counter() - began
    await pool.execute("ANALYZE es.events, es.latest")
    taken = [await replay(log) for _ in range(rounds)]
    position = (await log.head()).position
    history_s = await from_history(log)
    await log.close()
    await pool.close()
    times = [took for took, _ in taken]
    return {
        "events": position,
        "live_routes": taken[-1][1],
        "replay_s": {"median": round(statistics.median(times), 3), "all": [round(t, 3) for t in times]},
        "whole_history_s": round(history_s, 2),
        "ratio": round(history_s / statistics.median(times), 1),
        "filled_events_per_s": round(position / filled_s),
    }


async def both(server: PostgresServer, given: argparse.Namespace) -> dict[str, Any]:
    await server.ready()
    usual = await measure(server, given.servers, given.events, given.rounds)
    large = await measure(server, given.large, given.large * EVENTS_PER_CYCLE * 2, given.rounds)
    return {**usual, "large": large}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--servers", type=int, default=10_000)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--large", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    server = PostgresServer()
    try:
        server.launch()
        report.write("replay", asyncio.run(both(server, given)))
    finally:
        server.remove()


if __name__ == "__main__":
    main()
