"""Keys, targets and heads as configurable-http-proxy has them. Pure: values in, values out.

What the original does by accident is not repeated: a path that could be read in two ways is refused (`BadPath`), `//x`
is a path and no host, and what is stripped of a path is what was matched.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit

import msgspec

from orrery_router.domain import BadPath, parse_target
from orrery_router.lines import Header, Line
from orrery_router.target import DEFAULT_PORTS, Target

UNIX_SCHEMES: Final = ("http+unix", "unix+http")
API_ROOT: Final = "/api/routes"
KEPT_UNESCAPED: Final = "/:@!$&'()*+,;=~-._"


def key_of(api_path: str) -> str | None:
    """The route's key that an API path names: `/api/routes/user/f%40o/` → `/user/f@o`. None: not below the API's root.

    Raises BadPath for escapes that are none.
    """
    path = _without_dot_segments(api_path.partition("?")[0].partition("#")[0])
    if path != API_ROOT and not path.startswith(f"{API_ROOT}/"):
        return None
    raw = path[len(API_ROOT) :]
    _require_escapes(raw)
    try:
        return clean_key(unquote(raw, errors="strict"))
    except UnicodeDecodeError:
        raise BadPath("the path is not UTF-8") from None


def clean_key(path: str) -> str:
    """Begins with a slash and does not end with one, unless that is all."""
    path = path if path.startswith("/") else f"/{path}"
    return path[:-1] if len(path) > 1 and path.endswith("/") else path


def _without_dot_segments(path: str) -> str:
    """As a URL parser does it (WHATWG): `.` and `..` are gone, in whatever spelling."""
    kept: list[str] = []
    pieces = path.split("/")[1:]
    for number, piece in enumerate(pieces):
        plain = piece.lower().replace("%2e", ".")
        last = number == len(pieces) - 1
        if plain == "..":
            if kept:
                kept.pop()
        elif plain != ".":
            kept.append(piece)
            continue
        if last:
            kept.append("")
    return "/" + "/".join(kept)


def _require_escapes(raw: str) -> None:
    for piece in raw.split("%")[1:]:
        if len(piece) < 2 or not all(c in "0123456789abcdefABCDEF" for c in piece[:2]):
            raise BadPath("the path holds a percent sign that escapes nothing")


def place_of(key: str, *, host_routing: bool) -> tuple[str, str]:
    """Host (in lower case) and prefix of a key. With host routing its first segment is the host; `/` has none."""
    if not host_routing or key == "/":
        return "", "/" if key == "/" else f"{key}/"
    host, _, rest = key[1:].partition("/")
    return host.lower(), f"/{rest}/" if rest else "/"


def key_at(host: str, prefix: str) -> str:
    """The inverse of `place_of`."""
    return clean_key(f"/{host}{prefix}" if host else prefix)


def segments_of(prefix: str) -> tuple[str, ...]:
    """`/user/ada/` → `("user", "ada")`."""
    text = prefix.removeprefix("/").removesuffix("/")
    return tuple(text.split("/")) if text else ()


class Upstream(msgspec.Struct, frozen=True):
    """Where a route leads."""

    target: Target
    """What is connected to."""
    path: bytes
    """Begins with `/`."""
    query: bytes

    @property
    def bare(self) -> bool:
        """Has nothing to be put before a request's path."""
        return self.path == b"/" and not self.query

    @property
    def authority(self) -> bytes:
        """As a Host header names it: without the scheme's own port."""
        target = self.target
        if target.socket_path:
            return b"localhost"
        host = f"[{target.host}]" if ":" in target.host else target.host
        usual = DEFAULT_PORTS["https" if target.tls else "http"]
        return (host if target.port == usual else f"{host}:{target.port}").encode()


def upstream_of(url: str) -> Upstream | None:
    """None for what nothing can be sent to."""
    try:
        split = urlsplit(url)
        if split.scheme in UNIX_SCHEMES:
            target = Target("", 0, socket_path=unquote(split.netloc))
        else:
            usual = DEFAULT_PORTS[split.scheme]
            host = (split.hostname or "").encode("idna").decode()
            target = Target(host, split.port or usual, tls=split.scheme == "https")
    except (ValueError, KeyError):
        return None
    if not target.host and not target.socket_path.startswith("/"):
        return None
    path = quote(split.path or "/", safe=f"{KEPT_UNESCAPED}%").encode()
    return Upstream(target, path, quote(split.query, safe="%/?&=").encode())


