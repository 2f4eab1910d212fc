"""Two cores: one for the proxy that is measured, one for everything else."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

OPEN_FILES_ENOUGH = 32_000


@dataclass(frozen=True)
class Cores:
    """Which core does what."""

    proxy: int
    load: int

    @classmethod
    def choose(cls) -> Cores:
        """The first two cores that this process may use."""
        allowed = sorted(os.sched_getaffinity(0))
        if len(allowed) < 2:
            raise SystemExit("the proxy and its load need a core each, and this process may use only one")
        return cls(allowed[0], allowed[1])


@contextmanager
def on(core: int) -> Iterator[None]:
    """What is started inside stays on the core, with every thread and child that it makes."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def open_files_max() -> int:
    """How many descriptors a process may have; from now on this one and its children have that many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return min(hard, OPEN_FILES_ENOUGH)


@dataclass
class Proxy:
    """One proxy that runs: where it answers and what it uses."""

    url: str
    process: psutil.Process

    def family(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def cpu_s(self) -> float:
        """User and system time so far, of all its processes that live."""
        return sum(sum(p.cpu_times()[:2]) for p in self.family())

    def rss_mb(self) -> float:
        return sum(p.memory_info().rss for p in self.family()) / 1e6


@asynccontextmanager
async def running(command: Sequence[str], output: Path, core: int, **env: str) -> AsyncIterator[psutil.Process]:
    """A process on a core; it is ended at the end, with SIGKILL if it must be."""
    with output.open("ab") as out, on(core):
        process = subprocess.Popen(command, env={**os.environ, **env}, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, 5)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait, 5)
