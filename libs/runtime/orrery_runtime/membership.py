"""This process's place among the instances: a lease in Postgres, announced in the log."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, Literal

import asyncpg
import structlog

from orrery_events.errors import OrreryError
from orrery_events.log.leases import Lease, LeaseLost, live_instances

from . import metrics

if TYPE_CHECKING:
    from .process import Process

LeaseLoss = Literal["stop", "renew"]
DRAIN_TIMEOUT_S: Final = 2.0
RENEW_INTERVAL_S: Final = 1.0

_log = structlog.get_logger("orrery.membership")


class Membership:
    """Holds the lease of a process.

    A process whose lease is lost must not act on what it had claimed, so it stops. One that never claims anything (a
    router, auth, api) may renew instead: after a long outage of Postgres all leases have run out at once, and stopping
    all routers for it would cut every running notebook.
    """

    def __init__(self, process: Process, *, on_loss: LeaseLoss, stop: Callable[[int], None]) -> None:
        self._process = process
        self._on_loss = on_loss
        self._stop = stop
        self.lease: Lease | None = None

    async def join(self) -> None:
        """Takes the slot and announces the instance."""
        process = self._process
        lease = Lease(
            process.events,
            process.pool,
            service=process.service,
            slot=process.slot,
            instance_id=process.instance_id,
            url=process.url,
            ops_url=process.ops_url,
            version=process.version,
        )
        await lease.acquire()
        self.lease = lease
        metrics.LEASE_FRESH.set(1)

    async def hold(self) -> None:
        """Refreshes for ever. Stops the process, or takes the slot again, when the lease is lost."""
        while True:
            try:
                if self.lease is not None:
                    await self.lease.refresh_forever()
            except LeaseLost:
                self.lease = None
                metrics.LEASE_FRESH.set(0)
            if self._process.stopping:
                # Whoever follows in this slot has begun before we have ended.
                _log.info("lease_passed_on", slot=self._process.slot)
                return
            if self._on_loss == "stop" or await self._slot_is_taken():
                _log.error("lease_lost", slot=self._process.slot, consequence="this process stops")
                self._stop(1)
                return
            _log.warning("lease_lost", slot=self._process.slot, consequence="taking the slot again")
            await self._rejoin()

    def fresh(self) -> bool:
        """True while nobody else can believe that this process is dead."""
        fresh = self.lease is not None and self.lease.fresh()
        metrics.LEASE_FRESH.set(1 if fresh else 0)
        return fresh

    async def drain(self) -> None:
        """Announces that this process takes nothing new, if Postgres is there to hear it."""
        if self.lease is not None:
            await self._announce(self.lease.drain(), "drain")

    async def leave(self) -> None:
        """Gives the slot back. A lost lease is left alone: the slot may have a new holder."""
        lease, self.lease = self.lease, None
        if lease is not None:
            await self._announce(lease.release(), "release")

    async def _rejoin(self) -> None:
        while self.lease is None:
            try:
                await self.join()
            except (OrreryError, OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                _log.warning("lease_not_renewed", reason=str(error))
                await asyncio.sleep(RENEW_INTERVAL_S * random.uniform(0.5, 1.0))  # noqa: S311 (jitter)

    async def _slot_is_taken(self) -> bool:
        """True if another process holds our slot: two with one name must not take it from one another for ever."""
        try:
            rows = await live_instances(self._process.pool, self._process.service)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        mine = self._process.slot, self._process.instance_id
        return any(row.slot == mine[0] and row.instance_id != mine[1] for row in rows)

    async def _announce(self, step: Awaitable[None], name: str) -> None:
        try:
            await asyncio.wait_for(step, DRAIN_TIMEOUT_S)
        except (OrreryError, OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            _log.warning("lease_step_failed", step=name, reason=str(error) or type(error).__name__)
