"""The proxies, each started on its core with the stage's routes. What is not installed is left out, and said."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil

from benchmarks.router.cores import Proxy, on, running
from benchmarks.router.stage import Route, Stage
from tests.support.platform import free_port
from tests.support.wait import eventually

TOOLS = Path(__file__).parents[2] / ".bench"
"""Where `make bench-router` installs what comes from npm."""
FED_AT_ONCE = 10
"""As many requests as JupyterHub has under way when it feeds configurable-http-proxy."""
CHP_TOKEN = "a-token-of-the-benchmarks"

NGINX = """
worker_processes 1; daemon off; error_log stderr crit; pid {root}/proxy.pid; worker_rlimit_nofile 20000;
events {{ worker_connections 19900; }}
http {{ access_log off; keepalive_requests 1000000000; client_max_body_size 0;
  client_body_temp_path {root}/b2; proxy_temp_path {root}/p2; fastcgi_temp_path {root}/f2; uwsgi_temp_path {root}/u2;
  scgi_temp_path {root}/s2;
  map $http_upgrade $connection_upgrade {{ default upgrade; "" ""; }}
  {upstreams}
  server {{ listen 127.0.0.1:{port} backlog=4096;
    proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
    proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr;
    proxy_set_header X-Forwarded-Proto $scheme; proxy_buffering off; proxy_request_buffering off;
    proxy_read_timeout 3600s;
    {locations} }} }}
"""


def tool(name: str) -> str | None:
    """A program from npm's folder or from PATH."""
    return shutil.which(name, path=f"{TOOLS / 'node_modules' / '.bin'}{os.pathsep}{os.environ['PATH']}")


@asynccontextmanager
async def ours(stage: Stage) -> AsyncIterator[Proxy]:
    """One router with access control on: every request carries a session that it verifies."""
    bench = stage.bench
    with on(stage.cores.proxy):
        router = bench.launch()
    try:
        await router.ready()
        yield Proxy(bench.url, psutil.Process(router.pid))
    finally:
        bench.routers.remove(router)
        await asyncio.to_thread(router.remove)


@asynccontextmanager
async def nginx(stage: Stage) -> AsyncIterator[Proxy]:
    port = free_port()
    names = {target: f"up{number}" for number, target in enumerate({target for _, target in stage.routes})}
    upstreams = "\n".join(
        f"upstream {name} {{ server {target.removeprefix('http://')}; keepalive 256; keepalive_requests 1000000000; }}"
        for target, name in names.items()
    )
    locations = "\n".join(f"location {prefix} {{ proxy_pass http://{names[to]}; }}" for prefix, to in stage.routes)
    file = stage.root / "proxy.conf"
    file.write_text(NGINX.format(root=stage.root, port=port, upstreams=upstreams, locations=locations))
    command = ["nginx", "-p", str(stage.root), "-c", str(file)]
    async with running(command, stage.root / "nginx.log", stage.cores.proxy) as process:
        yield Proxy(f"http://127.0.0.1:{port}", process)


@dataclass
class Chp:
    """configurable-http-proxy and its REST API."""

    proxy: Proxy
    api: str
    http: aiohttp.ClientSession

    async def add(self, prefix: str, target: str) -> None:
        async with self.http.post(f"{self.api}{prefix.rstrip('/')}", json={"target": target}) as answer:
            assert answer.status == 201, await answer.text()

    async def feed(self, routes: Sequence[Route]) -> None:
        """All of them, a few at a time as JupyterHub does it."""
        waiting = iter(routes)

        async def feeder() -> None:
            for prefix, target in waiting:
                await self.add(prefix, target)

        await asyncio.gather(*(feeder() for _ in range(FED_AT_ONCE)))

    async def answers(self) -> bool:
        try:
            async with self.http.get(self.api) as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False


@asynccontextmanager
async def empty_chp(stage: Stage, *, port: int = 0, api_port: int = 0) -> AsyncIterator[Chp]:
    """Without routes, as it always starts."""
    command = tool("configurable-http-proxy")
    assert command, "make bench-router installs it where node is present"
    port, api_port = port or free_port(), api_port or free_port()
    arguments = ["--ip", "127.0.0.1", "--port", str(port), "--api-ip", "127.0.0.1", "--api-port", str(api_port)]
    output = stage.root / "chp.log"
    async with (
        running(
            [command, *arguments, "--log-level", "error"], output, stage.cores.proxy, CONFIGPROXY_AUTH_TOKEN=CHP_TOKEN
        ) as process,
        aiohttp.ClientSession(headers={"Authorization": f"token {CHP_TOKEN}"}) as http,
    ):
        chp = Chp(Proxy(f"http://127.0.0.1:{port}", process), f"http://127.0.0.1:{api_port}/api/routes", http)
        await eventually(chp.answers, timeout_s=20)
        yield chp


@asynccontextmanager
async def chp(stage: Stage) -> AsyncIterator[Proxy]:
    async with empty_chp(stage) as found:
        await found.feed(stage.routes)
        yield found.proxy


@dataclass(frozen=True)
class Peer:
    """How to start it, and what it needs."""

    start: Callable[[Stage], AbstractAsyncContextManager[Proxy]]
    program: str = ""
    """Empty: nothing that the project does not bring itself."""

    @property
    def present(self) -> bool:
        return not self.program or tool(self.program) is not None


PEERS = {
    "orrery": Peer(ours),
    "nginx": Peer(nginx, "nginx"),
    "configurable-http-proxy": Peer(chp, "configurable-http-proxy"),
}
