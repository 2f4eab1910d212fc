"""Is what every service believes what the log says?

For each service's projection three folds are compared: of the full history, of `es.latest` (what a process starts
from), and the one that each running process holds in memory, at the position where it holds it. The log itself is read
through once and checked on the way: positions, category sequences and stream versions without a gap, heads and
`es.latest` equal to what the history says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from orrery_api import projections as api
from orrery_auth import projections as auth
from orrery_events.errors import UnknownEventType
from orrery_events.log import EventLog
from orrery_events.log.reader import Snapshot
from orrery_events.projection import Projection
from orrery_events.recorded import Recorded
from orrery_events.registry import CATEGORIES, Event
from orrery_router import projections as router
from orrery_router.chp import projections as proxy
from orrery_spawner import projections as spawner

from . import web
from .datadir import DataDir

PROJECTIONS: dict[str, tuple[Callable[[], Projection], tuple[str, ...]]] = {
    "api": (api.ApiState, api.CATEGORIES),
    "auth": (auth.AuthState, auth.CATEGORIES),
    "proxy": (proxy.ProxyState, proxy.CATEGORIES),
    "router": (router.RouterState, router.CATEGORIES),
    "spawner": (spawner.SpawnerState, spawner.CATEGORIES),
}
"""Service to its projection and the categories it is folded from."""


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """What a running process holds."""

    service: str
    slot: str
    epoch: int
    position: int
    digest: str


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was compared."""

    what: str
    ok: bool
    detail: str


async def live_digests(data_dir: DataDir) -> list[Live]:
    """Of every running process that has a projection; none when nothing runs."""
    files = [f for f in data_dir.run_files().values() if f.get("ops_url") and f.get("service") in PROJECTIONS]
    answers = await asyncio.gather(*(web.get(f"{file['ops_url']}/status?digest", timeout_s=30) for file in files))
    found = []
    for file, answer in zip(files, answers, strict=True):
        for held in answer.json().get("digests", []):
            body = {**held, "service": file["service"], "slot": file["slot"]}
            found.append(msgspec.convert(body, Live, strict=False))
    return found


async def verify(log: EventLog, lives: Iterable[Live]) -> list[Finding]:
    """Everything, in one snapshot of the log. `lives` must have been asked before."""
    async with log.snapshot(CATEGORIES) as snapshot:
        check = _Check(snapshot, list(lives))
        await check.history()
        await check.latest()
        return check.findings()


class _Check:
    def __init__(self, snapshot: Snapshot, lives: list[Live]) -> None:
        self._snapshot = snapshot
        self._lives = lives
        self._full = {name: factory() for name, (factory, _) in PROJECTIONS.items()}
        self._compact = {name: factory() for name, (factory, _) in PROJECTIONS.items()}
        self._stops = sorted({live.position for live in lives})
        self._at: dict[tuple[str, int], str] = {}
        """(service, position) → digest of the full fold there."""
        self._broken: list[str] = []
        self._events = 0
        self._last_position = 0
        self._last_seq: dict[str, int] = {}
        self._versions: dict[str, int] = {}
        self._keys: dict[tuple[str, str], tuple[int, bool]] = {}

    async def history(self) -> None:
        async for recorded in self._snapshot.events():
            self._pass_stops(recorded.position - 1)
            self._gapless(recorded)
            event = _event(recorded)
            if event is not None:
                key = event.compaction_key()
                if key is not None:
                    self._keys[recorded.category, key] = (recorded.position, event.TOMBSTONE)
                _apply(self._full, recorded, event)
        self._pass_stops(max(self._snapshot.head.position, *self._stops, 0))
        self._heads()

    async def latest(self) -> None:
        wanted = {position for position, tombstone in self._keys.values() if not tombstone}
        found = set()
        async for recorded in self._snapshot.latest():
            found.add(recorded.position)
            event = _event(recorded)
            if event is not None:
                _apply(self._compact, recorded, event)
        for position in sorted(wanted ^ found)[:3]:
            self._broken.append(f"es.latest and the history differ about position {position}")

    def findings(self) -> list[Finding]:
        streams = f"{len(self._versions)} streams"
        detail = f"{self._events} events to position {self._last_position}, {len(self._last_seq)} categories, {streams}"
        found = [Finding(what="log", ok=not self._broken, detail="; ".join(self._broken[:5]) or f"{detail}, gapless")]
        for service in PROJECTIONS:
            full, compact = self._full[service].digest(), self._compact[service].digest()
            what = f"{service} from es.latest"
            found.append(Finding(what=what, ok=full == compact, detail=_compared(compact, full, "full history")))
        found.extend(self._of_live(live) for live in self._lives)
        return found

    def _of_live(self, live: Live) -> Finding:
        head = self._snapshot.head
        what = f"{live.slot} at position {live.position}"
        if live.epoch != head.epoch:
            return Finding(what=what, ok=False, detail=f"it holds epoch {live.epoch}, the log is at {head.epoch}")
        full = self._at[live.service, live.position]
        return Finding(what=what, ok=full == live.digest, detail=_compared(live.digest, full, "full history"))

    def _pass_stops(self, position: int) -> None:
        """Keeps the digests of the full fold at every position where a process stands, once it is reached."""
        while self._stops and self._stops[0] <= position:
            stop = self._stops.pop(0)
            for live in self._lives:
                if live.position == stop:
                    self._at[live.service, stop] = self._full[live.service].digest()

    def _gapless(self, recorded: Recorded) -> None:
        self._events += 1
        if self._last_position and recorded.position != self._last_position + 1:
            self._broken.append(f"position {recorded.position} follows {self._last_position}")
        self._last_position = recorded.position
        seq = self._last_seq.get(recorded.category)
        if seq is not None and recorded.category_seq != seq + 1:
            self._broken.append(f"{recorded.category} {recorded.category_seq} follows {seq}")
        self._last_seq[recorded.category] = recorded.category_seq
        version = self._versions.get(recorded.stream_id)
        if version is not None and recorded.stream_version != version + 1:
            self._broken.append(f"{recorded.stream_id} version {recorded.stream_version} follows {version}")
        self._versions[recorded.stream_id] = recorded.stream_version

    def _heads(self) -> None:
        head = self._snapshot.head
        if self._events and head.position != self._last_position:
            self._broken.append(f"the head says {head.position}, the last event has {self._last_position}")
        for category, seq in self._last_seq.items():
            known = head.categories.get(category)
            if known is None or known.seq != seq:
                self._broken.append(f"the head of {category} says {known.seq if known else None}, its last event {seq}")


def _event(recorded: Recorded) -> Event | None:
    """None for what a newer release wrote; services leave it out, too."""
    try:
        return recorded.event()
    except (UnknownEventType, msgspec.MsgspecError):
        return None


def _apply(states: dict[str, Any], recorded: Recorded, event: Event) -> None:
    for service, (_, categories) in PROJECTIONS.items():
        if recorded.category in categories:
            states[service].apply(recorded, event)


def _compared(digest: str, expected: str, other: str) -> str:
    return (
        f"equals the {other} ({digest[:12]})" if digest == expected else f"{digest[:12]}, the {other} {expected[:12]}"
    )
