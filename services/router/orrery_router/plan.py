"""What a gateway says of a request: where it goes, and with what."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from opentelemetry.trace import Span

from .domain import Route
from .location import Location
from .target import Target


class Way(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What all requests to one place have in common."""

    trusted: bool
    """Auth or api; they may set our cookies."""
    server_id: str
    """Whose activity it is; empty: nobody's."""
    kind: str
    """`server` or `control`, for metrics."""
    response_timeout_s: float
    body_bytes_max: int
    """0: without limit."""
    secret_header: bytes
    """Carries the server's secret; nobody else's header may have that name."""
    targets: list[Target]
    """Where requests go that have no choice; never changed in place."""
    connect_timeout_s: float = 0.0
    """0: as the settings say."""
    location: Location | None = None
    """How redirects are put right; None: they are passed on as they are."""


class Plan(msgspec.Struct, gc=False):
    """To be forwarded."""

    targets: list[Target]
    """In this order; all but one are auth's or api's."""
    head: bytes
    way: Way
    request_id: str
    span: Span | None
    rewrite: Callable[[int, bytes], bytes] | None = None
    """Makes of an answer's status and header lines those that the client gets."""


class Miss(msgspec.Struct, frozen=True):
    """Perhaps not known yet: catch up with the log and decide again."""


class Leave(msgspec.Struct, frozen=True):
    """Leave to pass: what was decided for some header lines, and everything that it depends on. It holds as long as
    nothing of that has changed."""

    route: Route
    place: str
    """Where the request came from."""
    stamp: object
    """Of the identities."""
    until: float
    """Unix seconds at which the credential expires."""
    way: Way
    lines: bytes
    """What goes on, but for the request line, the request's own id and trace, and what frames it."""
