"""What is passed on of a request and of its answer, and where a request is said to come from. Pure: bytes in and out.

A user's server gets nothing that would let it act for its visitor; auth and api get the visitor's credentials; nobody
gets anybody's word but ours about where a request came from, unless that is a proxy that the admin trusts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final
from urllib.parse import unquote_to_bytes

import msgspec

from orrery_events.principal import Principal

from .lines import HOP_BY_HOP, OURS_TO_SET, PLATFORM_COOKIES, TOKEN_BYTES, Header, Line, name_of

XSRF_COOKIE: Final = b"_xsrf"


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


class Peer(msgspec.Struct, frozen=True, gc=False):
    """The other end of a client's connection."""

    address: str
    """Empty if it came by a unix socket."""
    trusted: bool
    """A proxy in front of us, whose word about where a request came from is believed."""
    secure: bool = False
    """It came by TLS."""
    port: bytes = b""
    """That it connected to; empty for a unix socket."""
    place: str = ""
    """Equal for connections of whose requests the same is said."""

    def __post_init__(self) -> None:
        place = f"{self.address} {self.port.decode()} {self.secure:d}{self.trusted:d}"
        msgspec.structs.force_setattr(self, "place", place)


class Came(msgspec.Struct, frozen=True):
    """Where a request came from, as upstreams are told."""

    addresses: bytes
    scheme: bytes
    host: bytes
    port: bytes


def came_from(lines: Iterable[Line], host: bytes, peer: Peer) -> Came:
    """What we saw ourselves, or what a trusted proxy says that it saw."""
    address = peer.address.encode()
    scheme = b"https" if peer.secure else b"http"
    if not peer.trusted:
        return Came(address, scheme, host, peer.port or _port_of(host, scheme))
    said: dict[bytes, bytes] = {}
    for line in lines:
        lower = line.name.lower
        if lower in OURS_TO_SET:
            said[lower] = said[lower] + b", " + line.value if lower in said else line.value
    said_scheme = _first(said.get(b"x-forwarded-proto", b"")).lower()
    if said_scheme:
        scheme = b"https" if said_scheme == b"https" else b"http"
    host = _first(said.get(b"x-forwarded-host", b"")) or host
    said_port = _first(said.get(b"x-forwarded-port", b""))
    port = said_port if said_port.isdigit() else _port_of(host, scheme)
    before = said.get(b"x-forwarded-for", b"")
    return Came(b", ".join(part for part in (before, address) if part), scheme, host, port)


def _port_of(host: bytes, scheme: bytes) -> bytes:
    """Of a Host header: the one that it names, or else the scheme's."""
    named = host.rpartition(b":")[2]
    return named if b":" in host and named.isdigit() else b"443" if scheme == b"https" else b"80"


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


def query_without_tokens(raw: bytes) -> bytes:
    """The target without query parameters that hold a platform token."""
    path, mark, query = raw.partition(b"?")
    if not mark or TOKEN_BYTES not in unquote_to_bytes(query):
        return raw
    kept = [part for part in query.split(b"&") if TOKEN_BYTES not in unquote_to_bytes(part)]
    return path + (mark + b"&".join(kept) if kept else b"")


def for_user_server(lines: Iterable[Line], listed: frozenset[bytes], *, secret_header: bytes, traced: bool) -> bytes:
    """The header lines of a request as a user's server may see them. `listed`: names that end here, as the client says;
    `secret_header`: only we send it; `traced`: and we send a traceparent of our own."""
    own = {name_of(secret_header).canonical, b"traceparent"} if traced else {name_of(secret_header).canonical}
    return b"".join([
        line.to_server for line in lines if line.name.canonical not in own and line.name.lower not in listed
    ])  # fmt: skip


def for_control_plane(lines: Iterable[Line], listed: frozenset[bytes], *, traced: bool) -> bytes:
    """The same for auth and api."""
    own = {b"traceparent"} if traced else frozenset()
    return b"".join([
        line.to_control_plane for line in lines if line.name.lower not in own and line.name.lower not in listed
    ])  # fmt: skip


def identity_of(visitor: Principal) -> bytes:
    """Who the visitor is, as header lines for a server that asks for it. Nobody else's of these names ever arrive."""
    return b"X-Orrery-User: %b\r\nX-Orrery-User-Id: %b\r\nX-Orrery-Admin: %b\r\n" % (
        visitor.name.encode(),
        visitor.user_id.encode(),
        b"true" if visitor.admin else b"false",
    )


