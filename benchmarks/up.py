"""`orrery up` from the command to the ready banner, on an empty data directory and again; memory of each idle process.

    python -m benchmarks.up [--rounds 5]

Writes benchmarks/results/up.json. Memory is told as PSS (shared pages divided among their sharers) and as RSS.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from typing import Any

import psutil

from benchmarks import report
from tests.support.platform import Platform

IDLE_S = 10.0
"""How long the platform is left alone before its memory is read."""


async def one_round() -> tuple[float, float, dict[str, dict[str, float]]]:
    platform = Platform()
    try:
        first_s = await timed_start(platform)
        await platform.interrupt()
        again_s = await timed_start(platform)
        await asyncio.sleep(IDLE_S)
        return first_s, again_s, memory(await platform.status())
    finally:
        await asyncio.to_thread(platform.stop)


async def timed_start(platform: Platform) -> float:
    began = time.perf_counter()
    await platform.start()
    return time.perf_counter() - began


def memory(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Megabytes per slot; Postgres with all its backends."""
    out = {}
    for row in rows:
        process = psutil.Process(row["pid"])
        family = [process, *(process.children(recursive=True) if row["service"] == "postgres" else [])]
        infos = [p.memory_full_info() for p in family]
        out[row["slot"]] = {
            "pss_mb": round(sum(i.pss for i in infos) / 1e6, 1),
            "rss_mb": round(max(i.rss for i in infos) / 1e6, 1),
        }
    return out


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    firsts, agains, memories = [], [], []
    for _ in range(rounds):
        first_s, again_s, used = await one_round()
        firsts.append(first_s)
        agains.append(again_s)
        memories.append(used)
        print(f"first {first_s:.2f} s, again {again_s:.2f} s")
    result = {
        "rounds": rounds,
        "first_s": {"median": round(statistics.median(firsts), 2), "all": [round(s, 2) for s in firsts]},
        "again_s": {"median": round(statistics.median(agains), 2), "all": [round(s, 2) for s in agains]},
        "memory_mb": {
            slot: {key: statistics.median(m[slot][key] for m in memories) for key in ("pss_mb", "rss_mb")}
            for slot in sorted(memories[0])
        },
    }
    report.write("up", result)


if __name__ == "__main__":
    asyncio.run(main())
