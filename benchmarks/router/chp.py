"""configurable-http-proxy and its REST API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from benchmarks.router.client import Client
from benchmarks.router.cores import Proxy, running
from benchmarks.router.stage import Route, Stage
from benchmarks.router.tools import path_of
from tests.support.platform import free_port
from tests.support.wait import eventually

FED_AT_ONCE = 10
"""As many requests as JupyterHub has under way when it feeds configurable-http-proxy."""
TOKEN = "a-token-of-the-benchmarks"


@dataclass
class Chp:
    """One that runs."""

    proxy: Proxy
    api: Client

    def request(self, method: str, prefix: str, body: bytes = b"") -> bytes:
        head = f"{method} /api/routes{prefix.rstrip('/')} HTTP/1.1\r\nHost: localhost\r\nAuthorization: token {TOKEN}"
        return f"{head}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    async def add(self, prefix: str, target: str) -> None:
        status = await self.api.ask(self.request("POST", prefix, json.dumps({"target": target}).encode()))
        assert status == 201, status

    async def feed(self, routes: Sequence[Route]) -> None:
        """All of them, a few at a time as JupyterHub does it."""
        waiting = iter(routes)

        async def feeder() -> None:
            for prefix, target in waiting:
                await self.add(prefix, target)

        await asyncio.gather(*(feeder() for _ in range(FED_AT_ONCE)))

    async def answers(self) -> bool:
        try:
            return await self.api.ask(self.request("GET", "/")) == 200
        except OSError:
            return False


@asynccontextmanager
async def empty(stage: Stage) -> AsyncIterator[Chp]:
    """Without routes, as it always starts."""
    port, api_port = free_port(), free_port()
    command = [path_of("configurable-http-proxy"), "--log-level", "error"]
    command += ["--ip", "127.0.0.1", "--port", str(port), "--api-ip", "127.0.0.1", "--api-port", str(api_port)]
    output = stage.root / "chp.log"
    async with running(command, output, stage.cores.proxy, CONFIGPROXY_AUTH_TOKEN=TOKEN) as process:
        chp = Chp(Proxy(f"http://127.0.0.1:{port}", process), Client(f"http://127.0.0.1:{api_port}"))
        try:
            await eventually(chp.answers, timeout_s=20)
            yield chp
        finally:
            chp.api.close()


@asynccontextmanager
async def fed(stage: Stage) -> AsyncIterator[Proxy]:
    async with empty(stage) as found:
        await found.feed(stage.routes)
        yield found.proxy
