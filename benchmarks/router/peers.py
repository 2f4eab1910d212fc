"""The proxies, each started on its core with the stage's routes. What is not installed is left out, and said."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import psutil

from benchmarks.router import chp, traefik
from benchmarks.router.cores import Proxy, on, open_files_max, running
from benchmarks.router.stage import Route, Stage
from benchmarks.router.tools import is_there, path_of
from tests.support.platform import free_port

SPARE_FILES = 100
"""What a proxy opens beside its connections."""
NGINX = """
worker_processes 1; daemon off; error_log stderr crit; pid {root}/proxy.pid; worker_rlimit_nofile {files};
events {{ worker_connections {connections}; }}
http {{ access_log off; keepalive_requests 1000000000; client_max_body_size 0;
  client_body_temp_path {root}/b2; proxy_temp_path {root}/p2; fastcgi_temp_path {root}/f2; uwsgi_temp_path {root}/u2;
  scgi_temp_path {root}/s2;
  map $http_upgrade $connection_upgrade {{ default upgrade; "" ""; }}
  {upstreams}
  server {{ listen 127.0.0.1:{port} backlog=4096;
    proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
    proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr;
    proxy_set_header X-Forwarded-Proto $scheme; proxy_read_timeout 3600s;
    proxy_buffering off; proxy_buffer_size 64k; proxy_buffers 8 64k; proxy_busy_buffers_size 128k;
    proxy_request_buffering off; client_body_buffer_size 64k;
    {locations} }} }}
"""


"""It streams, as notebooks need it, and with larger buffers than its own: with those it takes three times the CPU."""
HAPROXY = """
global
  maxconn {connections}
  nbthread 1
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  option forwardfor
frontend public
  bind 127.0.0.1:{port} backlog 4096
  http-request set-header X-Forwarded-Proto http
  use_backend %[path,map_beg({root}/haproxy.map)]
"""


def names_of(routes: Sequence[Route]) -> dict[str, str]:
    """A name for every target."""
    return {target: f"up{number}" for number, target in enumerate(dict.fromkeys(to for _, to in routes))}


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
    names = names_of(stage.routes)
    upstreams = "\n".join(
        f"upstream {name} {{ server {target.removeprefix('http://')}; keepalive 256; keepalive_requests 1000000000; }}"
        for target, name in names.items()
    )
    locations = "\n".join(f"location {prefix} {{ proxy_pass http://{names[to]}; }}" for prefix, to in stage.routes)
    file = stage.root / "proxy.conf"
    file.write_text(
        NGINX.format(
            root=stage.root,
            port=port,
            upstreams=upstreams,
            locations=locations,
            files=open_files_max(),
            # It closes idle ones when a sixteenth is left.
            connections=2 * open_files_max(),
        )
    )
    command = [path_of("nginx"), "-p", str(stage.root), "-c", str(file)]
    async with running(command, stage.root / "nginx.log", stage.cores.proxy) as process:
        yield Proxy(f"http://127.0.0.1:{port}", process)


@asynccontextmanager
async def haproxy(stage: Stage) -> AsyncIterator[Proxy]:
    port = free_port()
    names = names_of(stage.routes)
    (stage.root / "haproxy.map").write_text("".join(f"{prefix} {names[to]}\n" for prefix, to in stage.routes))
    backends = "".join(
        f"backend {name}\n  http-reuse always\n  server one {target.removeprefix('http://')} pool-max-conn 256\n"
        for target, name in names.items()
    )
    file = stage.root / "haproxy.cfg"
    file.write_text(
        HAPROXY.format(root=stage.root, port=port, connections=(open_files_max() - SPARE_FILES) // 2) + backends
    )
    command = [path_of("haproxy"), "-db", "-f", str(file)]
    async with running(command, stage.root / "haproxy.log", stage.cores.proxy) as process:
        yield Proxy(f"http://127.0.0.1:{port}", process)


@asynccontextmanager
async def plain_aiohttp(stage: Stage) -> AsyncIterator[Proxy]:
    port = free_port()
    file = stage.root / "aiohttp.json"
    file.write_text(json.dumps(stage.routes))
    command = [sys.executable, "-m", "benchmarks.aiohttp_proxy", str(port), str(file)]
    async with running(command, stage.root / "aiohttp.log", stage.cores.proxy) as process:
        yield Proxy(f"http://127.0.0.1:{port}", process)


@dataclass(frozen=True)
class Peer:
    """How to start it, and what it needs."""

    start: Callable[[Stage], AbstractAsyncContextManager[Proxy]]
    program: str = ""
    """Empty: nothing that the project does not bring itself."""

    @property
    def present(self) -> bool:
        return not self.program or is_there(self.program)


PEERS = {
    "orrery": Peer(ours),
    "nginx": Peer(nginx, "nginx"),
    "haproxy": Peer(haproxy, "haproxy"),
    "traefik": Peer(traefik.stock, "traefik"),
    "traefik-tuned": Peer(traefik.tuned, "traefik"),
    "configurable-http-proxy": Peer(chp.fed, "configurable-http-proxy"),
    "aiohttp": Peer(plain_aiohttp),
}
