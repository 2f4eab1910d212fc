"""Latency at a fixed rate, without coordinated omission: a request that is due is sent, whatever became of the others.

    python -m benchmarks.router.openloop < JOB.JSON

The time of a request counts from when it was due, not from when it could be sent. Connections are kept alive; where all
are taken, another is opened, up to the job's `connections`. Prints one line of JSON.
"""

from __future__ import annotations

import gc
import math
import select
import socket
import sys
import time
from collections import deque

import msgspec

from benchmarks import report
from benchmarks.router.upstreams import BODY

WARM_UP_S = 0.5
GRACE_S = 2.0
"""How long the last answers are waited for."""
END = BODY[-1].encode()
"""No head has this character, and one character cannot come in two parts."""


class Paced(msgspec.Struct):
    """What to do."""

    port: int
    head: str
    connections: int
    seconds: float
    rate_per_s: float


class Latency(msgspec.Struct):
    """Of the requests that were due after the warm-up."""

    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    requests: int
    connections: int
    """How many were needed."""


class OpenLoop:
    """One thread and `select`, which wakes up within microseconds; an event loop's timers count milliseconds."""

    def __init__(self, job: Paced) -> None:
        self.job = job
        self.request = job.head.encode("latin-1")
        self.idle: deque[socket.socket] = deque()
        self.busy: dict[socket.socket, float] = {}
        self.waiting: deque[float] = deque()
        self.counted_from = 0.0
        self.took_s: list[float] = []
        self.buffer = bytearray(1 << 16)

    def connect(self) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self.job.port), timeout=5)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def send(self, due: float) -> None:
        if not self.idle and len(self.busy) >= self.job.connections:
            self.waiting.append(due)
            return
        connection = self.idle.popleft() if self.idle else self.connect()
        connection.sendall(self.request)
        self.busy[connection] = due

    def receive(self, connection: socket.socket) -> None:
        count = connection.recv_into(self.buffer)
        now = time.perf_counter()
        if not count:
            # It was closed while it was idle: as a browser does it, once more, on the same clock.
            connection.close()
            self.send(self.busy.pop(connection))
            return
        if self.buffer.startswith(b"HTTP/1.1 ") and not self.buffer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"not 200: {bytes(self.buffer[:count])!r}")
        if END not in self.buffer[:count]:
            return
        due = self.busy.pop(connection)
        if due >= self.counted_from:
            self.took_s.append(now - due)
        self.idle.append(connection)
        if self.waiting:
            self.send(self.waiting.popleft())

    def wait(self, until: float) -> None:
        left = max(0.0, until - time.perf_counter())
        for connection in select.select(list(self.busy), (), (), left)[0]:
            self.receive(connection)

    def run(self) -> Latency:
        interval_s = 1 / self.job.rate_per_s
        warm = math.ceil(WARM_UP_S * self.job.rate_per_s)
        count = warm + math.ceil(self.job.seconds * self.job.rate_per_s)
        began = time.perf_counter()
        self.counted_from = began + warm * interval_s
        for number in range(count):
            due = began + number * interval_s
            self.wait(due)
            while time.perf_counter() < due:
                self.wait(due)
            self.send(due)
        deadline = time.perf_counter() + GRACE_S
        while self.busy and time.perf_counter() < deadline:
            self.wait(deadline)
        # What never came took at least as long as it was waited for.
        self.took_s += [time.perf_counter() - due for due in (*self.busy.values(), *self.waiting)]
        ms = [1000 * took_s for took_s in self.took_s]
        p50, p99, p999 = (round(report.quantile(ms, share), 3) for share in (0.5, 0.99, 0.999))
        used = [*self.idle, *self.busy]
        for connection in used:
            connection.close()
        return Latency(
            p50_ms=p50, p99_ms=p99, p999_ms=p999, max_ms=round(max(ms), 3), requests=len(ms), connections=len(used)
        )


if __name__ == "__main__":
    gc.disable()
    given = msgspec.json.decode(sys.stdin.buffer.readline(), type=Paced)
    print(msgspec.json.encode(OpenLoop(given).run()).decode(), flush=True)
