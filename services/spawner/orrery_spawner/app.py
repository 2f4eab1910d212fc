"""The spawner process: what it is made of, and how it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orrery_events.log.leases import live_instances
from orrery_events.server_state import Server
from orrery_events.tail import Tail
from orrery_runtime.broker import Commands
from orrery_runtime.process import Process, run
from orrery_runtime.startup import require_writable

from .drivers.base import Driver
from .drivers.process import ProcessDriver
from .handlers import DURABLE, FILTERS, Handlers
from .ledger import Ledger
from .projections import CATEGORIES, SpawnerState
from .reconcile import Reconciler
from .starts import Context, Starts
from .stops import Stops

SERVICE = "spawner"
DRIVER_CODE = "ORR-SPN-01"
"""Runbook: a driver cannot answer."""


@dataclass(frozen=True, kw_only=True)
class Spawner:
    """The parts, wired."""

    tail: Tail[SpawnerState]
    drivers: Mapping[str, Driver]
    starts: Starts
    stops: Stops
    reconciler: Reconciler
    handlers: Handlers
    commands: Commands


def build(process: Process) -> Spawner:
    """Makes all parts of a spawner. Nothing runs yet."""
    settings = process.settings
    tail: Tail[SpawnerState] = Tail(process.events, process.bus, SpawnerState, categories=CATEGORIES, name=SERVICE)
    drivers: dict[str, Driver] = {ProcessDriver.name: ProcessDriver(settings.data_dir)}

    def fresh() -> bool:
        return process.membership is not None and process.membership.fresh()

    async def live() -> frozenset[str]:
        return frozenset(row.instance_id for row in await live_instances(process.pool, SERVICE))

    def known(server_id: str) -> Server | None:
        entry = tail.state.servers.get(server_id)
        return entry.server if entry is not None else None

    context = Context(
        instance_id=process.instance_id,
        ledger=Ledger(process.events, known, fresh=fresh),
        state=lambda: tail.state,
        drivers=drivers,
        accepting=lambda: fresh() and not process.stopping,
        eager=lambda: tail.mode != "jetstream",
        server_secret=process.secrets.server_secret,
        base_path=settings.base_url,
        stop_grace_s=settings.stop_grace_s,
    )
    starts = Starts(context, slots=settings.spawn_slots)
    stops = Stops(context)
    reconciler = Reconciler(
        context, starts, stops, catch_up=tail.catch_up, live=live, interval_s=settings.reconcile_interval_s
    )
    handlers = Handlers(tail, starts, stops, reconciler)
    commands = Commands(process, durable=DURABLE, filters=FILTERS, handler=handlers.command)
    return Spawner(
        tail=tail,
        drivers=drivers,
        starts=starts,
        stops=stops,
        reconciler=reconciler,
        handlers=handlers,
        commands=commands,
    )


async def serve(process: Process) -> None:
    """Runs a spawner until the process is to end. Servers go on running after that."""
    require_writable(process.settings.data_dir, "data_dir")
    spawner = build(process)
    await spawner.tail.start()
    process.track(spawner.tail)
    for driver in spawner.drivers.values():
        process.on_stop(f"driver {driver.name}", driver.close)

    async def drivers_answer() -> str:
        return "; ".join(f"{name}: {reason}" for name, reason in spawner.reconciler.unavailable.items())

    process.health.add("drivers", drivers_answer, code=DRIVER_CODE, required=False)
    spawner.tail.subscribe(spawner.handlers.heard)
    spawner.tail.on_rebuild(spawner.reconciler.wake)
    process.bus.on_connect(lambda _client: spawner.reconciler.wake())
    process.on_stop("starts", spawner.starts.close)
    process.on_stop("stops", spawner.stops.close)
    process.on_stop("reconciler", spawner.reconciler.close)
    await process.register()
    process.task("reconcile", spawner.reconciler.run)
    process.task("commands", spawner.commands.run)
    await process.run_until_stopped()


def main() -> int:
    """`orrery serve spawner`."""
    return run(SERVICE, serve)
