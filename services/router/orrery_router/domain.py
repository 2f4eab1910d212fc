"""The router's decisions, without I/O: what a path means, which route it takes, who may pass.

What is routed is exactly what is forwarded: a path is cut at its raw slashes and each piece is percent-decoded alone,
so that an encoded slash never makes a segment; a path with dot segments in any spelling is refused.
"""

from __future__ import annotations

import re
import sys
from typing import Final, Literal
from urllib.parse import unquote_to_bytes

import msgspec

from orrery_events.catalog.route import RouteSet
from orrery_events.principal import Principal

from . import target as targets
from .target import Target

SEGMENTS_MAX: Final = 64
"""Deepest prefix that is looked for."""


OFTEN_EQUAL: Final = ("host", "target_host", "policy", "secret_header", "secret_prefix")
"""Fields of a route that have few values."""


class BadPath(ValueError):
    """A path that could be read in two ways."""


class Path(msgspec.Struct, frozen=True, gc=False):
    """A request target, taken apart."""

    raw: bytes
    """As it is forwarded: path and query, in origin form."""
    text: str
    """Decoded path below the base URL; begins with `/`."""
    ambiguous: bool
    """Has an empty segment, an encoded slash or a backslash somewhere: fine inside a user's server, nowhere else."""
    plain: bool = False
    """Spelled without percent signs and the like: `text` says it all."""
    pieces: tuple[str, ...] = ()
    """The segments where `text` does not say where they end."""

    @property
    def segments(self) -> tuple[str, ...]:
        """Decoded, of the path below the base URL, up to SEGMENTS_MAX; an empty one ends a trailing slash."""
        return tuple(self.text[1:].split("/", SEGMENTS_MAX)[:SEGMENTS_MAX]) if self.plain else self.pieces


_PLAIN: Final = re.compile(rb"(/[A-Za-z0-9\-._~!$&'()*+,;=:@/]*)(?:\?[!-\"$-~]*)?")
"""A path of characters that mean what they say, and any query."""


def plain_path(target: bytes, base_url: str) -> Path | None:
    """The target taken apart if it is spelled so that nothing needs to be decoded or looked at twice: most are."""
    found = _PLAIN.fullmatch(target)
    if found is None:
        return None
    text = found[1].decode()
    if "/." in text or "//" in text or not text.startswith(base_url):
        return None
    return Path(target, text[len(base_url) - 1 :], ambiguous=False, plain=True)


def parse_target(target: bytes, base_url: str = "/") -> Path | None:
    """Takes an origin-form target apart. None: not below the base URL. Raises BadPath."""
    plain = plain_path(target, base_url)
    if plain is not None:
        return plain
    path, _, _query = target.partition(b"?")
    if not path.startswith(b"/") or b"#" in target:
        raise BadPath("the request target must be a path")
    if any(c <= 0x20 or c == 0x7F for c in target):
        raise BadPath("the request target holds control characters")
    base = base_url.encode()
    if path == base.rstrip(b"/"):
        path = base
    if not path.startswith(base):
        return None
    segments: list[str] = []
    ambiguous = b"\\" in path or path.startswith(b"//")
    pieces = path[len(base) :].split(b"/")
    for number, piece in enumerate(pieces):
        raw = unquote_to_bytes(piece) if b"%" in piece else piece
        if raw in (b".", b"..") or b"\x00" in raw or _double_dots(raw):
            raise BadPath("the path holds dot segments")
        if (not raw and number < len(pieces) - 1) or b"/" in raw or b"\\" in raw:
            ambiguous = True
        if len(segments) < SEGMENTS_MAX:
            segments.append(_text(raw))
    return Path(target, "/" + "/".join(segments), ambiguous, pieces=tuple(segments))


def _double_dots(raw: bytes) -> bool:
    """Dot segments that a careless upstream would find after decoding once more, or at an encoded slash."""
    if b"%" in raw:
        raw = unquote_to_bytes(raw)
    return any(part in (b".", b"..") for part in raw.replace(b"\\", b"/").split(b"/"))


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise BadPath("the path is not UTF-8") from None


