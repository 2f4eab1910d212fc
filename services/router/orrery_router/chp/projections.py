"""The routes of `orrery proxy`, folded from the log: for its REST API by key, for its requests by longest prefix."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

import msgspec

from orrery_events.catalog.route import PROXY, RouteRemoved, RouteSet
from orrery_events.recorded import Recorded
from orrery_events.registry import Event

from .domain import Upstream, key_at, segments_of, upstream_of

CATEGORIES: Final = ("route",)
PARENTS_AT_FIRST: Final = (("user",), ("services",))
"""Where JupyterHub will set routes, before it has set any."""
PARENTS_MAX: Final = 10_000
SIBLINGS_DEPTH_MAX: Final = 6
DEFAULT_TARGET_ACTOR: Final = "proxy-default-target"
"""Who is said to have set the route `/` of `--default-target`."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One route."""

    route_id: str
    key: str
    """As the API names it."""
    prefix: str
    host: str
    data: dict[str, Any]
    """What it was set with, verbatim."""
    upstream: Upstream | None
    """None: nothing can be sent there."""
    depth: int
    set_at: float
    """Unix seconds of the append."""
    by_default: bool
    """Set by `--default-target`, and by nobody through the API."""


class ProxyState:
    """The fold."""

    SECTIONS: ClassVar[Mapping[str, Any]] = {"entries": Entry}

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        """By route id."""
        self._ids: dict[str, str] = {}
        """By key."""
        self._places: dict[tuple[str, tuple[str, ...]], Entry] = {}
        """By host and segments of the prefix."""
        self._depths: tuple[int, ...] = ()
        """Of all routes, the deepest first."""
        self._counts: Counter[int] = Counter()
        """Depth → how many routes have it."""
        self._hosts: Counter[str] = Counter()
        """Host → how many routes are its own."""
        self._parents: set[tuple[str, ...]] = set(PARENTS_AT_FIRST)

    def apply(self, recorded: Recorded, event: Event) -> None:
        match event:
            case RouteSet(policy=policy) if policy == PROXY:
                self._set(event, recorded)
            case RouteRemoved(policy=policy) if policy == PROXY:
                self._remove(event.route_id)
            case _:
                return

    def entry(self, key: str) -> Entry | None:
        """The route of exactly this key."""
        route_id = self._ids.get(key)
        return self.entries[route_id] if route_id is not None else None

    def find(self, host: str, segments: tuple[str, ...]) -> tuple[Entry | None, bool]:
        """The longest prefix of whole segments, a host's own routes first (`host`: in lower case); and whether a longer
        one may well have been set a moment ago, because others stand, or stood, directly beside where it would be. Such
        a request is worth a look at the log's head before it is answered by the shorter route."""
        places, length = self._places, len(segments)
        for name in (host, "") if host and host in self._hosts else ("",):
            for depth in self._depths:
                if depth <= length and (entry := places.get((name, segments[:depth]))) is not None:
                    return entry, self._may_have_sibling(segments, depth)
        return None, True

    def _may_have_sibling(self, segments: tuple[str, ...], depth: int) -> bool:
        parents = self._parents
        return any(segments[:length] in parents for length in range(depth + 1, min(len(segments), SIBLINGS_DEPTH_MAX)))

    def _set(self, event: RouteSet, recorded: Recorded) -> None:
        key, parts = key_at(event.host, event.prefix), segments_of(event.prefix)
        entry = Entry(
            route_id=event.route_id,
            key=key,
            prefix=event.prefix,
            host=event.host,
            data=event.data,
            upstream=upstream_of(event.target),
            depth=len(parts),
            set_at=recorded.recorded_at,
            by_default=recorded.meta.actor == DEFAULT_TARGET_ACTOR,
        )
        self._remove(event.route_id)
        self._put(entry, parts)

    def _put(self, entry: Entry, parts: tuple[str, ...]) -> None:
        self.entries[entry.route_id] = entry
        self._ids[entry.key] = entry.route_id
        self._places[entry.host, parts] = entry
        self._note(entry, 1)
        if parts and len(self._parents) < PARENTS_MAX:
            self._parents.add(parts[:-1])

    def _remove(self, route_id: str) -> None:
        entry = self.entries.pop(route_id, None)
        if entry is not None:
            del self._ids[entry.key]
            del self._places[entry.host, segments_of(entry.prefix)]
            self._note(entry, -1)

    def _note(self, entry: Entry, change: int) -> None:
        self._counts[entry.depth] += change
        if not self._counts[entry.depth]:
            del self._counts[entry.depth]
        self._hosts[entry.host] += change
        if not self._hosts[entry.host]:
            del self._hosts[entry.host]
        if set(self._counts) != set(self._depths):
            self._depths = tuple(sorted(self._counts, reverse=True))

    def sections(self) -> dict[str, list[Entry]]:
        """The state in immutable pieces; see `orrery_events.tail.snapshot`."""
        return {"entries": list(self.entries.values())}

    def restore(self, section: str, items: Sequence[Entry]) -> None:
        """The inverse."""
        if section == "entries":
            for entry in items:
                self._put(entry, segments_of(entry.prefix))

    def digest(self) -> str:
        """Equal on all replicas at the same position."""
        parts = sorted((e.route_id, e.key, msgspec.json.encode(e.data).decode()) for e in self.entries.values())
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]
