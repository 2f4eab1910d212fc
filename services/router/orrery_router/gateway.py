"""What becomes of a request: answered here, forwarded, or looked at again after catching up with the log.

Everything is decided from memory. Only a miss (a path without a route, a credential that nobody here has heard of) may
wait for Postgres, once and for a short time: a route that was acknowledged before the request began is never a 404.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from opentelemetry.trace import Span, SpanKind

from orrery_events.ids import new_id
from orrery_events.principal import Principal
from orrery_runtime import paths, telemetry
from orrery_runtime.identity import Verifier
from orrery_runtime.secrets import EDGE_HEADER, Secrets

from . import domain, passing
from .dataplane import limits
from .dataplane.head import SAFE, UNNAMED_HOST, BadRequest, Head, framing
from .dataplane.limits import Limits
from .domain import BadPath, Path, Route
from .lines import TRACEPARENT, Line
from .passing import Peer
from .plan import Leave, Miss, Plan, Repeat, Way
from .projections import RouterState
from .replies import Replies, Reply, too_large
from .ways import Onward, Ways

if TYPE_CHECKING:
    from .templates import Templates


class Gateway:
    """The router's view of one request."""

    def __init__(
        self,
        state: Callable[[], RouterState],
        verifier: Verifier,
        secrets: Secrets,
        *,
        base_url: str,
        public_url: str,
        bounds: Limits,
        tracing: bool,
        templates: Templates | None = None,
    ) -> None:
        self._state, self._verifier = state, verifier
        self._base_url, self._bounds = base_url, bounds
        self.replies = Replies(base_url, templates)
        self._public_origin = passing.origin_of(public_url)
        self._tracing = tracing
        self._edge_line = f"{EDGE_HEADER}: {secrets.edge_proof}\r\n".encode()
        self._turn = 0
        self._principals: dict[tuple[bytes, str], tuple[Principal | None, object]] = {}
        """Who presents which credentials, as found with the identities of that stamp."""
        self._ways = Ways(secrets, bounds, base_url)
        self._said: dict[tuple[str, bytes], bytes] = {}
        """What is said of requests from one place to one host, where nobody else is asked."""
        self._request_prefix, self._asked = new_id()[:-8], 0
        self._control_way = Way(
            trusted=True, server_id="", kind="control", response_timeout_s=limits.CONTROL_RESPONSE_TIMEOUT_S,
            body_bytes_max=limits.CONTROL_BODY_BYTES_MAX, secret_header=b"", targets=[],
        )  # fmt: skip

    def decide(self, head: Head, peer: Peer, *, last_look: bool, proven: bool = True) -> Plan | Reply | Miss:
        """`last_look`: there is nothing left to wait for. `proven`: and it was proven that nothing is missing."""
        self._asked += 1
        request_id = f"{self._request_prefix}{self._asked:08x}"
        path = head.path
        if path is None:
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
        lines = (
            _host_line(head)
            + passing.for_control_plane([*head.fields.lines, *head.varying], head.fields.listed, traced=self._tracing)
            + self._forwarded(head, peer)
            + self._edge_line
        )
        request = self._request(head, head.target, lines + traced, request_id)
        return Plan([b.target for b in ordered], request, self._control_way, request_id, span)

    # User servers

    def _server(
        self, head: Head, path: Path, peer: Peer, request_id: str, *, last_look: bool, proven: bool
    ) -> Plan | Reply | Miss:  # fmt: skip
        state = self._state()
        if path.plain:
            route = state.table.find_plain(head.host_name, path.text)
        else:
            route = state.table.find(head.host_name, path.segments)
        if route is None or (not route.server_name and _is_of_named_server(path, route, state)):
            return self._no_route(head, path, request_id, proven=proven) if last_look else Miss()
        if path.ambiguous and _is_ambiguous_prefix(path, route):
            raise BadRequest(400, "This address cannot be used.")
        leave = head.fields.leave
        if (
            leave is None
            or leave.route is not route
            or leave.stamp is not state.identity.stamp
            or leave.place != peer.place
            or leave.until <= time.time()
            or head.method not in SAFE
            or head.host is not head.fields.host
            or head.upgrade
        ):
            judged = self._judge(head, path, route, peer, request_id, last_look=last_look)
            if not isinstance(judged, Leave):
                return judged
            leave = head.fields.leave = judged
        if _lacks_slash(path, route) and head.method in (b"GET", b"HEAD"):
            return self.replies.redirect(_with_slash(head.target), request_id)
        target = head.target
        if b"?" in target:
            target = passing.query_without_tokens(target)
        if route.strip_prefix:
            target = _stripped(target, len(self._base_url) - 1, route.depth)
        if route.options is not None and route.options.prepend:
            target = route.options.prepend.encode() + target
        span, lines = None, leave.lines
        if head.varying:
            lines += self._for_server(head.varying, head.fields.listed, leave.way.secret_header)
        if self._tracing:
            span, traced = self._span(head, f"{head.method.decode()} {self._base_url}user/*", route)
            lines += traced
        request = self._request(head, target, lines, request_id)
        return Plan(leave.way.targets, request, leave.way, request_id, span, leave=leave)

    def repeat(self, data: bytes, head: Head, plan: Plan) -> Repeat | None:
        """As `Decider.repeat`."""
        if plan.leave is None or head.path is None or not head.path.plain:
            return None
        before = plan.head[: plan.head.rfind(b" ") + 1] + self._request_prefix.encode()
        return Repeat(data, head, plan, before, stamp=None)

    def again(self, repeat: Repeat, place: str) -> bytes | None:
        """As `Decider.again`. Everything that the leave to pass depends on is looked at again, as for any request; the
        table only if it has changed since."""
        state, leave, head = self._state(), repeat.plan.leave, repeat.head
        if (
            leave is None
            or leave.stamp is not state.identity.stamp
            or leave.place != place
            or leave.until <= time.time()
        ):
            return None
        path, route = head.path, leave.route
        if repeat.stamp is not state.table.stamp:
            if path is None or state.table.find_plain(head.host_name, path.text) is not route:
                return None
            repeat.stamp = state.table.stamp
        if not route.server_name and (path is None or _is_of_named_server(path, route, state)):
            return None
        self._asked += 1
        return b"%b%08x\r\n\r\n" % (repeat.before, self._asked)

    def _judge(
        self, head: Head, path: Path, route: Route, peer: Peer, request_id: str, *, last_look: bool
    ) -> Leave | Reply | Miss:  # fmt: skip
        """Who asks, and whether they may. Raises BadRequest."""
        known: Principal | None = None
        if route.policy != "public" or (route.options is not None and route.options.identity_headers):
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
        stamp = self._state().identity.stamp
        onward = self._ways.of(route)
        until = math.inf if known is None or known.expires_at is None else known.expires_at
        return Leave(
            route,
            peer.place,
            stamp,
            until,
            onward.way,
            self._lines_for(head, onward, peer, visitor=known),
        )

    def _for_server(self, lines: Iterable[Line], listed: frozenset[bytes], secret_header: bytes) -> bytes:
        return passing.for_user_server(lines, listed, secret_header=secret_header, traced=self._tracing)

    def _lines_for(self, head: Head, onward: Onward, peer: Peer, *, visitor: Principal | None) -> bytes:
        """The header lines for a user's server, its own secret among them."""
        fields, name, options = head.fields, onward.way.secret_header, onward.route.options
        known = fields.to_server
        if known is None or known[0] != name:
            known = fields.to_server = (name, self._for_server(fields.lines, fields.listed, name))
        identity = b""
        if visitor is not None and options is not None and options.identity_headers:
            identity = passing.identity_of(visitor)
        return b"".join((_host_line(head), known[1], self._forwarded(head, peer), onward.lines, identity))

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
        credentials = head.fields.credentials()
        stamp, now = self._state().identity.stamp, time.time()
        known, since = self._principals.get(credentials, NOBODY)
        if known is not None and since is stamp and not _is_over(known, now):
            return known
        verdict = self._verifier.authenticate(credentials[0].decode("latin-1"), credentials[1], now)
        if isinstance(verdict, Principal):
            if len(self._principals) >= PRINCIPALS_MAX:
                self._principals.clear()
            self._principals[credentials] = (verdict, stamp)
        if verdict is None:
            return "nothing"
        return None if verdict in ("unknown_key", "unknown_user") else verdict

    def _check_origin(self, head: Head, peer: Peer) -> None:
        """A server trusts our secret instead of the browser's cookies, so that its own defence against other sites'
        requests does not work; this is it. Raises BadRequest."""
        origin = head.get(b"origin")
        came = passing.came_from(head.fields.lines, head.host, peer)
        if origin and origin.lower() != self._public_origin and not passing.same_origin(origin, came):
            raise BadRequest(403, "This request comes from a page of another site.")

    def _forwarded(self, head: Head, peer: Peer) -> bytes:
        """Where the request came from."""
        if peer.trusted:
            return self._came(head, peer)
        key = (peer.place, head.host)
        said = self._said.get(key)
        if said is None:
            if len(self._said) >= SAID_MAX:
                self._said.clear()
            said = self._said[key] = self._came(head, peer)
        return said

    def _came(self, head: Head, peer: Peer) -> bytes:
        came = passing.came_from(head.fields.lines, head.host, peer)
        lines = b"X-Forwarded-Proto: %b\r\nX-Forwarded-Port: %b\r\n" % (came.scheme, came.port)
        if came.addresses:
            lines += b"X-Forwarded-For: %b\r\n" % came.addresses
        return lines + b"X-Forwarded-Host: %b\r\n" % came.host if came.host else lines

    def _request(self, head: Head, target: bytes, lines: bytes, request_id: str) -> bytes:
        """The head as the upstream gets it."""
        return b"%b %b HTTP/1.1\r\n%bX-Request-Id: %b\r\n%b" % (
            head.method, target, lines, request_id.encode(), framing(head),
        )  # fmt: skip

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


PRINCIPALS_MAX: Final = 4096
NOBODY: Final = (None, None)
SAID_MAX: Final = 4096
NONE: Final[tuple[Span | None, bytes]] = (None, b"")


def _is_over(principal: Principal, now: float) -> bool:
    return principal.expires_at is not None and principal.expires_at <= now


def _host_line(head: Head) -> bytes:
    return b"Host: %b\r\n" % (head.host or UNNAMED_HOST)


def _with_slash(target: bytes) -> bytes:
    path, mark, query = target.partition(b"?")
    return path + b"/" + mark + query


def _stripped(target: bytes, base_length: int, depth: int) -> bytes:
    """The target without the route's prefix: raw, as everything that is forwarded."""
    path, mark, query = target.partition(b"?")
    pieces = path[base_length + 1 :].split(b"/")
    return b"/" + b"/".join(pieces[depth:]) + mark + query


def _lacks_slash(path: Path, route: Route) -> bool:
    """True for the route's prefix without the slash at its end."""
    if path.plain:
        return len(path.text) < len(route.prefix)
    return route.depth > 0 and len(path.segments) == route.depth


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