class Wanted(msgspec.Struct, frozen=True, gc=False):
    """A request target, taken apart."""

    raw: bytes
    """In origin form."""
    segments: tuple[str, ...]
    """Decoded as a whole and then cut, as the original does: an encoded slash cuts, too."""


def wanted_of(target: bytes) -> Wanted:
    """Raises BadPath for a path that could be read in two ways, and for escapes that are none."""
    path = parse_target(target)
    assert path is not None  # noqa: S101 (everything is below `/`)
    if path.plain:
        return Wanted(target, path.segments)
    _require_escapes(target.partition(b"?")[0].decode("latin-1"))
    return Wanted(target, tuple(part for segment in path.segments for part in segment.split("/")))


def path_for(wanted: Wanted, upstream: Upstream, depth: int, *, include_prefix: bool, prepend_path: bool) -> bytes:
    """What the upstream is asked for. `depth`: segments of the route's prefix. Raises BadPath where the prefix cannot
    be cut off."""
    if include_prefix and (upstream.bare or not prepend_path):
        return wanted.raw
    path, _, query = wanted.raw.partition(b"?")
    if not include_prefix:
        path = _cut(path, depth)
    before = upstream.path if prepend_path else b"/"
    joined = before.removesuffix(b"/") + path
    queries = [q for q in (upstream.query if prepend_path else b"", query) if q]
    return joined + b"?" + b"&".join(queries) if queries else joined


def _cut(path: bytes, depth: int) -> bytes:
    """The path without its first segments, counted as `wanted_of` counts them."""
    pieces = path[1:].split(b"/")
    taken = 0
    while depth > 0 and taken < len(pieces):
        depth -= unquote_to_bytes(pieces[taken]).count(b"/") + 1
        taken += 1
    if depth < 0:
        raise BadPath("the route's prefix ends at an encoded slash")
    return b"/" + b"/".join(pieces[taken:])


TOLD: Final = {b"x-forwarded-for", b"x-forwarded-port", b"x-forwarded-proto", b"x-forwarded-host"}


def forwarded(lines: Iterable[Line], *, address: bytes, host: bytes, scheme: bytes, web: bool) -> list[Header]:
    """`X-Forwarded-*` as they go on: our value after whatever was said before; the host only if nobody named one.
    `web`: no WebSocket, which is told no host."""
    port = host.rpartition(b":")[2] if b":" in host.rpartition(b"]")[2] else b""
    if not port.isdigit():
        port = b"443" if scheme in (b"https", b"wss") else b"80"
    said: dict[bytes, list[bytes]] = {}
    for line in lines:
        if line.value and line.name.lower in TOLD:
            said.setdefault(line.name.lower, []).append(line.value)
    added = []
    for name, value in ((b"x-forwarded-for", address), (b"x-forwarded-port", port), (b"x-forwarded-proto", scheme)):
        before = b", ".join(said.get(name, ()))
        added.append((name, before + b"," + value if before else value))
    named = b", ".join(said.get(b"x-forwarded-host", ())) or (host if web else b"")
    return [*added, (b"x-forwarded-host", named)] if named else added


REDIRECTS: Final = frozenset({201, 301, 302, 307, 308})
"""Whose Location is rewritten."""


def location_for(location: str, upstream: Upstream, host: str, *, auto_rewrite: bool, protocol_rewrite: str) -> str:
    """A redirect's Location as the browser should see it. Only what leads to the target's own host is rewritten."""
    leads_to = upstream_of(location)
    if leads_to is None or leads_to.authority != upstream.authority:
        return location
    split = urlsplit(location)
    scheme = protocol_rewrite.rstrip(":") or split.scheme
    return split._replace(scheme=scheme, netloc=host if auto_rewrite else split.netloc, path=split.path or "/").geturl()


def with_location(lines: bytes, upstream: Upstream, host: bytes, *, auto_rewrite: bool, protocol: str) -> bytes:
    """A response's header lines with its Location rewritten."""
    kept = lines.split(b"\r\n")
    for number, line in enumerate(kept):
        name, colon, value = line.partition(b":")
        if colon and name.lower() == b"location":
            location = location_for(
                value.strip().decode("latin-1"), upstream, host.decode("latin-1"),
                auto_rewrite=auto_rewrite, protocol_rewrite=protocol,
            )  # fmt: skip
            kept[number] = name + b": " + location.encode("latin-1", "replace")
    return b"\r\n".join(kept)
