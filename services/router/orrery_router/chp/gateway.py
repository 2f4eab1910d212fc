"""What becomes of a request to `orrery proxy`: everything that has a route is forwarded, whoever asks.

The same interface as the platform's own gateway, so that the same data plane carries it out. Access control is the
business of what is behind the routes, as with the original.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from orrery_router.dataplane.head import UNNAMED_HOST, BadRequest, Head, framing, lines_of
from orrery_router.dataplane.limits import Limits
from orrery_router.domain import BadPath
from orrery_router.lines import HOP_BY_HOP, WRITTEN_ANEW
from orrery_router.passing import Peer
from orrery_router.plan import Miss, Plan, Repeat, Way
from orrery_router.replies import Later, Reply

from . import domain
from .domain import Upstream, Wanted
from .metrics import Find
from .options import Options
from .pages import Pages
from .projections import Entry

HEALTH: Final = b"/_chp_healthz"
WAYS_MAX: Final = 20_000
NO_BODY: Final = b"Content-Length: 0\r\n\r\n"


class ProxyGateway:
    """One replica's view of one request."""

    def __init__(self, find: Find, options: Options, pages: Pages, bounds: Limits) -> None:
        """`find`: as `ProxyState.find`."""
        self._find, self._options, self.replies, self._bounds = find, options, pages, bounds
        custom = {name.encode("latin-1"): value.encode("latin-1") for name, value in options.headers.items()}
        self._custom_host = next((value for name, value in custom.items() if name.lower() == b"host"), b"")
        self._custom = lines_of([(name, value) for name, value in custom.items() if name.lower() != b"host"])
        ours = {*HOP_BY_HOP, *WRITTEN_ANEW, *(name.lower() for name in custom)}
        self._not_copied = frozenset(ours | (domain.TOLD if options.x_forward else set()))
        self._response_timeout_s = options.proxy_timeout_s or bounds.response_timeout_s
        self._ways: dict[str, Way] = {}
        """By route id."""
        self._rewrites = options.auto_rewrite or bool(options.protocol_rewrite)

    def decide(self, head: Head, peer: Peer, *, last_look: bool, proven: bool = True) -> Plan | Reply | Later | Miss:
        """`last_look`: there is nothing left to wait for. `proven`: and it was proven that nothing is missing."""
        if head.target == HEALTH:
            return self.replies.healthy(head)
        try:
            wanted = domain.wanted_of(head.target)
            entry, newer = self._find(head.host_name, wanted.segments)
            if not last_look and (entry is None or newer):
                return Miss()
            if entry is None:
                return self.replies.not_found(head) if proven else self.replies.unavailable(head, "", "")
            if entry.upstream is None:
                return self.replies.page(head, 500, "")
            return self._plan(head, wanted, entry, entry.upstream, peer)
        except BadPath as error:
            raise BadRequest(400, f"This address cannot be used: {error}.") from None

    def repeat(self, data: bytes, head: Head, plan: Plan) -> Repeat | None:  # noqa: ARG002 (see `Decider.repeat`)
        """Every request is decided anew: the table may have changed."""
        return None

    def again(self, repeat: Repeat, place: str) -> bytes | None:  # noqa: ARG002 (see `Decider.again`)
        return None

    def _plan(self, head: Head, wanted: Wanted, entry: Entry, upstream: Upstream, peer: Peer) -> Plan:
        options = self._options
        path = domain.path_for(
            wanted, upstream, entry.depth, include_prefix=options.include_prefix, prepend_path=options.prepend_path
        )
        rewrite = partial(self._rewritten, upstream, head.host) if self._rewrites else None
        request = self._request(head, path, upstream, peer)
        way = self._way(entry.route_id, upstream)
        return Plan(way.targets, request, way, "", None, rewrite)

    def _way(self, route_id: str, upstream: Upstream) -> Way:
        way = self._ways.get(route_id)
        if way is None or way.targets[0] != upstream.target:
            way = Way(
                trusted=True,
                server_id=route_id,
                kind="proxy",
                response_timeout_s=self._response_timeout_s,
                body_bytes_max=self._bounds.body_bytes_max,
                secret_header=b"",
                targets=[upstream.target],
            )
            if len(self._ways) >= WAYS_MAX:
                self._ways.clear()
            self._ways[route_id] = way
        return way

    def _request(self, head: Head, path: bytes, upstream: Upstream, peer: Peer) -> bytes:
        """The head as the upstream gets it."""
        host = self._custom_host or head.host or UNNAMED_HOST
        if self._options.change_origin:
            host = upstream.authority
        end = framing(head)
        if end == b"\r\n" and head.method in (b"DELETE", b"OPTIONS"):
            end = NO_BODY
        return b"".join((head.method, b" ", path, b" HTTP/1.1\r\nHost: ", host, b"\r\n", self._lines(head, peer), end))

    def _lines(self, head: Head, peer: Peer) -> bytes:
        """The client's header lines, and ours. The same from the same place are passed on in the same way."""
        fields, passed = head.fields, head.fields.passed
        usual = head.host is fields.host and not head.upgrade and not head.varying
        if passed is not None and passed[0] == peer.place and usual:
            return passed[1]
        dropped = self._not_copied | fields.listed if fields.listed else self._not_copied
        lines = b"".join([line.whole for line in (*fields.lines, *head.varying) if line.name.lower not in dropped])
        if self._options.x_forward:
            scheme = (b"ws" if head.upgrade else b"http") + (b"s" if peer.secure else b"")
            lines += lines_of(
                domain.forwarded(
                    fields.lines, address=peer.address.encode(), host=head.host, scheme=scheme, web=not head.upgrade
                )
            )
        lines += self._custom
        if usual:
            fields.passed = (peer.place, lines)
        return lines

    def _rewritten(self, upstream: Upstream, host: bytes, status: int, lines: bytes) -> bytes:
        """A response's header lines, with the Location that the browser should see."""
        if status not in domain.REDIRECTS:
            return lines
        return domain.with_location(
            lines, upstream, host, auto_rewrite=self._options.auto_rewrite, protocol=self._options.protocol_rewrite
        )
