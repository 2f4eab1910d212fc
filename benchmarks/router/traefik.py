"""Traefik with its file provider, configured as jupyterhub-traefik-proxy does it, and tuned."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.router.cores import Proxy, running
from benchmarks.router.stage import Route, Stage
from benchmarks.router.tools import path_of
from tests.support.platform import free_port

ROOT_KEY = "traefik"


@dataclass(frozen=True)
class Options:
    """What is not as Traefik has it by itself."""

    static: dict[str, Any] = field(default_factory=dict)
    entry_point: dict[str, Any] = field(default_factory=dict)
    transport: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)


STOCK = Options(static={"api": {}})
"""With the API that JupyterHub asks whether a route is there."""
TUNED = Options(
    static={"log": {"level": "FATAL"}},
    entry_point={"observability": {"accessLogs": False, "metrics": False, "tracing": False}},
    transport={"maxIdleConnsPerHost": 1024},
    env={"GOGC": "400"},
)
"""Nothing observed, more idle connections, fewer garbage collections."""


def dynamic(routes: Sequence[Route], transport: dict[str, Any]) -> dict[str, Any]:
    """A router and a service for every route, as JupyterHub adds them."""
    routers, services = {}, {}
    for prefix, target in routes:
        name = prefix.strip("/").replace("/", "-")
        routers[name] = {"rule": f"PathPrefix(`{prefix}`)", "service": name, "entryPoints": ["http"]}
        balancer: dict[str, Any] = {"servers": [{"url": target}], "passHostHeader": True}
        if transport:
            balancer["serversTransport"] = "larger"
        services[name] = {"loadBalancer": balancer}
    http: dict[str, Any] = {"routers": routers, "services": services}
    if transport:
        http["serversTransports"] = {"larger": transport}
    return {"http": http}


def flat(content: dict[str, Any]) -> dict[str, str]:
    """As keys and values, the way Traefik reads it from Redis."""
    found: dict[str, str] = {}

    def walk(key: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(f"{key}/{name}", inner)
        elif isinstance(value, list):
            for number, inner in enumerate(value):
                walk(f"{key}/{number}", inner)
        else:
            found[key] = str(value).lower() if isinstance(value, bool) else str(value)

    walk(ROOT_KEY, content)
    return found


def replace(file: Path, content: dict[str, Any]) -> None:
    """At once: whoever reads it sees all of the old or all of the new."""
    new = file.with_suffix(".new")
    new.write_text(json.dumps(content))  # JSON is YAML
    new.replace(file)


@dataclass
class Traefik:
    """One that runs, and the file that its routes are in."""

    proxy: Proxy
    file: Path
    routes: list[Route]
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def add(self, prefix: str, target: str) -> None:
        """Each route writes the whole file, as it is with JupyterHub."""
        async with self.lock:
            self.routes.append((prefix, target))
            await asyncio.to_thread(replace, self.file, dynamic(self.routes, {}))


@asynccontextmanager
async def started(stage: Stage, providers: dict[str, Any], options: Options) -> AsyncIterator[Proxy]:
    port = free_port()
    file = stage.root / f"traefik-{port}.yaml"
    everything = {
        "entryPoints": {"http": {"address": f"127.0.0.1:{port}", **options.entry_point}},
        # As jupyterhub-traefik-proxy sets it: a change is applied at once.
        "providers": {"providersThrottleDuration": "0s", **providers},
        "global": {"checkNewVersion": False, "sendAnonymousUsage": False},
        **options.static,
    }
    file.write_text(json.dumps(everything))
    command = [path_of("traefik"), f"--configfile={file}"]
    async with running(command, stage.root / "traefik.log", stage.cores.proxy, **options.env) as process:
        yield Proxy(f"http://127.0.0.1:{port}", process)


@asynccontextmanager
async def with_file(stage: Stage, options: Options) -> AsyncIterator[Traefik]:
    """With its file provider."""
    file = stage.root / f"routes-{free_port()}.yaml"
    replace(file, dynamic(stage.routes, options.transport))
    async with started(stage, {"file": {"filename": str(file), "watch": True}}, options) as proxy:
        yield Traefik(proxy, file, list(stage.routes))


@asynccontextmanager
async def stock(stage: Stage) -> AsyncIterator[Proxy]:
    async with with_file(stage, STOCK) as traefik:
        yield traefik.proxy


@asynccontextmanager
async def tuned(stage: Stage) -> AsyncIterator[Proxy]:
    async with with_file(stage, TUNED) as traefik:
        yield traefik.proxy
