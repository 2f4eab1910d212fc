"""Requests per second through one router on one core, beside the proxies that people use today, in the same run.

    python -m benchmarks.router [--seconds 5] [--rounds 3]

Needs `wrk` and `nginx` (Debian packages) and, for the third peer, `configurable-http-proxy` on PATH (npm); what is not
there is left out. Each proxy runs pinned to one core; the load and the upstream (nginx, 200 bytes) share the other.
 1,000 routes; heads of the size that a browser sends. The router checks the session of every request and sets the
headers that it must; its peers check nothing. Rounds alternate between the proxies; medians count.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from benchmarks import report
from orrery_events.catalog.route import RouteSet, route_id_of
from tests.support.backbone import PostgresServer
from tests.support.platform import free_port
from tests.support.routers import Bench
from tests.support.wait import eventually

ROUTES = 1000
PROXY_CORE, LOAD_CORE = "0", "1"
CONNECTIONS = 16
HEADERS = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "Accept-Language": "en-GB,en;q=0.9,de;q=0.8",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Sec-Fetch-Dest": "document",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Site": "same-origin",
    "Sec-CH-UA": '"Chromium";v="156", "Not.A/Brand";v="24"',
    "Sec-CH-UA-Platform": '"Linux"',
    "Upgrade-Insecure-Requests": "1",
}

UPSTREAM = """
worker_processes 1; daemon off; error_log stderr crit; pid {root}/upstream.pid;
events {{ worker_connections 1024; }}
http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {root}/b; proxy_temp_path {root}/p;
  fastcgi_temp_path {root}/f; uwsgi_temp_path {root}/u; scgi_temp_path {root}/s;
  server {{ listen 127.0.0.1:{port}; location / {{ default_type text/plain; return 200 "{body}"; }} }} }}
"""
PROXY = """
worker_processes 1; daemon off; error_log stderr crit; pid {root}/proxy.pid;
events {{ worker_connections 1024; }}
http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {root}/b2; proxy_temp_path {root}/p2;
  fastcgi_temp_path {root}/f2; uwsgi_temp_path {root}/u2; scgi_temp_path {root}/s2;
  upstream up {{ server 127.0.0.1:{upstream}; keepalive 64; keepalive_requests 1000000000; }}
  server {{ listen 127.0.0.1:{port};
    proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
    proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme; proxy_buffering off;
    {locations} }} }}
"""


@asynccontextmanager
async def pinned(command: list[str], core: str, **env: str) -> AsyncIterator[psutil.Process]:
    process = subprocess.Popen(
        ["taskset", "-c", core, *command],
        env={**os.environ, **env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 10)


@asynccontextmanager
async def nginx(config: str, root: Path, name: str, core: str) -> AsyncIterator[psutil.Process]:
    file = root / f"{name}.conf"
    file.write_text(config)
    async with pinned(["nginx", "-p", str(root), "-c", str(file)], core) as process:
        yield process


async def answers(url: str, headers: dict[str, str]) -> bool:
    try:
        async with aiohttp.ClientSession() as http, http.get(url, headers=headers) as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


async def load(url: str, script: Path, process: psutil.Process, seconds: float) -> dict[str, float]:
    """One round of wrk."""
    family = [process, *process.children(recursive=True)]
    before = sum(sum(p.cpu_times()[:2]) for p in family)
    command = ["taskset", "-c", LOAD_CORE, "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:g}s", "--latency"]
    done = await asyncio.to_thread(
        subprocess.run, [*command, "-s", str(script), url], capture_output=True, text=True, check=True
    )
    used = sum(sum(p.cpu_times()[:2]) for p in family) - before
    said = done.stdout
    if "Non-2xx" in said:
        raise RuntimeError(said)
    requests = int(re.search(r"(\d+) requests in", said)[1])  # type: ignore[index]
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1])  # type: ignore[index]
    number, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", said).groups()  # type: ignore[union-attr]
    p99_ms = float(number) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit]
    return {"per_s": round(rate), "p99_ms": p99_ms, "cpu_s_per_10000": round(used / requests * 10_000, 3)}


@asynccontextmanager
async def our_router(bench: Bench, upstream: str) -> AsyncIterator[tuple[str, psutil.Process]]:
    ada = bench.ada
    events = []
    for number in range(ROUTES):
        prefix = f"/user/ada/s{number}/"
        events.append(
            RouteSet(
                route_id=route_id_of(prefix),
                prefix=prefix,
                target=upstream,
                policy="owner",
                owner_id=ada.user_id,
                owner_name="ada",
                server_id=f"s{number}",
                server_name=f"s{number}",
                generation=1,
            )
        )
    for start in range(0, ROUTES, 500):
        await bench.log.append(f"route-{start}", events[start : start + 500])
    router = await bench.router()
    process = psutil.Process(router.pid)
    process.cpu_affinity([int(PROXY_CORE)])
    yield bench.url, process


@asynccontextmanager
async def chp(upstream: str) -> AsyncIterator[tuple[str, psutil.Process]]:
    port, api = free_port(), free_port()
    command = ["configurable-http-proxy", "--ip", "127.0.0.1", "--port", str(port), "--api-ip", "127.0.0.1"]
    command += ["--api-port", str(api), "--log-level", "error"]
    async with pinned(command, PROXY_CORE, CONFIGPROXY_AUTH_TOKEN="x") as process, aiohttp.ClientSession() as http:
        headers = {"Authorization": "token x"}

        async def up() -> bool:
            try:
                async with http.get(f"http://127.0.0.1:{api}/api/routes", headers=headers) as answer:
                    return answer.status == 200
            except aiohttp.ClientError:
                return False

        await eventually(up, timeout_s=20)
        for number in range(ROUTES):
            url = f"http://127.0.0.1:{api}/api/routes/user/ada/s{number}"
            async with http.post(url, headers=headers, json={"target": upstream}) as answer:
                assert answer.status == 201
        yield f"http://127.0.0.1:{port}", process


def folder() -> Path:
    """nginx's workers are somebody else when it is started as root."""
    root = Path(tempfile.mkdtemp(prefix="orrery-bench-"))
    root.chmod(0o777)
    return root


