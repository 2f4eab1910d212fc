"""What somebody must do now and then; the leading relay does it. Each chore may be done by two at once without harm."""

from __future__ import annotations

import asyncio
import random

import asyncpg
import structlog

from ..log import EventLog, Lease, ensure_partitions, expire_instances, prune_command_ids

LEASES_EVERY_S = 5.0
LEASES_GRACE_S = 1.5 * Lease.REFRESH_S
HOUSEKEEPING_EVERY_S = 3600.0

_log = structlog.get_logger("orrery.relay")


class Chores:
    """Leases that ran out every few seconds, old idempotency keys and partitions ahead of need every hour."""

    def __init__(self, log: EventLog, pool: asyncpg.Pool) -> None:
        self._events = log
        self._pool = pool
        self._housekeeping_at = 0.0
        self._leases_at = 0.0

    def begin(self) -> None:
        """Called when this relay begins to lead. After Postgres was away every lease looks as if its holder were dead;
        holders that live get the time to refresh it."""
        self._leases_at = asyncio.get_running_loop().time() + LEASES_GRACE_S

    async def run(self) -> None:
        """One round and the wait for the next. Raises LogUnavailable."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self._housekeeping_at:
            await ensure_partitions(self._pool)
            pruned = await prune_command_ids(self._pool)
            self._housekeeping_at = loop.time() + HOUSEKEEPING_EVERY_S
            _log.info("relay.housekeeping", command_ids_pruned=pruned)
        if loop.time() >= self._leases_at:
            for instance_id in await expire_instances(self._events, self._pool):
                _log.warning("relay.instance_lost", lost=instance_id)
        await asyncio.sleep(LEASES_EVERY_S * random.uniform(0.8, 1.2))  # noqa: S311
