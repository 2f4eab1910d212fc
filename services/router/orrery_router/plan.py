"""What a gateway says of a request: where it goes, and with what."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
from opentelemetry.trace import Span

from .domain import Route
from .location import Location
from .target import Target

if TYPE_CHECKING:
    from .dataplane.head import Head


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
    leave: Leave | None = None
    """What was decided; None: it follows from more than a leave says, and is decided each time."""

    @property
    def is_simple(self) -> bool:
        """True if the answer goes on as it is, and nobody follows its course."""
        return self.span is None and self.rewrite is None and self.way.location is None

    def put_right(self, lines: bytes, status: int, host: bytes) -> bytes:
        """An answer's head with the `Location` that the client should see. `host`: that the server was asked by."""
        if self.way.location is not None:
            lines = self.way.location.rewritten(lines, host)
        return self.rewrite(status, lines) if self.rewrite is not None else lines

    def of(self, sent: bytes) -> Plan:
        """The same plan for one more request of the same bytes, which may change it. `sent`: its head, with the id of
        the request at its end."""
        request_id = sent[sent.rfind(b" ") + 1 : -4].decode() if self.request_id else ""
        return msgspec.structs.replace(self, head=sent, request_id=request_id)


class Repeat(msgspec.Struct, gc=False):
    """A request that was let pass, and may come again byte by byte."""

    data: bytes
    """All of it."""
    head: Head
    plan: Plan
    before: bytes
    """What goes on, up to what differs each time."""
    stamp: object
    """Of the table in which its route was last found."""


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
