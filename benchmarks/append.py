"""Appends per second and how long one takes, beside the plainest thing that could be done instead.

    python -m benchmarks.append [--seconds 5]

A Postgres that flushes every commit to disk. The peer is one INSERT and commit per event into a table with an identity
column, on as many connections as there are writers (at most 16): no gapless positions, no versions, no idempotency.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg

from benchmarks import report
from orrery_events.catalog.user import UserCreated, user_stream
from orrery_events.ids import new_id
from orrery_events.log import EventLog, create_pool
from orrery_events.registry import encode
from tests.support.backbone import PostgresServer

WRITERS = (1, 16, 256)
CONNECTIONS_MAX = 16


async def hammer(write: Callable[[], Awaitable[object]], writers: int, seconds: float) -> dict[str, float]:
    took: list[float] = []
    end = time.perf_counter() + seconds

    async def writer() -> None:
        while (began := time.perf_counter()) < end:
            await write()
            took.append((time.perf_counter() - began) * 1000)

    await asyncio.gather(*(writer() for _ in range(writers)))
    return {
        "per_s": round(len(took) / seconds),
        "p50_ms": round(report.quantile(took, 0.5), 2),
        "p99_ms": round(report.quantile(took, 0.99), 2),
    }


async def measure(server: PostgresServer, seconds: float) -> dict[str, Any]:
    await server.ready()
    url = await server.create_database(migrated=True)
    pool = await create_pool(url, application_name="bench")
    log = EventLog(pool, producer="bench")
    await log.start()
    plain = await asyncpg.create_pool(url, min_size=CONNECTIONS_MAX, max_size=CONNECTIONS_MAX)
    await plain.execute(
        "CREATE TABLE plain (position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, stream_id text, data jsonb)"
    )

    async def append() -> None:
        name = new_id()
        await log.append(user_stream(name), [UserCreated(user_id=name, name=name)])

    async def insert() -> None:
        name = new_id()
        data = encode(UserCreated(user_id=name, name=name)).decode()
        await plain.execute("INSERT INTO plain (stream_id, data) VALUES ($1, $2)", user_stream(name), data)

    found = {}
    for writers in WRITERS:
        ours, peer = await hammer(append, writers, seconds), await hammer(insert, writers, seconds)
        ratio = round(ours["per_s"] / peer["per_s"], 2)
        found[str(writers)] = {"append": ours, "plain_insert": peer, "ratio": ratio}
    await plain.close()
    await log.close()
    await pool.close()
    return {"writers": found}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=5.0)
    given = parser.parse_args()
    server = PostgresServer(settings={"synchronous_commit": "on", "fsync": "on", "full_page_writes": "on"})
    try:
        server.launch()
        report.write("append", asyncio.run(measure(server, given.seconds)))
    finally:
        server.remove()


if __name__ == "__main__":
    main()