class Passed(msgspec.Struct, frozen=True, gc=False):
    """A response's head, ready to go on; `lines` without the empty line, with what the router adds still to come."""

    lines: bytes
    length: int
    """Of the body, as its head says; -1: it does not."""


def from_upstream(head: bytes, *, trusted: bool, base_url: str) -> Passed:
    """A response's head for the browser: its own lines but those that end here, as they came.

    `head`: status line and header lines as llhttp accepted them, without the line end of the last. A user's server may
    not set the platform's cookies (`trusted`: auth, api).
    """
    lower = head.lower()
    if (
        _ENDS_HERE.search(lower) is not None
        or lower[:9] != b"http/1.1 "
        or lower[12:13] != b" "
        or lower[9:12] == b"204"
    ):
        return _line_by_line(head, trusted=trusted, base_url=base_url)
    length = -1
    if (at := lower.find(b"\r\ncontent-length:")) >= 0:
        length = int(lower[at + 17 :].partition(b"\r")[0])
    if (at := lower.find(b"\r\nconnection:")) >= 0:
        end = lower.find(b"\r\n", at + 13)
        end = len(lower) if end < 0 else end
        if lower[at + 13 : end].strip() not in OWN_BUSINESS or lower.find(b"\r\nconnection:", end) >= 0:
            return _line_by_line(head, trusted=trusted, base_url=base_url)
        head = head[:at] + head[end:]
    return Passed(head + b"\r\n", length)


_ENDS_HERE: Final = re.compile(rb"\r\n(?:set-cookie|t[er]|keep-alive|upgrade|proxy-)")
"""Lines that need a look (TE, Trailer, Transfer-Encoding among them); `Connection` is looked at anyway."""
OWN_BUSINESS: Final = frozenset({b"", b"close", b"keep-alive"})


def _line_by_line(head: bytes, *, trusted: bool, base_url: str) -> Passed:
    lines = head.split(b"\r\n")
    status_line = lines[0]
    kept = [status_line if status_line.startswith(b"HTTP/1.1 ") else b"HTTP/1.1" + status_line[8:]]
    if len(status_line) < STATUS_LINE_BYTES_MIN:
        kept[0] += b" "
    length, listed = -1, b""
    bodyless = status_line[9:12] == b"204"
    for line in lines[1:]:
        name = line[: line.find(b":")].lower()
        if name not in _LOOKED_AT:
            kept.append(line)
        elif name == b"content-length":
            length = int(line[15:])
            if not bodyless:
                kept.append(line)
        elif name == b"set-cookie":
            if trusted or not _is_platform_cookie(line[11:], base_url):
                kept.append(line)
        elif name == b"connection":
            listed += b"," + line[11:]
    if listed:
        # What frames the body does not end here, whoever lists it: the next answer would be taken for more of this one.
        names = {name.strip().lower() for name in listed.split(b",")} - {b"content-length"}
        kept[1:] = [line for line in kept[1:] if line[: line.find(b":")].lower() not in names]
    kept.append(b"")
    return Passed(b"\r\n".join(kept), length)


STATUS_LINE_BYTES_MIN: Final = len(b"HTTP/1.1 200 ")
_LOOKED_AT: Final = HOP_BY_HOP | {b"set-cookie", b"content-length"}


def trailers(fields: Iterable[Header], *, but: bytes = b"") -> list[Header]:
    """Those that may follow a message's last chunk: nothing that frames it, says who asks or where it came from, or
    sets a cookie (RFC 9110 §6.5.1). `but`: a header that only we send."""
    refused = _NO_TRAILERS | {name_of(but).canonical}
    return [
        (name, value)
        for name, value in fields
        if (lower := name_of(name).canonical) not in refused
        and not name_of(name).ours
        and not lower.startswith(b"sec-")
        and TOKEN_BYTES not in value
    ]


_NO_TRAILERS: Final = HOP_BY_HOP | {
    b"authorization", b"content-encoding", b"content-length", b"content-range", b"content-type", b"cookie", b"cookie2",
    b"host", b"location", b"origin", b"referer", b"set-cookie", b"x-xsrftoken",
}  # fmt: skip


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
