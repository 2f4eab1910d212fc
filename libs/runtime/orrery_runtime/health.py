"""Is the process alive, can it serve, and how far has it read: the ops port.

`/livez`    200 while the event loop runs. Checks nothing else: restarting a process does not repair a database.
`/readyz`   200 while it takes work, 503 before, while draining, and while a required check fails. `?verbose` says why.
`/metrics`  Prometheus.
`/status`   everything that `orrery status` shows, as JSON; with `?digest` also a digest of each projection.

Codes name a runbook: ORR-DB-01 database unreachable, ORR-NATS-01 NATS unreachable, ORR-BUS-02 a consumer lags,
ORR-RTR-03 the routing table is stale, ORR-LEASE-01 the lease is not being refreshed, ORR-WRK-01 no worker is ready,
ORR-WRK-02 not every worker is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec
from aiohttp import web

from . import metrics

CHECK_TIMEOUT_S = 2.0
CACHE_S = 1.0
"""A check's answer serves all who ask within this time, so that probes cannot load Postgres."""
OPS_SHUTDOWN_TIMEOUT_S = 1.0

State = Literal["starting", "ready", "draining"]
Check = Callable[[], Awaitable[str]]
"""Answers an empty text when all is well, else a sentence that says what is not."""


class CheckResult(msgspec.Struct, frozen=True, kw_only=True):
    """Outcome of one check."""

    name: str
    code: str
    required: bool
    ok: bool
    message: str = ""


class Health:
    """What this process knows about how it is."""

    def __init__(self, service: str) -> None:
        self.service = service
        self._state: State = "starting"
        self._checks: dict[str, tuple[str, bool, Check]] = {}
        self._cached: tuple[float, list[CheckResult]] = (0.0, [])
        self._lock = asyncio.Lock()
        metrics.READY.labels(service).set(0)

    @property
    def state(self) -> State:
        return self._state

    @state.setter
    def state(self, value: State) -> None:
        self._state = value
        metrics.READY.labels(self.service).set(1 if value == "ready" else 0)

    def add(self, name: str, check: Check, *, code: str, required: bool = True) -> None:
        """Adds or replaces a check. A check that is not required degrades the process but leaves it ready."""
        self._checks[name] = (code, required, check)
        self._cached = (0.0, [])

    async def results(self) -> list[CheckResult]:
        """All checks, run at most once per CACHE_S."""
        async with self._lock:
            at, cached = self._cached
            if cached and time.monotonic() - at < CACHE_S:
                return cached
            results = await asyncio.gather(*(self._run(name) for name in self._checks))
            self._cached = (time.monotonic(), list(results))
            return self._cached[1]

    async def ready(self) -> bool:
        """True while the process can take work."""
        return self._state == "ready" and all(r.ok for r in await self.results() if r.required)

    async def _run(self, name: str) -> CheckResult:
        code, required, check = self._checks[name]
        try:
            message = await asyncio.wait_for(check(), CHECK_TIMEOUT_S)
        except TimeoutError:
            message = f"no answer within {CHECK_TIMEOUT_S:.0f} s"
        except Exception as error:  # noqa: BLE001 (whatever a check raises is its answer)
            message = f"{type(error).__name__}: {error}"
        return CheckResult(name=name, code=code, required=required, ok=not message, message=message)


Exposition = Callable[[], Awaitable[bytes]]
StatusSource = Callable[[], dict[str, Any]]
DigestSource = Callable[[], list[dict[str, Any]]]


class OpsServer:
    """The ops port. Started before anything else, so that a process that waits for Postgres can be asked why."""

    def __init__(
        self,
        health: Health,
        status: StatusSource,
        digests: DigestSource = list,
        *,
        exposition: Exposition | None = None,
    ) -> None:
        """`exposition`: the page of metrics; this process's own unless given."""
        self._health = health
        self._status = status
        self._digests = digests
        self._exposition = exposition or self._own_metrics
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def start(self, host: str, port: int) -> None:
        """Raises OSError when the port is taken."""
        app = web.Application()
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/status", self._get_status)
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=OPS_SHUTDOWN_TIMEOUT_S
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        self.url = url_of(self._runner)

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _livez(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        ready = await self._health.ready()
        if "verbose" in request.query:
            lines = [_line(result) for result in await self._health.results()]
            text = "\n".join([*lines, f"{self._health.state}: {'ready' if ready else 'not ready'}"]) + "\n"
        else:
            text = "ok\n" if ready else f"{self._health.state}\n"
        return web.Response(status=200 if ready else 503, text=text)

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=await self._exposition(), headers={"Content-Type": metrics.CONTENT_TYPE})

    async def _own_metrics(self) -> bytes:
        self._status()  # brings the gauges of tails up to date
        return metrics.exposition()

    async def _get_status(self, request: web.Request) -> web.Response:
        checks = [msgspec.structs.asdict(result) for result in await self._health.results()]
        body = {**self._status(), "ready": await self._health.ready(), "checks": checks}
        if "digest" in request.query:
            body["digests"] = self._digests()
        return web.json_response(body)


def _line(result: CheckResult) -> str:
    if result.ok:
        return f"[+]{result.name} ok"
    weight = "failed" if result.required else "degraded"
    return f"[{'-' if result.required else '~'}]{result.name} {weight}: {result.code} {result.message}"


def url_of(runner: web.AppRunner) -> str:
    """`http://host:port` of a runner's first site."""
    host, port = runner.addresses[0][:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
