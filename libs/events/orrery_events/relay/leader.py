"""Which relay leads: the one whose session holds an advisory lock in Postgres.

Two leaders at once do no harm (the stream's expected sequence fences them), they only waste work.
"""

from __future__ import annotations

import asyncio
import contextlib
import random

import asyncpg

LOCK_KEY = 0x6F72_7265_7279_0001
"""Any number that nothing else in the database uses."""
CHECK_INTERVAL_S = 2.0
STATEMENT_TIMEOUT_S = 5.0
TRY_INTERVAL_S = 1.0
IDLE_LIMIT_S = 10
"""Postgres ends the session of a leader that stands still (SIGSTOP, a frozen VM) after this: another can lead."""

_SETTINGS = {
    "application_name": "orrery-relay-leader",
    "idle_session_timeout": f"{IDLE_LIMIT_S}s",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}


class Leadership:
    """One attempt to lead, on a connection of its own that goes to Postgres directly (a pooler in transaction mode
    would share the session)."""

    def __init__(self, database_url: str) -> None:
        self._url = database_url
        self._connection: asyncpg.Connection | None = None

    async def acquire(self) -> None:
        """Returns once this connection holds the lock. Raises asyncpg and OS errors."""
        self._connection = await asyncpg.connect(
            self._url, timeout=STATEMENT_TIMEOUT_S, command_timeout=STATEMENT_TIMEOUT_S, server_settings=_SETTINGS
        )
        while True:
            # Trying, not waiting: a waiting statement would have to live for days and hide a dead connection.
            if await self._connection.fetchval("SELECT pg_try_advisory_lock($1)", LOCK_KEY):
                return
            await asyncio.sleep(TRY_INTERVAL_S * random.uniform(0.5, 1.0))  # noqa: S311

    async def hold(self) -> None:
        """Returns never while leading; raises asyncpg and OS errors when the session is gone."""
        assert self._connection is not None  # noqa: S101 (acquire comes first)
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            await self._connection.fetchval("SELECT 1")

    async def release(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                await connection.close(timeout=STATEMENT_TIMEOUT_S)
            connection.terminate()
