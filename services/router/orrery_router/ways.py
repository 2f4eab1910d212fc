"""What follows from a route alone, worked out once for each that is used: how requests go there, what only we say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import msgspec

from .domain import NO_OPTIONS, Route
from .location import Location
from .plan import Way

if TYPE_CHECKING:
    from orrery_runtime.secrets import Secrets

    from .dataplane.limits import Limits

ROUTES_MAX: Final = 20_000
"""Of which this is remembered, some hundred bytes each."""


class Onward(msgspec.Struct, frozen=True, gc=False):
    """From here on to the target of a route."""

    route: Route
    way: Way
    lines: bytes
    """Header lines that only the router sends: the server's secret, and the prefix that was stripped."""


class Ways:
    """To user servers."""

    def __init__(self, secrets: Secrets, bounds: Limits, base_url: str) -> None:
        self._secrets, self._bounds, self._base_url = secrets, bounds, base_url
        self._known: dict[str, Onward] = {}
        """By host and prefix; of the route that it holds, and of none that takes its place."""

    def of(self, route: Route) -> Onward:
        place = route.host + route.prefix
        known = self._known.get(place)
        if known is None or known.route is not route:
            if len(self._known) >= ROUTES_MAX:
                self._known.clear()
            known = self._known[place] = Onward(route, self._way(route), self._lines(route))
        return known

    def _way(self, route: Route) -> Way:
        options, location = route.options or NO_OPTIONS, None
        if options.rewrite_location:
            prefix = self._public_prefix(route) if route.strip_prefix else b""
            location = Location(route.target, prepend=options.prepend, prefix=prefix)
        return Way(
            trusted=False,
            server_id=route.server_id,
            kind="server",
            response_timeout_s=options.response_timeout_s or self._bounds.response_timeout_s,
            body_bytes_max=self._bounds.body_bytes_max,
            secret_header=route.secret_header.encode(),
            targets=[route.target],
            connect_timeout_s=options.connect_timeout_s,
            location=location,
        )

    def _lines(self, route: Route) -> bytes:
        lines = b""
        if route.secret_header and route.server_id:
            secret = self._secrets.server_secret(route.server_id, route.generation)
            lines += f"{route.secret_header}: {route.secret_prefix}{secret}\r\n".encode()
        if route.strip_prefix:
            lines += b"X-Forwarded-Prefix: %b\r\n" % self._public_prefix(route)
        return lines

    def _public_prefix(self, route: Route) -> bytes:
        """As a browser spells it, base URL included."""
        return self._base_url.encode()[:-1] + quote(route.prefix).encode()
