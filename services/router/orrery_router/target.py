"""Where a route leads: the URLs that are understood, and the one form that connections are made and pooled by. Pure."""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import quote, unquote

FORMS: Final = "http://host:port[/path], https://host:port[/path] or http+unix://<percent-quoted path of the socket>"
SOCKET_PATH_BYTES_MAX: Final = 107
"""Linux's bound of a unix socket's path."""
DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_USUAL: Final = re.compile(r"http://([A-Za-z0-9.-]+):([1-9][0-9]{0,4})/?")
_NEVER: Final = re.compile(r"[^!-~]|[?#\\]")
"""White space, control characters, what is not ASCII, queries, fragments, backslashes."""


class Target(NamedTuple):
    """One place that connections are made to; what an idle connection is found again by."""

    host: str
    """Name or address, without brackets; empty for a unix socket."""
    port: int
    tls: bool = False
    socket_path: str = ""
    """Of a unix socket; empty: TCP."""

    @property
    def url(self) -> str:
        """As an event would spell it."""
        if self.socket_path:
            return f"http+unix://{quote(self.socket_path, safe='')}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"


def parse(url: str) -> tuple[Target, str]:
    """The target, and the path that is put before what is forwarded: no trailing slash, empty for none.

    Raises ValueError with a sentence that names what would be right.
    """
    usual = _USUAL.fullmatch(url)
    if usual is not None and (usual_port := int(usual[2])) <= 65_535:
        return Target(usual[1], usual_port), ""
    scheme, mark, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    path = (slash + path).rstrip("/")
    if not mark or not authority or _NEVER.search(url):
        raise ValueError(f"target {url!r} is not {FORMS}")
    if path and any(unquote(piece) in (".", "..", "") for piece in path.split("/")[1:]):
        raise ValueError(f"target {url!r} has a path with empty or dot segments: name the plain path")
    if scheme == "http+unix":
        socket_path = unquote(authority)
        if not socket_path.startswith("/") or "\x00" in socket_path:
            raise ValueError(f"target {url!r} is not {FORMS}: the socket's path begins with %2F")
        if len(socket_path.encode()) > SOCKET_PATH_BYTES_MAX:
            raise ValueError(f"target {url!r} names a socket by more than {SOCKET_PATH_BYTES_MAX} bytes: shorten it")
        return Target("", 0, socket_path=socket_path), path
    if scheme not in DEFAULT_PORTS or "@" in authority or "%" in authority:
        raise ValueError(f"target {url!r} is not {FORMS}")
    host, port = split_authority(authority)
    return Target(host, DEFAULT_PORTS[scheme] if port is None else port, tls=scheme == "https"), path


def split_authority(authority: str, *, port_min: int = 1) -> tuple[str, int | None]:
    """`[::1]:80` → `("::1", 80)`, `name` → `("name", None)`. Raises ValueError."""
    if authority.startswith("["):
        host, closed, rest = authority[1:].partition("]")
        right = bool(closed) and ":" in host and (not rest or rest.startswith(":"))
        digits = rest[1:] if rest else None
    else:
        host, colon, tail = authority.partition(":")
        right = ":" not in tail
        digits = tail if colon else None
    if not right or not host:
        raise ValueError(f"{authority!r} is not host:port; an IPv6 address stands in brackets")
    if digits is None:
        return host, None
    if not (digits.isascii() and digits.isdigit()) or not port_min <= int(digits) <= 65_535:
        raise ValueError(f"{authority!r} has no port between {port_min} and 65535")
    return host, int(digits)
