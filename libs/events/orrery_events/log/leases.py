"""Leases: which processes are alive, by Postgres's clock alone.

One row per process, refreshed every five seconds. A claim in the log names the instance that made it; when that
instance's lease is gone, others may claim. A process that could not refresh for half the lease's life stops starting
anything (`fresh`), so that it is quiet before others take over.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time

import asyncpg
import msgspec

from ..catalog.instance import (
    InstanceDraining,
    InstanceLost,
    InstanceStarted,
    InstanceStopped,
    instance_stream,
)
from ..errors import Conflict, LogUnavailable, OrreryError
from .event_log import EventLog
from .pool import unavailable_means_log_unavailable

LIVE_SQL = """SELECT instance_id, slot, service, url, ops_url, pid, host, version,
    extract(epoch FROM started_at)::float8
  FROM es.instances WHERE expires_at > now() AND ($1::text IS NULL OR service = $1) ORDER BY slot"""


class LeaseLost(OrreryError):
    """Another process has taken this slot, or the lease ran out. This process must end."""


class InstanceRow(msgspec.Struct, frozen=True, kw_only=True):
    """A process with a lease."""

    instance_id: str
    slot: str
    service: str
    url: str
    ops_url: str
    pid: int
    host: str
    version: str
    started_at: float
    """Unix seconds."""


class Lease:
    """This process's place among the living."""

    TTL_S = 20.0
    REFRESH_S = 5.0

    def __init__(
        self,
        log: EventLog,
        pool: asyncpg.Pool,
        *,
        service: str,
        slot: str,
        instance_id: str,
        url: str = "",
        ops_url: str = "",
        version: str = "",
    ) -> None:
        self._log, self._pool = log, pool
        self.service, self.slot, self.instance_id = service, slot, instance_id
        self.url, self.ops_url, self.version = url, ops_url, version
        self._refreshed_at = float("-inf")
        self._stream_version: int | None = None

    async def acquire(self) -> None:
        """Takes the slot: whoever had it before is dead or must end. Appends `instance.started`."""
        began = time.monotonic()
        host = socket.gethostname()
        with unavailable_means_log_unavailable():
            async with self._pool.acquire() as connection, connection.transaction():
                await connection.execute("DELETE FROM es.instances WHERE slot = $1", self.slot)
                await connection.execute(
                    """INSERT INTO es.instances
                         (instance_id, slot, service, url, ops_url, pid, host, version, expires_at)
                       VALUES ($1, $2, $3, $4, $5, $6, $7, $8, now() + $9 * interval '1 second')""",
                    self.instance_id, self.slot, self.service, self.url, self.ops_url, os.getpid(), host,
                    self.version, self.TTL_S,
                )  # fmt: skip
        self._refreshed_at = began
        started = InstanceStarted(
            **self._identity(), pid=os.getpid(), host=host, version=self.version, started_at=time.time()
        )
        self._stream_version = (await self._log.append(instance_stream(self.slot), [started])).stream_version

    async def refresh_forever(self) -> None:
        """Keeps the lease until it is lost; Postgres being away is waited out. Raises LeaseLost."""
        while True:
            await asyncio.sleep(self.REFRESH_S)
            try:
                await self.refresh()
            except LogUnavailable:
                continue

    async def refresh(self) -> None:
        """Once. Raises LeaseLost when another process has the slot, LogUnavailable."""
        began = time.monotonic()
        with unavailable_means_log_unavailable():
            done = await self._pool.fetchval(
                """UPDATE es.instances SET expires_at = now() + $2 * interval '1 second'
                   WHERE instance_id = $1 RETURNING 1""",
                self.instance_id,
                self.TTL_S,
            )
        if done is None:
            raise LeaseLost(f"slot {self.slot} belongs to another process now, or the lease ran out: this one must end")
        self._refreshed_at = began

    def fresh(self) -> bool:
        """False once the lease was not refreshed for half its life: start nothing new."""
        return time.monotonic() - self._refreshed_at < self.TTL_S / 2

    async def drain(self) -> None:
        """Says that this process takes nothing new."""
        draining = InstanceDraining(**self._identity())
        await self._say(draining)

    async def release(self) -> None:
        """Gives the slot back, unless another process has taken it meanwhile."""
        with unavailable_means_log_unavailable():
            await self._pool.execute("DELETE FROM es.instances WHERE instance_id = $1", self.instance_id)
        await self._say(InstanceStopped(**self._identity()))

    async def _say(self, event: InstanceDraining | InstanceStopped) -> None:
        """Appends what happens to this process, unless the slot's stream already speaks of its successor."""
        if self._stream_version is None:
            return
        with contextlib.suppress(Conflict):
            done = await self._log.append(instance_stream(self.slot), [event], expected_version=self._stream_version)
            self._stream_version = done.stream_version

    def _identity(self) -> dict[str, str]:
        return {"instance_id": self.instance_id, "slot": self.slot, "service": self.service, "url": self.url}


async def live_instances(pool: asyncpg.Pool, service: str | None = None) -> list[InstanceRow]:
    """Everybody whose lease is good, by Postgres's clock. Raises LogUnavailable."""
    with unavailable_means_log_unavailable():
        rows = await pool.fetch(LIVE_SQL, service)
    names = InstanceRow.__struct_fields__
    return [InstanceRow(**dict(zip(names, row.values(), strict=True))) for row in rows]


async def expire_instances(log: EventLog, pool: asyncpg.Pool) -> list[str]:
    """Removes leases that ran out and appends `instance.lost` for each. Returns their instance ids.

    The slot's stream is read before the lease is removed: should a successor start meanwhile, its `instance.started`
    makes our append conflict, and it stands.
    """
    with unavailable_means_log_unavailable():
        rows = await pool.fetch("SELECT instance_id, slot, service, url FROM es.instances WHERE expires_at < now()")
    lost = []
    for instance_id, slot, service, url in rows:
        stream = instance_stream(slot)
        with unavailable_means_log_unavailable():
            version = await pool.fetchval("SELECT version FROM es.stream_head WHERE stream_id = $1", stream)
            gone = await pool.fetchval(
                "DELETE FROM es.instances WHERE instance_id = $1 AND expires_at < now() RETURNING 1", instance_id
            )
        if gone is None:
            continue
        lost.append(instance_id)
        event = InstanceLost(instance_id=instance_id, slot=slot, service=service, url=url)
        with contextlib.suppress(Conflict):
            await log.append(stream, [event], expected_version=version or 0)
    return lost
