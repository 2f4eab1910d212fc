"""The generator of a fixed rate leaves nothing out: a stall is felt by every request that was due meanwhile."""

from __future__ import annotations

import asyncio
import time

from benchmarks.router.openloop import END, OpenLoop, Paced
from tests.support.routers import answering, head_of

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + END
RATE_PER_S = 500.0
STALL_S = 0.3


async def test_requests_that_were_due_during_a_stall_count_from_when_they_were_due() -> None:
    began = time.perf_counter()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await head_of(reader)
            # From the second 0.8 to 1.1 nothing is answered at all.
            if 0.8 < (past := time.perf_counter() - began) < 0.8 + STALL_S:
                await asyncio.sleep(0.8 + STALL_S - past)  # no state to wait for
            writer.write(ANSWER)

    async with answering(handle) as url:
        port = int(url.rpartition(":")[2])
        job = Paced(
            port=port, head="GET / HTTP/1.1\r\nHost: a\r\n\r\n", connections=4, seconds=1, rate_per_s=RATE_PER_S
        )
        found = await asyncio.to_thread(OpenLoop(job).run)
    assert found.requests == 500, "those of the warm-up are not counted"
    # With four connections a closed loop would have felt the stall four times, and its p99 not at all.
    assert found.p99_ms > 0.8 * STALL_S * 1000
    assert found.p50_ms < 0.2 * STALL_S * 1000
