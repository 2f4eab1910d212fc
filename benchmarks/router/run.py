"""Runs the rows that were asked for: rounds over all peers, then the rows that start their proxies themselves."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.router import wrk
from benchmarks.router.cores import Cores, Proxy
from benchmarks.router.goals import GOALS
from benchmarks.router.peers import PEERS
from benchmarks.router.rows import adding, connects, latency, memory, rebuild, requests, transfers, websockets
from benchmarks.router.stage import Stage, staged
from tests.support.backbone import PostgresServer

SHARED: dict[str, Callable[[Stage, Proxy, int], Awaitable[dict[str, Any]]]] = {
    "requests": requests.measure,
    "latency": latency.measure,
    "transfers": transfers.measure,
    "websockets": websockets.measure,
    "connects": connects.measure,
}
"""Measured one after the other on each proxy of each round."""
OWN: dict[str, Callable[[PostgresServer, Cores, list[str]], Awaitable[dict[str, Any]]]] = {
    "memory": memory.measure,
    "adding": adding.measure,
    "rebuild": rebuild.measure,
}
"""Measured on proxies that have done nothing else."""
ROUNDS_MAX = {"memory": 1, "adding": 2}
"""Memory hardly varies; both take long."""
COMPARED = {"orrery", *(goal.peer for goal in GOALS)}
"""The others are there for orientation, and one round of them is enough."""
ROWS = [*SHARED, *OWN]
WARM_UP_S = 1
WARM_UP_CONNECTIONS = 16

Taken = dict[str, dict[str, list[Any]]]
"""Row, peer, rounds."""


def median(taken: list[Any]) -> Any:
    """Of every number, at the same place of each of these."""
    if isinstance(taken[0], dict):
        return {key: median([one[key] for one in taken]) for key in taken[0]}
    middle = statistics.median(taken)
    return round(middle, 3) if isinstance(middle, float) else middle


class Run:
    """One run. What fails is said and left out, and the rest goes on: the others are worth the wait."""

    def __init__(
        self, postgres: PostgresServer, cores: Cores, rows: list[str], peers: list[str], *, rounds: int, seconds: int
    ) -> None:
        self.postgres, self.cores = postgres, cores
        self.rows, self.peers, self.rounds, self.seconds = rows, peers, rounds, seconds
        self.taken: Taken = {row: {} for row in rows}
        self.failed: dict[str, str] = {}
        """Row → what failed last."""

    def keep(self, row: str, peer: str, found: dict[str, Any]) -> None:
        print(f"{row:10} {peer:23} {json.dumps(found)}", flush=True)
        self.taken[row].setdefault(peer, []).append(found)

    async def attempt(self, rows: list[str], who: str, work: Awaitable[Any]) -> Any:
        try:
            return await work
        except (RuntimeError, AssertionError, OSError, TimeoutError, subprocess.SubprocessError) as error:
            for row in rows:
                self.failed[row] = f"{who}: {error}"
            print(f"{', '.join(rows)} FAILED: {who}: {error}", file=sys.stderr, flush=True)
            return None

    async def everything(self) -> dict[str, dict[str, Any]]:
        """Row → peer → medians."""
        await self.postgres.ready()
        shared = [row for row in self.rows if row in SHARED]
        if shared:
            async with staged(self.postgres, self.cores) as stage:
                if "latency" in shared:
                    await latency.choose_pace(stage)
                for number in range(self.rounds):
                    for peer in self.peers:
                        if number and peer not in COMPARED:
                            continue
                        await self.attempt(shared, peer, self.one_peer(stage, peer, shared))
        for row in self.rows:
            if row in OWN:
                for _ in range(min(self.rounds, ROUNDS_MAX.get(row, self.rounds))):
                    found = await self.attempt([row], "all", OWN[row](self.postgres, self.cores, self.peers))
                    for peer, figures in (found or {}).items():
                        self.keep(row, peer, figures)
        return {row: {peer: median(found) for peer, found in by_peer.items()} for row, by_peer in self.taken.items()}

    async def one_peer(self, stage: Stage, peer: str, rows: list[str]) -> None:
        async with PEERS[peer].start(stage) as proxy:
            await stage.served(proxy.url, wrk.PATH)
            await wrk.load(proxy, wrk.same_head(stage), connections=WARM_UP_CONNECTIONS, seconds=WARM_UP_S)
            for row in rows:
                found = await self.attempt([row], peer, SHARED[row](stage, proxy, self.seconds))
                if found is not None:
                    self.keep(row, peer, found)
