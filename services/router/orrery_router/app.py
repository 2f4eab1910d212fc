"""The router's composition root: `orrery serve router`."""

from __future__ import annotations

import gc
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prometheus_client import Gauge, Histogram

from orrery_events.catalog.route import RouteRemoved, RouteSet
from orrery_events.recorded import Recorded
from orrery_events.registry import Event
from orrery_events.tail import Tail
from orrery_runtime import telemetry
from orrery_runtime.config import Settings
from orrery_runtime.errors import ConfigError, StartupError
from orrery_runtime.identity import Verifier
from orrery_runtime.process import Process, run
from orrery_runtime.snapshots import may_start_alone, place_of
from orrery_runtime.workers import run_workers

from .dataplane.addresses import Address, addresses_of
from .dataplane.arrival import Trust
from .dataplane.limits import Limits
from .dataplane.redirect import Redirector, https_port
from .dataplane.server import DataPlane
from .dataplane.tls import server_tls, upstream_tls
from .gateway import Gateway
from .handlers import Activity
from .projections import CATEGORIES, RouterState

if TYPE_CHECKING:
    from .templates import Templates

SERVICE: Final = "router"
CATCH_UP_S: Final = 0.2
"""How long a request that misses may wait for the log."""

CONVERGENCE: Final = Histogram(
    "orrery_route_convergence_seconds",
    "From a route's append to its place in this router's table.",
    buckets=(0.001, 0.002, 0.003, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.5, 1, 5),
)
ROUTES: Final = Gauge("orrery_router_routes", "Routes in the table.")


def templates_of(directory: Path | None) -> Templates | None:
    """An admin's own error pages, if there are any. Raises ConfigError."""
    if directory is None:
        return None
    from .templates import Templates  # noqa: PLC0415 (few have any, and jinja2 is megabytes in every router)

    return Templates(directory)


async def body(process: Process) -> None:
    settings, bounds = process.settings, Limits.of(process.settings)
    tracing = bool(settings.otlp_endpoint)
    try:
        trust = Trust(settings.trusted_proxies)
    except ValueError as error:
        raise StartupError(f"ORRERY_TRUSTED_PROXIES is not usable: {error}") from None
    addresses = addresses_of(settings, process.slot)
    tail = Tail(
        process.events,
        process.bus,
        partial(RouterState, keeps_traces=tracing),
        categories=CATEGORIES,
        name="router",
        place=place_of(SERVICE, settings),
    )
    await tail.start()
    process.track(tail)

    def installed(recorded: Recorded, event: Event) -> None:
        if not isinstance(event, RouteSet | RouteRemoved):
            return
        age_s = max(0.0, time.time() - recorded.recorded_at)
        CONVERGENCE.observe(age_s)
        ROUTES.set(len(tail.state.table))
        if tracing:
            name = "install route" if isinstance(event, RouteSet) else "remove route"
            with telemetry.processing(name, recorded.meta, age_s=age_s, attributes={"orrery.route.lag_s": age_s}):
                pass

    tail.subscribe(installed)
    tail.on_rebuild(lambda: ROUTES.set(len(tail.state.table)))
    ROUTES.set(len(tail.state.table))
    activity = Activity(process.bus, process.slot, settings.activity_interval_s)
    gateway = Gateway(
        lambda: tail.state,
        Verifier(lambda: tail.state.identity),
        process.secrets,
        base_url=settings.base_url,
        public_url=settings.public_url,
        bounds=bounds,
        tracing=tracing,
        templates=templates_of(settings.templates_dir),
    )
    plane = DataPlane(
        gateway,
        activity,
        lambda: tail.catch_up(CATCH_UP_S),
        base_url=settings.base_url,
        bounds=bounds,
        upstream_tls=upstream_tls(settings),
        trust=trust,
        tls=server_tls(settings),
        tls_handshake_timeout_s=settings.tls_handshake_timeout_s,
        hsts_max_age_s=settings.hsts_max_age_s,
    )
    places = await plane.listeners.open(addresses, plane.serve, slot=process.slot)
    if settings.redirect_port:
        port = https_port(settings, places)
        redirecting = Address(host=settings.host, port=settings.redirect_port, proxy_protocol=settings.proxy_protocol)
        await plane.listeners.open([redirecting], lambda _arrival, _peer: Redirector(plane, port))
    process.task("clock", plane.run)
    process.task("activity", activity.run)
    # What is there by now stays: the collector need not look at it again and again (15 ms each time).
    gc.collect()
    gc.freeze()
    await process.register(places[0].url, lease_loss="renew")
    await process.run_until_stopped()
    await plane.drain(settings.drain_timeout_s, websockets_s=settings.websocket_drain_s)
    await activity.flush(resolution_s=0.0)


def require_shareable(settings: Settings) -> None:
    """Raises ConfigError when there is an address that workers cannot share."""
    of_another = addresses_of(settings, "2")
    for address in addresses_of(settings, "1"):
        if address.socket_path and address in of_another:
            raise ConfigError(f"workers cannot share the socket {address.socket_path}: put {{slot}} into its path")
        if settings.listen and not address.socket_path and not address.port:
            raise ConfigError("workers share their ports: name those in setting listen instead of 0")


def main() -> int:
    try:
        settings = Settings.load()
        if settings.workers > 1:
            require_shareable(settings)
    except ConfigError as error:
        sys.stderr.write(f"orrery {SERVICE}: {error}\n")
        return 1
    if settings.workers > 1:
        return run_workers(SERVICE, settings, [sys.executable, "-P", "-m", "orrery_router.app"])
    return run(SERVICE, body, settings=settings, may_start_alone=partial(may_start_alone, SERVICE))


if __name__ == "__main__":
    sys.exit(main())
