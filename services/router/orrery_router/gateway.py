"""What becomes of a request: answered here, forwarded, or looked at again after catching up with the log.

Everything is decided from memory. Only a miss (a path without a route, a credential that nobody here has heard of) may
wait for Postgres, once and for a short time: a route that was acknowledged before the request began is never a 404.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import quote

import msgspec
from opentelemetry.trace import Span, SpanKind

from orrery_events.ids import new_id
from orrery_events.principal import Principal
from orrery_runtime import paths, telemetry
from orrery_runtime.identity import Verifier
from orrery_runtime.secrets import EDGE_HEADER, Secrets

from . import domain, passing
from .dataplane import limits
from .dataplane.head import SAFE, UNNAMED_HOST, BadRequest, Head, framing, lines_of
from .dataplane.limits import Limits
from .dataplane.upstream import Target
from .domain import BadPath, Path, Route
from .passing import Peer
from .projections import RouterState
from .replies import Replies, Reply, too_large


class Plan(msgspec.Struct, kw_only=True, gc=False):
    """To be forwarded."""

    targets: list[Target]
    """In this order; all but one are auth's or api's."""
    head: bytes
    trusted: bool
    """Auth or api; they may set our cookies."""
    server_id: str
    kind: str
    """`server` or `control`, for metrics."""
    request_id: str
    span: Span | None
    response_timeout_s: float
    body_bytes_max: int
    """0: without limit."""
    secret_header: bytes
    """Carries the server's secret; nobody else's header may have that name."""


class Miss(msgspec.Struct, frozen=True):
    """Perhaps not known yet: catch up with the log and decide again."""


class Gateway:
    """The router's view of one request."""

    def __init__(
        self,
        state: Callable[[], RouterState],
        verifier: Verifier,
        secrets: Secrets,
        *,
        base_url: str,
        port: int,
        public_url: str,
        bounds: Limits,
        tracing: bool,
    ) -> None:
        self._state, self._verifier, self._secrets = state, verifier, secrets
        self._base_url, self._bounds = base_url, bounds
        self.replies = Replies(base_url)
        self._public_origin = passing.origin_of(public_url)
        self._port = str(port).encode()
        self._tracing = tracing
        self._edge_line = f"{EDGE_HEADER}: {secrets.edge_proof}\r\n".encode()
        self._turn = 0
        self._request_prefix, self._asked = new_id()[:-8], 0
        self._secret_lines: dict[str, tuple[int, bytes]] = {}
        """Server id → generation, the header line with its secret."""

    def decide(self, head: Head, peer: Peer, *, last_look: bool, proven: bool = True) -> Plan | Reply | Miss:
        """`last_look`: there is nothing left to wait for. `proven`: and it was proven that nothing is missing."""
        self._asked += 1
        request_id = f"{self._request_prefix}{self._asked:08x}"
        try:
            path = domain.parse_target(head.target, self._base_url)
        except BadPath as error:
            raise BadRequest(400, f"This address cannot be used: {error}.") from None
        if path is None:
            if head.target.partition(b"?")[0] != b"/":
                return self.replies.not_found(head, request_id)
            return self.replies.redirect(f"{self._base_url}hub/".encode(), request_id)
        if path.text == "/":
            return self.replies.redirect(f"{self._base_url}hub/".encode(), request_id)
        if paths.is_control(path.text):
            return self._control(head, path, peer, request_id, last_look=last_look)
        return self._server(head, path, peer, request_id, last_look=last_look, proven=proven)

    # Auth and api

    def _control(self, head: Head, path: Path, peer: Peer, request_id: str, *, last_look: bool) -> Plan | Reply | Miss:
        method = head.method.decode()
        if path.ambiguous or head.upgrade:
            raise BadRequest(400, "This address cannot be used.")
        if head.length > limits.CONTROL_BODY_BYTES_MAX:
            raise BadRequest(413, too_large(limits.CONTROL_BODY_BYTES_MAX))
        if not paths.is_public(path.text, method):
            principal = self._principal(head)
            if principal is None and not last_look:
                return Miss()
            if not isinstance(principal, Principal):
                return self.replies.sign_in(head, path, request_id)
        service = paths.service_for(path.text, method)
        backends = self._state().backends_of(service)
        if not backends:
            if not last_look:
                return Miss()
            return self.replies.unavailable(head, request_id, f"No instance of {service} is running.")
        self._turn += 1
        live = [b for b in backends if not b.draining]
        turn = self._turn % len(live) if live else 0
        ordered = live[turn:] + live[:turn] + [b for b in backends if b.draining]
        span, traced = self._span(head, f"{method} {self._base_url}hub/*", None)
        block = head.fields.blocks.get(CONTROL)
        if block is None:
            block = lines_of(self._not_ours(passing.for_control_plane(head.fields.headers)))
            head.fields.blocks[CONTROL] = block
        return Plan(
            targets=[b.target for b in ordered],
            head=self._request(head, head.target, block + self._edge_line + traced, peer, request_id),
            trusted=True,
            server_id="",
            kind="control",
            request_id=request_id,
            span=span,
            response_timeout_s=limits.CONTROL_RESPONSE_TIMEOUT_S,
            body_bytes_max=limits.CONTROL_BODY_BYTES_MAX,
            secret_header=b"",
        )

    # User servers

    def _server(  # noqa: PLR0911 (one answer per reason)
        self, head: Head, path: Path, peer: Peer, request_id: str, *, last_look: bool, proven: bool
    ) -> Plan | Reply | Miss:
        state = self._state()
        if path.plain:
            route = state.table.find_plain(head.host_name, path.text)
        else:
            route = state.table.find(head.host_name, path.segments)
        if route is None or _is_of_named_server(path, route, state):
            if not last_look:
                return Miss()
            return self._no_route(head, path, request_id, proven=proven)
        if path.ambiguous and _is_ambiguous_prefix(path, route):
            raise BadRequest(400, "This address cannot be used.")
        known: Principal | None = None
        if route.policy != "public":
            principal = self._principal(head)
            if principal is None and not last_look:
                return Miss()
            known = principal if isinstance(principal, Principal) else None
        match domain.decide_access(route.policy, route.owner_id, known):
            case "sign_in":
                return self.replies.sign_in(head, path, request_id)
            case "forbidden":
                return self.replies.page(
                    head, 403, f"This server belongs to {route.owner_name}, and you may not use it.", request_id,
                    action=("Your own servers", f"{self._base_url}hub/home"),
                )  # fmt: skip
        if known is not None and known.kind == "session" and (head.method not in SAFE or head.upgrade):
            self._check_origin(head, peer)
        if self._bounds.body_bytes_max and head.length > self._bounds.body_bytes_max:
            raise BadRequest(413, too_large(self._bounds.body_bytes_max))
        if route.depth and head.method in (b"GET", b"HEAD") and len(path.segments) == route.depth:
            return self.replies.redirect(_with_slash(head.target), request_id)
        return self._plan(head, route, peer, request_id)

    def _plan(self, head: Head, route: Route, peer: Peer, request_id: str) -> Plan:
        fields = head.fields
        block = fields.blocks.get(route.secret_header)
        if block is None:
            name = route.secret_header.encode()
            block = lines_of(self._not_ours(passing.for_user_server(fields.headers, secret_header=name)))
            fields.blocks[route.secret_header] = block
        target, more = passing.query_without_tokens(head.target), self._secret_line(route)
        if route.strip_prefix:
            prefix = self._base_url.encode()[:-1] + quote(route.prefix).encode()
            more += b"X-Forwarded-Prefix: %b\r\n" % prefix
            target = _stripped(target, len(self._base_url) - 1, route.depth)
        span, traced = (
            self._span(head, f"{head.method.decode()} {self._base_url}user/*", route) if self._tracing else NONE
        )
        return Plan(
            targets=[route.target],
            head=self._request(head, target, block + more + traced, peer, request_id),
            trusted=False,
            server_id=route.server_id,
            kind="server",
            request_id=request_id,
            span=span,
            response_timeout_s=self._bounds.response_timeout_s,
            body_bytes_max=self._bounds.body_bytes_max,
            secret_header=route.secret_header.encode(),
        )

    def _no_route(self, head: Head, path: Path, request_id: str, *, proven: bool) -> Reply:  # noqa: PLR0911
        """A server that does not run, or nothing at all."""
        principal = self._principal(head)
        if not isinstance(principal, Principal):
            return self.replies.sign_in(head, path, request_id)
        state = self._state()
        if len(path.segments) >= 2 and path.segments[0] == "user":
            owner = state.identity.user_by_name(path.segments[1])
            if owner is None or not domain.may_access(principal, owner.user_id):
                if principal.admin and proven:
                    return self.replies.not_found(head, request_id)
                return self.replies.page(head, 403, "You may not use this server, or there is none.", request_id)
            if not proven:
                return self.replies.unavailable(
                    head, request_id, "It cannot be told right now whether this server runs."
                )
            named = path.segments[2] if len(path.segments) > 2 else ""
            server = named if named in state.server_names.get(owner.user_id, ()) else ""
            return self.replies.stopped(head, owner.name, server, request_id)
        if not proven:
            return self.replies.unavailable(
                head, request_id, "It cannot be told right now whether this address exists."
            )
        return self.replies.not_found(head, request_id)

    # Parts of a decision

    def _principal(self, head: Head) -> Principal | str | None:
        """The principal; a text: a credential that is no good; None: one that we may not have heard of yet."""
        fields, identity, now = head.fields, self._state().identity, time.time()
        known = fields.principal
        if (
            known is not None
            and fields.principal_version == identity.version
            and fields.principal_seen_by is identity
            and (known.expires_at is None or now < known.expires_at)
        ):
            return known
        authorization = head.get(b"authorization").decode("latin-1")
        verdict = self._verifier.authenticate(authorization, fields.session_cookie(), now)
        if isinstance(verdict, Principal):
            fields.principal, fields.principal_seen_by = verdict, identity
            fields.principal_version = identity.version
            return verdict
        if verdict is None:
            return "nothing"
        return None if verdict in ("unknown_key", "unknown_user") else verdict

    def _check_origin(self, head: Head, peer: Peer) -> None:
        """A server trusts our secret instead of the browser's cookies, so that its own defence against other sites'
        requests does not work; this is it. Raises BadRequest."""
        origin = head.get(b"origin")
        came = passing.came_from(head.fields.headers, head.host, peer, self._port)
        if origin and origin.lower() != self._public_origin and not passing.same_origin(origin, came):
            raise BadRequest(403, "This request comes from a page of another site.")

    def _request(self, head: Head, target: bytes, lines: bytes, peer: Peer, request_id: str) -> bytes:
        """The head as the upstream gets it. `lines`: the client's that go on, and those that depend on where."""
        return b"".join((
            head.method, b" ", target, b" HTTP/1.1\r\nHost: ", head.host or UNNAMED_HOST, b"\r\n", lines,
            self._forwarded(head, peer), b"X-Request-Id: ", request_id.encode(), b"\r\n", framing(head),
        ))  # fmt: skip

    def _forwarded(self, head: Head, peer: Peer) -> bytes:
        """Where the request came from. The same lines from the same connection come from the same place."""
        fields = head.fields
        if peer.told_for is fields and head.host is fields.host:
            return peer.told
        came = passing.came_from(fields.headers, head.host, peer, self._port)
        lines = b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\nX-Forwarded-Port: %b\r\n" % (
            came.addresses, came.scheme, came.port,
        )  # fmt: skip
        if came.host:
            lines += b"X-Forwarded-Host: %b\r\n" % came.host
        if head.host is fields.host:
            peer.told_for, peer.told = fields, lines
        return lines

    def _secret_line(self, route: Route) -> bytes:
        """The server's own secret, as the header that it wants."""
        if not route.secret_header or not route.server_id:
            return b""
        generation, line = self._secret_lines.get(route.server_id, (-1, b""))
        if generation != route.generation:
            secret = self._secrets.server_secret(route.server_id, route.generation)
            line = f"{route.secret_header}: {route.secret_prefix}{secret}\r\n".encode()
            if len(self._secret_lines) >= SECRET_LINES_MAX:
                self._secret_lines.clear()
            self._secret_lines[route.server_id] = (route.generation, line)
        return line

    def _not_ours(self, headers: list[passing.Header]) -> list[passing.Header]:
        """Without what we write ourselves; a traceparent stays if it is one and no trace of our own replaces it."""
        return [
            (name, value)
            for name, value in headers
            if (lower := name.lower()) not in (b"host", b"content-length")
            and (lower != b"traceparent" or (not self._tracing and TRACEPARENT.fullmatch(value)))
        ]

    def _span(self, head: Head, name: str, route: Route | None) -> tuple[Span | None, bytes]:
        """A span of this request, and the traceparent line to hand on; nothing without a collector."""
        if not self._tracing:
            return NONE
        incoming = head.get(b"traceparent")
        if not TRACEPARENT.fullmatch(incoming):
            incoming = b""
        span = telemetry.tracer().start_span(
            name,
            context=telemetry.context_of(incoming.decode("latin-1")),
            kind=SpanKind.SERVER,
            links=telemetry.links_to(route.traceparent) if route else None,
            attributes={"http.request.method": head.method.decode()},
        )
        context = span.get_span_context()
        return span, b"traceparent: 00-%032x-%016x-%02x\r\n" % (context.trace_id, context.span_id, context.trace_flags)


