"""The routes as the REST API changes and shows them: written to the log, read from what was folded of it.

A change is answered once this replica serves it. What is read is as new as the log was when the question came,
whichever replica had written to it.
"""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timezone
from typing import Any, Final

from orrery_events.catalog.route import PROXY, RouteRemoved, RouteSet, proxy_route_id_of, route_stream
from orrery_events.errors import LogUnavailable
from orrery_events.log import EventLog
from orrery_events.tail import Tail

from .activity import ProxyActivity
from .domain import key_at, place_of
from .projections import DEFAULT_TARGET_ACTOR, Entry, ProxyState

APPLIED_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 5.0
READ_PAUSE_S: Final = 0.1
ACTOR: Final = "proxy-api"


class Routes:
    """One replica's way to the routes."""

    def __init__(self, log: EventLog, tail: Tail[ProxyState], activity: ProxyActivity, *, host_routing: bool) -> None:
        self._log, self._tail, self._activity = log, tail, activity
        self._host_routing = host_routing

    async def set(self, key: str, data: dict[str, Any], *, actor: str = ACTOR) -> None:
        """Sets a route, in place of the one with this key. `data` holds `target`, a text. Raises LogUnavailable and
        EventTooLarge."""
        host, prefix = place_of(key, host_routing=self._host_routing)
        if host:
            data = {**data, "host": host}
        route_id = proxy_route_id_of(prefix, host)
        event = RouteSet(route_id=route_id, prefix=prefix, host=host, target=data["target"], policy=PROXY, data=data)
        await self._append(route_id, event, actor)

    async def remove(self, key: str) -> bool:
        """False: there is no such route. Raises LogUnavailable."""
        await self._read()
        entry = self._entry(key)
        if entry is None:
            return False
        event = RouteRemoved(route_id=entry.route_id, prefix=entry.prefix, host=entry.host, policy=PROXY)
        await self._append(entry.route_id, event, ACTOR)
        return True

    async def get(self, key: str) -> dict[str, Any] | None:
        """The route's data. Raises LogUnavailable."""
        await self._read()
        entry = self._entry(key)
        return self._shown(entry) if entry is not None else None

    async def all(self, *, inactive_since: float | None = None) -> dict[str, dict[str, Any]]:
        """Key to data; of those last used before `inactive_since` (Unix seconds), if that is given. Raises
        LogUnavailable."""
        await self._read()
        entries = self._tail.state.entries.values()
        if inactive_since is not None:
            entries = [e for e in entries if self._last(e) < inactive_since]  # type: ignore[assignment]
        return {entry.key: self._shown(entry) for entry in entries}

    async def set_default(self, target: str) -> None:
        """`--default-target`: the route `/`, unless a hub has set that since. Raises LogUnavailable."""
        await self._read()
        entry = self._entry("/")
        wanted = {"target": target}
        if entry is None or (entry.by_default and entry.data != wanted):
            await self.set("/", wanted, actor=DEFAULT_TARGET_ACTOR)

    async def _append(self, route_id: str, event: RouteSet | RouteRemoved, actor: str) -> None:
        appended = await self._log.append(route_stream(route_id), [event], actor=actor)
        if not await self._tail.wait_for(appended.last_position, APPLIED_TIMEOUT_S, patience_s=0):
            raise LogUnavailable("the change is in the log and this replica has not read it yet: ask again soon")

    async def _read(self) -> None:
        """Waits for a database that is on its way back, as an append does."""
        deadline = time.monotonic() + READ_TIMEOUT_S
        while not await self._tail.catch_up(max(0.1, deadline - time.monotonic())):
            if time.monotonic() > deadline:
                raise LogUnavailable("the event log (Postgres) did not answer in time: retry soon")
            await asyncio.sleep(READ_PAUSE_S)

    def _entry(self, key: str) -> Entry | None:
        return self._tail.state.entry(key_at(*place_of(key, host_routing=self._host_routing)))

    def _last(self, entry: Entry) -> float:
        return self._activity.last(entry.route_id, entry.set_at)

    def _shown(self, entry: Entry) -> dict[str, Any]:
        return {**entry.data, "last_activity": timestamp(self._last(entry))}


def timestamp(at: float) -> str:
    """Unix seconds as JavaScript writes a date: `2026-01-02T03:04:05.678Z`."""
    return datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def moment_of(text: str) -> float | None:
    """Unix seconds of an ISO 8601 date (without a zone: UTC for a date, local for a time, as JavaScript reads them).
    None: it is no date."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    if moment.tzinfo is None and "T" not in text and " " not in text.strip():
        moment = moment.replace(tzinfo=timezone.utc)
    return moment.timestamp()
