"""Activity: which servers were used, gathered in memory and reported from time to time."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Final

import msgspec

from orrery_events import subjects
from orrery_events.bus import Bus

RESOLUTION_S: Final = 30.0
"""Changes smaller than this are not worth a report."""
SERVERS_MAX: Final = 20_000
"""Servers in one report; the rest waits for the next."""


class Activity:
    """When each server was last used, as this router saw it."""

    def __init__(self, bus: Bus, slot: str, interval_s: float) -> None:
        self._bus, self._slot, self._interval_s = bus, slot, interval_s
        self._used: dict[str, float] = {}
        self._reported: dict[str, float] = {}

    def touch(self, server_id: str) -> None:
        """The server was used just now."""
        if server_id:
            self._used[server_id] = time.time()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s * random.uniform(0.8, 1.2))  # noqa: S311 (jitter, not a secret)
            await self.flush()

    async def flush(self, *, resolution_s: float = RESOLUTION_S) -> None:
        """Reports what changed. Lost reports cost accuracy, never correctness."""
        changed = {
            server_id: at
            for server_id, at in self._used.items()
            if at - self._reported.get(server_id, 0.0) >= min(resolution_s, self._interval_s)
        }
        if not changed:
            return
        report = dict(list(changed.items())[:SERVERS_MAX])
        body = msgspec.json.encode({"router": self._slot, "servers": report})
        if await self._bus.publish(subjects.activity_subject(self._slot), body):
            for server_id, at in report.items():
                if self._used.get(server_id) == at:
                    del self._used[server_id]
                self._reported[server_id] = at
            if len(self._reported) > 2 * SERVERS_MAX:
                self._reported.clear()
