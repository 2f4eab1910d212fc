"""When each route was last used: the latest of what this replica saw and of what the others say that they saw.

Each replica publishes what changed every few seconds (core NATS, at most once); a lost report costs accuracy until the
next use. A replica that has just started asks, and the others say all that they know. Nothing of it is stored: a route
counts as used when it was set, as in the original.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Final

import msgspec
from nats.aio.msg import Msg

from orrery_events import subjects
from orrery_events.bus import Bus

INTERVAL_S: Final = 2.0
ROUTES_PER_REPORT_MAX: Final = 10_000
"""More are told in several reports."""
ROUTES_MAX: Final = 1_000_000
FUTURE_S_MAX: Final = 60.0
"""A replica whose clock is ahead by more is not believed."""


class Report(msgspec.Struct):
    """What a replica says."""

    replica: str
    routes: dict[str, float]
    """Route id → Unix seconds."""
    asks: bool = False
    """It has just started and knows nothing."""


class ProxyActivity:
    """Also what the data plane tells of uses (`touch`)."""

    def __init__(self, bus: Bus, replica: str) -> None:
        self._bus, self._replica = bus, replica
        self._used: dict[str, float] = {}
        """By this replica, and not reported yet."""
        self._known: dict[str, float] = {}
        """By anybody."""

    def touch(self, route_id: str) -> None:
        """The route was used just now."""
        self._used[route_id] = time.time()

    def last(self, route_id: str, at_least: float) -> float:
        """Unix seconds."""
        return max(at_least, self._used.get(route_id, 0.0), self._known.get(route_id, 0.0))

    async def run(self) -> None:
        subscription = await self._bus.subscribe(subjects.PROXY_ACTIVITY, self._on_report)
        try:
            await self._bus.wait_connected(INTERVAL_S)
            await self._say(Report(self._replica, {}, asks=True))
            while True:
                await asyncio.sleep(INTERVAL_S * random.uniform(0.8, 1.2))  # noqa: S311 (jitter, not a secret)
                await self.flush()
        finally:
            await subscription.unsubscribe()

    async def flush(self) -> None:
        """Tells the others what changed."""
        used, self._used = self._used, {}
        self._keep(used)
        await self._tell(used)

    def forget(self, route_id: str) -> None:
        """The route is gone."""
        self._used.pop(route_id, None)
        self._known.pop(route_id, None)

    async def _tell(self, routes: dict[str, float]) -> None:
        items = list(routes.items())
        for begin in range(0, len(items), ROUTES_PER_REPORT_MAX):
            await self._say(Report(self._replica, dict(items[begin : begin + ROUTES_PER_REPORT_MAX])))

    async def _say(self, report: Report) -> None:
        await self._bus.publish(subjects.PROXY_ACTIVITY, msgspec.json.encode(report))

    async def _on_report(self, message: Msg) -> None:
        try:
            report = msgspec.json.decode(message.data, type=Report)
        except msgspec.MsgspecError:
            return
        if report.replica == self._replica:
            return
        limit = time.time() + FUTURE_S_MAX
        self._keep({route_id: at for route_id, at in report.routes.items() if 0 < at <= limit})
        if report.asks:
            await self._tell(self._known)

    def _keep(self, routes: dict[str, float]) -> None:
        known = self._known
        for route_id, at in routes.items():
            if at > known.get(route_id, 0.0) and (len(known) < ROUTES_MAX or route_id in known):
                known[route_id] = at
