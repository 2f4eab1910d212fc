"""The routing table: the longest prefix of whole segments wins, a host's own routes before those of any host.

How a path is compared with prefixes:

- A prefix is a sequence of decoded segments, written with a slash before, between and after them: `/`, `/user/ada/`,
  `/user/ada/my lab/`. It has no empty segment, and a host is in lower case; anything else is refused by `route_of`, so
  that no two spellings stand for one place.
- A path is cut at its raw slashes first, and each piece is percent-decoded once, alone. `%2F` therefore never makes a
  segment: a decoded segment that holds a slash equals no segment of a prefix, and what follows it is not looked at.
- `%25` is decoded to `%` and not looked at again. Letters that need no encoding may be encoded: `/%75ser/` is `/user/`.
- An empty segment equals no segment of a prefix, so that `//user/ada/` is not `/user/ada/`.
- Segments are compared by code point: no case folding, no Unicode normalisation.
- `/user/ada` and `/user/ada/` find the same route; `/user/adam` does not.

A look-up takes one step per segment down to the depth of the deepest prefix, no more with many routes than with few.
"""

from __future__ import annotations

from collections.abc import Iterator

from .domain import Route


class Zone:
    """The routes of one host, or of any, by prefix."""

    __slots__ = ("_counts", "_root", "_routes", "_steps")

    def __init__(self) -> None:
        self._routes: dict[str, Route] = {}
        self._counts: dict[int, int] = {}
        """Number of segments → how many routes have as many."""
        self._root: Route | None = None
        self._steps: tuple[bool, ...] = ()
        """Whether there are routes of 1, 2, … segments."""

    def __len__(self) -> int:
        return len(self._routes)

    def set(self, route: Route) -> None:
        # Removed first: the dictionary would keep the old route's string as its key.
        self.remove(route.prefix)
        self._routes[route.prefix] = route
        self._count(route.depth, 1)

    def remove(self, prefix: str) -> None:
        route = self._routes.pop(prefix, None)
        if route is not None:
            self._count(route.depth, -1)

    def get(self, prefix: str) -> Route | None:
        return self._routes.get(prefix)

    def longest(self, path: str) -> Route | None:
        """`path` begins with a slash."""
        found, routes, end = self._root, self._routes, 0
        for wanted in self._steps:
            end = path.find("/", end + 1)
            if end < 0:
                # What is left is the last segment, or nothing; the latter equals no prefix once it has two slashes.
                return (routes.get(path + "/") or found) if wanted else found
            if wanted:
                found = routes.get(path[: end + 1]) or found
        return found

    def routes(self) -> Iterator[Route]:
        return iter(self._routes.values())

    def _count(self, depth: int, change: int) -> None:
        before = self._counts.get(depth, 0)
        self._counts[depth] = before + change
        if not before or not before + change:
            self._counts = {deep: count for deep, count in self._counts.items() if count}
            self._steps = tuple(deep in self._counts for deep in range(1, max(self._counts, default=0) + 1))
        if not depth:
            self._root = self._routes.get("/")


class Table:
    """All routes of the platform."""

    def __init__(self) -> None:
        self._any = Zone()
        self._zones: dict[str, Zone] = {}
        """By host; none is empty."""
        self._count = 0
        self.stamp = object()
        """Another one after every change: where it is the same, every look-up finds what it found."""

    def __len__(self) -> int:
        return self._count

    def set(self, route: Route) -> None:
        """Puts a route in its place, or in the place of the one that is there."""
        zone = self._zones.setdefault(route.host, Zone()) if route.host else self._any
        self.stamp = object()
        self._count -= len(zone)
        zone.set(route)
        self._count += len(zone)

    def remove(self, host: str, prefix: str) -> None:
        """Empties a place, should there be a route."""
        zone = self._zones.get(host) if host else self._any
        if zone is None:
            return
        self.stamp = object()
        self._count -= len(zone)
        zone.remove(prefix)
        self._count += len(zone)
        if host and not len(zone):
            del self._zones[host]

    def get(self, host: str, prefix: str) -> Route | None:
        """The route at exactly this place."""
        zone = self._zones.get(host) if host else self._any
        return zone.get(prefix) if zone is not None else None

    def find(self, host: str, segments: tuple[str, ...]) -> Route | None:
        """`segments`: decoded, as in `domain.Path`."""
        for number, segment in enumerate(segments):
            if "/" in segment:
                segments = segments[:number]
                break
        return self.find_plain(host, f"/{'/'.join(segments)}/" if segments else "/")

    def find_plain(self, host: str, path: str) -> Route | None:
        """The same for a path that is text already: below the base URL, beginning with `/`, without the query, and
        known to hold no percent-encoding, no backslash, no empty and no dot segment."""
        if host:
            zone = self._zones.get(host)
            if zone is not None:
                found = zone.longest(path)
                if found is not None:
                    return found
        return self._any.longest(path)

    def routes(self) -> Iterator[Route]:
        yield from self._any.routes()
        for zone in self._zones.values():
            yield from zone.routes()
