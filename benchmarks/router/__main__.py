"""One worker of the router beside its peers, in the same run.

    python -m benchmarks.router requests [--rounds 3] [--seconds 5] [--peers orrery,nginx]

Each proxy runs pinned to one core; the load, the upstreams and everything else share another. 1,000 routes; heads of
the size that a browser sends. The router verifies the session of every request; its peers check nothing. Rounds
alternate between the proxies; medians count.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import shutil
import statistics
from typing import Any

import structlog

from benchmarks.router import wrk
from benchmarks.router.cores import Cores
from benchmarks.router.peers import PEERS
from benchmarks.router.rows import requests
from benchmarks.router.stage import Servers, staged
from tests.support.backbone import NatsServer, PostgresServer

ROWS = {"requests": requests.measure}
NEEDED = ("wrk", "nginx")
WARM_UP_S = 1


def median(taken: list[Any]) -> Any:
    """Of every number, at the same place of each of these."""
    if isinstance(taken[0], dict):
        return {key: median([one[key] for one in taken]) for key in taken[0]}
    return statistics.median(taken)


def show_ratios(row: str, by_peer: dict[str, Any]) -> None:
    ours = by_peer.get("orrery", {})
    for peer, theirs in by_peer.items():
        if ours and peer != "orrery":
            ratios = [f"{key} {ours[key]['per_s'] / theirs[key]['per_s']:.2f}" for key in ours]
            print(f"{row}: orrery to {peer}: {', '.join(ratios)}")


async def measure(servers: Servers, rows: list[str], peers: list[str], rounds: int, seconds: int) -> dict[str, Any]:
    await servers.postgres.ready()
    await servers.nats.ready()
    taken: dict[str, dict[str, list[Any]]] = {row: {peer: [] for peer in peers} for row in rows}
    async with staged(servers, Cores.choose()) as stage:
        for _ in range(rounds):
            for peer in peers:
                async with PEERS[peer].start(stage) as proxy:
                    await stage.served(proxy.url, wrk.PATH)
                    await wrk.load(proxy, wrk.same_head(stage), connections=16, seconds=WARM_UP_S)
                    for row in rows:
                        found = await ROWS[row](stage, proxy, seconds)
                        print(f"{row:12} {peer:24} {json.dumps(found)}", flush=True)
                        taken[row][peer].append(found)
    return {row: {peer: median(found) for peer, found in by_peer.items()} for row, by_peer in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.router", description=__doc__)
    parser.add_argument("row", choices=[*ROWS, "all"])
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", default=",".join(PEERS))
    given = parser.parse_args()
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        raise SystemExit(f"install {', '.join(missing)} first: apt-get install wrk nginx-light")
    peers = [name for name in given.peers.split(",") if PEERS[name].present]
    # The relay runs in this process; what it has to say is not what was asked for.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    servers = Servers(PostgresServer(), NatsServer())
    try:
        servers.postgres.launch()
        servers.nats.launch()
        rows = list(ROWS) if given.row == "all" else [given.row]
        found = asyncio.run(measure(servers, rows, peers, given.rounds, given.seconds))
        print(json.dumps(found, indent=2))
        for row, by_peer in found.items():
            show_ratios(row, by_peer)
    finally:
        servers.nats.remove()
        servers.postgres.remove()


if __name__ == "__main__":
    main()
