"""The checks that every process has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from orrery_events.tail import Tail

if TYPE_CHECKING:
    from .process import Process

ROUTER: Final = "router"
STALE_AFTER_S: Final = 60.0


class Follower(Protocol):
    """Something that reads the log in order: a tail, or the relay."""

    @property
    def name(self) -> str: ...
    @property
    def position(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def lag(self) -> int:
        """Positions behind the known head."""
        ...

    @property
    def mode(self) -> str: ...
    @property
    def staleness_s(self) -> float:
        """Seconds since it was last proven complete."""
        ...

    async def stop(self) -> None: ...


def add_defaults(process: Process) -> None:
    """Postgres, NATS and the lease. A router needs none of them to route what it knows."""

    async def postgres() -> str:
        await process.pool.fetchval("SELECT 1")
        return ""

    async def nats() -> str:
        return "" if process.bus.connected else process.bus.last_error or "not connected yet"

    async def lease() -> str:
        membership = process.membership
        return "" if membership is None or membership.fresh() else "the lease was not refreshed in time"

    process.health.add("postgres", postgres, code="ORR-DB-01", required=process.service != ROUTER)
    process.health.add("nats", nats, code="ORR-NATS-01", required=False)
    process.health.add("lease", lease, code="ORR-LEASE-01", required=False)


def add_follower(process: Process, tail: Follower) -> None:
    """Complains, without making the process unready, when a projection cannot be proven recent."""

    async def recent() -> str:
        if isinstance(tail, Tail) and tail.restored:
            return f"started from disk, {tail.staleness_s:.0f} s behind what is happening (position {tail.position})"
        if tail.staleness_s <= STALE_AFTER_S:
            return ""
        return f"not proven complete for {tail.staleness_s:.0f} s (position {tail.position}, mode {tail.mode})"

    code = "ORR-RTR-03" if process.service == ROUTER else "ORR-BUS-02"
    process.health.add(f"follow {tail.name}", recent, code=code, required=False)
