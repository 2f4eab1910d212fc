"""Starts the loads that are programs of ours."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import msgspec

from benchmarks.router.cores import Proxy
from benchmarks.router.openloop import Latency, Paced
from benchmarks.router.swarm import Job, Report

START_TIMEOUT_S = 60.0
IDLE_TIMEOUT_S = 120.0


def port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port
    return port


def job(proxy: Proxy, kind: str, head: str, connections: int, seconds: float) -> bytes:
    pids = [process.pid for process in proxy.family()]
    made = Job(kind=kind, port=port_of(proxy.url), head=head, connections=connections, seconds=seconds, pids=pids)
    return msgspec.json.encode(made) + b"\n"


def command(module: str) -> list[str]:
    return [sys.executable, "-m", f"benchmarks.router.{module}"]


async def swarm(proxy: Proxy, kind: str, head: str, *, connections: int, seconds: float) -> Report:
    """One run; CalledProcessError if a connection was lost or something else than success was answered."""
    given = job(proxy, kind, head, connections, seconds)
    return msgspec.json.decode(await run("swarm", given, seconds), type=Report)


async def paced(proxy: Proxy, head: str, *, connections: int, seconds: float, rate_per_s: float) -> Latency:
    """One run; CalledProcessError if the proxy cannot keep up or answers something else than success."""
    given = Paced(port=port_of(proxy.url), head=head, connections=connections, seconds=seconds, rate_per_s=rate_per_s)
    return msgspec.json.decode(await run("openloop", msgspec.json.encode(given) + b"\n", seconds), type=Latency)


async def run(module: str, given: bytes, seconds: float) -> bytes:
    """What it prints."""
    done = await asyncio.to_thread(
        subprocess.run,
        command(module),
        input=given,
        stdout=subprocess.PIPE,
        check=True,
        timeout=seconds + START_TIMEOUT_S,
    )
    return bytes(done.stdout)


@asynccontextmanager
async def idle(proxy: Proxy, head: str, connections: int) -> AsyncIterator[None]:
    """WebSockets that are open and silent meanwhile."""
    process = await asyncio.create_subprocess_exec(*command("swarm"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin
    assert process.stdout
    try:
        process.stdin.write(job(proxy, "idle", head, connections, 0))
        said = await asyncio.wait_for(process.stdout.readline(), IDLE_TIMEOUT_S)
        if said != b"open\n":
            raise RuntimeError(f"{connections} idle WebSockets could not be opened at {proxy.url}")
        yield
    finally:
        process.stdin.close()
        await process.wait()
