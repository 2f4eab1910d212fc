"""The log as services see it."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

import asyncpg

from ..recorded import Meta, Recorded
from ..registry import Event
from .appender import Appended, Appender
from .pool import unavailable_means_log_unavailable
from .reader import (
    ALL_SQL,
    CATEGORY_SQL,
    COMMAND_SQL,
    HEAD_SQL,
    LIMIT_MAX,
    LOOK_SQL,
    SNAPSHOT_TIMEOUT_S,
    STREAM_SQL,
    Head,
    Look,
    Snapshot,
    head_of,
    look_of,
    recorded_of,
)


class EventLog:
    """Append to the log and read it. Everything raises LogUnavailable when Postgres does not answer."""

    def __init__(
        self, pool: asyncpg.Pool, *, producer: str, nudge: Callable[[int], Awaitable[None]] | None = None
    ) -> None:
        """`producer`: the instance that appends. `nudge`: called with the new head after each commit."""
        self.pool = pool
        self.producer = producer
        self._appender = Appender(pool, producer=producer, nudge=nudge)

    async def start(self) -> None:
        """Starts the flusher. Reading works without."""
        await self._appender.start()

    async def close(self) -> None:
        """Writes what is queued and ends the flusher; the pool stays open."""
        await self._appender.close()

    async def append(
        self,
        stream_id: str,
        events: Sequence[Event],
        *,
        expected_version: int | None = None,
        command_id: uuid.UUID | None = None,
        actor: str = "",
        causation_id: str = "",
        correlation_id: str = "",
    ) -> Appended:
        """Appends the events as one atomic command and returns their positions.

        `expected_version`: the version the stream was folded to (0: it must be new; None: whatever it is).
        `command_id`: the same id appends once; a second call answers with the first one's positions.
        Raises Conflict (reload, decide again), AppendQueueFull, LogUnavailable (the outcome is unknown: retry with the
        same command id), EventTooLarge.
        """
        meta = Meta(actor=actor, causation_id=causation_id, correlation_id=correlation_id)
        return await self._appender.append(
            stream_id, events, expected_version=expected_version, command_id=command_id, meta=meta
        )

    async def find_command(self, command_id: uuid.UUID) -> Appended | None:
        """What an append with this command id wrote, if there was one (in the last week)."""
        with unavailable_means_log_unavailable():
            row = await self.pool.fetchrow(COMMAND_SQL, command_id)
        if row is None:
            return None
        return Appended(first_position=row[0], last_position=row[1], stream_version=row[2], duplicate=True)

    async def read_stream(self, stream_id: str, *, after_version: int = 0, limit: int = 1000) -> list[Recorded]:
        """The stream's events after a version, in order. At most `limit` (≤ 10,000)."""
        return await self._read(STREAM_SQL, stream_id, after_version, min(limit, LIMIT_MAX))

    async def read_category(self, category: str, *, after_seq: int, limit: int = 1000) -> list[Recorded]:
        """A category's events after a category sequence, in order."""
        return await self._read(CATEGORY_SQL, category, after_seq, min(limit, LIMIT_MAX))

    async def read_all(self, *, after_position: int, limit: int = 1000) -> list[Recorded]:
        """All events after a position, in order and without gaps."""
        return await self._read(ALL_SQL, after_position, min(limit, LIMIT_MAX))

    async def head(self) -> Head:
        """Where the log ends now."""
        with unavailable_means_log_unavailable():
            return head_of(await self.pool.fetch(HEAD_SQL))

    async def look(self, *, after_position: int, limit: int = 1000) -> Look:
        """Where the log ends now, and the first events after a position, in one question."""
        with unavailable_means_log_unavailable():
            return look_of(await self.pool.fetch(LOOK_SQL, after_position, min(limit, LIMIT_MAX)))

    @asynccontextmanager
    async def snapshot(self, categories: Iterable[str]) -> AsyncIterator[Snapshot]:
        """One consistent view of the categories, however long it is read."""
        with unavailable_means_log_unavailable():
            async with (
                self.pool.acquire() as connection,
                connection.transaction(isolation="repeatable_read", readonly=True),
            ):
                await connection.execute(f"SET LOCAL statement_timeout = '{SNAPSHOT_TIMEOUT_S}s'")
                await connection.execute(f"SET LOCAL idle_in_transaction_session_timeout = '{SNAPSHOT_TIMEOUT_S}s'")
                snapshot = Snapshot(connection, head_of(await connection.fetch(HEAD_SQL)), categories)
                try:
                    yield snapshot
                finally:
                    await snapshot.settle()

    async def _read(self, sql: str, *args: object) -> list[Recorded]:
        with unavailable_means_log_unavailable():
            rows = await self.pool.fetch(sql, *args)
        return [recorded_of(row, row[11]) for row in rows]