async def measure(server: PostgresServer, seconds: float, rounds: int) -> dict[str, Any]:
    await server.ready()
    database_url = await server.create_database(migrated=True)
    root = await asyncio.to_thread(folder)
    port, proxy_port = free_port(), free_port()
    upstream = f"http://127.0.0.1:{port}"
    locations = " ".join(f"location /user/ada/s{n}/ {{ proxy_pass http://up; }}" for n in range(ROUTES))
    taken: dict[str, list[dict[str, float]]] = {}
    try:
        async with (
            nginx(UPSTREAM.format(root=root, port=port, body="x" * 200), root, "upstream", LOAD_CORE),
            Bench.open(root, database_url) as bench,
        ):
            headers = {**HEADERS, "Cookie": f"_xsrf=2|abcdef|0123456789; {bench.ada.cookie['Cookie']}"}
            script = root / "wrk.lua"
            lines = "".join(f"wrk.headers[{name!r}] = {value!r}\n" for name, value in headers.items())
            script.write_text(lines)

            async def with_ours(use: Callable[[str, psutil.Process], Awaitable[None]]) -> None:
                async with our_router(bench, upstream) as (url, process):
                    await use(url, process)

            async def with_nginx(use: Callable[[str, psutil.Process], Awaitable[None]]) -> None:
                config = PROXY.format(root=root, port=proxy_port, upstream=port, locations=locations)
                async with nginx(config, root, "proxy", PROXY_CORE) as process:
                    await use(f"http://127.0.0.1:{proxy_port}", process)

            async def with_chp(use: Callable[[str, psutil.Process], Awaitable[None]]) -> None:
                async with chp(upstream) as (url, process):
                    await use(url, process)

            peers = {"orrery": with_ours, "nginx": with_nginx}
            if shutil.which("configurable-http-proxy"):
                peers["configurable-http-proxy"] = with_chp
            for _ in range(rounds):
                for name, run in peers.items():

                    async def use(url: str, process: psutil.Process, name: str = name) -> None:
                        target = f"{url}/user/ada/s500/lab/tree/notebook.ipynb"
                        await eventually(lambda: answers(target, headers), timeout_s=20)
                        await load(target, script, process, 1.0)
                        taken.setdefault(name, []).append(await load(target, script, process, seconds))
                        print(name, taken[name][-1])

                    await run(use)
                for router in bench.routers:
                    router.remove()
                bench.routers.clear()
    finally:
        shutil.rmtree(root, ignore_errors=True)
    medians = {
        name: {key: statistics.median(one[key] for one in runs) for key in runs[0]} for name, runs in taken.items()
    }
    ours = medians["orrery"]["per_s"]
    ratios = {name: round(ours / found["per_s"], 2) for name, found in medians.items() if name != "orrery"}
    return {"connections": CONNECTIONS, "routes": ROUTES, "proxies": medians, "orrery_to": ratios}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    missing = [name for name in ("wrk", "nginx", "taskset") if shutil.which(name) is None]
    if missing:
        raise SystemExit(f"install {', '.join(missing)} first: apt-get install wrk nginx-light util-linux")
    server = PostgresServer()
    try:
        server.launch()
        report.write("router", asyncio.run(measure(server, given.seconds, given.rounds)))
    finally:
        server.remove()


if __name__ == "__main__":
    main()
