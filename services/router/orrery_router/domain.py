"""The router's decisions, without I/O: what a path means, which route it takes, who may pass, what is handed on.

What is routed is exactly what is forwarded: a path is cut at its raw slashes and each piece is percent-decoded alone,
so that an encoded slash never makes a segment; a path with dot segments in any spelling is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final, Literal
from urllib.parse import unquote_to_bytes

import msgspec

from orrery_events.catalog.route import RouteSet
from orrery_events.principal import SESSION_COOKIE, TOKEN_PREFIX, Principal

Header = tuple[bytes, bytes]
"""Name as sent, value."""

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""RFC 9110 §7.6.1 and what is treated like it."""
OURS_TO_SET: Final = frozenset(
    {
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-proto",
        b"x-real-ip",
        b"x-request-id",
    }
)
"""Nobody but us tells an upstream where a request came from."""
OUR_PREFIX: Final = b"x-orrery-"
PLATFORM_COOKIES: Final = frozenset({SESSION_COOKIE.encode(), b"orrery-position"})
XSRF_COOKIE: Final = b"_xsrf"
SEGMENTS_MAX: Final = 64
"""Deepest prefix that is looked for."""
TOKEN_BYTES: Final = TOKEN_PREFIX.encode()


class BadPath(ValueError):
    """A path that could be read in two ways."""


class Path(msgspec.Struct, frozen=True):
    """A request target, taken apart."""

    raw: bytes
    """As it is forwarded: path and query, in origin form."""
    segments: tuple[str, ...]
    """Decoded, of the path below the base URL, up to SEGMENTS_MAX; an empty one ends a trailing slash."""
    text: str
    """Decoded path below the base URL; begins with `/`."""
    ambiguous: bool
    """Has an empty segment, an encoded slash or a backslash somewhere: fine inside a user's server, nowhere else."""


def parse_target(target: bytes, base_url: str = "/") -> Path | None:
    """Takes an origin-form target apart. None: not below the base URL. Raises BadPath."""
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
    return Path(target, tuple(segments), "/" + "/".join(segments), ambiguous)


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


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """Where requests below a prefix go."""

    route_id: str
    prefix: str
    host: str
    """Of the public name; empty: any."""
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

    @property
    def target(self) -> tuple[str, int]:
        return (self.target_host, self.target_port)


def route_of(event: RouteSet, traceparent: str = "") -> Route:
    """Raises ValueError for a target that is no `http://host:port`."""
    scheme, _, rest = event.target.partition("://")
    host, _, port = rest.rstrip("/").rpartition(":")
    if scheme != "http" or not host or not port.isdigit():
        raise ValueError(f"target {event.target!r} is not http://host:port")
    return Route(
        route_id=event.route_id,
        prefix=event.prefix,
        host=event.host.lower(),
        target_host=host.strip("[]"),
        target_port=int(port),
        policy=event.policy,
        owner_id=event.owner_id,
        owner_name=event.owner_name,
        server_id=event.server_id,
        server_name=event.server_name,
        generation=event.generation,
        strip_prefix=event.strip_prefix,
        secret_header=event.secret_header,
        secret_prefix=event.secret_prefix,
        depth=len(segments_of(event.prefix)),
        traceparent=traceparent,
    )


def segments_of(prefix: str) -> tuple[str, ...]:
    """`/user/ada/` → `("user", "ada")`."""
    text = prefix.strip("/")
    return tuple(text.split("/")) if text else ()


class Table:
    """Routes by (host, segments); the longest prefix of whole segments wins, a host's own routes first."""

    def __init__(self) -> None:
        self._routes: dict[tuple[str, tuple[str, ...]], Route] = {}
        self._by_id: dict[str, tuple[str, tuple[str, ...]]] = {}
        self._depths: dict[int, int] = {}
        """Number of segments → how many routes have as many."""
        self._hosts: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._routes)

    def set(self, route: Route) -> None:
        self.remove(route.route_id)
        key = (route.host, segments_of(route.prefix))
        replaced = self._routes.get(key)
        if replaced is not None:
            self.remove(replaced.route_id)
        self._routes[key] = route
        self._by_id[route.route_id] = key
        self._depths[len(key[1])] = self._depths.get(len(key[1]), 0) + 1
        self._hosts[route.host] = self._hosts.get(route.host, 0) + 1

    def remove(self, route_id: str) -> None:
        key = self._by_id.pop(route_id, None)
        if key is None:
            return
        del self._routes[key]
        for counts, value in ((self._depths, len(key[1])), (self._hosts, key[0])):
            left = counts[value] - 1  # type: ignore[index]
            if left:
                counts[value] = left  # type: ignore[index]
            else:
                del counts[value]  # type: ignore[arg-type]

    def find(self, host: str, segments: tuple[str, ...]) -> Route | None:
        depths = sorted((d for d in self._depths if d <= len(segments)), reverse=True)
        for name in (host, "") if host and host in self._hosts else ("",):
            for depth in depths:
                route = self._routes.get((name, segments[:depth]))
                if route is not None:
                    return route
        return None

    def routes(self) -> Iterable[Route]:
        return self._routes.values()


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


Networks = tuple[IPv4Network | IPv6Network, ...]


def networks_of(text: str) -> Networks:
    """`10.0.0.0/8, ::1` → networks. Raises ValueError that names the one that is none."""
    return tuple(ip_network(part.strip(), strict=False) for part in text.split(",") if part.strip())


def is_in(address: str, networks: Networks) -> bool:
    """False for what is no address (a unix socket's peer)."""
    if not networks:
        return False
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return any(parsed in network for network in networks)


class Peer(msgspec.Struct, frozen=True):
    """The other end of a client's connection."""

    address: str
    trusted: bool
    """A proxy in front of us, whose word about where a request came from is believed."""


