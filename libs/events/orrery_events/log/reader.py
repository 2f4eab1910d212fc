"""Reading the log: by stream, by category, by position, and everything that is current in one snapshot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

import asyncpg
import msgspec

from ..recorded import Meta, Recorded

CHUNK = 1_000
"""Rows per round trip of a snapshot: as many as are handled between two turns of the event loop."""
LIMIT_MAX = 10_000
SNAPSHOT_TIMEOUT_S = 120

COLUMNS = """e.position, e.category, e.category_seq, e.stream_id, e.stream_version, e.event_id::text, e.type,
  e.schema_version, e.data, e.meta::text, extract(epoch FROM e.recorded_at)::float8"""

STREAM_SQL = f"""SELECT {COLUMNS}, (SELECT epoch FROM es.log_head) FROM es.events e
  WHERE e.stream_id = $1 AND e.stream_version > $2 ORDER BY e.stream_version LIMIT $3"""  # noqa: S608 (constant text)
CATEGORY_SQL = f"""SELECT {COLUMNS}, (SELECT epoch FROM es.log_head) FROM es.events e
  WHERE e.category = $1 AND e.category_seq > $2 ORDER BY e.category_seq LIMIT $3"""  # noqa: S608
ALL_SQL = f"""SELECT {COLUMNS}, (SELECT epoch FROM es.log_head) FROM es.events e
  WHERE e.position > $1 ORDER BY e.position LIMIT $2"""  # noqa: S608
LOOK_SQL = f"""SELECT {COLUMNS}, h.epoch, h.position, h.log_id::text FROM es.log_head h
  LEFT JOIN LATERAL (SELECT * FROM es.events WHERE position > $1 ORDER BY position LIMIT $2) e ON true
  ORDER BY e.position"""  # noqa: S608
LATEST_SQL = f"""SELECT {COLUMNS}
  FROM (SELECT position FROM es.latest WHERE category = ANY($1::text[]) AND NOT tombstone ORDER BY position OFFSET 0) l
  CROSS JOIN LATERAL (SELECT * FROM es.events WHERE position = l.position OFFSET 0) e
  ORDER BY l.position"""  # noqa: S608
"""Each event by its position: the planner would rather read the whole log, and sort what it found on disk."""
HISTORY_SQL = f"""SELECT {COLUMNS} FROM es.events e
  WHERE e.category = ANY($1::text[]) AND e.position > $2 ORDER BY e.position"""  # noqa: S608
COMMAND_SQL = """SELECT first_position, last_position, stream_version FROM es.command_dedup WHERE command_id = $1"""
HEAD_SQL = """SELECT h.epoch, h.position, h.log_id::text, c.category, c.seq, c.position
  FROM es.log_head h LEFT JOIN es.category_head c ON true"""

_meta = msgspec.json.Decoder(Meta)


class CategoryHead(msgspec.Struct, frozen=True):
    """The last event of a category."""

    seq: int
    position: int


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """Where the log ends."""

    epoch: int
    position: int
    categories: dict[str, CategoryHead]
    system_id: str
    """Identifies this log; another database has another."""

    def seqs(self) -> dict[str, int]:
        """Category to `category_seq`."""
        return {category: head.seq for category, head in self.categories.items()}


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """Where the log ends, and what follows a position, at one moment."""

    epoch: int
    position: int
    system_id: str
    """As in `Head`."""
    rows: list[Recorded]


def recorded_of(row: asyncpg.Record, epoch: int) -> Recorded:
    """One row of `COLUMNS`."""
    return Recorded(
        position=row[0],
        category=row[1],
        category_seq=row[2],
        stream_id=row[3],
        stream_version=row[4],
        event_id=row[5],
        type=row[6],
        schema_version=row[7],
        data=row[8],
        meta=_meta.decode(row[9]),
        recorded_at=row[10],
        epoch=epoch,
    )


def head_of(rows: list[asyncpg.Record]) -> Head:
    """The rows of `HEAD_SQL`."""
    epoch, position, log_id = rows[0][0], rows[0][1], rows[0][2]
    categories = {row[3]: CategoryHead(row[4], row[5]) for row in rows if row[3] is not None}
    return Head(epoch=epoch, position=position, categories=categories, system_id=log_id)


def look_of(rows: list[asyncpg.Record]) -> Look:
    """The rows of `LOOK_SQL`."""
    epoch, position, log_id = rows[0][11:14]
    found = [recorded_of(row, epoch) for row in rows if row[0] is not None]
    return Look(epoch=epoch, position=position, system_id=log_id, rows=found)


class Snapshot:
    """The log as of one moment, inside one read-only transaction."""

    def __init__(self, connection: asyncpg.Connection, head: Head, categories: Iterable[str]) -> None:
        self.head = head
        self._connection = connection
        self._categories = sorted(categories)
        self._ahead: asyncio.Task[list[asyncpg.Record]] | None = None

    async def latest(self) -> AsyncIterator[Recorded]:
        """The last event of every key that is not gone, in the order of the log."""
        # While statistics say that the log is small, it would be read whole for every key.
        await self._connection.execute("SET LOCAL enable_seqscan = off")
        async for recorded in self._stream(LATEST_SQL, self._categories):
            yield recorded

    async def events(self, *, after_position: int = 0) -> AsyncIterator[Recorded]:
        """The full history of the categories after a position, in the order of the log."""
        async for recorded in self._stream(HISTORY_SQL, self._categories, after_position):
            yield recorded

    async def settle(self) -> None:
        """Waits until the connection is free, however reading ended."""
        if self._ahead is not None:
            await asyncio.wait([self._ahead])
            if not self._ahead.cancelled():
                self._ahead.exception()  # Looked at, so that nobody complains that nobody did.

    async def _stream(self, sql: str, *args: object) -> AsyncIterator[Recorded]:
        epoch = self.head.epoch
        cursor = await self._connection.cursor(sql, *args)
        self._ahead = asyncio.create_task(cursor.fetch(CHUNK))
        while rows := await self._ahead:
            # Postgres looks for the next rows while these are handled.
            self._ahead = asyncio.create_task(cursor.fetch(CHUNK))
            await asyncio.sleep(0)
            for row in rows:
                yield recorded_of(row, epoch)
