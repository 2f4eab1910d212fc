"""Routes: public path (or host + path) to target, with the access policy. Fat: one event says the whole route."""

from __future__ import annotations

from typing import Any

import msgspec

from ..ids import derived_id
from ..registry import Event, event


def route_id_of(prefix: str, host: str = "") -> str:
    """One route per (host, prefix), whoever sets it."""
    return derived_id("route", host, prefix)


PROXY = "proxy"
"""The policy of routes that were set through `orrery proxy`: whoever reaches that proxy may pass, and the platform's
own routers leave them alone."""


def proxy_route_id_of(prefix: str, host: str = "") -> str:
    """As `route_id_of`, in a space of its own: such a route never replaces one of the platform's."""
    return derived_id("proxy-route", host, prefix)


def route_stream(route_id: str) -> str:
    """The stream of a route that belongs to nothing else."""
    return f"route-{route_id}"


@event("route.set")
class RouteSet(Event, frozen=True, kw_only=True):
    """Requests below `prefix` go to `target` from now on."""

    route_id: str
    prefix: str
    """Starts and ends with `/`, percent-decoded, e.g. `/user/ada/lab/`."""
    host: str = ""
    """Only requests for this host; empty: any."""
    target: str
    """`http://127.0.0.1:41234`, `https://name:8443` or `http+unix://%2Frun%2Fx.sock`; a path after it is put before the
    path of every request."""
    policy: str = "owner"
    """Who may pass: `owner` (and admins), `authenticated`, `public`; `proxy`: a route of `orrery proxy`."""
    owner_id: str = ""
    server_id: str = ""
    server_name: str = ""
    owner_name: str = ""
    generation: int = 0
    strip_prefix: bool = False
    secret_header: str = ""
    secret_prefix: str = ""
    identity_headers: bool = False
    """The server is told who its visitor is: `X-Orrery-User`, `X-Orrery-User-Id`, `X-Orrery-Admin`."""
    connect_timeout_s: float = 0.0
    """0: as the router's settings say."""
    response_timeout_s: float = 0.0
    """From the end of a request to the first byte of its answer; 0: as the router's settings say."""
    rewrite_location: bool = False
    """Redirects that name the target's own address, or a path without what was stripped, are put right."""
    data: dict[str, Any] = msgspec.field(default_factory=dict)
    """Of a route of `orrery proxy`: the JSON object that it was set with, verbatim."""

    def aggregate_id(self) -> str:
        return self.route_id

    def compaction_key(self) -> str | None:
        return self.route_id


@event("route.removed", tombstone=True)
class RouteRemoved(Event, frozen=True, kw_only=True):
    """Nothing is served below the prefix any more."""

    route_id: str
    prefix: str
    host: str = ""
    server_id: str = ""
    generation: int = 0
    policy: str = ""
    """`proxy`: it was a route of `orrery proxy`."""

    def aggregate_id(self) -> str:
        return self.route_id

    def compaction_key(self) -> str | None:
        return self.route_id
