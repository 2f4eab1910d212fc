"""Redis, as far as Traefik's routes need it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from benchmarks.router.cores import running
from benchmarks.router.stage import Stage
from benchmarks.router.tools import path_of
from tests.support.platform import free_port
from tests.support.wait import accepts, eventually


@dataclass
class Redis:
    """One connection to one that runs."""

    address: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def set(self, pairs: Mapping[str, str]) -> None:
        """All at once; RuntimeError if it says anything but OK."""
        words = ["MSET", *(word for pair in pairs.items() for word in pair)]
        command = "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
        async with self.lock:
            self.writer.write(f"*{len(words)}\r\n{command}".encode())
            answer = await self.reader.readline()
        if answer != b"+OK\r\n":
            raise RuntimeError(f"redis: {answer!r}")


@asynccontextmanager
async def started(stage: Stage) -> AsyncIterator[Redis]:
    """In memory, telling its watchers of every change, on the core of everything but the proxy."""
    port = free_port()
    command = [path_of("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    command += ["--notify-keyspace-events", "KEA", "--dir", str(stage.root)]
    async with running(command, stage.root / "redis.log", stage.cores.load):
        await eventually(lambda: accepts(port))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield Redis(f"127.0.0.1:{port}", reader, writer)
        finally:
            writer.close()
