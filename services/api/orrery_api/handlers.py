"""Activity: routers say when servers were last used; one upsert per message keeps the latest."""

from __future__ import annotations

import time
from typing import Final

import asyncpg
import msgspec
import structlog

from orrery_events import subjects
from orrery_events.bus import Bus
from orrery_events.log.pool import unavailable_means_log_unavailable
from orrery_runtime.broker import Notifications

SERVERS_PER_MESSAGE_MAX: Final = 20_000
FUTURE_S_MAX: Final = 60.0
"""A router whose clock is ahead by more is not believed."""
QUEUE: Final = "api-activity"

UPSERT_SQL = """
INSERT INTO api.activity AS a (server_id, last_activity)
SELECT server_id, to_timestamp(at) FROM unnest($1::text[], $2::float8[]) AS reported (server_id, at)
ON CONFLICT (server_id) DO UPDATE SET last_activity = greatest(a.last_activity, excluded.last_activity)
"""

_log = structlog.get_logger("orrery.activity")


class Report(msgspec.Struct):
    """What a router sends."""

    router: str
    servers: dict[str, float]
    """Server id → Unix seconds."""


class Activity:
    """When servers were last used, in api's own table."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    def notifications(self, bus: Bus) -> Notifications[Report]:
        return Notifications(
            bus, subject=f"{subjects.ACTIVITY_ROOT}.>", payload=Report, handler=self.on_report, queue=QUEUE
        )

    async def on_report(self, report: Report) -> None:
        if len(report.servers) > SERVERS_PER_MESSAGE_MAX:
            _log.warning("activity_report_too_large", router=report.router, servers=len(report.servers))
            return
        await self.record(report.servers)

    async def record(self, servers: dict[str, float]) -> None:
        """Raises LogUnavailable."""
        limit = time.time() + FUTURE_S_MAX
        believed = {server_id: at for server_id, at in servers.items() if 0 < at <= limit}
        if not believed:
            return
        with unavailable_means_log_unavailable():
            await self._pool.execute(UPSERT_SQL, list(believed), list(believed.values()))

    async def latest(self, server_ids: list[str]) -> dict[str, float]:
        """Unix seconds per server; those that were never used are missing. Raises LogUnavailable."""
        if not server_ids:
            return {}
        with unavailable_means_log_unavailable():
            rows = await self._pool.fetch(
                """SELECT server_id, extract(epoch FROM last_activity)::float8 FROM api.activity
                   WHERE server_id = ANY($1::text[])""",
                server_ids,
            )
        return {row[0]: row[1] for row in rows}
