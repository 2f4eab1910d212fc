"""Chores of whoever leads the relay. Each may be done by two at once without harm."""

from __future__ import annotations

import asyncpg

from .pool import unavailable_means_log_unavailable

COMMAND_ID_LIFE_DAYS = 7
PARTITION_AHEAD = 1_000_000
"""The next partition exists before the log is this close to needing it."""


async def prune_command_ids(pool: asyncpg.Pool) -> int:
    """Forgets idempotency keys older than a week. Returns how many."""
    with unavailable_means_log_unavailable():
        done = await pool.execute(
            "DELETE FROM es.command_dedup WHERE created_at < now() - $1 * interval '1 day'", COMMAND_ID_LIFE_DAYS
        )
    return int(str(done).rpartition(" ")[2])


async def ensure_partitions(pool: asyncpg.Pool) -> None:
    """Makes room ahead of need."""
    with unavailable_means_log_unavailable():
        await pool.execute(
            """SELECT es.ensure_partitions(position + $1) FROM es.log_head
               WHERE position + $1 > partitioned_to""",
            PARTITION_AHEAD,
        )


async def record_dead_letter(pool: asyncpg.Pool, *, consumer: str, position: int, reason: str) -> None:
    """Keeps what a consumer gave up on; the event itself is in the log at that position."""
    with unavailable_means_log_unavailable():
        await pool.execute(
            """INSERT INTO es.dead_letters (consumer, position, reason) VALUES ($1, $2, $3)
               ON CONFLICT (consumer, position) DO UPDATE SET reason = excluded.reason""",
            consumer,
            position,
            reason,
        )