CONTROL: Final = "/hub"
"""No header can have this name."""
NONE: Final[tuple[Span | None, bytes]] = (None, b"")
SECRET_LINES_MAX: Final = 20_000
TRACEPARENT: Final = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def _with_slash(target: bytes) -> bytes:
    path, mark, query = target.partition(b"?")
    return path + b"/" + mark + query


def _stripped(target: bytes, base_length: int, depth: int) -> bytes:
    """The target without the route's prefix: raw, as everything that is forwarded."""
    path, mark, query = target.partition(b"?")
    pieces = path[base_length + 1 :].split(b"/")
    return b"/" + b"/".join(pieces[depth:]) + mark + query


def _is_of_named_server(path: Path, route: Route, state: RouterState) -> bool:
    """True where the path is a named server's, which does not run or is not known yet to, and the route is that of the
    default server of the same person."""
    if route.host or not route.server_id or route.server_name or len(path.segments) <= route.depth:
        return False
    name = path.segments[route.depth]
    return bool(name) and name in state.server_names.get(route.owner_id, ())


def _is_ambiguous_prefix(path: Path, route: Route) -> bool:
    """True if an empty segment or an encoded slash stands where the route is decided."""
    return path.ambiguous and any(not s or "/" in s or "\\" in s for s in path.segments[: route.depth])