class Options(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What few routes have."""

    tls: bool = False
    """The target is spoken to by TLS."""
    socket_path: str = ""
    """The target is a unix socket."""
    prepend: str = ""
    """Path that is put before what is forwarded; no trailing slash."""
    identity_headers: bool = False
    connect_timeout_s: float = 0.0
    """0: the router's own."""
    response_timeout_s: float = 0.0
    """0: the router's own."""
    rewrite_location: bool = False


class Route(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Where requests below a prefix go. There may be a hundred thousand: what can be derived is not stored, and strings
    that many of them have are one object (`slim`)."""

    prefix: str
    """Decoded segments with a slash before, between and after them."""
    host: str
    """Of the public name, in lower case; empty: any."""
    target_host: str
    target_port: int
    policy: str
    owner_id: str
    owner_name: str
    server_id: str
    server_name: str
    generation: int
    strip_prefix: bool
    secret_header: str
    secret_prefix: str
    depth: int
    """Number of segments of the prefix."""
    traceparent: str = ""
    """Of the append that set it."""
    options: Options | None = None
    """None for nearly all."""

    @property
    def target(self) -> Target:
        options = self.options or NO_OPTIONS
        return Target(self.target_host, self.target_port, options.tls, options.socket_path)


NO_OPTIONS: Final = Options()


def route_of(event: RouteSet, *, traceparent: str = "") -> Route:
    """Raises ValueError for a place that can never be found and for a target that cannot be understood."""
    target, prepend = targets.parse(event.target)
    if not is_place(event.host, event.prefix):
        raise ValueError(f"host {event.host!r}, prefix {event.prefix!r} is no place in the table")
    return Route(
        prefix=event.prefix,
        host=event.host,
        target_host=target.host,
        target_port=target.port,
        policy=event.policy,
        owner_id=event.owner_id,
        owner_name=event.owner_name,
        server_id=event.server_id,
        server_name=event.server_name,
        generation=event.generation,
        strip_prefix=event.strip_prefix,
        secret_header=event.secret_header,
        secret_prefix=event.secret_prefix,
        depth=event.prefix.count("/") - 1,
        traceparent=traceparent,
        options=options_of(event, target, prepend),
    )


def options_of(event: RouteSet, target: Target, prepend: str) -> Options | None:
    """None where there is nothing to say."""
    timeouts = event.connect_timeout_s > 0 or event.response_timeout_s > 0
    if not (
        target.tls or target.socket_path or prepend or event.identity_headers or event.rewrite_location or timeouts
    ):
        return None
    return Options(
        tls=target.tls,
        socket_path=target.socket_path,
        prepend=prepend,
        identity_headers=event.identity_headers,
        connect_timeout_s=max(0.0, event.connect_timeout_s),
        response_timeout_s=max(0.0, event.response_timeout_s),
        rewrite_location=event.rewrite_location,
    )


def slim(route: Route, owner_id: str = "", owner_name: str = "") -> Route:
    """The same route, as yet nobody else's, holding strings that are held already: those that many routes have, and
    the owner's where they are equal."""
    for name in OFTEN_EQUAL:
        msgspec.structs.force_setattr(route, name, sys.intern(getattr(route, name)))
    if owner_id == route.owner_id:
        msgspec.structs.force_setattr(route, "owner_id", owner_id)
    if owner_name == route.owner_name:
        msgspec.structs.force_setattr(route, "owner_name", owner_name)
    return route


def is_place(host: str, prefix: str) -> bool:
    """Whether they are written as the table wants them, so that one place has one spelling and one route id."""
    if not prefix.startswith("/") or not prefix.endswith("/") or "//" in prefix:
        return False
    return host == host.lower() and prefix.count("/") <= SEGMENTS_MAX


Verdict = Literal["pass", "sign_in", "forbidden"]


def decide_access(policy: str, owner_id: str, principal: Principal | None) -> Verdict:
    """Who may use a route. Deny by default: a policy that is not known lets nobody pass."""
    if policy == "public":
        return "pass"
    if principal is None:
        return "sign_in"
    if policy == "authenticated":
        return "pass"
    if policy == "owner" and may_access(principal, owner_id):
        return "pass"
    return "forbidden"


def may_access(principal: Principal, owner_id: str) -> bool:
    """Sessions and full tokens of the owner and of admins. A token with narrower scopes must hold `access:servers` or
    `servers`."""
    if principal.user_id != owner_id and not principal.admin:
        return False
    if principal.kind == "session" or "inherit" in principal.scopes:
        return True
    return any(scope.partition("!")[0] in ("self", "servers", "access:servers") for scope in principal.scopes)
