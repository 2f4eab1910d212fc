"""A load of many conversations at once, each one request or message at a time, for what wrk cannot do.

    python -m benchmarks.router.swarm < JOB.JSON

Prints one line of JSON for a job that ends by itself. An `idle` job prints a line once its connections are open, and
ends with its standard input. It reads no more than it must: it shares a core with the upstreams.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from typing import cast

import msgspec
import psutil
import uvloop

from benchmarks.router.frames import REPLY, SENT
from benchmarks.router.upstreams import MEBIBYTE, SWALLOWED

READ_BYTES = 1 << 20
CONNECTING_MAX = 64
WARM_UP_S = 0.3


class Job(msgspec.Struct):
    """What to do, and whose CPU to count."""

    kind: str
    port: int
    head: str
    connections: int
    seconds: float
    pids: list[int]


class Report(msgspec.Struct):
    """What was done meanwhile."""

    per_s: float
    cpu_s: float
    """Of the watched processes."""
    wall_s: float
    done: int


class Tally:
    """What all conversations of a job have done."""

    def __init__(self) -> None:
        self.done = 0
        self.open = 0
        self.lost: list[str] = []


class Conversation(asyncio.BufferedProtocol):
    """One connection."""

    chunked = False
    """The answer that came last."""
    buffer = memoryview(bytearray(READ_BYTES))
    """One for all: what is in it is read before anything else happens."""

    def __init__(self, job: Job, tally: Tally) -> None:
        self.request = job.head.encode("latin-1")
        self.tally = tally
        self.head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.tally.open += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.tally.lost.append(f"{exc!r} after {self.head!r}")

    def get_buffer(self, _hint: int) -> memoryview:
        return self.buffer

    def begin(self) -> None:
        """Sends what comes first."""
        self.transport.write(self.request)

    def read_head(self, count: int, status: bytes) -> bytes | None:
        """What came after the head of an answer, once it is whole. The connection is lost if it says something else."""
        self.head += self.buffer[:count]
        head, found, rest = self.head.partition(b"\r\n\r\n")
        if not found:
            return None
        if not head.startswith(b"HTTP/1.1 " + status):
            self.transport.abort()
            return None
        self.chunked = b"\r\ntransfer-encoding: chunked" in head.lower()
        self.head = b""
        return rest


class Download(Conversation):
    """A mebibyte, and again."""

    left = 0

    def buffer_updated(self, count: int) -> None:
        if not self.left:
            rest = self.read_head(count, b"200")
            if rest is None:
                return
            self.left, count = MEBIBYTE, len(rest)
        self.left -= count
        if not self.left:
            self.tally.done += 1
            self.begin()


class Upload(Conversation):
    """A mebibyte, and again."""

    body = b"\x5a" * MEBIBYTE
    answer: bytes | None = None
    end = b""

    def begin(self) -> None:
        self.answer = None
        self.transport.write(self.request)
        self.transport.write(self.body)

    def buffer_updated(self, count: int) -> None:
        """The answer's body is two bytes, in chunks if the proxy likes it so."""
        if self.answer is None:
            self.answer = self.read_head(count, b"200")
            if self.answer is None:
                return
            self.end = b"0\r\n\r\n" if self.chunked else SWALLOWED
        else:
            self.answer += self.buffer[:count]
        if self.answer.endswith(self.end):
            self.tally.done += 1
            self.begin()


class WebSocket(Conversation):
    """A message, its echo, and again."""

    upgraded = False
    part = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.tally.open -= 1
        self.transport.write(self.request)

    def begin(self) -> None:
        self.transport.write(SENT)

    def buffer_updated(self, count: int) -> None:
        if not self.upgraded:
            self.upgraded = self.read_head(count, b"101") is not None
            self.tally.open += self.upgraded
            return
        messages, self.part = divmod(self.part + count, len(REPLY))
        if messages:
            self.tally.done += messages
            self.transport.write(SENT)


KINDS: dict[str, type[Conversation]] = {
    "download": Download,
    "upload": Upload,
    "websocket": WebSocket,
    "idle": WebSocket,
}


class Swarm:
    """The conversations of one job."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.tally = Tally()
        self.conversations: list[Conversation] = []
        self.processes = [psutil.Process(pid) for pid in job.pids]

    async def open(self) -> None:
        """All connections, a few at a time; returns when every one is ready to talk."""
        while len(self.conversations) < self.job.connections:
            missing = min(CONNECTING_MAX, self.job.connections - len(self.conversations))
            self.conversations += await asyncio.gather(*(self.connect() for _ in range(missing)))
            while self.tally.open < len(self.conversations):
                self.check()
                await asyncio.sleep(0.001)

    async def connect(self) -> Conversation:
        kind = KINDS[self.job.kind]
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(lambda: kind(self.job, self.tally), "127.0.0.1", self.job.port)
        return made

    def check(self) -> None:
        if self.tally.lost:
            raise RuntimeError(f"{len(self.tally.lost)} connections were lost: {self.tally.lost[0]}")

    def cpu_s(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self.processes)

    async def talk(self) -> Report:
        for conversation in self.conversations:
            conversation.begin()
        await asyncio.sleep(WARM_UP_S)
        done, cpu_s, began = self.tally.done, self.cpu_s(), time.perf_counter()
        await asyncio.sleep(self.job.seconds)
        wall_s = time.perf_counter() - began
        done, cpu_s = self.tally.done - done, self.cpu_s() - cpu_s
        self.check()
        return Report(per_s=done / wall_s, cpu_s=cpu_s, wall_s=wall_s, done=done)


async def run(job: Job) -> None:
    swarm = Swarm(job)
    await swarm.open()
    gc.freeze()
    if job.kind == "idle":
        print("open", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)
        swarm.check()
        return
    print(msgspec.json.encode(await swarm.talk()).decode(), flush=True)


if __name__ == "__main__":
    uvloop.run(run(msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)))
