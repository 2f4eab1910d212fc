"""What somebody must do now and then; the leading relay does it. Each chore may be done by two at once without harm."""

from __future__ import annotations

import asyncio
import random

import asyncpg
import structlog

from ..log import EventLog, ensure_partitions, expire_instances, prune_command_ids

LEASES_EVERY_S = 5.0
HOUSEKEEPING_EVERY_S = 3600.0

_log = structlog.get_logger("orrery.relay")


class Chores:
    """Leases that ran out every few seconds, old idempotency keys and partitions ahead of need every hour."""

    def __init__(self, log: EventLog, pool: asyncpg.Pool) -> None:
        self._events = log
        self._pool = pool
        self._housekeeping_at = 0.0

    async def run(self) -> None:
        """One round and the wait for the next. Raises LogUnavailable."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self._housekeeping_at:
            await ensure_partitions(self._pool)
            pruned = await prune_command_ids(self._pool)
            self._housekeeping_at = loop.time() + HOUSEKEEPING_EVERY_S
            _log.info("relay.housekeeping", command_ids_pruned=pruned)
        for instance_id in await expire_instances(self._events, self._pool):
            _log.warning("relay.instance_lost", lost=instance_id)
        await asyncio.sleep(LEASES_EVERY_S * random.uniform(0.8, 1.2))  # noqa: S311
