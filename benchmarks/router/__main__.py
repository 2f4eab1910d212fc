"""One worker of the router beside its peers, in the same run.

    python -m benchmarks.router all|ROW [--rounds 3] [--seconds 2] [--peers orrery,nginx]

Each proxy runs pinned to one core; the load, the upstreams and everything else share another. 1,000 routes; heads of
the size that a browser sends. The router verifies the session of every request; its peers check nothing. Rounds
alternate between the proxies; medians count. What was measured for all peers is kept in benchmarks/results/router.json;
with --peers it is only shown.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shutil
import signal
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

import psutil
import structlog
import uvloop

from benchmarks.router import goals, results
from benchmarks.router.cores import Cores
from benchmarks.router.peers import PEERS
from benchmarks.router.run import ROWS, Run
from tests.support.backbone import PostgresServer

T = TypeVar("T")

NEEDED = ("wrk", "nginx")


def named(text: str) -> list[str]:
    """`--peers`; ArgumentTypeError for one that nobody knows."""
    names = text.split(",")
    unknown = set(names) - set(PEERS)
    if unknown:
        raise argparse.ArgumentTypeError(f"no such peer: {', '.join(unknown)}; there are {', '.join(PEERS)}")
    return names


async def ended_by_kill(work: Coroutine[Any, Any, T]) -> T:
    """Whatever was started is ended, too, when this process is told to end."""
    task = asyncio.ensure_future(work)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await task


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.router", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("row", choices=["all", *ROWS])
    parser.add_argument("--seconds", type=int, default=2, help="of each load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", type=named, default=None, help=f"some of {','.join(PEERS)}")
    given = parser.parse_args()
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        raise SystemExit(f"install {', '.join(missing)} first: apt-get install wrk nginx-light")
    wanted = given.peers or list(PEERS)
    peers = [name for name in wanted if PEERS[name].present]
    if peers != wanted:
        print("left out, because not installed:", ", ".join(set(wanted) - set(peers)))
    # The relay runs in this process; what it has to say is not what was asked for.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    busy_before = psutil.cpu_percent(interval=1) / 100
    if busy_before > goals.BUSY_MAX:
        print(f"the machine is {busy_before:.0%} busy with other things: the figures will say less", file=sys.stderr)
    cores = Cores.choose()
    # Everything starts on the load's core, Postgres and NATS too, and proxies are moved to the other.
    os.sched_setaffinity(0, {cores.load})
    postgres = PostgresServer()
    try:
        postgres.launch()
        rows = ROWS if given.row == "all" else [given.row]
        run = Run(postgres, cores, rows, peers, rounds=given.rounds, seconds=given.seconds)
        found = uvloop.run(ended_by_kill(run.everything()))
    except asyncio.CancelledError:
        raise SystemExit("ended before everything was measured; nothing is kept") from None
    finally:
        postgres.remove()
    if given.peers is None:
        whole = {row: by_peer for row, by_peer in found.items() if row not in run.failed}
        results.keep(whole, rounds=given.rounds, seconds=given.seconds, busy_before=busy_before)
    for line in goals.told(found):
        print(line)
    for row, what in run.failed.items():
        print(f"{row} is not kept, because something failed: {what}", file=sys.stderr)
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