class Came(msgspec.Struct, frozen=True):
    """Where a request came from, as upstreams are told."""

    addresses: bytes
    scheme: bytes
    host: bytes
    port: bytes


def came_from(headers: Iterable[Header], host: bytes, peer: Peer, port: bytes) -> Came:
    """What we saw ourselves, or what a trusted proxy says that it saw."""
    address = peer.address.encode()
    if not peer.trusted:
        return Came(address, b"http", host, port)
    said: dict[bytes, bytes] = {}
    for name, value in headers:
        lower = name.lower()
        if lower in OURS_TO_SET:
            said[lower] = said[lower] + b", " + value if lower in said else value
    scheme = b"https" if _first(said.get(b"x-forwarded-proto", b"")).lower() == b"https" else b"http"
    host = _first(said.get(b"x-forwarded-host", b"")) or host
    named = host.rpartition(b":")[2]
    default = b"443" if scheme == b"https" else b"80"
    said_port = _first(said.get(b"x-forwarded-port", b""))
    port = said_port if said_port.isdigit() else named if b":" in host and named.isdigit() else default
    before = said.get(b"x-forwarded-for", b"")
    return Came(before + b", " + address if before else address, scheme, host, port)


def _first(value: bytes) -> bytes:
    return value.partition(b",")[0].strip()


def same_origin(origin: bytes, came: Came) -> bool:
    """True if a browser's `Origin` is the one that it was answered from."""
    here = came.scheme + b"://" + came.host.lower()
    default = b":443" if came.scheme == b"https" else b":80"
    return origin.lower() in (here, here.removesuffix(default))


def origin_of(url: str) -> bytes:
    """`https://hub.example.org/x` → its origin, as browsers spell it; empty for an empty URL."""
    scheme, mark, rest = url.lower().partition("://")
    return (scheme + mark + rest.partition("/")[0]).encode()


def hop_by_hop_of(headers: Iterable[Header]) -> frozenset[bytes]:
    """Names that end here: the well-known ones and those that `Connection` lists."""
    listed = [
        name.strip().lower() for key, value in headers if key.lower() == b"connection" for name in value.split(b",")
    ]
    return HOP_BY_HOP | frozenset(listed) if listed else HOP_BY_HOP


def cookies_without(value: bytes, dropped: frozenset[bytes]) -> bytes:
    """A Cookie header's value without some cookies; empty if none is left."""
    kept = [pair for pair in value.split(b";") if pair.strip().partition(b"=")[0].strip() not in dropped]
    return b";".join(kept).strip()


def query_without_tokens(raw: bytes) -> bytes:
    """The target without query parameters that hold a platform token."""
    path, mark, query = raw.partition(b"?")
    if not mark or TOKEN_BYTES not in unquote_to_bytes(query):
        return raw
    kept = [part for part in query.split(b"&") if TOKEN_BYTES not in unquote_to_bytes(part)]
    return path + (mark + b"&".join(kept) if kept else b"")


def for_user_server(headers: Iterable[Header], *, secret_header: bytes) -> list[Header]:
    """Request headers as a user's server may see them: nothing that would let it act for its visitor."""
    headers = list(headers)
    dropped = hop_by_hop_of(headers)
    ours = _canonical(secret_header)
    kept: list[Header] = []
    for name, value in headers:
        lower = name.lower()
        if lower in dropped or _is_ours_to_set(name) or _canonical(name) == ours:
            continue
        if lower in (b"authorization", b"x-xsrftoken") and TOKEN_BYTES in value:
            continue
        if lower == b"cookie":
            value = cookies_without(value, PLATFORM_COOKIES)  # noqa: PLW2901
            if not value:
                continue
        if lower == b"referer" and TOKEN_BYTES in unquote_to_bytes(value):
            continue
        kept.append((name, value))
    return kept


def for_control_plane(headers: Iterable[Header]) -> list[Header]:
    """Request headers for auth and api: credentials stay, nobody's word about where it came from does."""
    headers = list(headers)
    dropped = hop_by_hop_of(headers)
    return [(name, value) for name, value in headers if name.lower() not in dropped and not _is_ours_to_set(name)]


def _canonical(name: bytes) -> bytes:
    """As CGI and WSGI programs read a header's name: to them `X_Real_IP` is `X-Real-IP`."""
    return name.lower().replace(b"_", b"-")


def _is_ours_to_set(name: bytes) -> bool:
    canonical = _canonical(name)
    return canonical in OURS_TO_SET or canonical.startswith(OUR_PREFIX)


def from_upstream(headers: Iterable[Header], *, trusted: bool, base_url: str) -> list[Header]:
    """Response headers for the browser. A user's server may not set the platform's cookies (`trusted`: auth, api)."""
    headers = list(headers)
    dropped = hop_by_hop_of(headers)
    return [
        (name, value)
        for name, value in headers
        if (lower := name.lower()) not in dropped
        and (trusted or lower != b"set-cookie" or not _is_platform_cookie(value, base_url))
    ]


def _is_platform_cookie(value: bytes, base_url: str) -> bool:
    name = value.partition(b"=")[0].strip()
    if name in PLATFORM_COOKIES:
        return True
    if name != XSRF_COOKIE:
        return False
    # A server's own `_xsrf` is fine below its own path; at the root or the hub's path it would shadow ours.
    paths = [a.strip()[5:].strip() for a in value.split(b";")[1:] if a.strip().lower().startswith(b"path=")]
    path = paths[-1] if paths else b""
    base = base_url.encode()
    return path.rstrip(b"/") + b"/" in (b"/", base) or (path + b"/").startswith(base + b"hub/")
